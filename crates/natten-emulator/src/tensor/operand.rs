//! Operands of `wgmma` and of `tcgen05.mma` in shared memory: matrix descriptors, and the matrices behind them.

use super::element;
use crate::Swizzle;
use crate::inst::MmaType;
use crate::memory::SHARED_BASE;
use crate::memory::shared::Shared;

/// A matrix in shared memory. Offsets in bytes; see [`Descriptor::chunk_offset`] for their meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub start: u32,
    pub leading: u32,
    pub stride: u32,
    pub swizzle: Swizzle,
    /// Base offset: which row of addresses, of 128 bytes, has the pattern's row 0. For matrices that start inside a period.
    pub base: u32,
}

/// A part of an operand: `count` rows (of A) or columns (of B) from `first` on, each of the operation's depth along k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub descriptor: Descriptor,
    pub ty: MmaType,
    /// k is contiguous.
    pub k_major: bool,
    pub first: u32,
    pub count: u32,
}

/// Elements along k: always 32 bytes.
pub(super) fn depth(ty: MmaType) -> usize {
    if ty == MmaType::Tf32 { 8 } else { 16 }
}

impl Descriptor {
    /// Of `wgmma`.
    pub(super) fn decode(bits: u64) -> Self {
        let field = |at: u32| ((bits >> at) as u32 & 0x3fff) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let base = (bits >> 49) as u32 & 7;
        Self { start: field(0), leading: field(16), stride: field(32), swizzle, base }
    }

    /// Where the 16-byte chunk lies whose place is [`Self::chunk_offset`].
    fn chunk_address(&self, k_major: bool, line: u32, chunk: u32) -> u32 {
        self.swizzle.apply_from(self.start + self.chunk_offset(k_major, line, chunk), self.base)
    }

    /// Unswizzled offset of the 16-byte chunk `chunk` along the contiguous axis, at index `line` of
    /// the other. `k_major`: k is contiguous.
    fn chunk_offset(&self, k_major: bool, line: u32, chunk: u32) -> u32 {
        match (self.swizzle.row_bytes(), k_major) {
            // Rows of the swizzle's width in groups of eight; k stays inside the row.
            (Some(width), true) => line / 8 * self.stride + line % 8 * width + 16 * chunk,
            // Blocks of the swizzle's width along MN, lines of k in groups of eight.
            (Some(width), false) => {
                16 * chunk / width * self.leading
                    + line / 8 * self.stride
                    + line % 8 * width
                    + 16 * chunk % width
            }
            // Core matrices of 8 rows of 16 bytes.
            (None, true) => line / 8 * self.stride + line % 8 * 16 + chunk * self.leading,
            (None, false) => chunk * self.stride + line / 8 * self.leading + line % 8 * 16,
        }
    }
}

impl Part {
    /// Line, chunk and address of every 16 bytes.
    pub(crate) fn chunks(self) -> impl Iterator<Item = (u32, u32, u32)> {
        let per_chunk = if self.ty == MmaType::Tf32 { 4 } else { 8 };
        let end = self.first + self.count;
        let (lines, chunks) = if self.k_major {
            (self.first..end, 0..depth(self.ty) as u32 / per_chunk)
        } else {
            (0..depth(self.ty) as u32, self.first / per_chunk..end / per_chunk)
        };
        let descriptor = self.descriptor;
        lines.flat_map(move |line| {
            chunks
                .clone()
                .map(move |chunk| (line, chunk, descriptor.chunk_address(self.k_major, line, chunk)))
        })
    }

    /// Calls `f` with (row or column from `first`, k, value) for every element, which earlier checks vouched for.
    fn for_each(self, shared: &Shared, mut f: impl FnMut(usize, usize, f32)) {
        let bytes_each = if self.ty == MmaType::Tf32 { 4 } else { 2 };
        for (line, chunk, address) in self.chunks() {
            let data = shared.slice((address - SHARED_BASE) as usize, 16);
            for (e, bytes) in data.chunks_exact(bytes_each).enumerate() {
                let mut bits = [0; 4];
                bits[..bytes_each].copy_from_slice(bytes);
                let along = chunk as usize * (16 / bytes_each) + e;
                let (mn, k) = if self.k_major { (line as usize, along) } else { (along, line as usize) };
                f(mn - self.first as usize, k, element(self.ty, u32::from_le_bytes(bits)));
            }
        }
    }

    /// Sixteen rows, (row, k).
    pub(crate) fn rows(self, shared: &Shared) -> [[f32; 16]; 16] {
        let mut rows = [[0f32; 16]; 16];
        self.for_each(shared, |row, k, value| rows[row][k] = value);
        rows
    }
}

/// Eight columns by k, (k, column).
pub(crate) type Block = [[f32; 8]; 16];

/// Matrices read lately: the four warps of a warpgroup, and often other warpgroups, multiply with the same ones.
#[derive(Debug, Default)]
pub(crate) struct Matrices {
    recent: Vec<(Part, u64, Vec<Block>)>,
    oldest: usize,
}

/// As many as a warpgroup has in flight: two products of eight steps along k, for two tiles.
const RECENT: usize = 32;

impl Matrices {
    /// The columns of `part` in blocks of eight.
    pub(crate) fn blocks(&mut self, shared: &Shared, part: Part) -> &[Block] {
        let version = shared.version();
        let found = self.recent.iter().position(|(p, v, _)| *p == part && *v == version);
        let at = found.unwrap_or_else(|| {
            if self.recent.len() < RECENT {
                self.recent.push((part, version, Vec::new()));
                self.oldest = self.recent.len() - 1;
            } else {
                self.oldest = (self.oldest + 1) % RECENT;
            }
            let (key, of, blocks) = &mut self.recent[self.oldest];
            (*key, *of) = (part, version);
            blocks.clear();
            blocks.resize(part.count as usize / 8, [[0.0; 8]; 16]);
            part.for_each(shared, |column, k, value| blocks[column / 8][k][column % 8] = value);
            self.oldest
        });
        &self.recent[at].2
    }
}
