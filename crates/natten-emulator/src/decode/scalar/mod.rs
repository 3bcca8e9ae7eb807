//! Decoding of integer, float, half, compare, convert and move instructions.

mod arithmetic;

use super::modifiers::Modifiers;
use super::{Decoded, Decoder, unsupported, wrong};
use crate::counters::Class;
use crate::inst::*;
use crate::ptx::ast::{Operand, RegClass};

type Ops<'o> = &'o [Operand];

impl Decoder<'_> {
    pub(super) fn scalar(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<bool> {
        match base {
            "mov" => self.mov(m, o)?,
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr" => {
                self.binary(base, m, o)?;
            }
            "addc" | "subc" => self.carry(base == "subc", true, m, o)?,
            "mul24" | "mad24" => self.mul24(base, m, o)?,
            "mad" | "madc" | "fma" => self.mad(base, m, o)?,
            "sad" | "dp4a" => self.ternary_typed(base, m, o)?,
            "neg" | "abs" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" => self.unary(base, m, o)?,
            "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
                self.special_function(base, m, o)?
            }
            "bfe" | "bfi" | "bmsk" | "lop3" | "prmt" | "shf" => self.bits(base, m, o)?,
            "setp" | "set" => self.compare(base, m, o)?,
            "testp" => self.testp(m, o)?,
            "selp" | "slct" => self.select(base, m, o)?,
            "cvt" => self.cvt(m, o)?,
            "copysign" => {
                let ty = m.ty()?;
                let wide = ty.is_wide();
                let op =
                    if wide { Op::Double2(Float2::Copysign) } else { Op::Float2(Float2::Copysign, plain()) };
                self.two_sources(wide, o, op)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// d, a, b of one width.
    fn two_sources(&mut self, wide: bool, o: Ops, op: Op) -> Decoded<()> {
        self.arity(o, 3)?;
        let class = arithmetic_class(&op);
        let slots = if wide {
            [self.result_wide(o, 0)?, self.wide(o, 1)?, self.wide(o, 2)?, NONE]
        } else {
            [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, NONE]
        };
        self.emit(op, class, slots, 0, &[]);
        Ok(())
    }

    fn one_source(&mut self, wide: bool, o: Ops, op: Op) -> Decoded<()> {
        self.arity(o, 2)?;
        let slots = if wide {
            [self.result_wide(o, 0)?, self.wide(o, 1)?, NONE, NONE]
        } else {
            [self.result_word(o, 0)?, self.word(o, 1)?, NONE, NONE]
        };
        self.emit(op, arithmetic_class(&op), slots, 0, &[]);
        Ok(())
    }

    fn three_sources(&mut self, wide: bool, o: Ops, op: Op) -> Decoded<()> {
        self.arity(o, 4)?;
        let slots = if wide {
            [self.result_wide(o, 0)?, self.wide(o, 1)?, self.wide(o, 2)?, self.wide(o, 3)?]
        } else {
            [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, self.word(o, 3)?]
        };
        self.emit(op, arithmetic_class(&op), slots, 0, &[]);
        Ok(())
    }

    fn mov(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let ty = m.ty()?;
        self.arity(o, 2)?;
        if let Operand::Special(name) = &o[1]
            && let Some(wide) = clock_width(name)
        {
            let d = if wide { self.result_wide(o, 0)? } else { self.result_word(o, 0)? };
            self.emit(Op::Clock { wide }, Class::Integer, [d, NONE, NONE, NONE], 0, &[]);
            return Ok(());
        }
        match (&o[0], &o[1]) {
            (_, Operand::Vector(items)) => self.pack(ty, items, o),
            (Operand::Vector(items), _) => self.unpack(ty, items, o),
            _ if ty == Ty::Pred => {
                let d = self.result_pred(o, 0)?;
                let (a, negated) = match &o[1] {
                    Operand::Int(v) => (self.constant(RegClass::Pred, u64::from(*v != 0)), false),
                    _ => self.pred(o, 1)?,
                };
                let op = if negated { Op::PredNot } else { Op::MovPred };
                self.emit(op, Class::Integer, [d, a, NONE, NONE], 0, &[]);
                Ok(())
            }
            _ if ty.is_wide() => self.one_source(true, o, Op::Mov64),
            _ if ty == Ty::B128 => unsupported("mov.b128"),
            _ => self.one_source(false, o, Op::Mov32),
        }
    }

    fn pack(&mut self, ty: Ty, items: &[Operand], o: Ops) -> Decoded<()> {
        let (op, wide) = match (ty.bytes(), items.len()) {
            (8, 2) => (Op::Pack64, true),
            (8, 4) => (Op::Pack64x4, true),
            (4, 2) => (Op::Pack32, false),
            _ => return unsupported("mov from a vector of this shape"),
        };
        let list = self.word_sources(o, 1, items.len())?;
        let d = if wide { self.result_wide(o, 0)? } else { self.result_word(o, 0)? };
        self.emit(op, Class::Integer, [d, NONE, NONE, NONE], 0, &list);
        Ok(())
    }

    fn unpack(&mut self, ty: Ty, items: &[Operand], o: Ops) -> Decoded<()> {
        let (op, wide) = match (ty.bytes(), items.len()) {
            (8, 2) => (Op::Unpack64, true),
            (8, 4) => (Op::Unpack64x4, true),
            (4, 2) => (Op::Unpack32, false),
            _ => return unsupported("mov to a vector of this shape"),
        };
        let a = if wide { self.wide(o, 1)? } else { self.word(o, 1)? };
        let list = self.word_destinations(o, 0, items.len())?;
        self.emit(op, Class::Integer, [NONE, a, NONE, NONE], 0, &list);
        Ok(())
    }

    fn compare(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let cmp = m.find(comparison).map_or_else(|| unsupported("no comparison"), Ok)?;
        let logic = m.find(|p| {
            Some(match p {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => return None,
            })
        });
        let ftz = m.take("ftz");
        let first = m.ty()?;
        let (to_float, ty) = if base == "set" { (first == Ty::F32, m.ty()?) } else { (false, first) };
        let cmp = if ty.is_float() { cmp.0 } else { cmp.1 };
        if ty == Ty::Pred || matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            return unsupported(format!("{base} of this type"));
        }
        if matches!(cmp, Cmp::Num | Cmp::Nan) && !ty.is_float() {
            return unsupported("num or nan of integers");
        }
        self.arity(o, if logic.is_some() { 4 } else { 3 })?;
        let (d, q) = match (&o[0], base) {
            (Operand::Pair(p, q), "setp") => {
                let p = self.destination(p, 0, RegClass::Pred)?;
                (p, self.destination(q, 0, RegClass::Pred)?)
            }
            (_, "setp") => (self.result_pred(o, 0)?, NONE),
            _ => (self.result_word(o, 0)?, NONE),
        };
        let (a, b) = if ty.is_wide() {
            (self.wide(o, 1)?, self.wide(o, 2)?)
        } else {
            (self.word(o, 1)?, self.word(o, 2)?)
        };
        let (c, negated) = if logic.is_some() { self.pred(o, 3)? } else { (NONE, false) };
        let op = if base == "setp" {
            Op::Setp { cmp, ty, ftz, logic }
        } else {
            Op::Set { cmp, ty, ftz, to_float, logic }
        };
        self.emit(op, Class::Integer, [d, a, b, c], i64::from(negated), &[q]);
        Ok(())
    }

    fn testp(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let test = m.find(|p| {
            Some(match p {
                "finite" => Testp::Finite,
                "infinite" => Testp::Infinite,
                "number" => Testp::Number,
                "notanumber" => Testp::NotANumber,
                "normal" => Testp::Normal,
                "subnormal" => Testp::Subnormal,
                _ => return None,
            })
        });
        let Some(test) = test else { return unsupported("testp of this kind") };
        let wide = m.ty()?.is_wide();
        let d = self.result_pred(o, 0)?;
        let a = if wide { self.wide(o, 1)? } else { self.word(o, 1)? };
        self.emit(Op::Testp(test, wide), Class::Integer, [d, a, NONE, NONE], 0, &[]);
        Ok(())
    }

    fn select(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.take("ftz");
        let ty = m.ty()?;
        self.arity(o, 4)?;
        let wide = ty.is_wide();
        let (d, a, b) = if wide {
            (self.result_wide(o, 0)?, self.wide(o, 1)?, self.wide(o, 2)?)
        } else {
            (self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?)
        };
        let (op, c, negated) = if base == "selp" {
            let (c, negated) = self.pred(o, 3)?;
            (if wide { Op::Selp64 } else { Op::Selp32 }, c, negated)
        } else {
            let float = match m.ty()? {
                Ty::F32 => true,
                Ty::S32 => false,
                _ => return unsupported("slct on this type"),
            };
            (if wide { Op::Slct64 { float } } else { Op::Slct32 { float } }, self.word(o, 3)?, false)
        };
        self.emit(op, Class::Integer, [d, a, b, c], i64::from(negated), &[]);
        Ok(())
    }

    fn cvt(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let rnd = m.rounding();
        let (ftz, sat, relu) = (m.take("ftz"), m.take("sat"), m.take("relu"));
        if m.take("satfinite") {
            return unsupported("cvt.satfinite");
        }
        let to = m.ty()?;
        let from = m.ty()?;
        if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
            if from != Ty::F32 || sat || !matches!(rnd, Some(Rnd::Rn | Rnd::Rz)) {
                return unsupported("cvt to a pair of this form");
            }
            let op = Op::ConvertPair { bf16: to == Ty::Bf16x2, rnd: rnd.unwrap_or(Rnd::Rn), relu };
            self.arity(o, 3)?;
            let slots = [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, NONE];
            self.emit(op, Class::Convert, slots, 0, &[]);
            return Ok(());
        }
        if matches!(from, Ty::F16x2 | Ty::Bf16x2 | Ty::Pred) || to == Ty::Pred || from == Ty::Tf32 {
            return unsupported("cvt between these types");
        }
        check_rounding(to, from, rnd)?;
        self.arity(o, 2)?;
        let source = self.class_at(o, 1, RegClass::of(from));
        let target = self.class_at(o, 0, RegClass::of(to));
        if target == RegClass::Pred || source == RegClass::Pred {
            return wrong(0, "no predicate");
        }
        let d = self.destination(&o[0], 0, target)?;
        let a = self.source(&o[1], 1, source)?;
        let op = Op::Convert(Convert { to, from, rnd, ftz, sat, relu });
        let imm = i64::from(target == RegClass::Wide) | i64::from(source == RegClass::Wide) << 1;
        self.emit(op, Class::Convert, [d, a, NONE, NONE], imm, &[]);
        Ok(())
    }
}

/// A conversion that can lose value bits must say how it rounds.
fn check_rounding(to: Ty, from: Ty, rnd: Option<Rnd>) -> Decoded<()> {
    let integer_rounding = matches!(rnd, Some(Rnd::Rni | Rnd::Rzi | Rnd::Rmi | Rnd::Rpi));
    let needs = match (to.is_float(), from.is_float()) {
        (false, true) => integer_rounding,
        (true, false) => matches!(rnd, Some(Rnd::Rn | Rnd::Rz | Rnd::Rm | Rnd::Rp)),
        (true, true) if to.bytes() < from.bytes() || to == Ty::Tf32 => rnd.is_some() && !integer_rounding,
        (true, true) if to == from => rnd.is_none() || integer_rounding,
        (true, true) if to.bytes() == from.bytes() => rnd.is_some(),
        _ => rnd.is_none(),
    };
    if needs { Ok(()) } else { unsupported("cvt with this rounding") }
}

fn plain() -> FloatMode {
    FloatMode { rnd: Rnd::Rn, ftz: false, sat: false }
}

fn pick<T>(first: bool, a: T, b: T) -> T {
    if first { a } else { b }
}

fn int_type(ty: Ty) -> Decoded<IntTy> {
    Ok(match ty {
        Ty::S16 => IntTy::S16,
        Ty::U16 | Ty::B16 => IntTy::U16,
        Ty::S32 | Ty::U32 | Ty::B32 => IntTy::W32,
        Ty::S64 | Ty::U64 | Ty::B64 => IntTy::W64,
        _ => return unsupported("this type here"),
    })
}

fn half_mode(ty: Ty, mode: FloatMode, relu: bool) -> Decoded<HalfMode> {
    let (bf16, packed) = match ty {
        Ty::F16 => (false, false),
        Ty::F16x2 => (false, true),
        Ty::Bf16 => (true, false),
        Ty::Bf16x2 => (true, true),
        _ => return unsupported("this type here"),
    };
    Ok(HalfMode { bf16, packed, ftz: mode.ftz, sat: mode.sat, relu })
}

/// The comparison for floats and for integers: `lo`, `ls`, `hi`, `hs` are unsigned aliases.
fn comparison(name: &str) -> Option<(Cmp, Cmp)> {
    let same = |c| (c, c);
    Some(match name {
        "eq" => same(Cmp::Eq),
        "ne" => same(Cmp::Ne),
        "lt" | "lo" => same(Cmp::Lt),
        "le" | "ls" => same(Cmp::Le),
        "gt" | "hi" => same(Cmp::Gt),
        "ge" | "hs" => same(Cmp::Ge),
        "equ" => same(Cmp::Equ),
        "neu" => same(Cmp::Neu),
        "ltu" => same(Cmp::Ltu),
        "leu" => same(Cmp::Leu),
        "gtu" => same(Cmp::Gtu),
        "geu" => same(Cmp::Geu),
        "num" => same(Cmp::Num),
        "nan" => same(Cmp::Nan),
        _ => return None,
    })
}

/// Width of a register that changes over time.
fn clock_width(name: &str) -> Option<bool> {
    match name {
        "clock64" | "globaltimer" => Some(true),
        "clock" | "clock_hi" | "globaltimer_lo" | "globaltimer_hi" => Some(false),
        _ => None,
    }
}

fn arithmetic_class(op: &Op) -> Class {
    match op {
        Op::Float1(Float1::Neg | Float1::Abs, _) | Op::Half1(Float1::Neg | Float1::Abs, _) => Class::Float,
        Op::Float1(..) | Op::Half1(..) | Op::Double1(_) | Op::Float2(Float2::Div, _) => Class::Special,
        Op::Float2(..) | Op::Fma(_) | Op::Double2(_) | Op::DoubleFma | Op::Half2(..) | Op::HalfFma(_) => {
            Class::Float
        }
        _ => Class::Integer,
    }
}
