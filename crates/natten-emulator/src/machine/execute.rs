//! Dispatch: one instruction of one warp.

use super::cta::Cta;
use super::warp::{Wait, Warp};
use crate::fault::{Exec, FaultKind};
use crate::inst::*;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::scalar::{Lanes, compare, convert, float, half, int, map, map2, map3, mask_of};

/// Where a warp goes after an instruction.
#[derive(Debug)]
pub(crate) enum Flow {
    Next,
    /// Every lane to a target of its own.
    Jump(Box<[u32; 32]>),
    /// The instruction did not happen yet: try again when the wait is over.
    Wait(Wait),
    /// It happened, but polled in vain.
    Yield,
}

impl Cta<'_> {
    #[inline]
    pub(super) fn execute(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        let r = &mut w.regs;
        match i.op {
            Op::Nop | Op::Nanosleep | Op::Bra(_) | Op::Exit => {}
            Op::Trap => return Err(FaultKind::Trap.into()),
            Op::Mov32 => {
                let value = *r.word(i.a);
                r.set_word(i.d, m, &value);
            }
            Op::Mov64 => {
                let value = *r.wide(i.a);
                r.set_wide(i.d, m, &value);
            }
            Op::Int1(op, IntTy::W64) => wide_to_any(w, i, m, op),
            Op::Int1(op, ty) => {
                let value = int::unary(op, ty, r.word(i.a));
                r.set_word(i.d, m, &value);
            }
            Op::Int2(op, IntTy::W32) => {
                let value = int::binary32(op, r.word(i.a), r.word(i.b));
                r.set_word(i.d, m, &value);
            }
            Op::Int2(op, IntTy::W64) => {
                let value = int::binary64(op, r.wide(i.a), r.wide(i.b));
                r.set_wide(i.d, m, &value);
            }
            Op::Int2(op, ty) => {
                let value = int::binary(op, ty, r.word(i.a), r.word(i.b), i.imm == 1);
                r.set_word(i.d, m, &value);
            }
            Op::Int3(op, IntTy::W64) => {
                let value = int::ternary64(op, r.wide(i.a), r.wide(i.b), r.wide(i.c));
                r.set_wide(i.d, m, &value);
            }
            Op::Int3(op, ty) => {
                let value = int::ternary(op, ty, r.word(i.a), r.word(i.b), r.word(i.c));
                r.set_word(i.d, m, &value);
            }
            Op::Float1(op, mode) => {
                let value = float::unary(op, mode, r.word(i.a));
                r.set_word(i.d, m, &value);
            }
            Op::Float2(op, mode) => {
                let value = float::binary(op, mode, r.word(i.a), r.word(i.b));
                r.set_word(i.d, m, &value);
            }
            Op::Fma(mode) => {
                let value = float::fma(mode, r.word(i.a), r.word(i.b), r.word(i.c));
                r.set_word(i.d, m, &value);
            }
            Op::Setp { cmp, ty, ftz, logic } => {
                let value = compared(w, i, cmp, ty, ftz);
                set_predicates(w, i, self.kernel.list(i)[0], m, value, logic);
            }
            Op::Selp32 => {
                let p = r.pred(i.c) ^ if i.imm != 0 { !0 } else { 0 };
                let value = select(p, r.word(i.a), r.word(i.b));
                r.set_word(i.d, m, &value);
            }
            Op::Load(access) => self.load(w, i, m, access)?,
            Op::Store(access) => self.store(w, i, m, access)?,
            Op::Atom(atomic) => self.atomic(w, i, m, atomic)?,
            Op::Shfl(_)
            | Op::Vote(_)
            | Op::MatchAny { .. }
            | Op::MatchAll { .. }
            | Op::ActiveMask
            | Op::Redux(_)
            | Op::Elect
            | Op::WarpSync => return self.collective(w, i, m),
            Op::Bar(bar) => return self.bar(w, i, m, bar),
            Op::Fence(fence) => self.fence(w, fence),
            Op::BrxIdx => return self.branch_indexed(w, i, m),
            Op::Clock { wide } => self.clock(w, i, m, wide),
            _ => return self.execute_rare(w, i, m),
        }
        Ok(Flow::Next)
    }

    /// Instructions of which a kernel has few.
    fn execute_rare(&mut self, w: &mut Warp, i: &Inst, m: u32) -> Exec<Flow> {
        let list = {
            let (start, len) = i.list;
            start as usize..start as usize + len as usize
        };
        let kernel = self.kernel;
        let list = &kernel.lists[list];
        let r = &mut w.regs;
        match i.op {
            Op::MovPred => r.set_pred(i.d, m, r.pred(i.a)),
            Op::PredNot => r.set_pred(i.d, m, !r.pred(i.a)),
            Op::Pred2(logic) => {
                let flip = |bit: i64, p: u32| if i.imm & bit != 0 { !p } else { p };
                let value = compare::logic(logic, flip(1, r.pred(i.a)), flip(2, r.pred(i.b)));
                r.set_pred(i.d, m, value);
            }
            Op::Pack64 => {
                let value =
                    map2(r.word(list[0]), r.word(list[1]), |lo, hi| u64::from(hi) << 32 | u64::from(lo));
                r.set_wide(i.d, m, &value);
            }
            Op::Unpack64 => {
                let value = *r.wide(i.a);
                r.set_word(list[0], m, &map(&value, |v| v as u32));
                r.set_word(list[1], m, &map(&value, |v| (v >> 32) as u32));
            }
            Op::Pack32 => {
                let value = map2(r.word(list[0]), r.word(list[1]), |lo, hi| hi << 16 | lo & 0xffff);
                r.set_word(i.d, m, &value);
            }
            Op::Unpack32 => {
                let value = *r.word(i.a);
                r.set_word(list[0], m, &map(&value, |v| v & 0xffff));
                r.set_word(list[1], m, &map(&value, |v| v >> 16));
            }
            Op::Pack64x4 => {
                let mut value = [0u64; 32];
                for (part, &slot) in list.iter().enumerate() {
                    value = map2(&value, r.word(slot), |v, h| v | u64::from(h & 0xffff) << (16 * part));
                }
                r.set_wide(i.d, m, &value);
            }
            Op::Unpack64x4 => {
                let value = *r.wide(i.a);
                for (part, &slot) in list.iter().enumerate() {
                    r.set_word(slot, m, &map(&value, |v| (v >> (16 * part)) as u32 & 0xffff));
                }
            }
            Op::Shift64(op) => {
                let value = int::shift64(op, r.wide(i.a), r.word(i.b));
                r.set_wide(i.d, m, &value);
            }
            Op::MulWide { signed, ty: IntTy::W32 } => {
                let value = int::mul_wide(signed, r.word(i.a), r.word(i.b));
                r.set_wide(i.d, m, &value);
            }
            Op::MulWide { ty, .. } => {
                let value = int::mul_wide16(ty, r.word(i.a), r.word(i.b));
                r.set_word(i.d, m, &value);
            }
            Op::MadWide { signed, ty: IntTy::W32 } => {
                let product = int::mul_wide(signed, r.word(i.a), r.word(i.b));
                let value = map2(&product, r.wide(i.c), u64::wrapping_add);
                r.set_wide(i.d, m, &value);
            }
            Op::MadWide { ty, .. } => {
                let product = int::mul_wide16(ty, r.word(i.a), r.word(i.b));
                let value = map2(&product, r.word(i.c), u32::wrapping_add);
                r.set_word(i.d, m, &value);
            }
            Op::BfeU(ty) | Op::BfeS(ty) => {
                let signed = matches!(i.op, Op::BfeS(_));
                if ty == IntTy::W64 {
                    let value =
                        map3(r.wide(i.a), r.word(i.b), r.word(i.c), |a, p, n| int::bfe(signed, 64, a, p, n));
                    r.set_wide(i.d, m, &value);
                } else {
                    let value = map3(r.word(i.a), r.word(i.b), r.word(i.c), |a, p, n| {
                        int::bfe(signed, 32, u64::from(a), p, n) as u32
                    });
                    r.set_word(i.d, m, &value);
                }
            }
            Op::Bfi(IntTy::W64) => {
                let (position, length) = (*r.word(list[2]), *r.word(list[3]));
                let (a, b) = (r.wide(list[0]), r.wide(list[1]));
                let value = std::array::from_fn(|l| int::bfi(64, a[l], b[l], position[l], length[l]));
                r.set_wide(i.d, m, &value);
            }
            Op::Bfi(_) => {
                let (a, b) = (r.word(list[0]), r.word(list[1]));
                let (position, length) = (r.word(list[2]), r.word(list[3]));
                let value: Lanes = std::array::from_fn(|l| {
                    int::bfi(32, u64::from(a[l]), u64::from(b[l]), position[l], length[l]) as u32
                });
                r.set_word(i.d, m, &value);
            }
            Op::Bmsk { wrap } => {
                let value = map2(r.word(i.a), r.word(i.b), |a, b| int::bmsk(wrap, a, b));
                r.set_word(i.d, m, &value);
            }
            Op::Carry { .. } => carry(w, i, m),
            Op::Set { cmp, ty, ftz, to_float, logic } => {
                let mut value = compared(w, i, cmp, ty, ftz);
                if let Some(logic) = logic {
                    let c = w.regs.pred(i.c) ^ if i.imm & 1 != 0 { !0 } else { 0 };
                    value = compare::logic(logic, value, c);
                }
                let one = if to_float { 1f32.to_bits() } else { !0 };
                let lanes = std::array::from_fn(|l| if value >> l & 1 == 1 { one } else { 0 });
                w.regs.set_word(i.d, m, &lanes);
            }
            Op::Testp(test, wide) => {
                let value = if wide {
                    compare::testp(test, |l| f64::from_bits(r.wide(i.a)[l]), f64::MIN_POSITIVE)
                } else {
                    let smallest = f64::from(f32::MIN_POSITIVE);
                    compare::testp(test, |l| f64::from(f32::from_bits(r.word(i.a)[l])), smallest)
                };
                r.set_pred(i.d, m, value);
            }
            Op::Selp64 => {
                let p = r.pred(i.c) ^ if i.imm != 0 { !0 } else { 0 };
                let value = select(p, r.wide(i.a), r.wide(i.b));
                r.set_wide(i.d, m, &value);
            }
            Op::Slct32 { float } | Op::Slct64 { float } => {
                let c = r.word(i.c);
                let p = mask_of(|l| if float { f32::from_bits(c[l]) >= 0.0 } else { c[l] as i32 >= 0 });
                if matches!(i.op, Op::Slct32 { .. }) {
                    let value = select(p, r.word(i.a), r.word(i.b));
                    r.set_word(i.d, m, &value);
                } else {
                    let value = select(p, r.wide(i.a), r.wide(i.b));
                    r.set_wide(i.d, m, &value);
                }
            }
            Op::Double1(op) => {
                let value = float::double_unary(op, r.wide(i.a));
                r.set_wide(i.d, m, &value);
            }
            Op::Double2(op) => {
                let value = float::double_binary(op, r.wide(i.a), r.wide(i.b));
                r.set_wide(i.d, m, &value);
            }
            Op::DoubleFma => {
                let value = float::double_fma(r.wide(i.a), r.wide(i.b), r.wide(i.c));
                r.set_wide(i.d, m, &value);
            }
            Op::Half1(op, mode) => {
                let value = half::unary(op, mode, r.word(i.a));
                r.set_word(i.d, m, &value);
            }
            Op::Half2(op, mode) => {
                let value = half::binary(op, mode, r.word(i.a), r.word(i.b));
                r.set_word(i.d, m, &value);
            }
            Op::HalfFma(mode) => {
                let value = half::fma(mode, r.word(i.a), r.word(i.b), r.word(i.c));
                r.set_word(i.d, m, &value);
            }
            Op::Convert(c) => convert_any(w, i, m, c),
            Op::ConvertPair { bf16, rnd, relu } => {
                let value = convert::pair(bf16, rnd, relu, r.word(i.a), r.word(i.b));
                r.set_word(i.d, m, &value);
            }
            Op::Cvta { to_generic, space, .. } => {
                let window = window(space);
                let value = map(r.wide(i.a), |a| {
                    if to_generic { a.wrapping_add(window) } else { a.wrapping_sub(window) }
                });
                r.set_wide(i.d, m, &value);
            }
            Op::IsSpace(space) => {
                let a = r.wide(i.a);
                let value = mask_of(|l| space_of(a[l]) == space);
                r.set_pred(i.d, m, value);
            }
            Op::Mapa { .. } | Op::GetCtaRank { .. } => self.cluster_address(w, i, m)?,
            Op::ClusterArrive | Op::ClusterWait => return self.cluster_barrier(w, i, m),
            _ => return self.execute_tensor(w, i, m),
        }
        Ok(Flow::Next)
    }

    fn branch_indexed(&self, w: &Warp, i: &Inst, m: u32) -> Exec<Flow> {
        let table = &self.kernel.tables[i.imm as usize];
        let index = w.regs.word(i.a);
        let mut targets = Box::new([0; 32]);
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let what = "branch table index";
            let target = table.get(index[lane] as usize);
            targets[lane] = *target
                .ok_or_else(|| FaultKind::InvalidOperand { what, got: u64::from(index[lane]) }.lane(lane))?;
        }
        Ok(Flow::Jump(targets))
    }

    /// Time in warp instructions of this CTA.
    fn clock(&self, w: &mut Warp, i: &Inst, m: u32, wide: bool) {
        let now = self.counters.thread_instructions;
        if wide {
            w.regs.set_wide(i.d, m, &[now; 32]);
        } else {
            w.regs.set_word(i.d, m, &[now as u32; 32]);
        }
    }

    /// `mapa` and `getctarank` in a cluster of one.
    fn cluster_address(&self, w: &mut Warp, i: &Inst, m: u32) -> Exec {
        match i.op {
            Op::Mapa { wide } => {
                let rank = w.regs.word(i.b);
                if let Some(lane) = (0..32).find(|&l| m >> l & 1 == 1 && rank[l] != 0) {
                    let what = "CTA rank beyond the cluster";
                    return Err(FaultKind::InvalidOperand { what, got: u64::from(rank[lane]) }.lane(lane));
                }
                if wide {
                    let value = *w.regs.wide(i.a);
                    w.regs.set_wide(i.d, m, &value);
                } else {
                    let value = *w.regs.word(i.a);
                    w.regs.set_word(i.d, m, &value);
                }
            }
            _ => w.regs.set_word(i.d, m, &[0; 32]),
        }
        Ok(())
    }
}

fn select<T: Copy + Default>(p: u32, a: &[T; 32], b: &[T; 32]) -> [T; 32] {
    std::array::from_fn(|l| if p >> l & 1 == 1 { a[l] } else { b[l] })
}

fn compared(w: &Warp, i: &Inst, cmp: Cmp, ty: Ty, ftz: bool) -> u32 {
    if ty.is_wide() {
        compare::wides(cmp, ty, w.regs.wide(i.a), w.regs.wide(i.b))
    } else {
        compare::words(cmp, ty, ftz, w.regs.word(i.a), w.regs.word(i.b))
    }
}

/// p = cmp op c, q = !cmp op c.
fn set_predicates(w: &mut Warp, i: &Inst, q: Slot, m: u32, value: u32, logic: Option<Logic>) {
    let (mut p_value, mut q_value) = (value, !value);
    if let Some(logic) = logic {
        let c = w.regs.pred(i.c) ^ if i.imm & 1 != 0 { !0 } else { 0 };
        p_value = compare::logic(logic, value, c);
        q_value = compare::logic(logic, !value, c);
    }
    w.regs.set_pred(i.d, m, p_value);
    w.regs.set_pred(q, m, q_value);
}

/// Unary operations on 64 bits, some of which give 32.
fn wide_to_any(w: &mut Warp, i: &Inst, m: u32, op: Int1) {
    let value = int::unary64(op, w.regs.wide(i.a));
    match op {
        Int1::Not | Int1::Cnot | Int1::Neg | Int1::Abs | Int1::Brev => w.regs.set_wide(i.d, m, &value),
        _ => w.regs.set_word(i.d, m, &map(&value, |v| v as u32)),
    }
}

fn carry(w: &mut Warp, i: &Inst, m: u32) {
    let Op::Carry { subtract, carry_in, carry_out, ty } = i.op else { return };
    let mut out = 0u32;
    let before = w.carry;
    let mut step = |l: usize, a: u64, b: u64, bits: u32| {
        let b = if subtract { !b & (!0 >> (64 - bits)) } else { b };
        // Subtraction adds the complement; its carry flag is stored as a borrow.
        let flag = carry_in && before >> l & 1 == 1;
        let add = if subtract { !flag } else { flag };
        let sum = u128::from(a) + u128::from(b) + u128::from(add);
        let carried = sum >> bits != 0;
        out |= u32::from(carried != subtract) << l;
        sum as u64
    };
    if ty == IntTy::W64 {
        let (a, b) = (*w.regs.wide(i.a), *w.regs.wide(i.b));
        let value = std::array::from_fn(|l| step(l, a[l], b[l], 64));
        w.regs.set_wide(i.d, m, &value);
    } else {
        let (a, b) = (*w.regs.word(i.a), *w.regs.word(i.b));
        let value = std::array::from_fn(|l| step(l, u64::from(a[l]), u64::from(b[l]), 32) as u32);
        w.regs.set_word(i.d, m, &value);
    }
    if carry_out {
        w.carry = w.carry & !m | out & m;
    }
}

/// `cvt`, whose registers may each be 32 or 64 bits wide: imm bit 0 for the result, 1 for the source.
fn convert_any(w: &mut Warp, i: &Inst, m: u32, c: Convert) {
    let r = &mut w.regs;
    match i.imm {
        0 => {
            let value = convert::words(c, r.word(i.a));
            // A signed narrow result is sign-extended into its register.
            let value = narrow(c.to, value);
            r.set_word(i.d, m, &value);
        }
        1 => {
            let value = match (c.to, c.from) {
                (Ty::U64 | Ty::S64, Ty::U32) => map(r.word(i.a), u64::from),
                (Ty::U64 | Ty::S64, Ty::S32) if !c.sat => map(r.word(i.a), |x| x as i32 as i64 as u64),
                _ => map(r.word(i.a), |x| convert::scalar(c, u64::from(x))),
            };
            r.set_wide(i.d, m, &value);
        }
        2 => {
            let value = match (c.to, c.from) {
                (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if !c.sat => map(r.wide(i.a), |x| x as u32),
                _ => map(r.wide(i.a), |x| convert::scalar(c, x) as u32),
            };
            let value = narrow(c.to, value);
            r.set_word(i.d, m, &value);
        }
        _ => {
            let value = map(r.wide(i.a), |x| convert::scalar(c, x));
            r.set_wide(i.d, m, &value);
        }
    }
}

/// 16-bit registers hold zero-extended values; 8-bit results live in wider registers, sign-extended.
fn narrow(ty: Ty, value: Lanes) -> Lanes {
    match ty {
        Ty::S16 | Ty::U16 | Ty::B16 | Ty::F16 | Ty::Bf16 => map(&value, |v| v & 0xffff),
        _ => value,
    }
}

/// Start of a space's window in generic addresses.
pub(crate) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Generic => 0,
    }
}

/// The space a generic address lies in.
pub(crate) fn space_of(address: u64) -> Space {
    for space in [Space::Shared, Space::Local, Space::Param] {
        if address.wrapping_sub(window(space)) < WINDOW_BYTES {
            return space;
        }
    }
    Space::Global
}
