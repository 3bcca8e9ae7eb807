//! Decoding of `tcgen05`. What the emulator has no model of is refused by name: no such form is executed half understood.

use super::modifiers::Modifiers;
use super::{Decoded, Decoder, unsupported, wrong};
use crate::counters::Class;
use crate::inst::*;
use crate::ptx::ast::{Operand, RegClass};

type Ops<'o> = &'o [Operand];

/// Modifiers of `tcgen05.mma` that nothing here executes: the modifier, or how it begins, and what it stands for.
const NOT_MODELLED: [(&str, &str); 11] = [
    ("sp", "sparse A"),
    ("ws", "weight-stationary mma"),
    ("block_scale", "block scaling"),
    ("scale_vec::", "block scaling"),
    ("block16", "block scaling"),
    ("block32", "block scaling"),
    ("ashift", "a shifted A"),
    ("collector::a::fill", "the collector buffer"),
    ("collector::a::use", "the collector buffer"),
    ("collector::a::lastuse", "the collector buffer"),
    ("collector::b", "the collector buffer"),
];

fn not_modelled<T>(what: &str) -> Decoded<T> {
    unsupported(format!("tcgen05: {what} is not modelled"))
}

impl Decoder<'_> {
    pub(super) fn tcgen05(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<bool> {
        if base != "tcgen05" {
            return Ok(false);
        }
        if !self.target.has_tcgen05() {
            return unsupported(format!("tcgen05 on target {}", self.target));
        }
        let operation = m.find(|part| {
            let names = [
                "alloc",
                "dealloc",
                "relinquish_alloc_permit",
                "mma",
                "ld",
                "st",
                "commit",
                "cp",
                "shift",
                "wait::ld",
                "wait::st",
                "fence::before_thread_sync",
                "fence::after_thread_sync",
            ];
            names.into_iter().find(|&name| name == part)
        });
        match operation {
            Some("alloc") => self.tensor_alloc(m, o)?,
            Some("dealloc") => self.tensor_dealloc(m, o)?,
            Some("relinquish_alloc_permit") => {
                own_cta(m)?;
                self.aligned_tcgen05(m, Tcgen05::RelinquishAllocPermit, o)?;
            }
            Some("mma") => self.tensor_mma(m, o)?,
            Some("ld") => self.tensor_load(m, o)?,
            Some("st") => self.tensor_store(m, o)?,
            Some("commit") => self.tensor_commit(m, o)?,
            Some("wait::ld") => self.aligned_tcgen05(m, Tcgen05::WaitLoad, o)?,
            Some("wait::st") => self.aligned_tcgen05(m, Tcgen05::WaitStore, o)?,
            Some("fence::before_thread_sync") => self.emit_tcgen05(Tcgen05::FenceBeforeThreadSync, o)?,
            Some("fence::after_thread_sync") => self.emit_tcgen05(Tcgen05::FenceAfterThreadSync, o)?,
            Some("cp") => return not_modelled("cp"),
            Some("shift") => return not_modelled("shift"),
            _ => return unsupported("tcgen05 without an operation that is known"),
        }
        Ok(true)
    }

    /// An operation of a thread without operands.
    fn emit_tcgen05(&mut self, operation: Tcgen05, o: Ops) -> Decoded<()> {
        self.arity(o, 0)?;
        self.emit(Op::Tcgen05(operation), Class::Sync, [NONE; 4], 0, &[]);
        Ok(())
    }

    /// An operation of a warp without operands.
    fn aligned_tcgen05(&mut self, m: &mut Modifiers, operation: Tcgen05, o: Ops) -> Decoded<()> {
        aligned(m)?;
        self.emit_tcgen05(operation, o)
    }

    /// `tcgen05.alloc.cta_group::1.sync.aligned{.shared::cta}.b32 [to], columns`
    fn tensor_alloc(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        own_cta(m)?;
        aligned(m)?;
        m.take("shared::cta");
        m.require("b32")?;
        self.arity(o, 2)?;
        let (a, wide_address, offset) = self.address(o, 0)?;
        let b = self.word(o, 1)?;
        let op = Op::Tcgen05(Tcgen05::Alloc { wide_address });
        self.emit(op, Class::Sync, [NONE, a, b, NONE], offset, &[]);
        Ok(())
    }

    /// `tcgen05.dealloc.cta_group::1.sync.aligned.b32 address, columns`
    fn tensor_dealloc(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        own_cta(m)?;
        aligned(m)?;
        m.require("b32")?;
        self.arity(o, 2)?;
        let slots = [NONE, self.word(o, 0)?, self.word(o, 1)?, NONE];
        self.emit(Op::Tcgen05(Tcgen05::Dealloc), Class::Sync, slots, 0, &[]);
        Ok(())
    }

    /// `tcgen05.commit.cta_group::1.mbarrier::arrive::one{.shared::cluster}.b64 [mbarrier]`
    fn tensor_commit(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        own_cta(m)?;
        m.require("mbarrier::arrive::one")?;
        if m.take("multicast::cluster") {
            return not_modelled("a commit to several ctas");
        }
        m.take("shared::cluster");
        m.require("b64")?;
        self.arity(o, 1)?;
        let (a, wide_address, offset) = self.address(o, 0)?;
        let op = Op::Tcgen05(Tcgen05::Commit { wide_address });
        self.emit(op, Class::Sync, [NONE, a, NONE, NONE], offset, &[]);
        Ok(())
    }

    /// `tcgen05.mma.cta_group::1.kind::f16 [d], a or [a], b, instruction descriptor, enable-input-d`
    fn tensor_mma(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        for (name, what) in NOT_MODELLED {
            if m.find(|part| part.starts_with(name).then_some(())).is_some() {
                return not_modelled(what);
            }
        }
        own_cta(m)?;
        m.take("collector::a::discard");
        match m.find(|part| part.strip_prefix("kind::").map(str::to_owned)).as_deref() {
            Some("f16") => {}
            Some(kind) => return not_modelled(&format!("kind::{kind}")),
            None => return unsupported("tcgen05.mma without a kind"),
        }
        if matches!(o.get(4), Some(Operand::Vector(_))) {
            return not_modelled("a mask of lanes that D leaves alone");
        }
        if o.len() == 6 {
            return not_modelled("a scale of the input D");
        }
        self.arity(o, 5)?;
        let (d, d_offset) = self.tensor_place(o, 0)?;
        let a_in_tensor_memory = matches!(o[1], Operand::Address { .. });
        let (a, a_offset) = if a_in_tensor_memory { self.tensor_place(o, 1)? } else { (self.wide(o, 1)?, 0) };
        let b = self.wide(o, 2)?;
        let descriptor = self.word(o, 3)?;
        let (c, negated) = match &o[4] {
            Operand::Int(value) => (self.constant(RegClass::Pred, u64::from(*value != 0)), false),
            _ => self.pred(o, 4)?,
        };
        let offsets = [d_offset, a_offset].map(|offset| self.constant(RegClass::Word, offset as u32 as u64));
        let op = Op::Tcgen05(Tcgen05::Mma(TensorMma { a_in_tensor_memory }));
        let list = [d, offsets[0], descriptor, offsets[1]];
        self.emit(op, Class::Mma, [NONE, a, b, c], i64::from(negated), &list);
        Ok(())
    }

    /// `tcgen05.ld.sync.aligned.shape.xN{.pack::16b}.b32 {registers}, [address]{, split}`
    fn tensor_load(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if m.take("red") {
            return not_modelled("a load with a reduction");
        }
        let halves = m.take("pack::16b");
        let movement = self.movement(m, o, halves, 2)?;
        let (a, offset) = self.tensor_place(o, 1)?;
        let count = movement.shape.registers() * usize::from(movement.repeats);
        if !matches!(o[0], Operand::Vector(_)) {
            return wrong(0, "registers in braces");
        }
        let list = self.word_destinations(o, 0, count)?;
        for &slot in &list {
            if let Some(flag) = self.loaded.get_mut(slot as usize) {
                *flag = true;
            }
        }
        let op = Op::Tcgen05(Tcgen05::Load(movement));
        self.emit(op, Class::OtherMemory, [NONE, a, NONE, NONE], offset, &list);
        Ok(())
    }

    /// `tcgen05.st.sync.aligned.shape.xN{.unpack::16b}.b32 [address]{, split}, {registers}`
    fn tensor_store(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let halves = m.take("unpack::16b");
        let movement = self.movement(m, o, halves, 1)?;
        let (a, offset) = self.tensor_place(o, 0)?;
        let count = movement.shape.registers() * usize::from(movement.repeats);
        let data = o.len() - 1;
        if !matches!(o[data], Operand::Vector(_)) {
            return wrong(data, "registers in braces");
        }
        let list = self.word_sources(o, data, count)?;
        let op = Op::Tcgen05(Tcgen05::Store(movement));
        self.emit(op, Class::OtherMemory, [NONE, a, NONE, NONE], offset, &list);
        Ok(())
    }

    /// Shape and repetitions; a shape in two parts has the distance between them at operand `split_at`.
    fn movement(&self, m: &mut Modifiers, o: Ops, halves: bool, split_at: usize) -> Decoded<Movement> {
        aligned(m)?;
        m.require("b32")?;
        let shape = m.find(|part| match part {
            "32x32b" => Some(MovementShape::L32B32),
            "16x64b" => Some(MovementShape::L16B64),
            "16x128b" => Some(MovementShape::L16B128),
            "16x256b" => Some(MovementShape::L16B256),
            "16x32bx2" => Some(MovementShape::L16B32X2 { split: 0 }),
            _ => None,
        });
        let Some(mut shape) = shape else { return unsupported("tcgen05.ld or .st of this shape") };
        let in_two = matches!(shape, MovementShape::L16B32X2 { .. });
        self.arity(o, if in_two { 3 } else { 2 })?;
        if in_two && halves {
            return not_modelled("packing or unpacking of 16x32bx2");
        }
        if let MovementShape::L16B32X2 { split } = &mut shape {
            match u32::try_from(self.immediate(o, split_at)?) {
                Ok(columns) => *split = columns,
                Err(_) => return wrong(split_at, "a distance in columns"),
            }
        }
        let repeats = m.find(|part| {
            let repeats: usize = part.strip_prefix('x')?.parse().ok()?;
            (repeats.is_power_of_two() && repeats <= shape.most_repeats()).then_some(repeats as u8)
        });
        let Some(repeats) = repeats else { return unsupported("tcgen05.ld or .st of so many repetitions") };
        Ok(Movement { shape, repeats, halves })
    }

    /// `[address + offset]` in tensor memory, always of 32 bits.
    fn tensor_place(&mut self, o: Ops, index: usize) -> Decoded<(Slot, i64)> {
        match self.address(o, index)? {
            (slot, false, offset) => Ok((slot, offset)),
            _ => wrong(index, "an address in a 32-bit register"),
        }
    }
}

/// Takes `.cta_group::1`.
fn own_cta(m: &mut Modifiers) -> Decoded<()> {
    if m.take("cta_group::2") {
        return not_modelled("cta_group::2");
    }
    m.require("cta_group::1")
}

fn aligned(m: &mut Modifiers) -> Decoded<()> {
    m.require("sync")?;
    m.require("aligned")
}
