//! Ranks that are threads of one process: an exchange of host tensors through a mailbox that they share.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use natten_core::exchange::{Message, MessagesOn, check_messages};
use natten_core::region::{MAX_RANKS, SplitError};
use natten_core::{Element, Exchange, ExchangeError, InputElement, Ranks, Tensor, TensorView};
use natten_cpu::Cpu;

/// How long a rank waits for a message unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// One rank of several in a process, each in a thread of its own.
///
/// A message is a copy that waits in the receiver's mailbox, so sending never waits, and a rank that works while messages arrive
/// has them when it is done. That a call waits for what it receives is all the synchronising there is: `poll` and `wait` have nothing
/// to wait for.
///
/// A rank that is dropped is gone: a rank that needs a message which it had not sent gets [`ExchangeError::Lost`]. A call that fails,
/// for that reason or another, is told to all ranks, and none of them can go on.
#[derive(Debug)]
pub struct InProcess {
    rank: usize,
    group: Arc<Group>,
    patience: Duration,
    /// Bytes received so far; a rank is used by one thread at a time.
    received_bytes: Cell<u64>,
}

#[derive(Debug)]
struct Group {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What was sent and not yet received, from rank `i` to rank `j` at `i * ranks + j`.
    mail: Vec<VecDeque<Box<dyn Any + Send>>>,
    is_gone: Vec<bool>,
    /// The rank whose call failed first, and how.
    failed: Option<(usize, String)>,
}

impl InProcess {
    /// So many ranks that reach each other, each to be moved to its thread. They wait a minute for a message.
    ///
    /// # Errors
    /// [`SplitError::NoRanks`] and [`SplitError::TooManyRanks`].
    pub fn group(ranks: usize) -> Result<Vec<Self>, SplitError> {
        if ranks == 0 {
            return Err(SplitError::NoRanks);
        }
        if ranks > MAX_RANKS {
            return Err(SplitError::TooManyRanks { ranks, max: MAX_RANKS });
        }
        let mail = (0..ranks * ranks).map(|_| VecDeque::new()).collect();
        let state = Mutex::new(State { mail, is_gone: vec![false; ranks], failed: None });
        let group = Arc::new(Group { ranks, state, changed: Condvar::new() });
        let of_rank =
            |rank| InProcess { rank, group: group.clone(), patience: PATIENCE, received_bytes: Cell::new(0) };
        Ok((0..ranks).map(of_rank).collect())
    }

    /// The same rank, which waits so long for a message before it gives up.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Bytes that this rank has received.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }

    /// The lock of what ranks share. A rank that panicked while it had it left no half-made change: each is one push or pop.
    fn state(&self) -> MutexGuard<'_, State> {
        self.group.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_usable(&self, state: &State) -> Result<(), ExchangeError> {
        let rank = self.rank;
        match &state.failed {
            None => Ok(()),
            Some((failed, reason)) if *failed == rank => {
                Err(ExchangeError::Unusable { rank, reason: reason.clone() })
            }
            Some((failed, _)) => Err(ExchangeError::FailedElsewhere { rank, failed: *failed }),
        }
    }

    /// Tells all ranks that this one has failed, unless another has before.
    fn fail(&self, error: ExchangeError) -> ExchangeError {
        self.state().failed.get_or_insert_with(|| (self.rank, error.to_string()));
        self.group.changed.notify_all();
        error
    }

    fn send<E: InputElement>(&self, sends: &[Message<TensorView<'_, E>>]) -> Result<(), ExchangeError> {
        let copies: Vec<_> = sends.iter().map(|message| (message.rank, message.view.to_tensor())).collect();
        let mut state = self.state();
        self.expect_usable(&state)?;
        for (other, copy) in copies {
            state.mail[self.rank * self.group.ranks + other].push_back(Box::new(copy));
        }
        self.group.changed.notify_all();
        Ok(())
    }

    /// The next message of another rank, waited for until `deadline`.
    fn receive(&self, other: usize, began: Instant) -> Result<Box<dyn Any + Send>, ExchangeError> {
        let rank = self.rank;
        let mut state = self.state();
        loop {
            if let Some(message) = state.mail[other * self.group.ranks + rank].pop_front() {
                return Ok(message);
            }
            self.expect_usable(&state)?;
            if state.is_gone[other] {
                return Err(ExchangeError::Lost { rank, lost: other });
            }
            let waited = began.elapsed();
            let Some(left) = self.patience.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return Err(ExchangeError::TimedOut { rank, other: Some(other), waited });
            };
            let waiting = self.group.changed.wait_timeout(state, left);
            state = waiting.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A message as the tensor that is expected.
    fn opened<E: InputElement>(
        &self,
        other: usize,
        sent: Box<dyn Any + Send>,
        shape: &[usize],
    ) -> Result<Box<Tensor<E>>, ExchangeError> {
        let mismatch = |found: String| ExchangeError::Message {
            rank: self.rank,
            other,
            expected: format!("{shape:?} of {}", E::ELEMENT_TYPE),
            found,
        };
        let sent = sent.downcast::<Tensor<E>>().map_err(|_| mismatch("another element type".to_owned()))?;
        if sent.shape() == shape { Ok(sent) } else { Err(mismatch(format!("{:?}", sent.shape()))) }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let rank = self.rank;
        let mut state = self.state();
        state.is_gone[rank] = true;
        if std::thread::panicking() {
            state.failed.get_or_insert_with(|| (rank, "its thread panicked".to_owned()));
        }
        drop(state);
        self.group.changed.notify_all();
    }
}

impl Ranks for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.group.ranks
    }

    fn poll(&self) -> Result<bool, ExchangeError> {
        self.expect_usable(&self.state())?;
        Ok(true)
    }

    fn wait(&self, _: Duration) -> Result<(), ExchangeError> {
        self.expect_usable(&self.state())
    }
}

impl Exchange<Cpu> for InProcess {
    fn exchange<E: Element, R>(
        &self,
        _: &Cpu,
        messages: MessagesOn<'_, Cpu, E>,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<R, ExchangeError> {
        check_messages::<Cpu, E>(&messages, self.rank, self.group.ranks)?;
        self.send(&messages.sends)?;
        let result = meanwhile();
        let began = Instant::now();
        for Message { rank: other, mut view } in messages.receives {
            let sent =
                self.receive(other, began).and_then(|sent| self.opened::<E>(other, sent, view.shape()));
            let sent = sent.map_err(|error| self.fail(error))?;
            self.received_bytes.set(self.received_bytes.get() + size_of_val(sent.as_slice()) as u64);
            // Of one shape, as has just been seen.
            let _ = view.copy_from(&sent.view());
        }
        Ok(result)
    }
}
