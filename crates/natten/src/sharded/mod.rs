//! One problem over several devices: each rank has a shard of the tokens, receives the keys and values around it that its queries
//! need, and computes its part of the whole.
//!
//! ```
//! use std::thread;
//! use natten::sharded::{InProcess, Sharded, Whole};
//! use natten::{Call, ElementType, Inputs, Layout, Params, Tensor, na1d};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let x = Tensor::from_fn(&[1, 40, 2, 8], |i| (i as f32 * 0.37).sin())?;
//! let params = Params::new([7]);
//! let whole = {
//!     let layout = Layout::contiguous(x.shape())?;
//!     Whole::new(params, &Inputs::new(layout, layout, layout), ElementType::F32)?
//! };
//! let expected = na1d(&x, &x, &x, &params)?;
//! thread::scope(|scope| {
//!     for exchange in InProcess::group(3).unwrap() {
//!         let (whole, x, expected) = (&whole, &x, &expected);
//!         scope.spawn(move || {
//!             let sharded = Sharded::new(exchange, whole, 0).unwrap();
//!             let own = |tensor: &Tensor<f32>| tensor.view().narrow(1, sharded.tokens()).unwrap().to_tensor();
//!             let shard = own(x);
//!             let out = sharded.forward(&Call::new(&shard, &shard, &shard).unwrap()).unwrap();
//!             let expected = own(expected);
//!             assert!(out.as_slice().iter().zip(expected.as_slice()).all(|(a, b)| (a - b).abs() < 1e-6));
//!         });
//!     }
//! });
//! # Ok(())
//! # }
//! ```
//!
//! What crosses between devices are the halos of keys and values alone, as large as windows are, and for gradients the shares of
//! the same tokens on their way home. Queries whose windows lie inside the shard are computed meanwhile.

use std::ops::Range;
use std::time::Duration;

use natten_core::region::{Part, Split, SplitError, block_tokens};
use natten_core::window::Axis;
use natten_core::{DynParams, ElementType, ExchangeError, Inputs, Layout, Problem, ProblemError, Ranks};

mod error;
mod forward;
mod gradients;
mod halo;
#[cfg(feature = "cpu")]
mod in_process;
mod model;
mod ring;
mod shard;
mod views;

pub use error::ShardedError;
pub use forward::Kept;
pub use halo::Halos;
#[cfg(feature = "cpu")]
pub use in_process::InProcess;
pub use model::{Predicted, Rates, Way};

use model::{predict, takes_ring};
use shard::Shard;

/// A problem as it is before it is split: the parameters, and the shapes of the whole's tensors, which nobody need hold.
#[derive(Clone, Debug)]
pub struct Whole {
    params: DynParams,
    problem: Problem,
}

impl Whole {
    /// The whole of these shapes. Strides are not looked at: shards lie as they lie.
    ///
    /// # Errors
    /// Those of [`Problem::new`].
    pub fn new(
        params: impl Into<DynParams>,
        inputs: &Inputs<Layout>,
        element_type: ElementType,
    ) -> Result<Self, ProblemError> {
        let params = params.into();
        Ok(Whole { params, problem: Problem::new(&params, inputs, element_type)? })
    }

    /// The whole as one device would compute it.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// A rank's part of a problem that is split along one token axis.
///
/// Every rank makes its own from the same whole, axis and settings, and makes the same calls in the same order. Calls run on the
/// backend of their operands, on its stream, and do not wait for the device; [`Sharded::poll`] and [`Sharded::wait`] tell what became
/// of them.
#[derive(Debug)]
pub struct Sharded<X> {
    exchange: X,
    rank: usize,
    whole: Whole,
    split: Split,
    shard: Shard,
    predicted: Predicted,
    way: Way,
}

impl<X: Ranks> Sharded<X> {
    /// The part of this rank of a whole that is cut along `axis` evenly in work, between blocks of queries that share a window
    /// ([`block_tokens`]).
    ///
    /// # Errors
    /// Those of [`Split::new`].
    pub fn new(exchange: X, whole: &Whole, axis: usize) -> Result<Self, ShardedError> {
        let split = Split::new(&whole.problem, exchange.ranks(), &[axis])?;
        Self::of_split(exchange, whole, split, axis)
    }

    /// The part of this rank of a whole that lies cut along `axis` already: the shard of each rank ends at its number of `ends`.
    /// Shards may be of any lengths, shorter than windows and empty too.
    ///
    /// # Errors
    /// Those of [`Split::at`]; [`ShardedError::Parts`].
    pub fn at(exchange: X, whole: &Whole, axis: usize, ends: &[usize]) -> Result<Self, ShardedError> {
        let (parts, ranks) = (ends.len(), exchange.ranks());
        if parts != ranks {
            return Err(ShardedError::Parts { parts, ranks });
        }
        let split = Split::at(&whole.problem, axis, ends)?;
        Self::of_split(exchange, whole, split, axis)
    }

    fn of_split(exchange: X, whole: &Whole, split: Split, axis: usize) -> Result<Self, ShardedError> {
        let (rank, ranks) = (exchange.rank(), exchange.ranks());
        if rank >= ranks {
            return Err(SplitError::Rank { rank, ranks }.into());
        }
        let grid = block_tokens(&whole.problem)[axis];
        let shard = Shard::of(&split, rank, (axis, whole.axis(axis)), grid);
        let (whole, predicted, way) = (whole.clone(), Predicted { halo: 0.0, ring: None }, Way::Halo);
        Sharded { exchange, rank, whole, split, shard, predicted, way }.rates(&Rates::default())
    }

    /// The same with the way of keys and values chosen for a device and a link of these rates, which must be the same on every
    /// rank. It is a choice only where windows reach over all of the axis without dilation.
    ///
    /// # Errors
    /// [`ShardedError::Rate`] for a rate that is no positive number.
    pub fn rates(self, rates: &Rates) -> Result<Self, ShardedError> {
        rates.check()?;
        let axis = self.shard.axis;
        let whole = self.whole.axis(axis);
        let grid = block_tokens(&self.whole.problem)[axis];
        let interior = |rank| Shard::of(&self.split, rank, (axis, whole), grid).interior.len();
        let interiors: Vec<usize> = (0..self.split.parts().len()).map(interior).collect();
        let predicted = predict(&self.whole.problem, &self.split, (axis, whole, &interiors), rates);
        Ok(Sharded { predicted, way: predicted.way(), ..self })
    }

    /// The same with keys and values going this way, whatever is predicted; on every rank.
    ///
    /// # Errors
    /// [`ShardedError::NoRing`].
    pub fn by(self, way: Way) -> Result<Self, ShardedError> {
        let axis = self.shard.axis;
        match way {
            Way::Ring if !takes_ring(self.whole.axis(axis)) => Err(ShardedError::NoRing { axis }),
            way => Ok(Sharded { way, ..self }),
        }
    }

    /// How keys and values reach the queries that need them.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Seconds that a forward is predicted to take on the slowest rank: what the way was chosen by, unless it was said.
    pub fn predicted(&self) -> Predicted {
        self.predicted
    }

    /// The same with queries that need halos told from others at multiples of so many tokens of the whole, instead of those of
    /// [`block_tokens`]: tiles of a backend that begin there are full. Where shards and this lie on a backend's grain, as of
    /// `Cpu::grain`, outputs have the whole's bits.
    ///
    /// # Errors
    /// [`SplitError::Grid`] for 0.
    pub fn grid(self, tokens: usize) -> Result<Self, ShardedError> {
        if tokens == 0 {
            let rank = self.whole.problem.rank();
            return Err(SplitError::Grid { found: vec![tokens], rank }.into());
        }
        let axis = self.shard.axis;
        let shard = Shard::of(&self.split, self.rank, (axis, self.whole.axis(axis)), tokens);
        Ok(Sharded { shard, ..self })
    }

    /// The tokens of the split axis that this rank has: its queries, and the keys and values that it is to be given.
    pub fn tokens(&self) -> Range<usize> {
        self.shard.own.clone()
    }

    /// The queries among them that need no other rank's keys, and are computed while these arrive.
    pub fn interior(&self) -> Range<usize> {
        self.shard.interior.clone()
    }

    /// This rank's part of the split: what it computes, and what it sends and receives of keys and values.
    pub fn part(&self) -> &Part {
        &self.split.parts()[self.rank]
    }

    /// The keys that its queries need, its own among them.
    fn keys_needed(&self) -> Range<usize> {
        self.part().keys[self.shard.axis].clone()
    }

    /// Bytes of keys and values that this rank receives in a forward; in a backward as many again, as gradients, go back.
    pub fn halo_bytes(&self) -> u64 {
        self.part().receives.iter().map(|received| received.bytes).fold(0, u64::saturating_add)
    }

    /// How this rank reaches the others.
    pub fn exchange(&self) -> &X {
        &self.exchange
    }

    /// Whether all transfers that this rank has begun are done, and with them all that could wait for another rank. Never waits.
    ///
    /// # Errors
    /// As [`Ranks::poll`].
    pub fn poll(&self) -> Result<bool, ExchangeError> {
        self.exchange.poll()
    }

    /// Waits until all transfers that this rank has begun are done, no longer than `timeout`.
    ///
    /// # Errors
    /// As [`Ranks::wait`].
    pub fn wait(&self, timeout: Duration) -> Result<(), ExchangeError> {
        self.exchange.wait(timeout)
    }
}

impl Whole {
    fn axis(&self, axis: usize) -> &Axis {
        &self.problem.axes()[3 - self.problem.rank() + axis]
    }
}
