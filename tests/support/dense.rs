//! A naive implementation: every pair of a query and a key, the mask by membership instead of by formula.
//!
//! In f32 it is the yardstick: a backend may err twice as much. In f64 it is a second opinion on the reference,
//! and it sums the magnitudes of the terms, which say what no f32 arithmetic can avoid.

use natten::window::Axis;
use natten::{Element, Inputs, Problem, Saved, Tensor};
use num_traits::Float;

/// Whether query `q` of a call sees each of its keys along an axis: what the whole's query sees of those.
fn seen(axis: &Axis, q: usize) -> Vec<bool> {
    let keys = axis.key_start..axis.key_start + axis.key_extent;
    if axis.kernel_size >= axis.extent && axis.dilation == 1 && !axis.is_causal {
        // Of plain attention there may be more queries than the whole has tokens.
        return vec![true; keys.len()];
    }
    seen_of_whole(axis, axis.query_start + q)[keys].to_vec()
}

/// Whether token `q` of a whole axis sees each other one: from lists of tokens, without the closed forms.
fn seen_of_whole(axis: &Axis, q: usize) -> Vec<bool> {
    let (w, s, d) = (axis.kernel_size, axis.stride, axis.dilation);
    let members: Vec<usize> = (q % d..axis.extent).step_by(d).collect();
    let at = |x: usize| members.iter().position(|&member| member == x).expect("of this residue");
    let block = members.chunks(s).find(|block| block.contains(&q)).expect("some block");
    let mut row = vec![false; axis.extent];
    if axis.is_causal {
        let (at_q, last) = (at(q), at(*block.last().expect("no empty block")));
        members.iter().enumerate().for_each(|(at_k, &k)| row[k] = at_k <= at_q && at_k + w > last);
        return row;
    }
    // The window whose middle is the block's, pushed inside; the middle of an even one is right of the centre.
    let leader = (at(block[0]) + s / 2).min(members.len() - 1);
    let windows = members.windows(w).enumerate();
    let (_, window) = windows.min_by_key(|(start, _)| (start + w / 2).abs_diff(leader)).expect("it fits");
    window.iter().for_each(|&k| row[k] = true);
    row
}

/// For each query token its key tokens, both flattened; additional keys follow after the last key token.
pub fn visible(problem: &Problem) -> Vec<Vec<usize>> {
    let (queries, keys) = (problem.query_tokens(), problem.key_tokens());
    let additional = keys..keys + problem.additional_keys();
    let mut lists = vec![Vec::new(); queries];
    for sequence in problem.sequences() {
        let axes = sequence.axes;
        let tables = axes.map(|axis| (0..axis.query_extent).map(|q| seen(&axis, q)).collect::<Vec<_>>());
        let split = |n: usize, e: [usize; 3]| [n / (e[1] * e[2]), n / e[2] % e[1], n % e[2]];
        let (qe, ke) = (axes.map(|axis| axis.query_extent), axes.map(|axis| axis.key_extent));
        for q in 0..qe.iter().product() {
            let at = split(q, qe);
            let sees = |&k: &usize| {
                let to = split(k, ke);
                (0..3).all(|axis| tables[axis][at[axis]][to[axis]])
            };
            let seen = (0..ke.iter().product()).filter(sees).map(|k| k + sequence.key_start);
            lists[q + sequence.query_start] = seen.chain(additional.clone()).collect();
        }
    }
    lists
}

/// A tensor with, beside it, the sum of magnitudes of what was added up for each element.
#[derive(Clone, Debug)]
pub struct Summed {
    /// The result.
    pub value: Tensor<f64>,
    /// Sum of magnitudes of the terms, each times one plus the magnitude of what its exponential was taken of: by
    /// so many units of roundoff may a result differ, to first order.
    pub terms: Tensor<f64>,
}

/// What the naive forward gives.
#[derive(Clone, Debug)]
pub struct Forward {
    /// `[batch, tokens.., heads, head_dim_v]`
    pub out: Summed,
    /// `[batch, tokens.., heads]`
    pub lse: Summed,
}

/// One tensor in arithmetic `A`, in rows of `width`.
struct Rows<A> {
    data: Vec<A>,
    width: usize,
}

impl<A: Float> Rows<A> {
    fn of<E: Element>(tensor: &Tensor<E>, width: usize) -> Self {
        let number = |x: &E| A::from(x.to_f64()).expect("f32 and f64 take any number");
        Rows { data: tensor.as_slice().iter().map(number).collect(), width }
    }

    fn zeros(shape: &[usize]) -> Self {
        let width = shape[shape.len() - 1];
        Rows { data: vec![A::zero(); shape.iter().product()], width }
    }

    fn row(&self, row: usize) -> &[A] {
        &self.data[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [A] {
        &mut self.data[row * self.width..][..self.width]
    }

    fn summed(&self, terms: &Self, shape: &[usize]) -> Summed {
        let tensor = |rows: &Self| {
            let data = rows.data.iter().map(|x| x.to_f64().expect("a float")).collect();
            Tensor::from_vec(shape, data).expect("as many as the shape holds")
        };
        Summed { value: tensor(self), terms: tensor(terms) }
    }
}

/// Key rows with the additional ones behind them.
struct Keys<A> {
    own: Rows<A>,
    additional: Option<Rows<A>>,
}

/// Where the rows of one query and its keys are.
struct Index<'a> {
    problem: &'a Problem,
    batch: usize,
    head_kv: usize,
}

impl Index<'_> {
    /// Row of a key: in the tensor itself, or in the additional one.
    fn key(&self, token: usize) -> (bool, usize) {
        let (tokens, extra) = (self.problem.key_tokens(), self.problem.additional_keys());
        let row =
            |extent: usize, token| (self.batch * extent + token) * self.problem.heads_kv() + self.head_kv;
        if token < tokens { (false, row(tokens, token)) } else { (true, row(extra, token - tokens)) }
    }
}

impl<A: Float> Keys<A> {
    fn of<E: Element>(own: &Tensor<E>, additional: Option<&Tensor<E>>, width: usize) -> Self {
        Keys { own: Rows::of(own, width), additional: additional.map(|tensor| Rows::of(tensor, width)) }
    }

    fn zeros(own: &[usize], additional: Option<Vec<usize>>) -> Self {
        Keys { own: Rows::zeros(own), additional: additional.map(|shape| Rows::zeros(&shape)) }
    }

    fn row(&self, (is_additional, row): (bool, usize)) -> &[A] {
        let additional = self.additional.as_ref().filter(|_| is_additional);
        additional.unwrap_or(&self.own).row(row)
    }

    fn row_mut(&mut self, (is_additional, row): (bool, usize)) -> &mut [A] {
        match &mut self.additional {
            Some(additional) if is_additional => additional.row_mut(row),
            _ => self.own.row_mut(row),
        }
    }
}

fn dot<A: Float>(a: &[A], b: &[A]) -> A {
    a.iter().zip(b).fold(A::zero(), |sum, (&a, &b)| sum + a * b)
}

fn dot_terms<A: Float>(a: &[A], b: &[A]) -> A {
    a.iter().zip(b).fold(A::zero(), |sum, (&a, &b)| sum + (a * b).abs())
}

fn add<A: Float>(to: &mut [A], factor: A, from: &[A]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = *to + factor * from);
}

fn add_terms<A: Float>(to: &mut [A], factor: A, from: &[A]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = *to + (factor * from).abs());
}

/// Calls `visit` with the row of each query (heads fastest), its key rows, and their indices.
fn for_each_row(problem: &Problem, mut visit: impl FnMut(usize, &[(bool, usize)])) {
    let lists = visible(problem);
    for batch in 0..problem.batch() {
        for (token, list) in lists.iter().enumerate() {
            for head in 0..problem.heads() {
                let index = Index { problem, batch, head_kv: head / problem.heads_per_kv() };
                let keys: Vec<_> = list.iter().map(|&key| index.key(key)).collect();
                visit((batch * lists.len() + token) * problem.heads() + head, &keys);
            }
        }
    }
}

/// How a call keeps the weights, and in a backward the gradients of scores, that it multiplies rows with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// As it computed them.
    Unrounded,
    /// In the element type, as an implementation from two matrix products has to, and as tensor cores take them.
    InElementType,
}

impl Weights {
    fn stored<A: Float, E: Element>(self, p: A) -> A {
        match self {
            Weights::Unrounded => p,
            Weights::InElementType => {
                A::from(E::from_f64(p.to_f64().expect("a float")).to_f64()).expect("a float")
            }
        }
    }
}

/// The forward in arithmetic `A`.
pub fn forward<A: Float, E: Element>(
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    weights: Weights,
) -> Forward {
    let keep = |p: A| weights.stored::<A, E>(p);
    let scale = A::from(problem.scale()).expect("finite");
    let query = Rows::<A>::of(&inputs.query, problem.head_dim());
    let extra = |i: usize| inputs.additional.as_ref().map(|pair| &pair[i]);
    let keys = Keys::<A>::of(&inputs.key, extra(0), problem.head_dim());
    let values = Keys::<A>::of(&inputs.value, extra(1), problem.head_dim_v());
    let (out_shape, lse_shape) = (problem.out_shape(), problem.lse_shape());
    let (mut out, mut out_terms) = (Rows::zeros(&out_shape), Rows::zeros(&out_shape));
    let (mut lse, mut lse_terms) = (Rows::zeros(&lse_shape), Rows::zeros(&lse_shape));
    for_each_row(problem, |row, list| {
        let scores: Vec<A> = list.iter().map(|&key| scale * dot(query.row(row), keys.row(key))).collect();
        let max = scores.iter().copied().fold(A::neg_infinity(), A::max);
        let sum = scores.iter().fold(A::zero(), |sum, &s| sum + (s - max).exp());
        lse.data[row] = if list.is_empty() { max } else { max + sum.ln() };
        let score_terms = |&key: &(bool, usize)| scale.abs() * dot_terms(query.row(row), keys.row(key));
        let weights: Vec<A> = scores.iter().map(|&s| (s - max).exp() / sum).collect();
        let pairs = || list.iter().zip(&weights);
        let mean = pairs().fold(A::zero(), |sum, (key, &p)| sum + p * score_terms(key));
        lse_terms.data[row] = if list.is_empty() { max.abs() } else { lse.data[row].abs() + A::one() + mean };
        for (key, &p) in pairs() {
            add(out.row_mut(row), keep(p), values.row(*key));
            add_terms(out_terms.row_mut(row), p * (A::one() + mean + score_terms(key)), values.row(*key));
        }
    });
    Forward { out: out.summed(&out_terms, &out_shape), lse: lse.summed(&lse_terms, &lse_shape) }
}

/// The backward in arithmetic `A`.
pub fn backward<A: Float, E: Element>(
    problem: &Problem,
    inputs: &Inputs<Tensor<E>>,
    saved: &Saved<&Tensor<E>, &Tensor<f32>>,
    weights: Weights,
) -> Inputs<Summed> {
    let scale = A::from(problem.scale()).expect("finite");
    let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
    let query = Rows::<A>::of(&inputs.query, dim);
    let extra = |i: usize| inputs.additional.as_ref().map(|pair| &pair[i]);
    let keys = Keys::<A>::of(&inputs.key, extra(0), dim);
    let values = Keys::<A>::of(&inputs.value, extra(1), dim_v);
    let (out, d_out) = (Rows::<A>::of(saved.out, dim_v), Rows::<A>::of(saved.d_out, dim_v));
    let (lse, d_lse) = (Rows::<A>::of(saved.lse, 1), saved.d_lse.map(|d_lse| Rows::<A>::of(d_lse, 1)));
    let shapes = inputs.map(|tensor| tensor.shape().to_vec());
    let extra = |i: usize| shapes.additional.as_ref().map(|pair| pair[i].clone());
    // Results and sums of terms, in pairs.
    let mut d_q = [Rows::<A>::zeros(&shapes.query), Rows::zeros(&shapes.query)];
    let mut d_k = [Keys::<A>::zeros(&shapes.key, extra(0)), Keys::zeros(&shapes.key, extra(0))];
    let mut d_v = [Keys::<A>::zeros(&shapes.value, extra(1)), Keys::zeros(&shapes.value, extra(1))];
    for_each_row(problem, |row, list| {
        let (q, d_o, lse) = (query.row(row), d_out.row(row), lse.data[row]);
        let along = d_lse.as_ref().map_or(A::zero(), |d_lse| d_lse.data[row]);
        let delta = dot(d_o, out.row(row));
        for &key in list {
            let (k, v) = (keys.row(key), values.row(key));
            let p = (scale * dot(q, k) - lse).exp();
            let d_s = scale * weights.stored::<A, E>(p * (dot(d_o, v) - delta + along));
            // What the exponential was taken of weighs its error.
            let exponent = A::one() + scale.abs() * dot_terms(q, k) + lse.abs();
            let inner = dot_terms(d_o, v) + dot_terms(d_o, out.row(row)) + along.abs();
            // Of numbers that are rounded, what is rounded.
            let (d_s_terms, p_terms) = match weights {
                Weights::Unrounded => (scale * p * exponent * inner, p * exponent),
                Weights::InElementType => (d_s, p),
            };
            add(d_q[0].row_mut(row), d_s, k);
            add_terms(d_q[1].row_mut(row), d_s_terms, k);
            add(d_k[0].row_mut(key), d_s, q);
            add_terms(d_k[1].row_mut(key), d_s_terms, q);
            add(d_v[0].row_mut(key), weights.stored::<A, E>(p), d_o);
            add_terms(d_v[1].row_mut(key), p_terms, d_o);
        }
    });
    let pair = |sums: &[Keys<A>; 2], shape: &[usize]| sums[0].own.summed(&sums[1].own, shape);
    let extra = |sums: &[Keys<A>; 2], shape: &[usize]| {
        let [value, terms] = sums.each_ref().map(|keys| keys.additional.as_ref().expect("asked for"));
        value.summed(terms, shape)
    };
    Inputs {
        query: d_q[0].summed(&d_q[1], &shapes.query),
        key: pair(&d_k, &shapes.key),
        value: pair(&d_v, &shapes.value),
        additional: shapes.additional.as_ref().map(|[a, b]| [extra(&d_k, a), extra(&d_v, b)]),
    }
}

/// What each branch of a merge weighs in one row.
struct Shares<A> {
    lse: A,
    weights: Vec<A>,
    /// How many roundings each weight goes through, exponents counted by their size; and the mean of their exponents.
    error: Vec<A>,
    mean: A,
}

impl<A: Float> Shares<A> {
    /// Of these log-sum-exps; none, if no branch saw a key.
    fn of(list: &[A]) -> Option<Self> {
        let max = list.iter().copied().fold(A::neg_infinity(), A::max);
        if max == A::neg_infinity() {
            return None;
        }
        let sum = list.iter().fold(A::zero(), |sum, &x| sum + (x - max).exp());
        let weights: Vec<A> = list.iter().map(|&x| (x - max).exp() / sum).collect();
        let exponent = |x: A| if x.is_finite() { x.abs() + max.abs() } else { A::zero() };
        let mean = list.iter().zip(&weights).fold(A::zero(), |mean, (&x, &p)| mean + p * exponent(x));
        let error = list.iter().map(|&x| A::one() + mean + exponent(x)).collect();
        Some(Shares { lse: max + sum.ln(), weights, error, mean })
    }
}

/// The merge of partial results in arithmetic `A`, a branch of no key weighing nothing.
pub fn merge<A: Float, E: Element>(outs: &[Tensor<E>], lses: &[Tensor<f32>]) -> Forward {
    let (shape, lse_shape) = (outs[0].shape(), lses[0].shape());
    let width = shape[shape.len() - 1];
    let branches: Vec<_> = outs.iter().map(|out| Rows::<A>::of(out, width)).collect();
    let sums: Vec<_> = lses.iter().map(|lse| Rows::<A>::of(lse, 1)).collect();
    let (mut out, mut out_terms) = (Rows::zeros(shape), Rows::zeros(shape));
    let (mut lse, mut lse_terms) = (Rows::zeros(lse_shape), Rows::zeros(lse_shape));
    for row in 0..lses[0].as_slice().len() {
        let list: Vec<A> = sums.iter().map(|sum| sum.data[row]).collect();
        let Some(Shares { lse: total, weights, error, mean }) = Shares::of(&list) else {
            (lse.data[row], lse_terms.data[row]) = (A::neg_infinity(), A::zero());
            continue;
        };
        (lse.data[row], lse_terms.data[row]) = (total, total.abs() + A::one() + mean);
        for ((branch, &p), &error) in branches.iter().zip(&weights).zip(&error) {
            if p > A::zero() {
                add(out.row_mut(row), p, branch.row(row));
                add_terms(out_terms.row_mut(row), p * error, branch.row(row));
            }
        }
    }
    Forward { out: out.summed(&out_terms, shape), lse: lse.summed(&lse_terms, lse_shape) }
}

/// The gradients of each branch's output and log-sum-exp, in arithmetic `A`.
pub fn merge_backward<A: Float, E: Element>(
    outs: &[Tensor<E>],
    lses: &[Tensor<f32>],
    (d_out, d_lse): (&Tensor<E>, Option<&Tensor<f32>>),
) -> Vec<(Summed, Summed)> {
    let (shape, lse_shape) = (outs[0].shape(), lses[0].shape());
    let width = shape[shape.len() - 1];
    let branches: Vec<_> = outs.iter().map(|out| Rows::<A>::of(out, width)).collect();
    let sums: Vec<_> = lses.iter().map(|lse| Rows::<A>::of(lse, 1)).collect();
    let (d_out, d_lse) = (Rows::<A>::of(d_out, width), d_lse.map(|d_lse| Rows::<A>::of(d_lse, 1)));
    let none = || [shape, shape, lse_shape, lse_shape].map(Rows::<A>::zeros);
    let mut found: Vec<_> = outs.iter().map(|_| none()).collect();
    for row in 0..lses[0].as_slice().len() {
        let list: Vec<A> = sums.iter().map(|sum| sum.data[row]).collect();
        let Some(Shares { weights, error, .. }) = Shares::of(&list) else { continue };
        let (mut merged, mut magnitude) = (vec![A::zero(); width], vec![A::zero(); width]);
        for (branch, &p) in branches.iter().zip(&weights).filter(|(_, p)| **p > A::zero()) {
            add(&mut merged, p, branch.row(row));
            add_terms(&mut magnitude, p, branch.row(row));
        }
        let direct = d_lse.as_ref().map_or(A::zero(), |d_lse| d_lse.data[row]);
        for (((branch, found), &p), &error) in branches.iter().zip(&mut found).zip(&weights).zip(&error) {
            if p > A::zero() {
                let [d_branch, terms, d_sum, sum_terms] = found;
                add(d_branch.row_mut(row), p, d_out.row(row));
                add_terms(terms.row_mut(row), p * error, d_out.row(row));
                let own = d_out.row(row).iter().zip(branch.row(row)).zip(merged.iter().zip(&magnitude));
                let (dot, dot_terms) =
                    own.fold((direct, direct.abs()), |(dot, terms), ((&d, &out), (&mean, &size))| {
                        (dot + d * (out - mean), terms + d.abs() * (out.abs() + size))
                    });
                (d_sum.data[row], sum_terms.data[row]) = (p * dot, p * error * dot_terms);
            }
        }
    }
    let summed = |[d_out, terms, d_lse, lse_terms]: &[Rows<A>; 4]| {
        (d_out.summed(terms, shape), d_lse.summed(lse_terms, lse_shape))
    };
    found.iter().map(summed).collect()
}
