//! Holds a sample of a large result to the operator's formula in f64, row by row.
//!
//! The reference would compute every row; here only sampled ones are, from the same windows.

use natten::window::Axis;
use natten::{Element, ElementType, Gradients, Inputs, Problem, Tensor};
use serde_json::{Value, json};

use super::operands::Numbers;

/// A call's operands and results, all contiguous.
pub struct Results<'a, T, E> {
    pub inputs: &'a Inputs<T>,
    pub out: &'a Tensor<E>,
    pub lse: &'a Tensor<f32>,
}

/// The largest difference found, relative to the largest entry or 1, and what is allowed.
#[derive(Clone, Copy, Debug)]
pub struct SampleError {
    pub error: f64,
    pub allowed: f64,
}

impl SampleError {
    fn new(element_type: ElementType) -> Self {
        let allowed = match element_type {
            ElementType::F16 => 1e-2,
            ElementType::Bf16 => 5e-2,
            _ => 1e-4,
        };
        SampleError { error: 0.0, allowed }
    }

    /// Whether the sample is right. NaN is not.
    pub fn is_within(&self) -> bool {
        self.error <= self.allowed
    }

    pub fn to_json(self) -> Value {
        let error = if self.error.is_finite() { json!(self.error) } else { json!(self.error.to_string()) };
        json!({"error": error, "allowed": self.allowed})
    }

    fn add(&mut self, found: &[f64], expected: &[f64]) {
        let largest = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let difference = (found - expected).abs() / largest;
            // NaN must stick, and `max` would drop it.
            self.error = if difference.is_nan() { f64::INFINITY } else { self.error.max(difference) };
        }
    }
}

/// One row: batch item, token as an index over all of them, head.
#[derive(Clone, Copy)]
struct Row {
    batch: usize,
    token: usize,
    head: usize,
}

/// A key that a query sees: a token, or one of the additional keys.
#[derive(Clone, Copy)]
enum Key {
    Token(usize),
    Additional(usize),
}

impl<T: Numbers, E: Element> Results<'_, T, E> {
    /// The error of `out` and `lse` on a sample of queries.
    pub fn forward_error(&self, problem: &Problem, samples: usize) -> SampleError {
        let mut error = SampleError::new(E::TYPE);
        for row in rows(problem, problem.heads(), samples) {
            let keys = keys_of(problem, row.token);
            let scores: Vec<f64> = keys.iter().map(|key| self.score(problem, row, *key)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            let mut out = vec![0.0; problem.head_dim_v()];
            for (key, score) in keys.iter().zip(&scores) {
                add_scaled(&mut out, (score - max).exp() / sum, &self.value(problem, row, *key));
            }
            error.add(&row_of(self.out, problem.query_tokens(), row), &out);
            error.add(&[self.lse_of(problem, row)], &[max + sum.ln()]);
        }
        error
    }

    /// The error of the gradients on a sample of queries and keys.
    pub fn backward_error(
        &self,
        problem: &Problem,
        d_out: &T,
        gradients: &Gradients<Tensor<E>>,
        samples: usize,
    ) -> SampleError {
        let mut error = SampleError::new(E::TYPE);
        for row in rows(problem, problem.heads(), samples) {
            let mut d_q = vec![0.0; problem.head_dim()];
            for key in keys_of(problem, row.token) {
                let (_, d_score) = self.pair(problem, d_out, row, key);
                add_scaled(&mut d_q, d_score, &self.key(problem, row, key));
            }
            error.add(&row_of(&gradients.query, problem.query_tokens(), row), &d_q);
        }
        for row in rows(problem, problem.heads_kv(), samples) {
            let (mut d_k, mut d_v) = (vec![0.0; problem.head_dim()], vec![0.0; problem.head_dim_v()]);
            let tokens = neighbors(problem, row.token, |axis, token| {
                let residue = axis.residue(token % axis.dilation);
                residue.inverse_window(token / axis.dilation)
            });
            for token in tokens {
                for head in row.head * problem.heads_per_kv()..(row.head + 1) * problem.heads_per_kv() {
                    let query = Row { token, head, ..row };
                    let (p, d_score) = self.pair(problem, d_out, query, Key::Token(row.token));
                    add_scaled(&mut d_k, d_score, &row_of(&self.inputs.query, problem.query_tokens(), query));
                    add_scaled(&mut d_v, p, &row_of(d_out, problem.query_tokens(), query));
                }
            }
            error.add(&row_of(&gradients.key, problem.key_tokens(), row), &d_k);
            error.add(&row_of(&gradients.value, problem.key_tokens(), row), &d_v);
        }
        error
    }

    /// The weight of a pair and the gradient of its score, the scale included.
    fn pair(&self, problem: &Problem, d_out: &T, query: Row, key: Key) -> (f64, f64) {
        let p = (self.score(problem, query, key) - self.lse_of(problem, query)).exp();
        let d_out = row_of(d_out, problem.query_tokens(), query);
        let delta = dot(&d_out, &row_of(self.out, problem.query_tokens(), query));
        (p, problem.scale() * p * (dot(&d_out, &self.value(problem, query, key)) - delta))
    }

    fn score(&self, problem: &Problem, query: Row, key: Key) -> f64 {
        let q = row_of(&self.inputs.query, problem.query_tokens(), query);
        problem.scale() * dot(&q, &self.key(problem, query, key))
    }

    fn lse_of(&self, problem: &Problem, row: Row) -> f64 {
        let index = (row.batch * problem.query_tokens() + row.token) * problem.heads() + row.head;
        f64::from(self.lse.as_slice()[index])
    }

    fn key(&self, problem: &Problem, query: Row, key: Key) -> Vec<f64> {
        self.key_or_value(problem, query, key, 0)
    }

    fn value(&self, problem: &Problem, query: Row, key: Key) -> Vec<f64> {
        self.key_or_value(problem, query, key, 1)
    }

    fn key_or_value(&self, problem: &Problem, query: Row, key: Key, which: usize) -> Vec<f64> {
        let head = query.head / problem.heads_per_kv();
        match (key, &self.inputs.additional) {
            (Key::Token(token), _) => {
                let tensor = [&self.inputs.key, &self.inputs.value][which];
                row_of(tensor, problem.key_tokens(), Row { token, head, ..query })
            }
            (Key::Additional(token), Some(pair)) => {
                row_of(&pair[which], problem.additional_keys(), Row { token, head, ..query })
            }
            (Key::Additional(_), None) => Vec::new(),
        }
    }
}

/// A row of a contiguous `[batch, tokens.., heads, width]`, widened.
fn row_of(tensor: &impl Numbers, tokens: usize, row: Row) -> Vec<f64> {
    let shape = tensor.shape();
    let (heads, width) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let start = ((row.batch * tokens + row.token) * heads + row.head) * width;
    (start..start + width).map(|index| tensor.at(index)).collect()
}

/// The first row, the last, and others spread over the whole.
fn rows(problem: &Problem, heads: usize, samples: usize) -> impl Iterator<Item = Row> {
    let tokens = problem.query_tokens();
    let total = problem.batch() * tokens * heads;
    let count = samples.min(total);
    (0..count).map(move |i| {
        let index = if count > 1 { i * (total - 1) / (count - 1) } else { 0 };
        Row { batch: index / (tokens * heads), token: index / heads % tokens, head: index % heads }
    })
}

/// The keys that a query sees.
fn keys_of(problem: &Problem, token: usize) -> Vec<Key> {
    let window = neighbors(problem, token, |axis, token| {
        axis.residue(token % axis.dilation).window(token / axis.dilation)
    });
    let additional = (0..problem.additional_keys()).map(Key::Additional);
    window.into_iter().map(Key::Token).chain(additional).collect()
}

/// The product over axes of the positions that `range` gives for a token's coordinate.
fn neighbors(
    problem: &Problem,
    token: usize,
    range: impl Fn(&Axis, usize) -> std::ops::Range<usize>,
) -> Vec<usize> {
    let axes = problem.axes();
    let extents = axes.map(|axis| axis.query_extent);
    let coordinates =
        [token / (extents[1] * extents[2]), token / extents[2] % extents[1], token % extents[2]];
    let mut tokens = vec![0];
    for ((axis, &coordinate), extent) in axes.iter().zip(&coordinates).zip(extents) {
        let residue = coordinate % axis.dilation;
        let along = |token: &usize| {
            let base = token * extent + residue;
            let dilation = axis.dilation;
            range(axis, coordinate).map(move |position| base + position * dilation)
        };
        tokens = tokens.iter().flat_map(along).collect();
    }
    tokens
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}
