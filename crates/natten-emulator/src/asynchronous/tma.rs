//! Tensor maps: how a box of a tensor becomes runs of bytes in global and shared memory.

use thiserror::Error;

use crate::fault::FaultKind;
use crate::memory::SHARED_BASE;

/// How 16-byte chunks of a box are permuted in shared memory against bank conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    None,
    /// Within 32-byte rows: address bit 4 is flipped by bit 7.
    B32,
    /// Within 64-byte rows: bits 4 and 5 by bits 7 and 8.
    B64,
    /// Within 128-byte rows: bits 4 to 6 by bits 7 to 9.
    B128,
}

impl Swizzle {
    /// Bytes of a swizzled row; a box's inner extent may not exceed them. `None` has no limit.
    pub fn row_bytes(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }

    /// The shared address at which the byte meant for `address` lies.
    pub fn apply(self, address: u32) -> u32 {
        self.apply_from(address, 0)
    }

    /// The same where row 0 of the pattern is that of addresses in row `base`, as matrix descriptors may ask.
    pub(crate) fn apply_from(self, address: u32, base: u32) -> u32 {
        let mask = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ ((address >> 7).wrapping_sub(base) & mask) << 4
    }

    fn code(self) -> u8 {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        }
    }
}

/// A tensor map, as `cuTensorMapEncodeTiled` takes it: tile mode, no interleave, zero fill.
/// Dimension 0 is the contiguous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMapDesc {
    /// Global address of the first element, a multiple of 16.
    pub base: u64,
    /// Dimensions, 1 to 5.
    pub rank: u32,
    /// Elements along each dimension.
    pub dims: [u64; 5],
    /// Bytes between neighbours along dimensions 1 and up, multiples of 16: entry 0 is dimension 1.
    pub strides_bytes: [u64; 4],
    /// Elements of the box along each dimension, at most 256.
    pub box_dims: [u32; 5],
    /// Steps through the tensor along each dimension, 1 to 8; the first is ignored, as by the hardware.
    pub element_strides: [u32; 5],
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Arrangement in shared memory.
    pub swizzle: Swizzle,
}

/// A tensor map the hardware would refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TensorMapError {
    /// The 128 bytes are not a tensor map of this emulator.
    #[error("the kernel's argument is no tensor map")]
    NotATensorMap,
    /// A property outside its limits.
    #[error("tensor map: {what} along dimension {dimension} is {got}, {needed}")]
    Property {
        /// The property.
        what: &'static str,
        /// Dimension, where it has one.
        dimension: usize,
        /// Its value.
        got: u64,
        /// What the hardware accepts.
        needed: &'static str,
    },
}

/// First bytes of an encoded map.
const MAGIC: u64 = u64::from_le_bytes(*b"emu-tmap");

impl TensorMapDesc {
    /// A dense map with unit element strides.
    pub fn new(base: u64, element_bytes: u32, dims: &[u64], strides_bytes: &[u64], box_dims: &[u32]) -> Self {
        let mut map = Self {
            base,
            rank: dims.len() as u32,
            dims: [1; 5],
            strides_bytes: [0; 4],
            box_dims: [1; 5],
            element_strides: [1; 5],
            element_bytes,
            swizzle: Swizzle::None,
        };
        map.dims.iter_mut().zip(dims).for_each(|(to, from)| *to = *from);
        map.strides_bytes.iter_mut().zip(strides_bytes).for_each(|(to, from)| *to = *from);
        map.box_dims.iter_mut().zip(box_dims).for_each(|(to, from)| *to = *from);
        map
    }

    /// Sets the swizzle.
    pub fn with_swizzle(mut self, swizzle: Swizzle) -> Self {
        self.swizzle = swizzle;
        self
    }

    /// Checks every limit that `cuTensorMapEncodeTiled` checks.
    ///
    /// # Errors
    /// The first property outside its limits.
    pub fn check(&self) -> Result<(), TensorMapError> {
        let refuse =
            |what, dimension, got, needed| Err(TensorMapError::Property { what, dimension, got, needed });
        if !(1..=5).contains(&self.rank) {
            return refuse("rank", 0, self.rank.into(), "needed is 1 to 5");
        }
        if !self.base.is_multiple_of(16) {
            return refuse("base address", 0, self.base, "needed is a multiple of 16");
        }
        if !matches!(self.element_bytes, 1 | 2 | 4 | 8) {
            return refuse("element size", 0, self.element_bytes.into(), "needed is 1, 2, 4 or 8");
        }
        for d in 0..self.rank as usize {
            if !(1..=1 << 32).contains(&self.dims[d]) {
                return refuse("extent", d, self.dims[d], "needed is 1 to 2^32");
            }
            if !(1..=256).contains(&self.box_dims[d]) {
                return refuse("box extent", d, self.box_dims[d].into(), "needed is 1 to 256");
            }
            if !(1..=8).contains(&self.element_strides[d]) {
                return refuse("element stride", d, self.element_strides[d].into(), "needed is 1 to 8");
            }
            if d > 0
                && (!self.strides_bytes[d - 1].is_multiple_of(16) || self.strides_bytes[d - 1] >= 1 << 40)
            {
                return refuse(
                    "stride",
                    d,
                    self.strides_bytes[d - 1],
                    "needed is a multiple of 16 below 2^40",
                );
            }
        }
        let row = self.box_dims[0] * self.element_bytes;
        if !row.is_multiple_of(16) {
            return refuse("inner box bytes", 0, row.into(), "needed is a multiple of 16");
        }
        if self.swizzle.row_bytes().is_some_and(|limit| row > limit) {
            return refuse("inner box bytes", 0, row.into(), "needed is at most the swizzle's row");
        }
        Ok(())
    }

    /// The 128 bytes to pass as a kernel argument in place of a `CUtensorMap`. The encoding is this
    /// emulator's own: a magic number, then the fields in order as little-endian u64 or u32.
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&self.base.to_le_bytes());
        self.dims.iter().for_each(|d| bytes.extend_from_slice(&d.to_le_bytes()));
        self.strides_bytes.iter().for_each(|s| bytes.extend_from_slice(&s.to_le_bytes()));
        self.box_dims.iter().for_each(|b| bytes.extend_from_slice(&(*b as u16).to_le_bytes()));
        self.element_strides.iter().for_each(|e| bytes.push(*e as u8));
        bytes.extend_from_slice(&[self.rank as u8, self.element_bytes as u8, self.swizzle.code()]);
        let mut encoded = [0; 128];
        encoded[..bytes.len()].copy_from_slice(&bytes);
        encoded
    }

    /// Decodes what [`to_bytes`](Self::to_bytes) made.
    ///
    /// # Errors
    /// When the bytes are something else, or a property is outside its limits.
    pub fn from_bytes(bytes: &[u8; 128]) -> Result<Self, TensorMapError> {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if u64_at(0) != MAGIC {
            return Err(TensorMapError::NotATensorMap);
        }
        let swizzle = match bytes[105] {
            0 => Swizzle::None,
            1 => Swizzle::B32,
            2 => Swizzle::B64,
            _ => Swizzle::B128,
        };
        let map = Self {
            base: u64_at(8),
            dims: std::array::from_fn(|d| u64_at(16 + 8 * d)),
            strides_bytes: std::array::from_fn(|d| u64_at(56 + 8 * d)),
            box_dims: std::array::from_fn(|d| {
                u32::from(u16::from_le_bytes([bytes[88 + 2 * d], bytes[89 + 2 * d]]))
            }),
            element_strides: std::array::from_fn(|d| bytes[98 + d].into()),
            rank: bytes[103].into(),
            element_bytes: bytes[104].into(),
            swizzle,
        };
        map.check().map(|()| map)
    }

    /// Elements of the box that are copied along a dimension: element strides thin it out.
    fn copied(&self, dimension: usize) -> u32 {
        if dimension == 0 {
            self.box_dims[0]
        } else {
            self.box_dims[dimension].div_ceil(self.element_strides[dimension])
        }
    }

    /// Bytes a box takes in shared memory; what a load adds to the mbarrier's transaction count,
    /// parts outside of the tensor included.
    pub fn box_bytes(&self) -> u32 {
        (0..self.rank as usize).map(|d| self.copied(d)).product::<u32>() * self.element_bytes
    }

    /// Calls `f` with (address in shared memory, global address or none where outside, bytes) for
    /// every run of at most 16 bytes of the box at `coordinates`.
    pub(crate) fn for_each_run(
        &self,
        coordinates: &[i32; 5],
        shared: u32,
        mut f: impl FnMut(u32, Option<u64>, u32),
    ) {
        let rank = self.rank as usize;
        let row_bytes = self.box_dims[0] * self.element_bytes;
        let rows = self.box_bytes() / row_bytes;
        let element = i64::from(self.element_bytes);
        // Bytes of a row that lie inside the tensor along dimension 0.
        let start = i64::from(coordinates[0]) * element;
        let inside_from = (-start).clamp(0, row_bytes.into()) as u32;
        let inside_to = (self.dims[0] as i64 * element - start).clamp(0, row_bytes.into()) as u32;
        for row in 0..rows {
            let mut rest = row;
            let mut address = self.base.wrapping_add_signed(start);
            let mut inside = true;
            for d in 1..rank {
                let index = rest % self.copied(d);
                rest /= self.copied(d);
                let at = i64::from(coordinates[d]) + i64::from(index * self.element_strides[d]);
                inside &= at >= 0 && (at as u64) < self.dims[d];
                address = address.wrapping_add((at as u64).wrapping_mul(self.strides_bytes[d - 1]));
            }
            for chunk in (0..row_bytes).step_by(16) {
                let cuts = [
                    chunk,
                    inside_from.clamp(chunk, chunk + 16),
                    inside_to.clamp(chunk, chunk + 16),
                    chunk + 16,
                ];
                for piece in 0..3 {
                    let (from, to) = (cuts[piece], cuts[piece + 1].max(cuts[piece]));
                    if to > from {
                        let there = self.swizzle.apply(shared + row * row_bytes + from);
                        let source = (inside && piece == 1).then(|| address.wrapping_add(from.into()));
                        f(there, source, to - from);
                    }
                }
            }
        }
    }

    /// Fails unless a box may start there: hardware moves rows in pieces of 16 bytes from their first on, and stores nothing
    /// that starts below the tensor. Loads may start below it, and both may end behind it.
    pub(crate) fn check_start(&self, coordinates: &[i32; 5], is_store: bool) -> Result<(), FaultKind> {
        let start = i64::from(coordinates[0]) * i64::from(self.element_bytes);
        if start % 16 != 0 {
            let what = "bytes of a tensor copy's first coordinate, modulo 16,";
            return Err(FaultKind::BulkCopy { what, got: start.rem_euclid(16) as u64, needed: 0 });
        }
        match coordinates[..self.rank as usize].iter().position(|&at| at < 0) {
            Some(axis) if is_store => Err(FaultKind::InvalidOperand {
                what: "axis of a negative start of a tensor store",
                got: axis as u64,
            }),
            _ => Ok(()),
        }
    }

    /// Fails unless a box may start at this shared address.
    pub(crate) fn check_shared(&self, address: u64) -> Result<(), FaultKind> {
        debug_assert!(
            SHARED_BASE.is_multiple_of(1024),
            "swizzle patterns repeat every 1024 bytes of address"
        );
        crate::machine::cta::Cta::require_multiple("shared address of a tensor copy", address, 128)
    }
}
