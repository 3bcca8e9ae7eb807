//! The oracle: forward, backward and merge in f64, written like the formulas and for no other purpose.
//!
//! Everything is computed from the list of keys that a query sees; nothing is tiled, cached or reordered. It
//! takes any problem that [`Problem`] accepts and any element type.

use crate::element::InputElement;
use crate::layout::RowLayout;
use crate::operands::{Gradients, Inputs, Saved};
use crate::problem::Problem;
use crate::raw::TensorView;
use crate::tensor::Tensor;
use crate::window::Axis;

mod merge;

pub use merge::{merge, merge_backward};

/// What the reference's forward gives.
#[derive(Clone, Debug)]
pub struct Forward {
    /// `[batch, tokens.., heads, head_dim_v]`
    pub out: Tensor<f64>,
    /// `[batch, tokens.., heads]`, natural logarithm; minus infinity where a query sees no key, or none but scores of minus infinity.
    pub lse: Tensor<f64>,
}

/// `out_i = sum_j P_ij v_j` with `P_ij = exp(S_ij - lse_i)`, `S_ij = scale q_i . k_j`.
///
/// Subtracting the row's maximum before the exponential changes nothing but the range.
pub fn forward<E: InputElement>(problem: &Problem, inputs: &Inputs<TensorView<'_, E>>) -> Forward {
    let operands = inputs.map(Rows::read);
    let mut out = Rows::zeros(&problem.out_shape());
    let mut lse = Scalars::zeros(&problem.lse_shape());
    for_each_query(problem, |query, keys| {
        let scores = scores(problem, &operands, query, keys);
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if is_silent(&scores) {
            return lse.set(query, f64::NEG_INFINITY);
        }
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        lse.set(query, max + sum.ln());
        let out_row = out.row_mut(query.batch, query.token, query.head);
        for (key, score) in keys.iter().zip(&scores) {
            let weight = (score - max).exp() / sum;
            let value = operands.value_row(query, key);
            out_row.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
        }
    });
    Forward { out: out.into_tensor(), lse: lse.into_tensor() }
}

/// The gradients of the inputs, from those of the output and of the log-sum-exp:
///
/// ```text
/// delta_i = d_out_i . out_i             dS_ij = P_ij (d_out_i . v_j - delta_i + d_lse_i)
/// d_q_i = scale sum_j dS_ij k_j         d_k_j = scale sum_i dS_ij q_i       d_v_j = sum_i P_ij d_out_i
/// ```
///
/// `out` and `lse` are what the forward gave; for one branch of a merge, the merged ones, and the sum over
/// branches is the gradient of the whole.
pub fn backward<E: InputElement, O: InputElement, L: InputElement>(
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    saved: &Saved<TensorView<'_, O>, TensorView<'_, L>>,
) -> Gradients<Tensor<f64>> {
    let operands = inputs.map(Rows::read);
    let (out, d_out) = (Rows::read(&saved.out), Rows::read(&saved.d_out));
    let (lse, d_lse) = (Scalars::read(&saved.lse), saved.d_lse.as_ref().map(Scalars::read));
    let mut grads = inputs.map(|view| Rows::zeros(view.shape()));
    let scale = problem.scale();
    for_each_query(problem, |query, keys| {
        let Query { batch, token, head, .. } = *query;
        let q = operands.query.row(batch, token, head);
        let d_o = d_out.row(batch, token, head);
        let delta = dot(d_o, out.row(batch, token, head));
        let d_lse = d_lse.as_ref().map_or(0.0, |d_lse| d_lse.get(query));
        let scores = scores(problem, &operands, query, keys);
        if is_silent(&scores) {
            return;
        }
        for (key, score) in keys.iter().zip(scores) {
            let p = (score - lse.get(query)).exp();
            let d_s = scale * p * (dot(d_o, operands.value_row(query, key)) - delta + d_lse);
            add_scaled(grads.query.row_mut(batch, token, head), d_s, operands.key_row(query, key));
            add_scaled(grads.key_row_mut(query, key), d_s, q);
            add_scaled(grads.value_row_mut(query, key), p, d_o);
        }
    });
    grads.into_map(Rows::into_tensor).into_gradients()
}

/// `S_ij` for the keys of one query.
fn scores(problem: &Problem, operands: &Inputs<Rows>, query: &Query, keys: &[Key]) -> Vec<f64> {
    let q = operands.query.row(query.batch, query.token, query.head);
    keys.iter().map(|key| problem.scale() * dot(q, operands.key_row(query, key))).collect()
}

/// Whether a query has no weight to give: it sees no key, or none but such that their scores are minus infinity.
fn is_silent(scores: &[f64]) -> bool {
    scores.iter().all(|&score| score == f64::NEG_INFINITY)
}

/// One query: where its rows are.
struct Query {
    batch: usize,
    token: [usize; 3],
    head: usize,
    head_kv: usize,
}

/// One key that a query sees.
enum Key {
    Token([usize; 3]),
    Additional(usize),
}

/// Calls `visit` for each query with all keys it sees, in ascending order, additional keys last.
fn for_each_query(problem: &Problem, mut visit: impl FnMut(&Query, &[Key])) {
    // An empty batch has no queries, however many tokens its shape claims.
    if problem.batch() == 0 {
        return;
    }
    for sequence in problem.sequences() {
        let extents = sequence.axes.map(|axis| axis.query_extent);
        for local in box_tokens(extents) {
            let mut keys = window_keys(&sequence.axes, local, sequence.key_start);
            keys.extend((0..problem.additional_keys()).map(Key::Additional));
            let token = [local[0], local[1], local[2] + sequence.query_start];
            for batch in 0..problem.batch() {
                for head in 0..problem.heads() {
                    let head_kv = head / problem.heads_per_kv();
                    visit(&Query { batch, token, head, head_kv }, &keys);
                }
            }
        }
    }
}

/// The window of a query: the product of its axes' intervals.
fn window_keys(axes: &[Axis; 3], token: [usize; 3], key_start: usize) -> Vec<Key> {
    let coordinates: [Vec<usize>; 3] = std::array::from_fn(|i| {
        let axis = &axes[i];
        let (residue, position) = axis.place_of_query(token[i]);
        let first = axis.first_key(residue);
        axis.residue(residue).window(position).map(|position| first + position * axis.dilation).collect()
    });
    let mut keys = Vec::new();
    for &x in &coordinates[0] {
        for &y in &coordinates[1] {
            keys.extend(coordinates[2].iter().map(|&z| Key::Token([x, y, z + key_start])));
        }
    }
    keys
}

/// All tokens of a box, last axis fastest.
fn box_tokens(extents: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [_, y, z] = extents;
    (0..extents.iter().product()).map(move |i: usize| [i / (y * z), i / z % y, i % z])
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// A tensor `[batch, tokens.., heads, head_dim]` in f64, by row.
struct Rows {
    tensor: Tensor<f64>,
    layout: RowLayout,
    width: usize,
}

impl Rows {
    fn read<E: InputElement>(view: &TensorView<'_, E>) -> Self {
        Self::new(view.to_tensor().cast())
    }

    fn zeros(shape: &[usize]) -> Self {
        Self::new(Tensor::zeros(shape).expect("the shape of a valid problem"))
    }

    fn new(tensor: Tensor<f64>) -> Self {
        let (layout, width) = (tensor.view().rows(), tensor.shape()[tensor.shape().len() - 1]);
        Rows { tensor, layout, width }
    }

    fn row(&self, batch: usize, token: [usize; 3], head: usize) -> &[f64] {
        let start = self.layout.row(batch, token, head);
        &self.tensor.as_slice()[start..start + self.width]
    }

    fn row_mut(&mut self, batch: usize, token: [usize; 3], head: usize) -> &mut [f64] {
        let start = self.layout.row(batch, token, head);
        &mut self.tensor.as_mut_slice()[start..start + self.width]
    }

    fn into_tensor(self) -> Tensor<f64> {
        self.tensor
    }
}

impl Inputs<Rows> {
    fn key_row(&self, query: &Query, key: &Key) -> &[f64] {
        self.kv_row(0, query, key)
    }

    fn value_row(&self, query: &Query, key: &Key) -> &[f64] {
        self.kv_row(1, query, key)
    }

    fn kv_row(&self, which: usize, query: &Query, key: &Key) -> &[f64] {
        match (key, &self.additional) {
            (Key::Additional(n), Some(pair)) => pair[which].row(query.batch, [0, 0, *n], query.head_kv),
            (Key::Token(token), _) => [&self.key, &self.value][which].row(query.batch, *token, query.head_kv),
            (Key::Additional(_), None) => &[],
        }
    }

    fn key_row_mut(&mut self, query: &Query, key: &Key) -> &mut [f64] {
        self.kv_row_mut(0, query, key)
    }

    fn value_row_mut(&mut self, query: &Query, key: &Key) -> &mut [f64] {
        self.kv_row_mut(1, query, key)
    }

    fn kv_row_mut(&mut self, which: usize, query: &Query, key: &Key) -> &mut [f64] {
        match (key, &mut self.additional) {
            (Key::Additional(n), Some(pair)) => pair[which].row_mut(query.batch, [0, 0, *n], query.head_kv),
            (Key::Token(token), _) => {
                let rows = if which == 0 { &mut self.key } else { &mut self.value };
                rows.row_mut(query.batch, *token, query.head_kv)
            }
            (Key::Additional(_), None) => &mut [],
        }
    }
}

/// A tensor `[batch, tokens.., heads]` in f64.
struct Scalars {
    tensor: Tensor<f64>,
    layout: RowLayout,
}

impl Scalars {
    fn read<E: InputElement>(view: &TensorView<'_, E>) -> Self {
        let tensor: Tensor<f64> = view.to_tensor().cast();
        Scalars { layout: tensor.view().scalars(), tensor }
    }

    fn zeros(shape: &[usize]) -> Self {
        let tensor = Tensor::zeros(shape).expect("the shape of a valid problem");
        Scalars { layout: tensor.view().scalars(), tensor }
    }

    fn get(&self, query: &Query) -> f64 {
        self.tensor.as_slice()[self.layout.row(query.batch, query.token, query.head)]
    }

    fn set(&mut self, query: &Query, value: f64) {
        let index = self.layout.row(query.batch, query.token, query.head);
        self.tensor.as_mut_slice()[index] = value;
    }

    fn into_tensor(self) -> Tensor<f64> {
        self.tensor
    }
}
