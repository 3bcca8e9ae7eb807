//! Decoding of asynchronous copies, mbarriers and register reallocation.

use super::modifiers::Modifiers;
use super::{Decoded, Decoder, unsupported, wrong};
use crate::counters::Class;
use crate::inst::*;
use crate::ptx::ast::{Operand, RegClass};

type Ops<'o> = &'o [Operand];

impl Decoder<'_> {
    pub(super) fn asynchronous(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<bool> {
        match base {
            "cp" => self.copy(m, o)?,
            "mbarrier" => self.mbarrier(m, o)?,
            "setmaxnreg" => {
                let increase = m.take("inc");
                if !increase {
                    m.require("dec")?;
                }
                m.require("sync")?;
                m.require("aligned")?;
                m.ty()?;
                let count = self.immediate(o, 0)?;
                self.emit(Op::SetMaxNReg { increase }, Class::Sync, [NONE; 4], count, &[]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn copy(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let reduce = m.take("reduce");
        m.require("async")?;
        if m.take("bulk") {
            return self.bulk(reduce, m, o);
        }
        if m.take("commit_group") {
            self.emit(Op::CpCommit, Class::AsyncCopy, [NONE; 4], 0, &[]);
            return Ok(());
        }
        if m.take("wait_group") {
            let count = self.immediate(o, 0)?;
            self.emit(Op::CpWait, Class::AsyncCopy, [NONE; 4], count, &[]);
            return Ok(());
        }
        if m.take("wait_all") {
            self.emit(Op::CpWaitAll, Class::AsyncCopy, [NONE; 4], 0, &[]);
            return Ok(());
        }
        if m.take("mbarrier") {
            m.require("arrive")?;
            let no_increment = m.take("noinc");
            m.find(super::memory::state_space);
            m.require("b64")?;
            let (a, wide_address, offset) = self.address(o, 0)?;
            let op = Op::CpMbarrierArrive { no_increment, wide_address };
            self.emit(op, Class::AsyncCopy, [NONE, a, NONE, NONE], offset, &[]);
            return Ok(());
        }
        self.cp_async(m, o)
    }

    /// `cp.async.{ca,cg}.shared.global [dst], [src], size{, src-size | ignore-src}`
    fn cp_async(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let around_l1 = m.take("cg");
        if m.take("L2::cache_hint") {
            return unsupported("L2::cache_hint");
        }
        m.cache_hints();
        if m.find(super::memory::state_space) != Some(Space::Shared) {
            return unsupported("cp.async to this space");
        }
        m.require("global")?;
        let bytes = self.immediate(o, 2)?;
        if !matches!((bytes, around_l1), (4 | 8, false) | (16, _)) {
            return wrong(2, "4, 8 or 16 bytes, only 16 with .cg");
        }
        let (d, wide_shared, to_offset) = self.address(o, 0)?;
        let (a, wide_global, from_offset) = self.address(o, 1)?;
        let (b, ignore) = match o.get(3) {
            None => (NONE, false),
            Some(Operand::Reg(v)) if self.class_of(*v) == RegClass::Pred => (self.pred(o, 3)?.0, true),
            Some(_) => (self.word(o, 3)?, false),
        };
        // The destination's offset travels as a constant in the list: imm is the source's.
        let to_offset = self.constant(RegClass::Word, u64::from(to_offset as u32));
        let op = Op::CpAsync { bytes: bytes as u8, wide_shared, wide_global, ignore };
        self.emit(op, Class::AsyncCopy, [NONE, a, b, d], from_offset, &[to_offset]);
        Ok(())
    }

    fn bulk(&mut self, reduce: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if m.take("commit_group") {
            self.emit(Op::BulkCommit, Class::AsyncCopy, [NONE; 4], 0, &[]);
            return Ok(());
        }
        if m.take("wait_group") {
            let read = m.take("read");
            let count = self.immediate(o, 0)?;
            self.emit(Op::BulkWait { read }, Class::AsyncCopy, [NONE; 4], count, &[]);
            return Ok(());
        }
        let rank = if m.take("tensor") {
            let rank = m.find(|p| match p {
                "1d" => Some(1u8),
                "2d" => Some(2),
                "3d" => Some(3),
                "4d" => Some(4),
                "5d" => Some(5),
                _ => None,
            });
            rank.map_or_else(|| unsupported("no rank"), Ok)?
        } else {
            0
        };
        m.take("tile");
        if m.take("prefetch") {
            m.take("L2");
            m.take("global");
            self.emit(Op::Nop, Class::AsyncCopy, [NONE; 4], 0, &[]);
            return Ok(());
        }
        let policy = m.take("L2::cache_hint");
        // Destination first, source second.
        let spaces: Vec<Space> = std::iter::from_fn(|| m.find(super::memory::state_space)).collect();
        match spaces[..] {
            [Space::Shared, Space::Global] if !reduce => self.bulk_load(rank, policy, m, o),
            [Space::Global, Space::Shared] => self.bulk_store(rank, reduce, policy, m, o),
            _ => unsupported("bulk copy between these spaces"),
        }
    }

    /// `[dst], [src] or [map, {coordinates}], size (plain), [mbarrier]`; list: coordinates, then the mbarrier.
    fn bulk_load(&mut self, rank: u8, policy: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("mbarrier::complete_tx::bytes")?;
        let multicast = m.take("multicast::cluster");
        let at = if rank == 0 { 3 } else { 2 };
        self.arity(o, at + 1 + usize::from(multicast) + usize::from(policy))?;
        let (d, wide_shared, to_offset) = self.address(o, 0)?;
        let mut list = Vec::new();
        let (a, wide_global, from_offset) = self.tensor_address(rank, o, 1, &mut list)?;
        let b = if rank == 0 { self.word(o, 2)? } else { NONE };
        let (mbarrier, wide_mbarrier, mbarrier_offset) = self.address(o, at)?;
        if to_offset != 0 || mbarrier_offset != 0 {
            return wrong(0, "an address without an offset");
        }
        list.push(mbarrier);
        if multicast {
            list.push(self.word(o, at + 1)?);
        }
        let bulk = Bulk {
            to_shared: true,
            from_shared: false,
            rank,
            reduce: BulkReduce::None,
            wide_shared,
            wide_global,
            wide_mbarrier,
            multicast,
        };
        self.emit(Op::Bulk(bulk), Class::AsyncCopy, [NONE, a, b, d], from_offset, &list);
        Ok(())
    }

    /// `[dst] or [map, {coordinates}], [src], size (plain)`.
    fn bulk_store(&mut self, rank: u8, reduce: bool, policy: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("bulk_group")?;
        let kind = if !reduce {
            BulkReduce::None
        } else if rank != 0 {
            return unsupported("reduction through a tensor map");
        } else {
            m.take("noftz");
            let name = m.find(|p| matches!(p, "add" | "min" | "max").then(|| p.to_owned()));
            let ty = m.ty()?;
            match name.as_deref() {
                Some("add") => BulkReduce::Add(ty),
                Some("min") => BulkReduce::Min(ty),
                Some("max") => BulkReduce::Max(ty),
                _ => return unsupported("bulk reduction of this kind"),
            }
        };
        self.arity(o, 2 + usize::from(rank == 0) + usize::from(policy))?;
        let mut list = Vec::new();
        let (a, wide_global, to_offset) = self.tensor_address(rank, o, 0, &mut list)?;
        let (d, wide_shared, from_offset) = self.address(o, 1)?;
        if from_offset != 0 {
            return wrong(1, "an address without an offset");
        }
        let b = if rank == 0 { self.word(o, 2)? } else { NONE };
        let bulk = Bulk {
            to_shared: false,
            from_shared: true,
            rank,
            reduce: kind,
            wide_shared,
            wide_global,
            wide_mbarrier: false,
            multicast: false,
        };
        self.emit(Op::Bulk(bulk), Class::AsyncCopy, [NONE, a, b, d], to_offset, &list);
        Ok(())
    }

    /// A global address, or a tensor map's with its coordinates appended to `list`.
    fn tensor_address(
        &mut self,
        rank: u8,
        o: Ops,
        index: usize,
        list: &mut Vec<Slot>,
    ) -> Decoded<(Slot, bool, i64)> {
        let Operand::Address { coordinates, .. } = self.at(o, index)? else {
            return wrong(index, "an address in brackets");
        };
        if coordinates.len() != usize::from(rank) {
            return wrong(index, "an address with as many coordinates as the rank");
        }
        for coordinate in coordinates {
            list.push(self.source(coordinate, index, RegClass::Word)?);
        }
        self.address(o, index)
    }

    fn mbarrier(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if m.take("pending_count") {
            m.require("b64")?;
            let slots = [self.result_word(o, 0)?, NONE, NONE, self.wide(o, 1)?];
            self.emit(Op::Mbarrier(Mbar::PendingCount, false), Class::Sync, slots, 0, &[]);
            return Ok(());
        }
        let kind = self.mbarrier_kind(m)?;
        for ordering in ["release", "acquire", "relaxed", "cta", "cluster"] {
            m.take(ordering);
        }
        let _shared = m.find(super::memory::state_space);
        m.require("b64")?;
        let (first, d) = match (&kind, o.first()) {
            (Mbar::Wait { .. }, _) => (1, self.result_pred(o, 0)?),
            (Mbar::Arrive { .. }, Some(Operand::Reg(_) | Operand::Sink)) => (1, self.result_wide(o, 0)?),
            _ => (0, NONE),
        };
        let (a, wide, offset) = self.address(o, first)?;
        let (mut b, mut c) = (NONE, NONE);
        match kind {
            Mbar::Init | Mbar::ExpectTx | Mbar::CompleteTx => b = self.word(o, first + 1)?,
            Mbar::Arrive { expect, no_complete, .. } if expect || no_complete || o.len() > first + 1 => {
                b = self.word(o, first + 1)?;
            }
            Mbar::Wait { parity: true } => c = self.word(o, 2)?,
            Mbar::Wait { parity: false } => c = self.wide(o, 2)?,
            _ => {}
        }
        if matches!(kind, Mbar::Wait { .. }) && o.len() > 3 {
            self.word(o, 3)?; // a time limit, which nothing here needs
        }
        self.emit(Op::Mbarrier(kind, wide), Class::Sync, [d, a, b, c], offset, &[]);
        Ok(())
    }

    fn mbarrier_kind(&self, m: &mut Modifiers) -> Decoded<Mbar> {
        Ok(if m.take("init") {
            Mbar::Init
        } else if m.take("inval") {
            Mbar::Inval
        } else if m.take("arrive") {
            let expect = m.take("expect_tx");
            Mbar::Arrive { expect, drop: false, no_complete: m.take("noComplete") }
        } else if m.take("arrive_drop") {
            let expect = m.take("expect_tx");
            Mbar::Arrive { expect, drop: true, no_complete: m.take("noComplete") }
        } else if m.take("expect_tx") {
            Mbar::ExpectTx
        } else if m.take("complete_tx") {
            Mbar::CompleteTx
        } else if m.take("test_wait") || m.take("try_wait") {
            // Neither blocks here: a failed try lets others run before the loop comes back.
            Mbar::Wait { parity: m.take("parity") }
        } else {
            return unsupported("mbarrier operation");
        })
    }
}
