//! What orders a kernel's work: dropped, moved, waiting for less, for another phase, for other bytes.

use super::Change;
use super::site::{Place, Site};
use crate::inst::*;
use crate::ptx::ast::RegClass;

const DROPPED: &str = "barrier dropped";

/// `furthest` tells where the instruction can move, forwards or backwards.
pub(super) fn edits(site: &mut Site, furthest: &dyn Fn(bool) -> Option<usize>) {
    match site.inst.op {
        Op::Bar(_) | Op::WarpSync | Op::Fence(_) | Op::WgmmaFence => {
            site.drop_it(DROPPED);
            moved(site, furthest);
        }
        Op::CpCommit | Op::WgmmaCommit | Op::BulkCommit | Op::CpWaitAll => {
            site.drop_it(DROPPED);
            moved(site, furthest);
        }
        Op::CpWait | Op::WgmmaWait | Op::BulkWait { .. } => {
            site.drop_it(DROPPED);
            moved(site, furthest);
            site.change("wait count", "one group less", |inst| inst.imm += 1);
        }
        Op::CpAsync { bytes, ignore: false, .. } if site.inst.b != NONE => {
            let whole = (RegClass::Word, u64::from(bytes));
            site.put("copy source size", "always whole", Place::B, whole);
            site.put("copy source size", "always zeros", Place::B, (RegClass::Word, 0));
        }
        Op::Tcgen05(
            Tcgen05::WaitLoad
            | Tcgen05::WaitStore
            | Tcgen05::Commit { .. }
            | Tcgen05::FenceBeforeThreadSync
            | Tcgen05::FenceAfterThreadSync,
        ) => {
            site.drop_it(DROPPED);
            moved(site, furthest);
        }
        Op::CpMbarrierArrive { .. } => site.drop_it(DROPPED),
        Op::Mbarrier(kind, _) => mbarrier(site, kind, furthest),
        Op::Bulk(bulk) if bulk.rank == 0 => {
            bytes(site, Place::B);
        }
        Op::SetMaxNReg { increase } => {
            // Only what asks for registers that are not there. With fewer than it could have a kernel computes the same, or
            // the assembler refuses it.
            if !increase {
                site.drop_it("registers given");
            }
            site.change("registers given", "8 more", |inst| inst.imm += 8);
        }
        Op::Load(access) if access.strength == Strength::Acquire => {
            let weaker = Access { strength: Strength::Relaxed, ..access };
            site.operation(DROPPED, Op::Load(weaker));
        }
        Op::Store(access) if access.strength == Strength::Release => {
            let weaker = Access { strength: Strength::Relaxed, ..access };
            site.operation(DROPPED, Op::Store(weaker));
        }
        Op::Atom(atomic) if atomic.strength != Strength::Relaxed => {
            site.operation(DROPPED, Op::Atom(Atomic { strength: Strength::Relaxed, ..atomic }));
        }
        _ => {}
    }
}

fn moved(site: &mut Site, furthest: &dyn Fn(bool) -> Option<usize>) {
    for (forwards, to) in [(true, "behind the accesses that follow"), (false, "before those that precede")] {
        if let Some(place) = furthest(forwards) {
            let change = Change { place: Some(place), ..site.unchanged() };
            site.add("barrier moved", to, change);
        }
    }
}

fn mbarrier(site: &mut Site, kind: Mbar, furthest: &dyn Fn(bool) -> Option<usize>) {
    match kind {
        Mbar::Wait { parity } => {
            let d = site.inst.d;
            let mut change = site.unchanged();
            let a = site.fresh_constant(RegClass::Pred);
            change.inst = Inst { op: Op::MovPred, d, a, b: NONE, c: NONE, imm: 0, ..change.inst };
            change.constants.push((RegClass::Pred, 1));
            site.add(DROPPED, "it never waits", change);
            if parity {
                let flip = (Place::C, Op::Int2(Int2::Xor, IntTy::W32), 1);
                site.combine("parity", "the other phase", flip);
            }
        }
        Mbar::Arrive { expect, .. } => {
            site.drop_it(DROPPED);
            moved(site, furthest);
            if expect {
                bytes(site, Place::B);
            }
        }
        Mbar::ExpectTx | Mbar::CompleteTx => {
            site.drop_it(DROPPED);
            bytes(site, Place::B);
        }
        _ => {}
    }
}

fn bytes(site: &mut Site, place: Place) {
    let add = Op::Int2(Int2::Add, IntTy::W32);
    site.combine("byte count", "16 more", (place, add, 16));
    site.combine("byte count", "16 less", (place, add, -16i32 as u32 as u64));
    site.combine("byte count", "twice that", (place, Op::Int2(Int2::Shl, IntTy::W32), 1));
}
