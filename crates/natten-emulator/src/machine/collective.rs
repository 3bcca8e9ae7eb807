//! Exchange between the lanes of a warp: shuffles, votes, matches, reductions, election.

use super::cta::Cta;
use super::execute::Flow;
use super::warp::{Wait, Warp};
use crate::fault::{Exec, FaultKind};
use crate::inst::{Inst, Op, Redux, Shuffle, Vote};
use crate::scalar::{Lanes, mask_of};

impl Cta<'_> {
    pub(super) fn collective(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        if i.op == Op::ActiveMask {
            w.regs.set_word(i.d, m, &[m; 32]);
            return Ok(Flow::Next);
        }
        let kernel = self.kernel;
        let list = kernel.list(i);
        let mask_slot = match i.op {
            Op::Shfl(_) => list[1],
            Op::Elect | Op::WarpSync => i.a,
            _ => i.b,
        };
        let members = match member_mask(w.regs.word(mask_slot), m, w.live)? {
            members if members & !m == 0 => members,
            members => return Ok(Flow::Wait(Wait::Lanes(members))),
        };
        match i.op {
            Op::Shfl(mode) => shuffle(w, i, m, mode, list[0]),
            Op::Vote(vote) => ballot(w, i, m, vote, members),
            Op::MatchAny { wide } | Op::MatchAll { wide } => {
                let value = |w: &Warp, l: usize| {
                    if wide { w.regs.wide(i.a)[l] } else { u64::from(w.regs.word(i.a)[l]) }
                };
                let same: Lanes = std::array::from_fn(|l| mask_of(|k| value(w, k) == value(w, l)) & members);
                if matches!(i.op, Op::MatchAll { .. }) {
                    let all = same[m.trailing_zeros() as usize & 31] == members;
                    w.regs.set_word(i.d, m, &[if all { members } else { 0 }; 32]);
                    w.regs.set_pred(list[0], m, if all { !0 } else { 0 });
                } else {
                    w.regs.set_word(i.d, m, &same);
                }
            }
            Op::Redux(op) => {
                let a = w.regs.word(i.a);
                let values = (0..32).filter(|l| members >> l & 1 == 1).map(|l| a[l]);
                let result = match op {
                    Redux::Add => values.fold(0, u32::wrapping_add),
                    Redux::MinU => values.fold(!0, u32::min),
                    Redux::MaxU => values.fold(0, u32::max),
                    Redux::MinS => values.fold(i32::MAX, |x, y| x.min(y as i32)) as u32,
                    Redux::MaxS => values.fold(i32::MIN, |x, y| x.max(y as i32)) as u32,
                    Redux::And => values.fold(!0, |x, y| x & y),
                    Redux::Or => values.fold(0, |x, y| x | y),
                    Redux::Xor => values.fold(0, |x, y| x ^ y),
                };
                w.regs.set_word(i.d, m, &[result; 32]);
            }
            Op::WarpSync => {
                if let Some(races) = &mut self.races {
                    races.lanes_met(w.id);
                }
            }
            Op::Elect => {
                let leader = members.trailing_zeros() & 31;
                w.regs.set_word(i.d, m, &[leader; 32]);
                w.regs.set_pred(list[0], m, 1 << leader);
            }
            _ => {}
        }
        Ok(Flow::Next)
    }
}

/// The lanes that must take part. Each executing lane must name itself, and all must agree.
fn member_mask(masks: &Lanes, m: u32, live: u32) -> Exec<u32> {
    let first = m.trailing_zeros() as usize & 31;
    let members = masks[first];
    for lane in (0..32).filter(|l| m >> l & 1 == 1) {
        if masks[lane] != members || members >> lane & 1 == 0 {
            let what = "member mask that lacks an executing lane or differs between lanes";
            return Err(FaultKind::InvalidOperand { what, got: u64::from(masks[lane]) }.lane(lane));
        }
    }
    Ok(members & live)
}

/// The lane that a lane takes from in `shfl.sync`, itself where that one is out of range, and whether it is in range: c holds
/// the clamp in bits 0-4 and the segment mask in bits 8-12.
pub(crate) fn source_lane(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (offset, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let highest = lane & segment | clamp & !segment;
    let lowest = lane & segment;
    let (source, in_range) = match mode {
        Shuffle::Up => {
            let j = lane as i32 - offset as i32;
            (j, j >= highest as i32)
        }
        Shuffle::Down => ((lane + offset) as i32, lane + offset <= highest),
        Shuffle::Butterfly => ((lane ^ offset) as i32, lane ^ offset <= highest),
        Shuffle::Index => {
            let j = lowest | offset & !segment;
            (j as i32, j <= highest)
        }
    };
    (if in_range { source as u32 & 31 } else { lane }, in_range)
}

fn shuffle(w: &mut Warp, i: &Inst, m: u32, mode: Shuffle, p: u32) {
    let (a, b, c) = (w.regs.word(i.a), w.regs.word(i.b), w.regs.word(i.c));
    let mut valid = 0u32;
    let mut result: Lanes = [0; 32];
    for lane in 0..32u32 {
        let l = lane as usize;
        let (source, in_range) = source_lane(mode, lane, b[l], c[l]);
        valid |= u32::from(in_range) << lane;
        result[l] = a[source as usize];
    }
    w.regs.set_word(i.d, m, &result);
    w.regs.set_pred(p, m, valid);
}

fn ballot(w: &mut Warp, i: &Inst, m: u32, vote: Vote, members: u32) {
    let p = w.regs.pred(i.a) ^ if i.imm != 0 { !0 } else { 0 };
    let set = p & members;
    let spread = |b: bool| if b { !0 } else { 0 };
    match vote {
        Vote::Ballot => w.regs.set_word(i.d, m, &[set; 32]),
        Vote::All => w.regs.set_pred(i.d, m, spread(set == members)),
        Vote::Any => w.regs.set_pred(i.d, m, spread(set != 0)),
        Vote::Uniform => w.regs.set_pred(i.d, m, spread(set == 0 || set == members)),
    }
}
