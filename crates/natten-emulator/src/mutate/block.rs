//! Straight runs of instructions, which barriers can be moved in.

use crate::inst::{Op, Space, Tcgen05};
use crate::module::Kernel;

/// For each instruction, whether something jumps there.
pub(super) fn targets(kernel: &Kernel) -> Vec<bool> {
    let mut is_target = vec![false; kernel.code.len() + 1];
    let jumps = kernel.code.iter().filter_map(|inst| match inst.op {
        Op::Bra(target) => Some(target),
        _ => None,
    });
    jumps.chain(kernel.tables.iter().flatten().copied()).for_each(|target| is_target[target as usize] = true);
    is_target
}

/// The last place to which the instruction can move within its block past accesses that it orders; `None` if there are
/// none. Forwards or backwards.
pub(super) fn furthest(kernel: &Kernel, targets: &[bool], at: usize, forwards: bool) -> Option<usize> {
    let mut place = at;
    let mut last = None;
    loop {
        let next = if forwards { place + 1 } else { place.checked_sub(1)? };
        // Moving over the head of a block, either way, would change what jumps there run.
        let crosses = if forwards { targets[next] } else { targets[place] };
        let Some(op) = kernel.code.get(next).map(|inst| inst.op) else { return last };
        if crosses || is_sync(op) || matches!(op, Op::Bra(_) | Op::BrxIdx | Op::Exit | Op::Trap) {
            return last;
        }
        place = next;
        if is_ordered(op) {
            last = Some(place);
        }
        if !forwards && place == 0 {
            return last;
        }
    }
}

/// Orders other instructions.
fn is_sync(op: Op) -> bool {
    use Op::{Bar, BulkCommit, BulkWait, CpCommit, CpWait, CpWaitAll, Fence, Mbarrier, WarpSync};
    use Op::{WgmmaCommit, WgmmaFence, WgmmaWait};
    matches!(op, Bar(_) | WarpSync | Fence(_) | CpCommit | CpWait | CpWaitAll | Mbarrier(..) | BulkCommit)
        || matches!(op, BulkWait { .. } | WgmmaFence | WgmmaCommit | WgmmaWait)
        || matches!(op, Op::Tcgen05(operation) if !is_access(operation))
}

/// Works on tensor memory.
fn is_access(operation: Tcgen05) -> bool {
    matches!(operation, Tcgen05::Mma(_) | Tcgen05::Load(_) | Tcgen05::Store(_))
}

/// What barriers order: accesses of shared memory and asynchronous work.
fn is_ordered(op: Op) -> bool {
    match op {
        Op::Load(access) | Op::Store(access) => access.space == Space::Shared,
        Op::Atom(atomic) => atomic.space == Space::Shared,
        Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::CpAsync { .. } | Op::Bulk(_) | Op::Wgmma(_) => true,
        Op::Tcgen05(operation) => is_access(operation),
        _ => false,
    }
}
