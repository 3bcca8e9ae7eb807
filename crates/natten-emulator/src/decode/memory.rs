//! Decoding of loads, stores, atomics, address conversions and prefetches.

use super::modifiers::Modifiers;
use super::{Decoded, Decoder, unsupported, wrong};
use crate::counters::Class;
use crate::inst::*;
use crate::ptx::ast::{Operand, RegClass};

type Ops<'o> = &'o [Operand];

impl Decoder<'_> {
    pub(super) fn memory(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<bool> {
        match base {
            "ld" | "ldu" | "st" => self.load_store(base != "st", m, o)?,
            "atom" | "red" => self.atomic(base == "atom", m, o)?,
            "cvta" => self.cvta(m, o)?,
            "isspacep" => {
                let Some(space) = m.find(state_space) else { return unsupported("isspacep of this space") };
                let d = self.result_pred(o, 0)?;
                let a = self.wide(o, 1)?;
                self.emit(Op::IsSpace(space), Class::Integer, [d, a, NONE, NONE], 0, &[]);
            }
            "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                if base == "discard" {
                    return unsupported("discard");
                }
                m.find(state_space);
                m.take("tensormap");
                m.cache_hints();
                for hint in ["L1", "L2"] {
                    m.take(hint);
                }
                self.address(o, 0)?;
                self.emit(Op::Nop, Class::OtherMemory, [NONE; 4], 0, &[]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn load_store(&mut self, load: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let strength = strength(m);
        let space = m.find(state_space).unwrap_or(Space::Generic);
        m.cache_hints();
        if m.take("L2::cache_hint") {
            return unsupported("L2::cache_hint");
        }
        let count = m
            .find(|p| match p {
                "v2" => Some(2),
                "v4" => Some(4),
                "v8" => Some(8),
                _ => None,
            })
            .unwrap_or(1);
        let ty = m.ty()?;
        self.arity(o, 2)?;
        let (data, address) = if load { (0, 1) } else { (1, 0) };
        let items = self.elements(o, data)?;
        if items.len() != count || ty.bytes() > 8 || ty.bytes() as usize * count > 32 {
            return wrong(data, "a vector of another length");
        }
        let default = RegClass::of(ty);
        let mut class = None;
        for item in items {
            if let Operand::Reg(v) = item {
                class = Some(self.class_of(*v));
            }
        }
        let class = class.unwrap_or(default);
        if class == RegClass::Pred || (ty.bytes() == 8) && class != RegClass::Wide {
            return wrong(data, "registers as wide as the type");
        }
        let (a, wide_address, offset) = self.address(o, address)?;
        let mut list = Vec::with_capacity(count);
        for item in items {
            list.push(if load {
                self.destination(item, data, class)?
            } else {
                self.source(item, data, class)?
            });
        }
        let access = Access {
            space,
            wide_address,
            bytes: ty.bytes() as u8,
            count: count as u8,
            signed: ty.is_signed(),
            wide_data: class == RegClass::Wide,
            strength,
        };
        if !load && space == Space::Param {
            return unsupported("store to .param");
        }
        let class = match (space, load) {
            (Space::Shared, true) => Class::LoadShared,
            (Space::Shared, false) => Class::StoreShared,
            (Space::Global | Space::Generic, true) => Class::LoadGlobal,
            (Space::Global | Space::Generic, false) => Class::StoreGlobal,
            _ => Class::OtherMemory,
        };
        let op = if load { Op::Load(access) } else { Op::Store(access) };
        self.emit(op, class, [NONE, a, NONE, NONE], offset, &list);
        Ok(())
    }

    fn atomic(&mut self, returns: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let strength = match strength(m) {
            Strength::Weak => Strength::Relaxed,
            other => other,
        };
        let space = m.find(state_space).unwrap_or(Space::Generic);
        m.cache_hints();
        m.take("noftz");
        let op = m.find(|p| {
            Some(match p {
                "add" => AtomOp::Add,
                "min" => AtomOp::Min,
                "max" => AtomOp::Max,
                "and" => AtomOp::And,
                "or" => AtomOp::Or,
                "xor" => AtomOp::Xor,
                "exch" => AtomOp::Exch,
                "cas" => AtomOp::Cas,
                "inc" => AtomOp::Inc,
                "dec" => AtomOp::Dec,
                _ => return None,
            })
        });
        let Some(op) = op else { return unsupported("this atomic") };
        let count = m
            .find(|p| match p {
                "v2" => Some(2usize),
                "v4" => Some(4),
                "v8" => Some(8),
                _ => None,
            })
            .unwrap_or(1);
        let ty = m.ty()?;
        let bitwise = matches!(op, AtomOp::And | AtomOp::Or | AtomOp::Xor | AtomOp::Exch | AtomOp::Cas);
        let counting = matches!(op, AtomOp::Inc | AtomOp::Dec);
        if ty.is_float() && (bitwise || counting)
            || counting && ty != Ty::U32
            || ty == Ty::B128
            || ty.bytes() < 2
        {
            return unsupported("this atomic of this type");
        }
        if ty.is_float() && op != AtomOp::Add && !matches!(ty, Ty::F16x2 | Ty::Bf16x2 | Ty::F16 | Ty::Bf16) {
            return unsupported("this atomic of this type");
        }
        if ty.bytes() == 2 && op != AtomOp::Cas && !ty.is_float() {
            return unsupported("a 16-bit atomic of this kind");
        }
        let class = RegClass::of(ty);
        let first = usize::from(returns);
        self.arity(o, first + if op == AtomOp::Cas { 3 } else { 2 })?;
        let (a, wide_address, offset) = self.address(o, first)?;
        let mut list = Vec::new();
        let sources = self.elements(o, first + 1)?;
        if sources.len() != count {
            return wrong(first + 1, "a vector of another length");
        }
        for item in sources {
            list.push(self.source(item, first + 1, class)?);
        }
        let c = if op == AtomOp::Cas { self.source(&o[first + 2], first + 2, class)? } else { NONE };
        if returns {
            let results = self.elements(o, 0)?;
            if results.len() != count {
                return wrong(0, "a vector of another length");
            }
            for item in results {
                list.push(self.destination(item, 0, class)?);
            }
        }
        let atomic = Atomic { space, wide_address, op, ty, count: count as u8, strength };
        self.emit(Op::Atom(atomic), Class::Atomic, [NONE, a, NONE, c], offset, &list);
        Ok(())
    }

    fn cvta(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let to_generic = !m.take("to");
        let Some(space) = m.find(state_space) else { return unsupported("cvta of this space") };
        let wide = m.ty()?.is_wide();
        if !wide {
            return unsupported("32-bit cvta");
        }
        self.arity(o, 2)?;
        let slots = [self.result_wide(o, 0)?, self.wide(o, 1)?, NONE, NONE];
        self.emit(Op::Cvta { to_generic, space, wide }, Class::Integer, slots, 0, &[]);
        Ok(())
    }
}

/// Consumes ordering and scope modifiers.
fn strength(m: &mut Modifiers) -> Strength {
    let _scope = m.take("cta") | m.take("cluster") | m.take("gpu") | m.take("gl") | m.take("sys");
    m.take("weak");
    m.take("mmio");
    if m.take("acq_rel") {
        Strength::AcqRel
    } else if m.take("acquire") {
        Strength::Acquire
    } else if m.take("release") {
        Strength::Release
    } else if m.take("relaxed") | m.take("volatile") {
        Strength::Relaxed
    } else {
        Strength::Weak
    }
}

/// State spaces by their modifiers. Constant memory lives in global memory.
pub(super) fn state_space(name: &str) -> Option<Space> {
    Some(match name {
        "global" | "const" => Space::Global,
        "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" => Space::Param,
        _ => return None,
    })
}
