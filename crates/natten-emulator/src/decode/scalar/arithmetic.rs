//! Decoding of arithmetic and bit operations.

use super::super::modifiers::Modifiers;
use super::super::{Decoded, Decoder, unsupported};
use super::{Ops, half_mode, int_type, pick};
use crate::counters::Class;
use crate::inst::*;

impl Decoder<'_> {
    pub(super) fn binary(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if m.take("cc") {
            return self.carry(base == "sub", false, m, o);
        }
        let hi = m.take("hi");
        let lo = m.take("lo");
        let wide_result = m.take("wide");
        let nan = m.take("NaN");
        let relu = m.take("relu");
        let approximate = m.take("approx") | m.take("full");
        let mut mode = m.float_mode();
        let ty = m.ty()?;
        if ty == Ty::Pred {
            let logic = match base {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => return unsupported(format!("{base}.pred")),
            };
            let d = self.result_pred(o, 0)?;
            let (a, na) = self.pred(o, 1)?;
            let (b, nb) = self.pred(o, 2)?;
            let imm = i64::from(na) | i64::from(nb) << 1;
            self.emit(Op::Pred2(logic), Class::Integer, [d, a, b, NONE], imm, &[]);
            return Ok(());
        }
        if ty.is_float() {
            let op = match base {
                "add" => Float2::Add,
                "sub" => Float2::Sub,
                "mul" => Float2::Mul,
                "div" => Float2::Div,
                "min" if nan => Float2::MinNan,
                "max" if nan => Float2::MaxNan,
                "min" => Float2::Min,
                "max" => Float2::Max,
                _ => return unsupported(format!("{base} on floats")),
            };
            if approximate {
                mode.rnd = Rnd::Rn;
            }
            return self.float_binary(op, ty, mode, relu, o);
        }
        if approximate || nan || relu || mode.ftz || mode.rnd != Rnd::Rn {
            return unsupported("float modifier on an integer type");
        }
        if wide_result {
            return self.mul_wide(ty, o);
        }
        let int = int_type(ty)?;
        let signed = ty.is_signed();
        let op = match base {
            "add" if mode.sat => Int2::AddSatS,
            "sub" if mode.sat => Int2::SubSatS,
            "add" => Int2::Add,
            "sub" => Int2::Sub,
            "mul" if hi => pick(signed, Int2::MulHiS, Int2::MulHiU),
            "mul" if lo => Int2::MulLo,
            "div" => pick(signed, Int2::DivS, Int2::DivU),
            "rem" => pick(signed, Int2::RemS, Int2::RemU),
            "min" => pick(signed, Int2::MinS, Int2::MinU),
            "max" => pick(signed, Int2::MaxS, Int2::MaxU),
            "and" => Int2::And,
            "or" => Int2::Or,
            "xor" => Int2::Xor,
            "shl" => Int2::Shl,
            "shr" => pick(signed, Int2::ShrS, Int2::ShrU),
            _ => return unsupported(format!("{base} of this form")),
        };
        if mode.sat && ty != Ty::S32 {
            return unsupported(".sat on a type other than s32");
        }
        if matches!(op, Int2::Shl | Int2::ShrS | Int2::ShrU) && int == IntTy::W64 {
            self.arity(o, 3)?;
            let slots = [self.result_wide(o, 0)?, self.wide(o, 1)?, self.word(o, 2)?, NONE];
            self.emit(Op::Shift64(op), Class::Integer, slots, 0, &[]);
            return Ok(());
        }
        if matches!(op, Int2::Shl | Int2::ShrS | Int2::ShrU) && int != IntTy::W32 {
            // The shift amount is 32 bits wide whatever the type, and must not be truncated.
            self.arity(o, 3)?;
            let slots = [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, NONE];
            self.emit(Op::Int2(op, int), Class::Integer, slots, 1, &[]);
            return Ok(());
        }
        self.two_sources(int == IntTy::W64, o, Op::Int2(op, int))
    }

    fn float_binary(&mut self, op: Float2, ty: Ty, mode: FloatMode, relu: bool, o: Ops) -> Decoded<()> {
        match ty {
            Ty::F32 if !relu => self.two_sources(false, o, Op::Float2(op, mode)),
            Ty::F64 if mode.is_plain() && !relu => self.two_sources(true, o, Op::Double2(op)),
            Ty::F64 => unsupported("f64 with this rounding"),
            _ if mode.rnd != Rnd::Rn => unsupported("half precision with this rounding"),
            _ => {
                let half = half_mode(ty, mode, relu)?;
                self.two_sources(false, o, Op::Half2(op, half))
            }
        }
    }

    fn mul_wide(&mut self, ty: Ty, o: Ops) -> Decoded<()> {
        self.arity(o, 3)?;
        let int = int_type(ty)?;
        let op = Op::MulWide { signed: ty.is_signed(), ty: int };
        let d = match int {
            IntTy::W32 => self.result_wide(o, 0)?,
            IntTy::S16 | IntTy::U16 => self.result_word(o, 0)?,
            IntTy::W64 => return unsupported("mul.wide to 128 bits"),
        };
        let slots = [d, self.word(o, 1)?, self.word(o, 2)?, NONE];
        self.emit(op, Class::Integer, slots, 0, &[]);
        Ok(())
    }

    pub(super) fn carry(&mut self, subtract: bool, carry_in: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let carry_out = m.take("cc") || !carry_in;
        let ty = int_type(m.ty()?)?;
        let op = Op::Carry { subtract, carry_in, carry_out, ty };
        self.two_sources(ty == IntTy::W64, o, op)
    }

    pub(super) fn mul24(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("lo")?;
        let signed = m.ty()?.is_signed();
        if base == "mul24" {
            let op = pick(signed, Int2::Mul24S, Int2::Mul24U);
            return self.two_sources(false, o, Op::Int2(op, IntTy::W32));
        }
        let op = pick(signed, Int3::Mad24S, Int3::Mad24U);
        self.three_sources(false, o, Op::Int3(op, IntTy::W32))
    }

    pub(super) fn mad(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if base == "madc" {
            return unsupported("madc");
        }
        let hi = m.take("hi");
        let lo = m.take("lo");
        let wide = m.take("wide");
        let relu = m.take("relu");
        let mode = m.float_mode();
        let ty = m.ty()?;
        match ty {
            Ty::F32 if !relu => return self.three_sources(false, o, Op::Fma(mode)),
            Ty::F64 if mode.is_plain() => return self.three_sources(true, o, Op::DoubleFma),
            Ty::F64 => return unsupported("f64 with this rounding"),
            _ if ty.is_float() && base == "fma" && mode.rnd == Rnd::Rn => {
                return self.three_sources(false, o, Op::HalfFma(half_mode(ty, mode, relu)?));
            }
            _ if ty.is_float() || base == "fma" => return unsupported("fma of this form"),
            _ => {}
        }
        if mode.sat || mode.ftz || mode.rnd != Rnd::Rn || relu {
            return unsupported("modifier on an integer mad");
        }
        let int = int_type(ty)?;
        let signed = ty.is_signed();
        if wide {
            self.arity(o, 4)?;
            let op = Op::MadWide { signed, ty: int };
            let slots = match int {
                IntTy::W32 => [self.result_wide(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, self.wide(o, 3)?],
                IntTy::W64 => return unsupported("mad.wide to 128 bits"),
                _ => [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, self.word(o, 3)?],
            };
            self.emit(op, Class::Integer, slots, 0, &[]);
            return Ok(());
        }
        let op = match (hi, lo) {
            (true, false) => pick(signed, Int3::MadHiS, Int3::MadHiU),
            (false, true) => Int3::MadLo,
            _ => return unsupported("mad without .lo, .hi or .wide"),
        };
        self.three_sources(int == IntTy::W64, o, Op::Int3(op, int))
    }

    pub(super) fn ternary_typed(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let ty = m.ty()?;
        if base == "dp4a" {
            let second = m.ty()?;
            let op = match (ty.is_signed(), second.is_signed()) {
                (true, true) => Int3::Dp4aS,
                (false, false) => Int3::Dp4aU,
                _ => return unsupported("dp4a of mixed signs"),
            };
            return self.three_sources(false, o, Op::Int3(op, IntTy::W32));
        }
        let int = int_type(ty)?;
        let op = pick(ty.is_signed(), Int3::SadS, Int3::SadU);
        self.three_sources(int == IntTy::W64, o, Op::Int3(op, int))
    }

    pub(super) fn unary(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let shift_amount = m.take("shiftamt");
        let ftz = m.take("ftz");
        let ty = m.ty()?;
        if ty == Ty::Pred {
            if base != "not" {
                return unsupported(format!("{base}.pred"));
            }
            let d = self.result_pred(o, 0)?;
            let (a, negated) = self.pred(o, 1)?;
            let op = if negated { Op::MovPred } else { Op::PredNot };
            self.emit(op, Class::Integer, [d, a, NONE, NONE], 0, &[]);
            return Ok(());
        }
        if ty.is_float() {
            let op = match base {
                "neg" => Float1::Neg,
                "abs" => Float1::Abs,
                _ => return unsupported(format!("{base} on floats")),
            };
            return match ty {
                Ty::F32 => {
                    self.one_source(false, o, Op::Float1(op, FloatMode { rnd: Rnd::Rn, ftz, sat: false }))
                }
                Ty::F64 => self.one_source(true, o, Op::Double1(op)),
                _ => {
                    let mode = FloatMode { rnd: Rnd::Rn, ftz, sat: false };
                    self.one_source(false, o, Op::Half1(op, half_mode(ty, mode, false)?))
                }
            };
        }
        let int = int_type(ty)?;
        let op = match base {
            "neg" => Int1::Neg,
            "abs" => Int1::Abs,
            "not" => Int1::Not,
            "cnot" => Int1::Cnot,
            "popc" => Int1::Popc,
            "clz" => Int1::Clz,
            "brev" => Int1::Brev,
            _ => match (shift_amount, ty.is_signed()) {
                (false, false) => Int1::BfindU,
                (false, true) => Int1::BfindS,
                (true, false) => Int1::BfindShiftU,
                (true, true) => Int1::BfindShiftS,
            },
        };
        // popc, clz and bfind of 64 bits give 32 bits.
        let narrow = matches!(op, Int1::Popc | Int1::Clz) || base == "bfind";
        if narrow && int == IntTy::W64 {
            self.arity(o, 2)?;
            let slots = [self.result_word(o, 0)?, self.wide(o, 1)?, NONE, NONE];
            self.emit(Op::Int1(op, int), Class::Integer, slots, 0, &[]);
            return Ok(());
        }
        self.one_source(int == IntTy::W64, o, Op::Int1(op, int))
    }

    pub(super) fn special_function(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let approximate = m.take("approx");
        let mode = m.float_mode();
        let ty = m.ty()?;
        let op = match base {
            "rcp" => Float1::Rcp,
            "sqrt" => Float1::Sqrt,
            "rsqrt" => Float1::Rsqrt,
            "ex2" => Float1::Ex2,
            "lg2" => Float1::Lg2,
            "sin" => Float1::Sin,
            "cos" => Float1::Cos,
            _ => Float1::Tanh,
        };
        if mode.sat || mode.rnd != Rnd::Rn && ty != Ty::F32 {
            return unsupported("this rounding");
        }
        let exact = matches!(op, Float1::Rcp | Float1::Sqrt);
        if !approximate && !exact {
            return unsupported(format!("{base} without .approx"));
        }
        match ty {
            Ty::F32 => self.one_source(false, o, Op::Float1(op, mode)),
            Ty::F64 if exact || op == Float1::Rsqrt => self.one_source(true, o, Op::Double1(op)),
            Ty::F64 => unsupported(format!("{base}.f64")),
            _ if matches!(op, Float1::Ex2 | Float1::Tanh) => {
                self.one_source(false, o, Op::Half1(op, half_mode(ty, mode, false)?))
            }
            _ => unsupported(format!("{base} of this type")),
        }
    }

    pub(super) fn bits(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        match base {
            "bfe" => {
                let ty = m.ty()?;
                let int = int_type(ty)?;
                let op = if ty.is_signed() { Op::BfeS(int) } else { Op::BfeU(int) };
                self.arity(o, 4)?;
                let (d, a) = match int {
                    IntTy::W64 => (self.result_wide(o, 0)?, self.wide(o, 1)?),
                    _ => (self.result_word(o, 0)?, self.word(o, 1)?),
                };
                let slots = [d, a, self.word(o, 2)?, self.word(o, 3)?];
                self.emit(op, Class::Integer, slots, 0, &[]);
            }
            "bfi" => {
                let int = int_type(m.ty()?)?;
                self.arity(o, 5)?;
                let (d, a, b) = match int {
                    IntTy::W64 => (self.result_wide(o, 0)?, self.wide(o, 1)?, self.wide(o, 2)?),
                    _ => (self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?),
                };
                let list = [a, b, self.word(o, 3)?, self.word(o, 4)?];
                self.emit(Op::Bfi(int), Class::Integer, [d, NONE, NONE, NONE], 0, &list);
            }
            "bmsk" => {
                let wrap = m.take("wrap");
                if !wrap {
                    m.require("clamp")?;
                }
                m.ty()?;
                self.two_sources(false, o, Op::Bmsk { wrap })?;
            }
            "lop3" => {
                m.ty()?;
                self.arity(o, 5)?;
                let table = self.immediate(o, 4)?;
                self.three_sources(false, &o[..4], Op::Int3(Int3::Lop3(table as u8), IntTy::W32))?;
            }
            "prmt" => {
                m.ty()?;
                let mode = m.find(|p| {
                    Some(match p {
                        "f4e" => PrmtMode::F4e,
                        "b4e" => PrmtMode::B4e,
                        "rc8" => PrmtMode::Rc8,
                        "ecl" => PrmtMode::Ecl,
                        "ecr" => PrmtMode::Ecr,
                        "rc16" => PrmtMode::Rc16,
                        _ => return None,
                    })
                });
                let op = mode.map_or(Int3::Prmt, Int3::PrmtMode);
                self.three_sources(false, o, Op::Int3(op, IntTy::W32))?;
            }
            _ => {
                let left = m.take("l");
                if !left {
                    m.require("r")?;
                }
                let wrap = m.take("wrap");
                if !wrap {
                    m.require("clamp")?;
                }
                m.ty()?;
                let op = if left { Int3::ShfL { wrap } } else { Int3::ShfR { wrap } };
                self.three_sources(false, o, Op::Int3(op, IntTy::W32))?;
            }
        }
        Ok(())
    }
}
