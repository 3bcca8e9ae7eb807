//! Weights from a seed: candle's generator on the CPU takes none.

use candle_core::{DType::F32, Device::Cpu, Result, Tensor};
use candle_nn::VarMap;

/// SplitMix64: the same numbers on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In -1 to 1.
    pub fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A matrix `[outputs, inputs]` evenly between the limits after Glorot; a vector of ones if it scales, of zeros if it shifts.
pub fn tensor(name: &str, shape: &[usize], rng: &mut Rng) -> Result<Tensor> {
    let &[outputs, inputs] = shape else {
        return if name.ends_with("bias") {
            Tensor::zeros(shape, F32, &Cpu)
        } else {
            Tensor::ones(shape, F32, &Cpu)
        };
    };
    let limit = (6.0 / (inputs + outputs) as f32).sqrt();
    let numbers: Vec<f32> = (0..inputs * outputs).map(|_| limit * rng.symmetric()).collect();
    Tensor::from_vec(numbers, (outputs, inputs), &Cpu)
}

/// Sets every parameter, in the order of names.
pub fn set_weights(vars: &VarMap, rng: &mut Rng) -> Result<()> {
    let data = vars.data().lock().expect("nobody panicked with it");
    let mut named: Vec<_> = data.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    named.into_iter().try_for_each(|(name, var)| var.set(&tensor(name, var.dims(), rng)?))
}
