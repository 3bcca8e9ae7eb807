//! The operators: what kinds of mistakes there are, and all edits of one kernel.

use super::block::{self, furthest};
use super::site::{Place, Site};
use super::{Change, Edit, constants, operands, synchronisation};
use crate::inst::*;
use crate::module::Kernel;
use crate::ptx::ast::RegClass;

/// See [`super::Edit::is_of_guard`].
pub(super) const GUARD: &str = "predicate sense";
/// See [`super::widths`] and [`super::addresses`].
pub(super) const NARROW: &str = "narrow address";

/// All kinds of mistakes, as [`super::Edit::operator`] names them.
pub const OPERATORS: &[&str] = &[
    "barrier dropped",
    "barrier moved",
    "byte count",
    "compare bound",
    "compare direction",
    "compare of NaN",
    "copy source size",
    "float literal",
    "integer literal",
    "logic",
    "memory offset",
    NARROW,
    "operands swapped",
    "operation",
    "other parameter",
    "parity",
    GUARD,
    "predicate operand",
    "registers given",
    "rounding",
    "shuffle lane",
    "shuffle mask",
    "shuffle mode",
    "special register",
    "transposition",
    "wait count",
];

/// Every edit of a kernel.
pub(super) fn all(kernel: &Kernel) -> Vec<Edit> {
    let targets = block::targets(kernel);
    let params = operands::parameters(kernel);
    let mut edits = Vec::new();
    for at in 0..kernel.lines.len() {
        let mut site = Site::new(kernel, at);
        guard(&mut site);
        compares(&mut site);
        predicates(&mut site);
        operations(&mut site);
        rounding(&mut site);
        narrow(&mut site);
        exchange(&mut site);
        constants::edits(&mut site);
        operands::edits(&mut site, &params);
        synchronisation::edits(&mut site, &|forwards| furthest(kernel, &targets, at, forwards));
        edits.append(&mut site.edits);
    }
    edits
}

fn guard(site: &mut Site) {
    if site.inst.guard != NONE {
        site.change(GUARD, "the other lanes", |inst| inst.guard_negated ^= true);
    }
}

fn compares(site: &mut Site) {
    let with = |cmp: Cmp| match site.inst.op {
        Op::Setp { ty, ftz, logic, .. } => Op::Setp { cmp, ty, ftz, logic },
        Op::Set { ty, ftz, to_float, logic, .. } => Op::Set { cmp, ty, ftz, to_float, logic },
        other => other,
    };
    let (Op::Setp { cmp, .. } | Op::Set { cmp, .. }) = site.inst.op else { return };
    use Cmp::*;
    let (bound, direction, of_nan) = match cmp {
        Lt => (Some(Le), Gt, Some(Ltu)),
        Le => (Some(Lt), Ge, Some(Leu)),
        Gt => (Some(Ge), Lt, Some(Gtu)),
        Ge => (Some(Gt), Le, Some(Geu)),
        Eq => (None, Ne, Some(Equ)),
        Ne => (None, Eq, Some(Neu)),
        Ltu => (Some(Leu), Gtu, Some(Lt)),
        Leu => (Some(Ltu), Geu, Some(Le)),
        Gtu => (Some(Geu), Ltu, Some(Gt)),
        Geu => (Some(Gtu), Leu, Some(Ge)),
        Equ => (None, Neu, Some(Eq)),
        Neu => (None, Equ, Some(Ne)),
        Num => (None, Nan, None),
        Nan => (None, Num, None),
    };
    let (bound, direction, of_nan) = (bound.map(with), with(direction), of_nan.map(with));
    let (Op::Setp { ty, .. } | Op::Set { ty, .. }) = site.inst.op else { return };
    bound.into_iter().for_each(|op| site.operation("compare bound", op));
    site.operation("compare direction", direction);
    if ty.is_float() {
        of_nan.into_iter().for_each(|op| site.operation("compare of NaN", op));
    }
}

/// How predicates are combined and negated.
fn predicates(site: &mut Site) {
    let other = |logic: Logic| match logic {
        Logic::And => Logic::Or,
        Logic::Or | Logic::Xor => Logic::And,
    };
    let negate = |site: &mut Site, bit: i64| {
        site.change("predicate operand", "the operand negated", |inst| inst.imm ^= bit);
    };
    match site.inst.op {
        Op::Setp { cmp, ty, ftz, logic: Some(logic) } => {
            site.operation("logic", Op::Setp { cmp, ty, ftz, logic: Some(other(logic)) });
            site.operation("logic", Op::Setp { cmp, ty, ftz, logic: None });
            negate(site, 1);
        }
        Op::Pred2(logic) => {
            site.operation("logic", Op::Pred2(other(logic)));
            site.change("logic", "the first operand alone", |inst| {
                inst.op = if inst.imm & 1 == 0 { Op::MovPred } else { Op::PredNot };
            });
            negate(site, 1);
            negate(site, 2);
        }
        Op::MovPred => site.operation("predicate operand", Op::PredNot),
        Op::PredNot => site.operation("predicate operand", Op::MovPred),
        Op::Selp32 | Op::Selp64 => negate(site, 1),
        Op::Vote(_) | Op::Tcgen05(Tcgen05::Mma(_)) => negate(site, 1),
        Op::Wgmma(_) => match site.literal(Place::C, RegClass::Pred) {
            Some(bits) => {
                site.put("predicate operand", "other accumulation", Place::C, (RegClass::Pred, 1 - bits));
            }
            None => {
                let scratch = site.scratch(RegClass::Pred);
                let mut change = site.with_slot(Place::C, scratch);
                let a = site.inst.c;
                let none = Inst { b: NONE, c: NONE, imm: 0, ..site.inst.clone() };
                change.before = Some(Inst { op: Op::PredNot, d: scratch, a, ..none });
                site.add("predicate operand", "other accumulation", change);
            }
        },
        _ => {}
    }
}

/// Another operation of the same shape.
fn operations(site: &mut Site) {
    const NAME: &str = "operation";
    use Int2::*;
    let op = match site.inst.op {
        Op::Int2(op, ty) => Op::Int2(
            match op {
                Add => Sub,
                Sub => Add,
                And => Or,
                Or | Xor => And,
                Shl => ShrU,
                ShrU | ShrS => Shl,
                MinU => MaxU,
                MinS => MaxS,
                MaxU => MinU,
                MaxS => MinS,
                DivU => RemU,
                RemU => DivU,
                DivS => RemS,
                RemS => DivS,
                other => other,
            },
            ty,
        ),
        Op::Int3(Int3::Lop3(table), ty) => Op::Int3(Int3::Lop3(table ^ 0x80), ty),
        Op::Int1(Int1::Neg | Int1::Not | Int1::Abs, IntTy::W64) => Op::Mov64,
        Op::Int1(Int1::Neg | Int1::Not | Int1::Abs, _) => Op::Mov32,
        Op::Shift64(Shl) => Op::Shift64(ShrU),
        Op::Shift64(_) => Op::Shift64(Shl),
        Op::Float1(Float1::Ex2, mode) => Op::Float1(Float1::Lg2, mode),
        Op::Float1(Float1::Lg2, mode) => Op::Float1(Float1::Ex2, mode),
        Op::Float1(Float1::Rcp, mode) => Op::Float1(Float1::Sqrt, mode),
        Op::Float1(Float1::Neg | Float1::Abs, _) => Op::Mov32,
        Op::Float2(op, mode) => Op::Float2(other_float(op), mode),
        Op::Half2(op, mode) => Op::Half2(other_float(op), mode),
        Op::Fma(mode) => Op::Float2(Float2::Mul, mode),
        other => other,
    };
    site.operation(NAME, op);
}

fn other_float(op: Float2) -> Float2 {
    match op {
        Float2::Add => Float2::Sub,
        Float2::Sub => Float2::Add,
        Float2::Mul => Float2::Add,
        Float2::Min => Float2::Max,
        Float2::Max => Float2::Min,
        Float2::MinNan => Float2::Min,
        Float2::MaxNan => Float2::Max,
        other => other,
    }
}

fn rounding(site: &mut Site) {
    const NAME: &str = "rounding";
    let other = |rnd: Rnd| match rnd {
        Rnd::Rn | Rnd::Rna => Rnd::Rz,
        Rnd::Rz | Rnd::Rm | Rnd::Rp => Rnd::Rn,
        Rnd::Rni | Rnd::Rmi | Rnd::Rpi => Rnd::Rzi,
        Rnd::Rzi => Rnd::Rni,
    };
    let of_mode = |mode: FloatMode| FloatMode { rnd: other(mode.rnd), ..mode };
    match site.inst.op {
        Op::Float2(op @ (Float2::Add | Float2::Sub | Float2::Mul), mode) => {
            site.operation(NAME, Op::Float2(op, of_mode(mode)));
        }
        Op::Fma(mode) => site.operation(NAME, Op::Fma(of_mode(mode))),
        Op::Convert(convert) => {
            if let Some(rnd) = convert.rnd {
                site.operation(NAME, Op::Convert(Convert { rnd: Some(other(rnd)), ..convert }));
            }
        }
        Op::ConvertPair { bf16, rnd, relu } => {
            site.operation(NAME, Op::ConvertPair { bf16, rnd: other(rnd), relu });
        }
        _ => {}
    }
}

/// A 64-bit result that loses its upper half, as if the sum or product had been made of 32-bit integers.
fn narrow(site: &mut Site) {
    let is_wide = matches!(
        site.inst.op,
        Op::Int2(Int2::Add | Int2::Sub | Int2::MulLo, IntTy::W64)
            | Op::Int3(Int3::MadLo, IntTy::W64)
            | Op::Shift64(Int2::Shl)
            | Op::MulWide { ty: IntTy::W32, .. }
            | Op::MadWide { ty: IntTy::W32, .. }
    );
    if is_wide && site.inst.d != NONE {
        let convert = Convert { to: Ty::S64, from: Ty::S32, rnd: None, ftz: false, sat: false, relu: false };
        let d = site.inst.d;
        let none = Inst { b: NONE, c: NONE, ..site.inst.clone() };
        // Both registers are wide.
        let behind = Some(Inst { op: Op::Convert(convert), a: d, d, imm: 3, ..none });
        let change = Change { behind, ..site.unchanged() };
        site.add(NARROW, "its lower 32 bits, sign-extended", change);
    }
}

/// What lanes exchange.
fn exchange(site: &mut Site) {
    match site.inst.op {
        Op::Shfl(mode) => {
            let others = match mode {
                Shuffle::Butterfly => [Shuffle::Index, Shuffle::Down],
                Shuffle::Index => [Shuffle::Butterfly, Shuffle::Up],
                Shuffle::Up => [Shuffle::Down, Shuffle::Butterfly],
                Shuffle::Down => [Shuffle::Up, Shuffle::Butterfly],
            };
            others.into_iter().for_each(|other| site.operation("shuffle mode", Op::Shfl(other)));
            if site.literal(Place::B, RegClass::Word).is_none() {
                let [add, shift] = [Int2::Add, Int2::Shl].map(|op| Op::Int2(op, IntTy::W32));
                site.combine("shuffle lane", "one more", (Place::B, add, 1));
                site.combine("shuffle lane", "twice that", (Place::B, shift, 1));
            }
        }
        Op::LdMatrix { trans, wide_address } => {
            site.operation("transposition", Op::LdMatrix { trans: !trans, wide_address });
        }
        Op::StMatrix { trans, wide_address } => {
            site.operation("transposition", Op::StMatrix { trans: !trans, wide_address });
        }
        Op::Wgmma(wgmma) => {
            let other = Wgmma { transpose_b: !wgmma.transpose_b, ..wgmma };
            site.operation("transposition", Op::Wgmma(other));
        }
        _ => {}
    }
}
