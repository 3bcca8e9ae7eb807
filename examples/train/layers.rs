//! The layers beside attention, each with its gradient. A layer remembers of its forward what its backward needs, and a
//! backward adds to the gradients of its parameters.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use natten::Element;

use crate::digits::Rng;

/// What the network computes in: `f32`, and `f64` to hold its gradients to finite differences.
pub trait Real:
    Element
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + PartialOrd
{
    /// e to this.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($($type:ident),*) => {$(
        impl Real for $type {
            fn exp(self) -> Self {
                $type::exp(self)
            }
            fn ln(self) -> Self {
                $type::ln(self)
            }
            fn sqrt(self) -> Self {
                $type::sqrt(self)
            }
        }
    )*};
}
real!(f32, f64);

/// Numbers to learn, and the loss's gradient with respect to them.
#[derive(Clone, Debug)]
pub struct Parameter<F> {
    pub value: Vec<F>,
    pub gradient: Vec<F>,
}

impl<F: Real> Parameter<F> {
    /// All equal.
    pub fn constant(len: usize, value: f64) -> Self {
        Parameter { value: vec![F::narrow(value); len], gradient: vec![F::default(); len] }
    }

    /// Even between minus and plus `limit`.
    pub fn random(len: usize, limit: f64, rng: &mut Rng) -> Self {
        let value = (0..len).map(|_| F::narrow(limit * rng.symmetric())).collect();
        Parameter { value, gradient: vec![F::default(); len] }
    }
}

/// `output = input weight + bias` for each row.
#[derive(Clone, Debug)]
pub struct Linear<F> {
    /// `[inputs, outputs]`
    weight: Parameter<F>,
    bias: Parameter<F>,
    /// `[rows, inputs]`
    input: Vec<F>,
}

impl<F: Real> Linear<F> {
    /// Random weights that neither grow nor shrink what goes through, after Glorot.
    pub fn new(inputs: usize, outputs: usize, rng: &mut Rng) -> Self {
        let limit = (6.0 / (inputs + outputs) as f64).sqrt();
        let weight = Parameter::random(inputs * outputs, limit, rng);
        Linear { weight, bias: Parameter::constant(outputs, 0.0), input: Vec::new() }
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&mut self, input: Vec<F>) -> Vec<F> {
        let (inputs, outputs) = self.extents();
        let mut output = self.bias.value.repeat(input.len() / inputs);
        add_product(&mut output, &input, &self.weight.value, inputs, outputs);
        self.input = input;
        output
    }

    /// The gradient of the input from that of the output.
    pub fn backward(&mut self, d_output: &[F]) -> Vec<F> {
        let (inputs, outputs) = self.extents();
        let rows = d_output.len() / outputs;
        add_product(&mut self.weight.gradient, &transposed(&self.input, inputs), d_output, rows, outputs);
        add_product(&mut self.bias.gradient, &vec![F::narrow(1.0); rows], d_output, rows, outputs);
        let mut d_input = vec![F::default(); rows * inputs];
        add_product(&mut d_input, d_output, &transposed(&self.weight.value, outputs), outputs, inputs);
        d_input
    }

    /// What it learns.
    pub fn parameters(&mut self) -> [&mut Parameter<F>; 2] {
        [&mut self.weight, &mut self.bias]
    }

    fn extents(&self) -> (usize, usize) {
        let outputs = self.bias.value.len();
        (self.weight.value.len() / outputs, outputs)
    }
}

/// Each row less its mean and over its standard deviation, then times a gain and plus a shift.
#[derive(Clone, Debug)]
pub struct LayerNorm<F> {
    gain: Parameter<F>,
    shift: Parameter<F>,
    /// `[rows, width]`
    normalized: Vec<F>,
    /// One over the standard deviation of each row.
    inverse_deviation: Vec<F>,
}

impl<F: Real> LayerNorm<F> {
    /// For rows of `width`.
    pub fn new(width: usize) -> Self {
        let (gain, shift) = (Parameter::constant(width, 1.0), Parameter::constant(width, 0.0));
        LayerNorm { gain, shift, normalized: Vec::new(), inverse_deviation: Vec::new() }
    }

    /// `[rows, width]` to the same shape.
    pub fn forward(&mut self, input: &[F]) -> Vec<F> {
        let width = self.gain.value.len();
        let over_width = F::narrow(1.0 / width as f64);
        self.normalized.clear();
        self.inverse_deviation.clear();
        for row in input.chunks_exact(width) {
            let mean = sum(row.iter().copied()) * over_width;
            let variance = sum(row.iter().map(|&x| (x - mean) * (x - mean))) * over_width;
            let inverse = F::narrow(1.0) / (variance + F::narrow(1e-5)).sqrt();
            self.normalized.extend(row.iter().map(|&x| (x - mean) * inverse));
            self.inverse_deviation.push(inverse);
        }
        let scaled = self.normalized.chunks_exact(width).flat_map(|row| {
            row.iter()
                .zip(&self.gain.value)
                .zip(&self.shift.value)
                .map(|((&x, &gain), &shift)| x * gain + shift)
        });
        scaled.collect()
    }

    /// The gradient of the input from that of the output.
    pub fn backward(&mut self, d_output: &[F]) -> Vec<F> {
        let width = self.gain.value.len();
        let over_width = F::narrow(1.0 / width as f64);
        let mut d_input = Vec::with_capacity(d_output.len());
        let rows = d_output.chunks_exact(width).zip(self.normalized.chunks_exact(width));
        for ((d_row, row), &inverse) in rows.zip(&self.inverse_deviation) {
            for (i, (&d, &x)) in d_row.iter().zip(row).enumerate() {
                self.gain.gradient[i] += d * x;
                self.shift.gradient[i] += d;
            }
            let scaled: Vec<F> = d_row.iter().zip(&self.gain.value).map(|(&d, &gain)| d * gain).collect();
            // Neither the mean nor the scale of a row reaches the output, so the gradient has no part along either.
            let mean = sum(scaled.iter().copied()) * over_width;
            let along = sum(scaled.iter().zip(row).map(|(&d, &x)| d * x)) * over_width;
            d_input.extend(scaled.iter().zip(row).map(|(&d, &x)| (d - mean - x * along) * inverse));
        }
        d_input
    }

    /// What it learns.
    pub fn parameters(&mut self) -> [&mut Parameter<F>; 2] {
        [&mut self.gain, &mut self.shift]
    }
}

/// `x / (1 + exp(-x))`, a smooth step from 0 to the identity.
#[derive(Clone, Debug, Default)]
pub struct Silu<F> {
    input: Vec<F>,
}

impl<F: Real> Silu<F> {
    /// Number by number.
    pub fn forward(&mut self, input: Vec<F>) -> Vec<F> {
        self.input = input;
        self.input.iter().map(|&x| x * sigmoid(x)).collect()
    }

    /// The gradient of the input from that of the output.
    pub fn backward(&mut self, d_output: &[F]) -> Vec<F> {
        let one = F::narrow(1.0);
        let slope = |x: F| {
            let s = sigmoid(x);
            s * (one + x * (one - s))
        };
        d_output.iter().zip(&self.input).map(|(&d, &x)| d * slope(x)).collect()
    }
}

fn sigmoid<F: Real>(x: F) -> F {
    F::narrow(1.0) / (F::narrow(1.0) + (-x).exp())
}

/// The sum of numbers, first to last.
pub fn sum<F: Real>(numbers: impl Iterator<Item = F>) -> F {
    numbers.fold(F::default(), |sum, x| sum + x)
}

/// Adds to each number its counterpart.
pub fn add<F: Real>(to: &mut [F], numbers: &[F]) {
    to.iter_mut().zip(numbers).for_each(|(to, &x)| *to += x);
}

/// `sums += left right`, for `left` of `[rows, depth]` and `right` of `[depth, width]`.
fn add_product<F: Real>(sums: &mut [F], left: &[F], right: &[F], depth: usize, width: usize) {
    /// Columns summed at once, in registers.
    const COLUMNS: usize = 16;
    for (sums, left) in sums.chunks_exact_mut(width).zip(left.chunks_exact(depth)) {
        let whole = width - width % COLUMNS;
        for first in (0..whole).step_by(COLUMNS) {
            let mut block = [F::default(); COLUMNS];
            for (&x, row) in left.iter().zip(right.chunks_exact(width)) {
                let row: &[F; COLUMNS] = row[first..].first_chunk().expect("a whole block of columns");
                (0..COLUMNS).for_each(|i| block[i] += x * row[i]);
            }
            add(&mut sums[first..], &block);
        }
        if whole < width {
            for (&x, row) in left.iter().zip(right.chunks_exact(width)) {
                sums[whole..].iter_mut().zip(&row[whole..]).for_each(|(sum, &y)| *sum += x * y);
            }
        }
    }
}

/// Rows of `width` as columns.
fn transposed<F: Real>(rows: &[F], width: usize) -> Vec<F> {
    let height = rows.len() / width;
    (0..rows.len()).map(|i| rows[i % height * width + i / height]).collect()
}
