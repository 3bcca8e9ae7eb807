//! Numbers for the truth kernels: seeded random words, special floats and integers, small conversions.

/// SplitMix64: the same numbers everywhere.
pub struct Random(u64);

impl Random {
    /// Seeded by a name, so that a new case does not change the others.
    pub fn new(name: &str) -> Self {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv))
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.word() % bound
    }

    /// A whole number from `-bound` to `bound`.
    pub fn small(&mut self, bound: u32) -> f32 {
        self.below(2 * bound + 1) as f32 - bound as f32
    }

    /// A float of either sign, with its exponent drawn from `-range..=range`.
    pub fn scaled(&mut self, range: u32) -> f32 {
        let mantissa = 1.0 + self.below(1 << 10) as f32 / 1024.0;
        let sign = if self.word() & 1 == 0 { 1.0 } else { -1.0 };
        sign * mantissa * 2.0_f32.powi(self.below(2 * range + 1) as i32 - range as i32)
    }
}

/// Floats that break things: zeros, subnormals, ties, limits, infinities, NaN.
pub const FLOATS: [u32; 44] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f00_0000,
    0xbf00_0000,
    0x3fc0_0000,
    0xbfc0_0000,
    0x4020_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
    0x477f_e000,
    0x477f_efff,
    0x477f_f000,
    0x477f_ffff,
    0x4780_0000,
    0x3380_0000,
    0x3300_0000,
    0x3300_0001,
    0x387f_c000,
    0x387f_e000,
    0x3880_0000,
    0x3f80_8000,
    0x3f81_8000,
    0x3f80_8001,
    0x7f7f_8000,
    0x7f7f_7fff,
    0x3f80_1000,
    0x3f80_3000,
    0x4f00_0000,
    0xcf00_0000,
    0x4f80_0000,
    0x4b80_0001,
];

/// Integers that break things.
pub const INTEGERS: [u32; 24] = [
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_fffe,
    0xffff_ffff,
];

/// A special float, or random bits.
pub fn float(random: &mut Random, index: usize) -> u32 {
    match random.below(4) {
        0 => random.word(),
        1 => random.scaled(10).to_bits(),
        _ => FLOATS[(index + random.below(44) as usize) % FLOATS.len()],
    }
}

/// A special integer, or random bits.
pub fn integer(random: &mut Random) -> u32 {
    if random.below(3) == 0 { random.word() } else { INTEGERS[random.below(24) as usize] }
}

/// Little-endian bytes of words.
pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Little-endian bytes of 16-bit values.
pub fn bytes16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Words of little-endian bytes.
pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The two 16-bit operand types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE half.
    F16,
    /// Upper half of an f32.
    Bf16,
}

impl Half {
    /// Both.
    pub const ALL: [Half; 2] = [Half::F16, Half::Bf16];

    /// As PTX spells it.
    pub fn name(self) -> &'static str {
        if self == Half::F16 { "f16" } else { "bf16" }
    }

    /// Bits of a value that the type holds exactly, zero and normal numbers only.
    pub fn bits(self, value: f32) -> u16 {
        let bits = value.to_bits();
        match self {
            Half::Bf16 => (bits >> 16) as u16,
            Half::F16 if value == 0.0 => (bits >> 16) as u16 & 0x8000,
            Half::F16 => {
                let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
                ((bits >> 16) & 0x8000) as u16 | (exponent << 10) as u16 | ((bits >> 13) & 0x3ff) as u16
            }
        }
    }

    /// The nearest value below in magnitude that the type holds.
    pub fn truncated(self, value: f32) -> f32 {
        let kept = if self == Half::F16 { 0xffff_e000 } else { 0xffff_0000 };
        f32::from_bits(value.to_bits() & kept)
    }

    /// Two values in a word, the first in the lower half.
    pub fn pair(self, low: f32, high: f32) -> u32 {
        u32::from(self.bits(low)) | u32::from(self.bits(high)) << 16
    }
}
