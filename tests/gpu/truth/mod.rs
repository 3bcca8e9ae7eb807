//! Hardware truth: small kernels whose outputs say what a GPU really does, shared by the program that records them on a
//! device and the test that holds the emulator to the record. Nothing here needs more than `std`.
//!
//! A [`Case`] is a PTX text, the bytes it reads, and how its output may differ. Where the instruction set's
//! documentation defines the output, the case carries that too, so a wrong test kernel is told from a wrong emulator.
#![allow(dead_code)]

pub mod barrier;
pub mod copies;
pub mod format;
pub mod inputs;
pub mod kernel;
pub mod matrix;
pub mod scalar;
pub mod sums;
pub mod tma;
pub mod warp;
pub mod wgmma;
pub mod wgmma_reads;

pub use format::Records;

/// One launch of one block, and what may come out.
pub struct Case {
    /// Unique.
    pub name: String,
    /// A module with the single entry [`kernel::ENTRY`].
    pub ptx: String,
    /// Threads of the block.
    pub threads: u32,
    /// Blocks.
    pub blocks: u32,
    /// In the order of the entry's parameters.
    pub args: Vec<Arg>,
    /// How two outputs are compared.
    pub rule: Rule,
    /// What the documentation says the output is, where it does.
    pub documented: Option<Vec<u8>>,
    /// Whether the hardware must refuse it: the launch ends in a fault, and the record is [`FAULT`] and the driver's words.
    pub refused: bool,
}

/// How the record of a launch that faulted begins.
pub const FAULT: &[u8] = b"fault: ";

/// One kernel parameter.
pub enum Arg {
    /// Address of a buffer with this content.
    Input(Vec<u8>),
    /// Address of the buffer that is read back, with its content before the launch.
    Output(Vec<u8>),
    /// A 64-bit value.
    Value(u64),
    /// A tensor map over the buffer of an earlier parameter, passed by value.
    Map {
        /// The tensor.
        map: TensorMap,
        /// Which parameter holds it.
        buffer: usize,
    },
}

/// What `cuTensorMapEncodeTiled` is told. Extents innermost first; no interleave, zeros outside.
#[derive(Clone, Debug)]
pub struct TensorMap {
    /// Type of the elements.
    pub element: MapElement,
    /// Elements along each axis.
    pub extents: Vec<u64>,
    /// Bytes between neighbours of axis 1, 2, ...
    pub strides_bytes: Vec<u64>,
    /// Extents of the box, before element strides.
    pub box_extents: Vec<u32>,
    /// Every so many elements of an axis are loaded.
    pub element_strides: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
}

/// Element types of the tensor maps here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapElement {
    /// 16-bit integers.
    U16,
    /// bf16.
    Bf16,
    /// f32.
    F32,
}

impl MapElement {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        if self == MapElement::F32 { 4 } else { 2 }
    }
}

/// Swizzles of shared memory: 16-byte chunks of a row trade places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As written.
    None,
    /// Rows of 32 bytes.
    B32,
    /// Rows of 64 bytes.
    B64,
    /// Rows of 128 bytes.
    B128,
}

impl Swizzle {
    /// All of them.
    pub const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

    /// Where a byte lies whose place without swizzle is `address`.
    pub fn apply(self, address: usize) -> usize {
        self.apply_from(address, 0)
    }

    /// The same where the pattern's row 0 is row `base`.
    pub fn apply_from(self, address: usize, base: usize) -> usize {
        let mask = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ (((address >> 7).wrapping_sub(base) & mask) << 4)
    }

    /// Bytes of a row.
    pub fn span(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// In the descriptors of `wgmma`.
    pub fn descriptor_bits(self) -> u64 {
        match self {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        }
    }

    /// In case names.
    pub fn name(self) -> &'static str {
        match self {
            Swizzle::None => "plain",
            Swizzle::B32 => "sw32",
            Swizzle::B64 => "sw64",
            Swizzle::B128 => "sw128",
        }
    }
}

/// How an output may differ from the record.
#[derive(Clone, Debug)]
pub enum Rule {
    /// Not at all: layouts, copies, integers.
    Exact,
    /// f32 within so many units in the last place, or within an absolute distance; any NaN equals any NaN, since the
    /// instruction set leaves payloads open.
    F32 {
        /// Units in the last place.
        ulp: u32,
        /// Absolute distance that is always allowed.
        absolute: f32,
    },
    /// Two 16-bit floats in a word, likewise; both formats order their bits by value.
    Halves {
        /// Units in the last place.
        ulp: u32,
        /// Bits above which, sign aside, a half is NaN: infinity's.
        infinity: u16,
    },
    /// f32 within an absolute distance of its own each.
    Within(Vec<f32>),
}

/// Exact, but for the payload of NaN.
pub const FLOAT: Rule = Rule::F32 { ulp: 0, absolute: 0.0 };

impl Rule {
    /// `Ok` with the largest difference seen, or the first word that differs by too much.
    pub fn compare(&self, got: &[u8], want: &[u8]) -> Result<f64, String> {
        if got.len() != want.len() {
            return Err(format!("{} bytes instead of {}", got.len(), want.len()));
        }
        let (got, want) = (inputs::words(got), inputs::words(want));
        let mut worst = 0.0_f64;
        let mut wrong = Vec::new();
        for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
            let (difference, allowed) = self.difference(i, g, w);
            worst = worst.max(difference);
            if difference > allowed || difference.is_nan() {
                wrong.push((i, g, w));
            }
        }
        match wrong.first() {
            None => Ok(worst),
            Some((i, g, w)) => {
                let floats = format!("{:e} instead of {:e}", f32::from_bits(*g), f32::from_bits(*w));
                Err(format!(
                    "{} of {} words differ; word {i}: {g:#010x} instead of {w:#010x} (as f32 {floats})",
                    wrong.len(),
                    got.len()
                ))
            }
        }
    }

    /// Difference of two words and what is allowed, in the rule's unit.
    fn difference(&self, index: usize, got: u32, want: u32) -> (f64, f64) {
        let (g, w) = (f32::from_bits(got), f32::from_bits(want));
        match self {
            Rule::Exact => (f64::from(u8::from(got != want)), 0.0),
            Rule::F32 { ulp, absolute } => {
                if g.is_nan() && w.is_nan() || (g - w).abs() <= *absolute && *absolute > 0.0 {
                    return (0.0, 0.0);
                }
                if g.is_nan() != w.is_nan() {
                    return (f64::INFINITY, 0.0);
                }
                ((ordered(got) - ordered(want)).unsigned_abs() as f64, f64::from(*ulp))
            }
            Rule::Halves { ulp, infinity } => {
                let one = |shift: u32| {
                    let (g, w) = ((got >> shift) as u16, (want >> shift) as u16);
                    let nan = |bits: u16| bits & 0x7fff > *infinity;
                    match (nan(g), nan(w)) {
                        (true, true) => 0.0,
                        (false, false) => (ordered16(g) - ordered16(w)).unsigned_abs() as f64,
                        _ => f64::INFINITY,
                    }
                };
                (f64::max(one(0), one(16)), f64::from(*ulp))
            }
            Rule::Within(allowed) => {
                (f64::from(g - w).abs(), allowed.get(index).copied().map_or(0.0, f64::from))
            }
        }
    }
}

/// Bits of a float as a number that grows with its value. Zeros of both signs are one apart.
fn ordered(bits: u32) -> i64 {
    let magnitude = i64::from(bits & 0x7fff_ffff);
    if bits >> 31 == 1 { -magnitude - 1 } else { magnitude }
}

fn ordered16(bits: u16) -> i64 {
    let magnitude = i64::from(bits & 0x7fff);
    if bits >> 15 == 1 { -magnitude - 1 } else { magnitude }
}

/// Every case, in a fixed order.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(scalar::cases());
    cases.extend(warp::cases());
    cases.extend(matrix::cases());
    cases.extend(copies::cases());
    cases.extend(barrier::cases());
    cases.extend(sums::cases());
    cases.extend(wgmma::cases());
    cases.extend(wgmma_reads::cases());
    cases.extend(tma::cases());
    cases
}
