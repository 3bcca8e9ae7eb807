//! `tcgen05`: the tensor core of data-center Blackwell and the memory that it works in, for one CTA.
//!
//! Tensor memory has 128 lanes of 512 columns of 32 bits. A warp allocates columns; loads and stores move them to and
//! from registers, each warp of a warpgroup in its own quarter of the lanes; one thread issues an `mma`, which reads its
//! matrices from shared memory, or A from tensor memory, and accumulates into tensor memory.
//!
//! All three are asynchronous. Loads and stores act when they are issued here, since nothing may look at what they do
//! before it was waited for: that is a fault. An `mma` takes effect at any time up to the arrival of a commit behind it,
//! sixteen lanes at a time.

pub(crate) mod allocation;
pub(crate) mod cells;
pub(crate) mod commit;
mod descriptor;
pub(crate) mod loading;
mod mma;
mod movement;
mod sum;

use crate::fault::{Exec, FaultKind, TensorMemoryProblem};
use crate::inst::{Inst, Tcgen05};
use crate::machine::cta::Cta;
use crate::machine::execute::Flow;
use crate::machine::warp::{Wait, Warp};
use crate::scalar::Lanes;
use allocation::Allocations;
use cells::Cells;
use mma::Queue;

/// A CTA's tensor memory, and what is on its way there.
#[derive(Debug, Default)]
pub(crate) struct TensorMemory {
    pub cells: Cells,
    pub allocations: Allocations,
    pub mmas: Queue,
}

impl TensorMemory {
    pub(crate) fn reset(&mut self, check_initialised: bool) {
        self.cells.reset(check_initialised);
        self.allocations = Allocations::default();
        self.mmas = Queue::default();
    }
}

fn fault(problem: TensorMemoryProblem) -> FaultKind {
    FaultKind::TensorMemory { problem }
}

/// An operand that the lanes of a whole warp share.
fn uniform(values: &Lanes) -> Result<u32, FaultKind> {
    match values.iter().all(|value| *value == values[0]) {
        true => Ok(values[0]),
        false => Err(fault(TensorMemoryProblem::OperandsDiffer)),
    }
}

impl Cta<'_> {
    pub(crate) fn tcgen05(&mut self, w: &mut Warp, i: &Inst, m: u32, operation: Tcgen05) -> Exec<Flow> {
        let is_of_threads = matches!(
            operation,
            Tcgen05::Mma(_)
                | Tcgen05::Commit { .. }
                | Tcgen05::FenceBeforeThreadSync
                | Tcgen05::FenceAfterThreadSync
        );
        if !is_of_threads && m != w.live {
            return Ok(Flow::Wait(Wait::Lanes(w.live)));
        }
        if !is_of_threads && m != !0 {
            return Err(fault(TensorMemoryProblem::IncompleteWarp).into());
        }
        match operation {
            Tcgen05::Alloc { wide_address } => return self.tensor_alloc(w, i, wide_address),
            Tcgen05::Dealloc => self.tensor_dealloc(w, i)?,
            Tcgen05::RelinquishAllocPermit => self.tensor_memory.allocations.relinquish(),
            Tcgen05::Mma(mma) => self.issue_mma(w, i, m, mma)?,
            Tcgen05::Load(movement) => self.tensor_load(w, i, movement)?,
            Tcgen05::Store(movement) => self.tensor_store(w, i, movement)?,
            Tcgen05::WaitLoad => {
                w.loading.waited();
                if let Some(races) = &mut self.races {
                    races.tensor.waited(w.id, false);
                }
            }
            Tcgen05::WaitStore => {
                if let Some(races) = &mut self.races {
                    races.tensor.waited(w.id, true);
                }
            }
            Tcgen05::Commit { wide_address } => self.tensor_commit(w, i, m, wide_address)?,
            Tcgen05::FenceBeforeThreadSync => {
                if let Some(races) = &mut self.races {
                    races.tensor.fence_before(w.id);
                }
            }
            Tcgen05::FenceAfterThreadSync => {
                if let Some(races) = &mut self.races {
                    races.tensor.fence_after(w.id);
                }
            }
        }
        Ok(Flow::Next)
    }
}
