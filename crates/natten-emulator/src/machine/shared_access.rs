//! Requests to shared memory: checked, counted, and shown to the race checker.

use super::cta::Cta;
use super::traffic;
use super::warp::Warp;
use crate::fault::Exec;
use crate::inst::Strength;
use crate::race::AccessKind;
use crate::scalar::{Lanes, Wides};

impl Cta<'_> {
    /// Alignment, bounds, races and counters of a shared-memory request by lanes of their own accord.
    #[inline]
    pub(crate) fn shared_request(
        &mut self,
        w: &Warp,
        m: u32,
        addresses: &Wides,
        bytes: u32,
        strength: Strength,
        is_write: bool,
    ) -> Exec<Lanes> {
        let kind = match (strength == Strength::Weak, is_write) {
            (true, false) => AccessKind::Read,
            (true, true) => AccessKind::Write,
            (false, _) => AccessKind::Atomic,
        };
        let offsets = self.shared_access(m, addresses, bytes, is_write)?;
        let Some(races) = &mut self.races else { return Ok(offsets) };
        races.by_lanes(w.id, m, &offsets, bytes, kind, false)?;
        if matches!(strength, Strength::Acquire | Strength::AcqRel | Strength::Relaxed) {
            self.strong_acquire(w, m, addresses);
        }
        Ok(offsets)
    }

    /// The rows that lanes of `m` point `ldmatrix` or `stmatrix` at; the data are the whole warp's.
    pub(crate) fn shared_rows(&mut self, w: &Warp, m: u32, addresses: &Wides, is_write: bool) -> Exec<Lanes> {
        let offsets = self.shared_access(m, addresses, 16, is_write)?;
        if let Some(races) = &mut self.races {
            let kind = if is_write { AccessKind::Write } else { AccessKind::Read };
            races.by_lanes(w.id, m, &offsets, 16, kind, true)?;
        }
        Ok(offsets)
    }

    #[inline]
    fn shared_access(&mut self, m: u32, addresses: &Wides, bytes: u32, is_write: bool) -> Exec<Lanes> {
        let offsets = self.shared.offsets(m, addresses, bytes)?;
        let traffic = u64::from(bytes * m.count_ones());
        if is_write {
            self.counters.shared_store_bytes += traffic;
        } else {
            self.counters.shared_load_bytes += traffic;
        }
        self.counters.shared_bank_conflicts += traffic::bank_conflicts(m, &offsets, bytes.min(16));
        Ok(offsets)
    }

    pub(super) fn strong_release(&mut self, w: &Warp, m: u32, addresses: &Wides) {
        if let Some(races) = &mut self.races {
            for lane in (0..32).filter(|l| m >> l & 1 == 1) {
                races.release_at(w.id, lane, w.live, addresses[lane]);
            }
        }
    }

    fn strong_acquire(&mut self, w: &Warp, m: u32, addresses: &Wides) {
        if let Some(races) = &mut self.races {
            for lane in (0..32).filter(|l| m >> l & 1 == 1) {
                races.acquire_at(w.id, addresses[lane]);
            }
        }
    }
}
