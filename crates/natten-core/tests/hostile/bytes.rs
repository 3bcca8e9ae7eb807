//! Arguments out of bytes that a fuzzer or a generator of random numbers made up: likely ones, and the extremes.
#![allow(dead_code, reason = "each target uses a part of it")]

/// Bytes that are read one after another; past the end they are 0.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Bytes(data)
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }

    /// Mostly what a caller would say; sometimes what overflows when it is multiplied, added to or negated.
    pub fn number(&mut self) -> usize {
        let byte = self.byte();
        match byte {
            0..=199 => usize::from(byte % 10),
            200..=219 => 1 << (self.byte() % 64),
            220..=229 => (1usize << (self.byte() % 64)).wrapping_sub(1),
            230..=239 => usize::MAX - usize::from(self.byte() % 4),
            240..=247 => isize::MAX as usize - usize::from(self.byte() % 4),
            _ => usize::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    pub fn stride(&mut self) -> isize {
        let magnitude = self.number() as isize;
        if self.once_in(4) { magnitude.wrapping_neg() } else { magnitude }
    }

    pub fn float(&mut self) -> f32 {
        f32::from_bits(u32::from_le_bytes(std::array::from_fn(|_| self.byte())))
    }
}
