//! Numbers of 16 bits, encoded and decoded by arithmetic, and what a sum of `tcgen05.mma` is.

/// A 16-bit floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    F16,
    Bf16,
}

impl Element {
    /// Bits of fraction, and the least exponent of normal numbers.
    fn format(self) -> (i32, i32) {
        match self {
            Element::F16 => (10, -14),
            Element::Bf16 => (7, -126),
        }
    }

    /// What the instruction descriptor calls it.
    pub fn code(self) -> u64 {
        match self {
            Element::F16 => 0,
            Element::Bf16 => 1,
        }
    }

    /// The encoding of a number that the format holds exactly.
    pub fn encode(self, x: f64) -> u16 {
        let (fraction, least) = self.format();
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        if x == 0.0 {
            return sign;
        }
        let exponent = (x.abs().log2().floor() as i32).max(least);
        let scaled = x.abs() / f64::from(exponent).exp2() * f64::from(fraction).exp2();
        assert_eq!(scaled, scaled.floor(), "{x} is no {self:?}");
        let hidden = f64::from(fraction).exp2();
        let biased = if scaled < hidden { 0 } else { exponent - least + 1 };
        let rest = if scaled < hidden { scaled } else { scaled - hidden };
        sign + (biased as u16) * (hidden as u16) + rest as u16
    }

    /// Exponent field and fraction of an encoding, both as numbers.
    fn parts(self, bits: u16) -> (i32, f64) {
        let hidden = 2u16.pow(self.format().0 as u32);
        (i32::from(bits % 0x8000 / hidden), f64::from(bits % hidden) / f64::from(hidden))
    }

    pub fn decode(self, bits: u16) -> f64 {
        let (field, fraction) = self.parts(bits);
        let highest = if self == Element::F16 { 31 } else { 255 };
        let sign = if bits >= 0x8000 { -1.0 } else { 1.0 };
        match field {
            field if field == highest && fraction != 0.0 => f64::NAN,
            field if field == highest => sign * f64::INFINITY,
            _ => {
                let (significand, exponent) = self.split(bits);
                significand * f64::from(exponent).exp2()
            }
        }
    }

    /// Significand with its sign and exponent, as MMA-Sim takes a finite number apart: subnormal numbers keep the least
    /// exponent, zero has -126.
    pub fn split(self, bits: u16) -> (f64, i32) {
        let (field, fraction) = self.parts(bits);
        let sign = if bits >= 0x8000 { -1.0 } else { 1.0 };
        let (_, least) = self.format();
        match (field, fraction) {
            (0, 0.0) => (0.0, -126),
            (0, fraction) => (sign * fraction, least),
            (field, fraction) => (sign * (1.0 + fraction), least + field - 1),
        }
    }
}

/// The same of an f32.
fn split_f32(x: f32) -> (f64, i32) {
    if x == 0.0 {
        return (0.0, -126);
    }
    let exponent = (f64::from(x.abs()).log2().floor() as i32).max(-126);
    // A logarithm may round up to the next power of two.
    let exponent = if f64::from(x.abs()) < f64::from(exponent).exp2() { exponent - 1 } else { exponent };
    (f64::from(x) / f64::from(exponent.max(-126)).exp2(), exponent.max(-126))
}

/// One step of accumulation after MMA-Sim (microsoft/MMA-Sim, mmasim/simulator/arithmetic.py and nv_ptx.py, class
/// tcgen05mma): all addends cut off 25 bits below the largest exponent, summed exactly.
fn summed(accumulator: (f64, i32), a: &[u16], b: &[u16], types: [Element; 2]) -> f64 {
    let mut addends = vec![accumulator];
    for (&a, &b) in a.iter().zip(b) {
        let ((sa, ea), (sb, eb)) = (types[0].split(a), types[1].split(b));
        addends.push((sa * sb, ea + eb));
    }
    let largest = addends.iter().map(|addend| addend.1).max().expect("an accumulator at least");
    let cut = |&(significand, exponent): &(f64, i32)| {
        (significand * f64::from(25 + exponent - largest).exp2()).trunc()
    };
    addends.iter().map(cut).sum::<f64>() * f64::from(largest - 25).exp2()
}

/// A step in f32: the sum is cut off.
pub fn accumulate(c: f32, a: &[u16], b: &[u16], types: [Element; 2]) -> f32 {
    toward_zero(summed(split_f32(c), a, b, types))
}

/// A step in f16: the sum is rounded to the nearest number, an even one where two are as near.
pub fn accumulate_half(c: u16, a: &[u16], b: &[u16]) -> u16 {
    let sum = summed(Element::F16.split(c), a, b, [Element::F16; 2]);
    let exponent = (sum.abs().log2().floor().max(-14.0)) as i32;
    let unit = f64::from(exponent - 10).exp2();
    let rounded = (sum / unit).round_ties_even() * unit;
    match rounded.abs() < 65536.0 {
        true => Element::F16.encode(rounded),
        false => {
            if rounded > 0.0 {
                0x7c00
            } else {
                0xfc00
            }
        }
    }
}

/// The f32 next to a number on the side of zero.
fn toward_zero(x: f64) -> f32 {
    if x == 0.0 {
        return 0.0;
    }
    let mut exponent = (x.abs().log2().floor() as i32).max(-126);
    if x.abs() < f64::from(exponent).exp2() && exponent > -126 {
        exponent -= 1;
    }
    let unit = f64::from(exponent - 23).exp2();
    ((x / unit).trunc() * unit) as f32
}
