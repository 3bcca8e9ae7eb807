//! Handwritten digits of 8 x 8 pixels, and the order in which they are learned from.

use crate::layers::Real;

/// Pixels along each side of a digit.
pub const SIDE: usize = 8;
/// Pixels, which are the tokens.
pub const TOKENS: usize = SIDE * SIDE;
/// Pixels of a patch.
pub const PATCH: usize = 9;
/// The digits there are.
pub const CLASSES: usize = 10;

/// 64 pixels from 0 to 16 and the digit that they show, 1797 times; data/README.md says whose they are.
const BUNDLED: &[u8] = include_bytes!("../data/digits.bin");

/// One in so many is held out, from everywhere in the file: its writer has probably been learned from.
const HELD_OUT: usize = 5;

/// Digits, one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Digits<F> {
    /// `[digits, 64]`, from -1 (paper) to 1 (ink).
    pub pixels: Vec<F>,
    /// What each shows.
    pub labels: Vec<u8>,
}

impl<F: Real> Digits<F> {
    /// Those to train on, and those held out.
    pub fn bundled() -> [Self; 2] {
        let records = BUNDLED.chunks_exact(TOKENS + 1).enumerate();
        let is_held_out = |i: usize| i % HELD_OUT == HELD_OUT - 1;
        [false, true].map(|held_out| {
            let mine = records.clone().filter(|&(i, _)| is_held_out(i) == held_out);
            let records: Vec<_> = mine.map(|(_, record)| record).collect();
            let pixels = records.iter().flat_map(|record| &record[..TOKENS]);
            let pixels = pixels.map(|&pixel| F::narrow(f64::from(pixel) / 8.0 - 1.0)).collect();
            Digits { pixels, labels: records.iter().map(|record| record[TOKENS]).collect() }
        })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Some of them.
    pub fn pick(&self, which: &[usize]) -> Self {
        let pixels = which.iter().flat_map(|&i| &self.pixels[i * TOKENS..][..TOKENS]);
        Digits { pixels: pixels.copied().collect(), labels: which.iter().map(|&i| self.labels[i]).collect() }
    }

    /// The 3 x 3 pixels around each pixel, paper beyond the border: `[digits, 64, 9]`.
    pub fn patches(&self) -> Vec<F> {
        let mut patches = Vec::with_capacity(PATCH * self.pixels.len());
        for digit in self.pixels.chunks_exact(TOKENS) {
            for (token, at) in (0..TOKENS).flat_map(|token| (0..PATCH).map(move |at| (token, at))) {
                // One too many each, so that the border is not below zero.
                let (y, x) = (token / SIDE + at / 3, token % SIDE + at % 3);
                let is_inside = (1..=SIDE).contains(&y) && (1..=SIDE).contains(&x);
                patches.push(if is_inside { digit[(y - 1) * SIDE + x - 1] } else { F::narrow(-1.0) });
            }
        }
        patches
    }
}

/// Numbers from SplitMix64: no dependency, the same on every machine.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In -1 to 1.
    pub fn symmetric(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// The numbers below `len` in a random order.
    pub fn shuffled(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<_> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_a_digit() {
        let [train, held_out] = Digits::<f32>::bundled();
        assert_eq!((train.len(), held_out.len()), (1438, 359));
        for digits in [&train, &held_out] {
            assert_eq!(digits.pixels.len(), digits.len() * TOKENS);
            assert!(digits.pixels.iter().all(|pixel| (-1.0..=1.0).contains(pixel)));
            for class in 0..CLASSES as u8 {
                let count = digits.labels.iter().filter(|&&label| label == class).count();
                assert!(count * 20 > digits.len(), "{count} of {class}");
            }
        }
        // The file's first digit is a 0: its middle is empty.
        assert_eq!((train.labels[0], train.pixels[3 * SIDE + 3]), (0, -1.0));
    }

    #[test]
    fn an_order_has_every_number_once() {
        let mut order = Rng(3).shuffled(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        assert_eq!(order, Rng(3).shuffled(100));
        order.sort();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
