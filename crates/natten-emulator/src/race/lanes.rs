//! Order within a warp. Its lanes are threads of their own: what one writes to shared memory another may only touch
//! after both met at a `bar.warp.sync` or a barrier, or after an mbarrier's phase or an atomic handed it on. Executing
//! the same instruction, or an exchange of registers such as `shfl.sync`, orders no memory.
//!
//! The time between two such meetings of a warp is an era. A cell knows in whose era it was last touched, and by which
//! lanes; two lanes in one era, one of them writing, are a race. Lanes that released something in this era which came
//! back to the warp are excused: their part may be ordered, so nothing is said against them. When other warps touch a
//! cell as well, only the last warp's lanes are remembered, so a race may be missed, but none is made up.

use super::AccessKind;
use crate::scalar::Lanes;

/// In place of a lane: all of them write together.
const COLLECTIVE: u8 = 0xfe;
/// In place of a lane: nobody in this era.
const UNKNOWN: u8 = 0xff;
/// Warps of a CTA: eras are counted in steps of this.
const MOST_WARPS: u32 = 32;

/// Last accesses to four bytes by lanes of one warp; era zero means none. An era's number tells its warp.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write_era: u32,
    read_era: u32,
    /// Who wrote each byte.
    writers: [u8; 4],
    /// Who read all of it, and who only a half.
    readers: u32,
    half_readers: [u32; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Warp {
    era: u32,
    /// The warp's clock when the era began.
    since: u32,
    /// Lanes that released something in this era which came back.
    excused: u32,
}

/// An access to whole or partial cells by one lane, or by a warp's lanes together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Touch {
    pub warp: u32,
    pub bytes: u32,
    pub kind: AccessKind,
    /// The data go to or come from all lanes, whoever gave the address.
    pub collective: bool,
}

#[derive(Debug)]
pub(super) struct LaneOrder {
    cells: Vec<Cell>,
    warps: Vec<Warp>,
    eras: u32,
}

impl LaneOrder {
    pub(super) fn new(warps: usize, cells: usize) -> Self {
        let first = |w: usize| Warp { era: MOST_WARPS + w as u32, since: 1, excused: 0 };
        Self { cells: vec![Cell::default(); cells], warps: (0..warps).map(first).collect(), eras: 1 }
    }

    /// The warp's lanes met, at this time of its clock.
    pub(super) fn meet(&mut self, warp: u32, clock: u32) {
        self.eras += 1;
        self.warps[warp as usize] = Warp { era: MOST_WARPS * self.eras + warp, since: clock, excused: 0 };
    }

    /// The warp's clock when its lanes last met.
    pub(super) fn since(&self, warp: u32) -> u32 {
        self.warps[warp as usize].since
    }

    /// What these lanes released in this era came back. True if that holds for all lanes: it is as if they had met.
    pub(super) fn returned(&mut self, warp: u32, lanes: u32) -> bool {
        let state = &mut self.warps[warp as usize];
        state.excused |= lanes;
        state.excused == !0
    }

    /// Whether only these lanes of the warp, as far as is known, last read or wrote a cell.
    pub(super) fn touched_only_by(&self, index: usize, warp: u32, lanes: u32, is_write: bool) -> bool {
        let cell = &self.cells[index];
        let era = if is_write { cell.write_era } else { cell.read_era };
        if era % MOST_WARPS != warp {
            return true;
        }
        if is_write {
            let among = |writer: u8| writer == UNKNOWN || writer < 32 && lanes >> writer & 1 == 1;
            cell.writers.iter().all(|&writer| among(writer))
        } else {
            (cell.readers | cell.half_readers[0] | cell.half_readers[1]) & !lanes == 0
        }
    }

    /// Checks and records a request; fails with the lane, the cell and the other lane, if one can be named.
    #[inline]
    pub(super) fn request(
        &mut self,
        touch: Touch,
        m: u32,
        offsets: &Lanes,
    ) -> Result<(), (usize, usize, Option<u32>)> {
        let state = self.warps[touch.warp as usize];
        match touch.kind {
            AccessKind::Read => self.read(state, touch, m, offsets),
            AccessKind::Write => self.write(state, touch, m, offsets),
            AccessKind::Atomic => Ok(()),
        }
    }

    #[inline]
    fn read(
        &mut self,
        state: Warp,
        touch: Touch,
        m: u32,
        offsets: &Lanes,
    ) -> Result<(), (usize, usize, Option<u32>)> {
        if touch.bytes == 4 {
            return self.read_words(state, m, offsets);
        }
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let readers = if touch.collective { !0 } else { 1 << lane };
            let (first, end) = range(offsets[lane], touch.bytes);
            for (index, cell) in (first..end).zip(&mut self.cells[first..end]) {
                if cell.write_era == state.era {
                    let reader = if touch.collective { UNKNOWN } else { lane as u8 };
                    let mask = bytes_of(offsets[lane], touch.bytes);
                    if let Some(other) = other_writer(cell, mask, reader, state.excused) {
                        return Err((lane, index, other));
                    }
                }
                if cell.read_era != state.era {
                    (cell.read_era, cell.readers, cell.half_readers) = (state.era, 0, [0; 2]);
                }
                if touch.bytes >= 4 {
                    cell.readers |= readers;
                } else if touch.bytes == 2 {
                    cell.half_readers[offsets[lane] as usize / 2 % 2] |= readers;
                }
            }
        }
        Ok(())
    }

    /// The commonest request: single words, each of one lane.
    #[inline]
    fn read_words(
        &mut self,
        state: Warp,
        m: u32,
        offsets: &Lanes,
    ) -> Result<(), (usize, usize, Option<u32>)> {
        let mut lane = 0;
        while lane < 32 {
            // Lanes in a row that read the same word are recorded together.
            let (first, offset) = (lane, offsets[lane]);
            while lane < 32 && offsets[lane] == offset {
                lane += 1;
            }
            let readers = ((1u64 << lane) - (1 << first)) as u32 & m;
            let index = offset as usize / 4;
            let cell = &mut self.cells[index];
            if cell.read_era != state.era {
                (cell.read_era, cell.readers, cell.half_readers) = (state.era, 0, [0; 2]);
            }
            cell.readers |= readers;
            if cell.write_era == state.era {
                for reader in (first..lane).filter(|l| readers >> l & 1 == 1) {
                    if let Some(other) = other_writer(cell, 0xf, reader as u8, state.excused) {
                        return Err((reader, index, other));
                    }
                }
            }
        }
        Ok(())
    }

    /// All lanes are checked before any is recorded: lanes that write the same place in one instruction are no race, one
    /// of them wins.
    fn write(
        &mut self,
        state: Warp,
        touch: Touch,
        m: u32,
        offsets: &Lanes,
    ) -> Result<(), (usize, usize, Option<u32>)> {
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let mask = bytes_of(offsets[lane], touch.bytes);
            let writer = if touch.collective { COLLECTIVE } else { lane as u8 };
            let (first, end) = range(offsets[lane], touch.bytes);
            for (index, cell) in (first..end).zip(&self.cells[first..end]) {
                if cell.write_era == state.era
                    && let Some(other) = other_writer(cell, mask, writer, state.excused)
                {
                    return Err((lane, index, other));
                }
                if cell.read_era == state.era {
                    let half = |h: usize| if mask >> (2 * h) & 3 != 0 { cell.half_readers[h] } else { 0 };
                    let mine = if touch.collective { 0 } else { 1 << lane };
                    let others = (cell.readers | half(0) | half(1)) & !mine & !state.excused;
                    if others != 0 {
                        return Err((lane, index, Some(others.trailing_zeros())));
                    }
                }
            }
        }
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let mask = bytes_of(offsets[lane], touch.bytes);
            let writer = if touch.collective { COLLECTIVE } else { lane as u8 };
            let (first, end) = range(offsets[lane], touch.bytes);
            for cell in &mut self.cells[first..end] {
                if cell.write_era != state.era {
                    cell.write_era = state.era;
                    cell.writers = [UNKNOWN; 4];
                }
                for (byte, by) in cell.writers.iter_mut().enumerate() {
                    if mask >> byte & 1 == 1 {
                        *by = writer;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Cells of an access.
fn range(offset: u32, bytes: u32) -> (usize, usize) {
    (offset as usize / 4, (offset + bytes).div_ceil(4) as usize)
}

/// Bytes of each of its cells that an access takes: all, unless it is shorter than a cell.
fn bytes_of(offset: u32, bytes: u32) -> u8 {
    if bytes >= 4 { 0xf } else { ((1u8 << bytes) - 1) << (offset % 4) }
}

/// Somebody else than `me` who wrote one of these bytes; the inner value names him if one lane did.
fn other_writer(cell: &Cell, mask: u8, me: u8, excused: u32) -> Option<Option<u32>> {
    if cell.writers == [me; 4] {
        return None;
    }
    let wrote = cell.writers.iter().enumerate().filter(|(byte, _)| mask >> byte & 1 == 1);
    for (_, &writer) in wrote {
        match writer {
            UNKNOWN => {}
            writer if writer == me => {}
            COLLECTIVE => return Some(None),
            writer if excused >> writer & 1 == 1 => {}
            writer => return Some(Some(writer.into())),
        }
    }
    None
}
