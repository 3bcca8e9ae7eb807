//! What ranks that share one problem need of each other: tensors sent and received, and failures that are told.
//!
//! A *rank* is one of several that compute parts of one problem, each with its own device, in a thread or a process of its own.
//! [`Exchange`] is how it reaches the others. Calls of an exchange are collective: every rank makes the same ones in the same
//! order, and what one rank sends another it sends in the order in which the other receives it.

use std::time::Duration;

use crate::backend::Backend;
use crate::element::{Element, InputElement};

/// One tensor on its way between this rank and another.
#[derive(Clone, Debug)]
pub struct Message<V> {
    /// The other rank.
    pub rank: usize,
    /// A contiguous view: of what is sent, or of where it goes.
    pub view: V,
}

/// What a rank sends and receives at once.
#[derive(Clone, Debug)]
pub struct Messages<S, R> {
    /// What goes out. Of those to one rank the first is the first that it receives from here.
    pub sends: Vec<Message<S>>,
    /// Where to put what comes in.
    pub receives: Vec<Message<R>>,
}

/// The messages of an exchange on a backend.
pub type MessagesOn<'a, B, E> = Messages<<B as Backend>::View<'a, E>, <B as Backend>::ViewMut<'a, E>>;

impl<S, R> Default for Messages<S, R> {
    fn default() -> Self {
        Messages { sends: Vec::new(), receives: Vec::new() }
    }
}

impl<S, R> Messages<S, R> {
    /// Whether nothing goes either way.
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.receives.is_empty()
    }
}

/// Holds messages against what every exchange asks of them: another rank that there is, and contiguous views.
///
/// # Errors
/// [`ExchangeError::Rank`] and [`ExchangeError::NotContiguous`] with the first that is not so.
pub fn check_messages<B: Backend, E: InputElement>(
    messages: &MessagesOn<'_, B, E>,
    rank: usize,
    ranks: usize,
) -> Result<(), ExchangeError> {
    let sends = messages.sends.iter().map(|message| (message.rank, B::layout::<E>(&message.view)));
    let receives = messages.receives.iter().map(|message| (message.rank, B::layout_mut::<E>(&message.view)));
    for (other, layout) in sends.chain(receives) {
        if other >= ranks || other == rank {
            return Err(ExchangeError::Rank { found: other, rank, ranks });
        }
        if !layout.is_contiguous() {
            return Err(ExchangeError::NotContiguous { rank, other });
        }
    }
    Ok(())
}

/// One of the ranks that share a problem.
///
/// On a device that runs behind the host a call queues its transfers and returns; what fails then shows at [`Ranks::poll`] and
/// [`Ranks::wait`]. One that has failed stays so: which messages are still under way cannot be known, so every later call is an
/// error.
pub trait Ranks {
    /// Which of the ranks this is, counted from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// Whether all transfers that this rank has begun are done, and with them all that could wait for another rank. Never waits.
    ///
    /// # Errors
    /// When an earlier call failed, here or, as far as it is known, on another rank.
    fn poll(&self) -> Result<bool, ExchangeError>;

    /// Waits until all transfers that this rank has begun are done, no longer than `timeout`.
    ///
    /// # Errors
    /// As [`Ranks::poll`]; [`ExchangeError::TimedOut`].
    fn wait(&self, timeout: Duration) -> Result<(), ExchangeError>;
}

/// A rank's way to the others, for tensors of a backend.
pub trait Exchange<B: Backend>: Ranks {
    /// Sends and receives, and does `meanwhile` while that goes on.
    ///
    /// What is sent is read after all work that `backend` was given before; work that it is given after this call sees what
    /// was received. In between, and so in `meanwhile`, nobody may write what is sent or read what is received, which the
    /// borrows see to. All messages go at once, so that no order of them, and no number of neighbours, can lock ranks up.
    ///
    /// # Errors
    /// [`ExchangeError`]. What was to be received may hold anything then. `meanwhile` may have been done or not.
    fn exchange<E: Element, R>(
        &self,
        backend: &B,
        messages: MessagesOn<'_, B, E>,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<R, ExchangeError>;
}

/// Why ranks could not reach each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// A message to or from a rank that there is not, or to this rank itself.
    #[error("rank {rank} of {ranks} exchanges with rank {found}")]
    Rank {
        /// The other rank asked for.
        found: usize,
        /// This rank.
        rank: usize,
        /// How many there are.
        ranks: usize,
    },
    /// A view that is sent or received is not contiguous.
    #[error("rank {rank}: a message to or from rank {other} is not contiguous")]
    NotContiguous {
        /// This rank.
        rank: usize,
        /// The other one.
        other: usize,
    },
    /// Another rank has gone, and what this one waits for will never come.
    #[error("rank {lost} is gone, rank {rank} waits for it in vain")]
    Lost {
        /// This rank.
        rank: usize,
        /// The one that is gone.
        lost: usize,
    },
    /// A call failed on another rank, so that ranks no longer agree on what has been sent.
    #[error("rank {failed} failed, which rank {rank} has learned")]
    FailedElsewhere {
        /// This rank.
        rank: usize,
        /// The one whose call failed first.
        failed: usize,
    },
    /// What was waited for did not happen in time.
    #[error("rank {rank} waited {} ms{}", .waited.as_millis(), of_rank(.other))]
    TimedOut {
        /// This rank.
        rank: usize,
        /// The one that was waited for, where it is known.
        other: Option<usize>,
        /// How long it waited.
        waited: Duration,
    },
    /// Ranks disagree on what is sent: they do not share one problem.
    #[error("rank {rank} expects {expected} from rank {other}, which sent {found}")]
    Message {
        /// This rank.
        rank: usize,
        /// The sender.
        other: usize,
        /// Elements or bytes, and of what.
        expected: String,
        /// What came.
        found: String,
    },
    /// An earlier call of this exchange failed.
    #[error("rank {rank} cannot be used any more: {reason}")]
    Unusable {
        /// This rank.
        rank: usize,
        /// The earlier failure.
        reason: String,
    },
    /// The library that moves the tensors is not on this machine.
    #[error("{library} is not on this machine: {reason}")]
    NoLibrary {
        /// As it is known.
        library: &'static str,
        /// What was looked for, or what it lacks.
        reason: String,
    },
    /// The device, or the library that moves the tensors, refused.
    #[error("{operation}: {source}")]
    Device {
        /// What was tried.
        operation: &'static str,
        /// Its own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn of_rank(other: &Option<usize>) -> String {
    other.map_or_else(String::new, |other| format!(" for rank {other}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_says_for_whom() {
        let waited = Duration::from_millis(1500);
        let error = ExchangeError::TimedOut { rank: 1, other: Some(2), waited };
        assert_eq!(error.to_string(), "rank 1 waited 1500 ms for rank 2");
    }
}
