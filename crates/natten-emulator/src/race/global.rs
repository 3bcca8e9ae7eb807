//! Races on global memory between the CTAs of a launch: no order exists between CTAs, so two of
//! them touching the same bytes, one writing, is a race unless both go through atomics.
//!
//! A CTA that reads after an atomic or fence of its own what another wrote before one of its own is
//! given the benefit of the doubt: that is how the last CTA to finish combines partial results.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::fault::{Accessor, Actor, FaultKind, MemorySpace};
use crate::memory::Allocation;
use crate::memory::storage::Storage;

/// Bytes that one page of shadow covers.
const PAGE: u64 = 1 << 13;
/// Bytes per cell: two halves of a word may belong to different CTAs.
const CELL: u64 = 2;
/// Reader field: several CTAs.
const MANY: u64 = (1 << 31) - 1;

/// One cell per two bytes: writer + 1 in the low 31 bits, reader + 1 in the next 31, then which of
/// the bytes were written singly.
type Page = Box<[AtomicU64]>;

#[derive(Debug)]
pub(crate) struct GlobalRaces {
    /// Pages of each allocation, made when first touched. Sparse allocations have none: they are
    /// too large to shadow.
    pages: Vec<Vec<OnceLock<Page>>>,
    /// CTAs that executed an atomic or a fence.
    synchronised: Vec<AtomicBool>,
}

impl GlobalRaces {
    pub(crate) fn new(ctas: u32, allocations: &[Arc<Allocation>]) -> Self {
        let pages = |a: &Arc<Allocation>| match a.storage {
            Storage::Dense(_) => (0..a.bytes.div_ceil(PAGE)).map(|_| OnceLock::new()).collect(),
            Storage::Sparse(_) => Vec::new(),
        };
        let synchronised = (0..ctas).map(|_| AtomicBool::new(false)).collect();
        Self { pages: allocations.iter().map(pages).collect(), synchronised }
    }

    pub(crate) fn synchronised(&self, cta: u32) {
        self.synchronised[cta as usize].store(true, Relaxed);
    }

    fn is_synchronised(&self, cta: u32) -> bool {
        self.synchronised.get(cta as usize).is_some_and(|s| s.load(Relaxed))
    }

    /// Records a plain access and fails if another CTA's conflicts.
    pub(crate) fn access(
        &self,
        cta: u32,
        allocation: usize,
        offset: u64,
        bytes: u32,
        is_write: bool,
        address: u64,
    ) -> Result<(), FaultKind> {
        if bytes == 1 {
            // Single bytes share a cell with their neighbour; they are not tracked.
            return Ok(());
        }
        let Some(page) = self.pages[allocation].get((offset / PAGE) as usize) else { return Ok(()) };
        let page = page.get_or_init(|| (0..PAGE / CELL).map(|_| AtomicU64::new(0)).collect());
        let first = offset % PAGE / CELL;
        for index in first..first + u64::from(bytes) / CELL {
            let cell = &page[index as usize];
            self.cell(cell, cta, is_write).map_err(|(other, other_wrote)| FaultKind::Race {
                space: MemorySpace::Global,
                address: address + CELL * (index - first),
                current: Accessor { actor: Actor::Cta(cta), is_write },
                previous: Accessor { actor: Actor::Cta(other), is_write: other_wrote },
            })?;
        }
        Ok(())
    }

    /// The other CTA and whether it wrote, when this access races with it.
    fn cell(&self, cell: &AtomicU64, cta: u32, is_write: bool) -> Result<(), (u32, bool)> {
        let me = u64::from(cta) + 1;
        let mut old = cell.load(Relaxed);
        loop {
            let (writer, reader) = (old & MANY, old >> 31 & MANY);
            let excused = |other: u64| {
                self.is_synchronised(cta) && (other == MANY || self.is_synchronised(other as u32 - 1))
            };
            if writer != 0 && writer != me && !excused(writer) {
                return Err((writer as u32 - 1, true));
            }
            if is_write && reader != 0 && reader != me && !excused(reader) {
                return Err((if reader == MANY { u32::MAX } else { reader as u32 - 1 }, false));
            }
            let new = if is_write {
                reader << 31 | me
            } else {
                let reader = if reader == 0 || reader == me { me } else { MANY };
                reader << 31 | writer
            };
            if new == old {
                return Ok(());
            }
            match cell.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => old = now,
            }
        }
    }
}
