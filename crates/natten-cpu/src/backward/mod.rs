//! The backward, deterministic: each gradient row is summed by one task in one order.
//!
//! ```text
//! pass 1, lanes are queries, rows are the keys they see:             d_query
//! pass 2, lanes are keys, rows are the queries that see them:        d_key, d_value
//! pass 3, lanes are additional keys, rows are all queries:           their d_key, d_value
//!
//! for each tile of lanes, for each row block, for each pair of groups, for each tile of scores:       tile.rs
//!     scores   = scale * query . key             products = d_out . value
//!     weights  = exp(scores - lse)               products = scale * weights * (products - delta)
//!     d_query += products x keys    or    d_key += products x queries, d_value += weights x d_out
//! ```
//!
//! `delta = d_out . out - d_lse`. Scores are computed in both of the first passes: 7 products instead of 5, for no
//! atomics, no locks and no buffer of the problem's size. No mask is needed at all: weights of what a lane does not
//! see are computed and never read.

mod d_scores;
mod tile;

use std::f32::consts::LOG2_E;
use std::ops::Range;

use natten_core::{Element, Gradients, Inputs, Problem, Saved, TensorView, TensorViewMut, bf16, f16};

use crate::Cpu;
use crate::arch::Simd;
use crate::arch::rows::{Line, Rows, SharedRows};
use crate::blocking;
use crate::isa::Isa;
use crate::pack::Tokens;
use crate::parallel::run_tasks;
use crate::schedule::{Schedule, Vectors};

/// What all passes read.
struct Operands<'a, E> {
    problem: &'a Problem,
    query: Rows<'a, E>,
    key: Rows<'a, E>,
    value: Rows<'a, E>,
    additional: Option<[Rows<'a, E>; 2]>,
    out: Rows<'a, E>,
    d_out: Rows<'a, E>,
    lse: Rows<'a, f32>,
    d_lse: Option<Rows<'a, f32>>,
}

/// One function for each element type, so that this crate compiles them and not each that calls them.
macro_rules! of_type {
    ($name:ident, $type:ty) => {
        /// See the module.
        pub(crate) fn $name(
            cpu: &Cpu,
            isa: Isa,
            problem: &Problem,
            inputs: &Inputs<TensorView<'_, $type>>,
            saved: &Saved<TensorView<'_, $type>, TensorView<'_, f32>>,
            gradients: Gradients<TensorViewMut<'_, $type>>,
        ) {
            backward(cpu, isa, problem, inputs, saved, gradients);
        }
    };
}

of_type!(of_f32, f32);
of_type!(of_f16, f16);
of_type!(of_bf16, bf16);

/// Computes all gradients.
fn backward<E: Element>(
    cpu: &Cpu,
    isa: Isa,
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
    gradients: Gradients<TensorViewMut<'_, E>>,
) {
    let operands = Operands {
        problem,
        query: Rows::of_rows(&inputs.query),
        key: Rows::of_rows(&inputs.key),
        value: Rows::of_rows(&inputs.value),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(Rows::of_rows)),
        out: Rows::of_rows(&saved.out),
        d_out: Rows::of_rows(&saved.d_out),
        lse: Rows::of_scalars(&saved.lse),
        d_lse: saved.d_lse.as_ref().map(Rows::of_scalars),
    };
    let run = |pass: Pass<'_, E>| {
        run_tasks(cpu, isa, problem.useful_flops(), &PassTasks { operands: &operands, pass });
    };
    let d_query = SharedRows::of_rows(gradients.query);
    run(Pass::Queries {
        schedule: Schedule::new(cpu, &Vectors::of(isa), problem, blocking::Pass::Queries),
        d_query,
    });
    let (d_key, d_value) = (SharedRows::of_rows(gradients.key), SharedRows::of_rows(gradients.value));
    run(Pass::Keys {
        schedule: Schedule::new(cpu, &Vectors::of(isa), problem, blocking::Pass::Keys),
        d_key,
        d_value,
    });
    if let Some([keys, values]) = gradients.additional {
        let (d_key, d_value) = (SharedRows::of_rows(keys), SharedRows::of_rows(values));
        run(Pass::Additional { d_key, d_value });
    }
}

/// One of the three passes, with what it writes.
enum Pass<'a, E> {
    Queries { schedule: Schedule<'a>, d_query: SharedRows<'a, E> },
    Keys { schedule: Schedule<'a>, d_key: SharedRows<'a, E>, d_value: SharedRows<'a, E> },
    Additional { d_key: SharedRows<'a, E>, d_value: SharedRows<'a, E> },
}

/// The tasks of a pass.
struct PassTasks<'a, 'c, E> {
    operands: &'a Operands<'c, E>,
    pass: Pass<'a, E>,
}

impl<'a, E: Element> Operands<'a, E> {
    /// What the scalars of the queries at `positions` of the line through `at` are made of.
    #[inline(always)]
    fn scalar_line(&self, tokens: &Tokens, at: [usize; 2], positions: &Range<usize>) -> ScalarLine<'a, E> {
        ScalarLine {
            out: self.out.line(tokens, at, positions),
            d_out: self.d_out.line(tokens, at, positions),
            lse: self.lse.line(tokens, at, positions),
            d_lse: self.d_lse.as_ref().map(|d_lse| d_lse.line(tokens, at, positions)),
        }
    }
}

/// Queries along the last axis.
struct ScalarLine<'a, E> {
    out: Line<'a, E>,
    d_out: Line<'a, E>,
    lse: Line<'a, f32>,
    d_lse: Option<Line<'a, f32>>,
}

impl<E: Element> ScalarLine<'_, E> {
    /// `lse` in powers of 2 and `delta` of query number `i`.
    #[inline(always)]
    fn scalars<S: Simd>(&self, simd: S, i: usize) -> (f32, f32) {
        let (out, d_out) = (self.out.row(i), self.d_out.row(i));
        let whole = out.len() / S::LANES * S::LANES;
        let mut sums = simd.splat(0.0);
        for d in (0..whole).step_by(S::LANES) {
            sums = simd.fma(simd.load_wider(&out[d..]), simd.load_wider(&d_out[d..]), sums);
        }
        let mut lanes = [0f32; 16];
        simd.store(&mut lanes, sums);
        let rest = out[whole..].iter().zip(&d_out[whole..]);
        let rest: f32 = rest.map(|(out, d_out)| out.to_f32() * d_out.to_f32()).sum();
        let d_lse = self.d_lse.as_ref().map_or(0.0, |d_lse| d_lse.row(i)[0]);
        (lse_log2(self.lse.row(i)[0]), lanes[..S::LANES].iter().sum::<f32>() + rest - d_lse)
    }
}

/// From here on a log-sum-exp in powers of 2 is known no better than to some powers, and so are weights that are relative to it.
const COARSE: f32 = 67_108_864.0;

/// A log-sum-exp in powers of 2, as weights are computed from. Of a row without keys, or with none but scores of minus infinity, it
/// is plus infinity, and weights are 0. Coarse ones are lowered by what rounding may have made of them and of scores, and weights
/// end at 1 there, so that the largest score of a row has its weight.
fn lse_log2(lse: f32) -> f32 {
    if lse == f32::NEG_INFINITY {
        return f32::INFINITY;
    }
    let log2 = (lse * LOG2_E).clamp(f32::MIN, f32::MAX);
    if log2.abs() < COARSE { log2 } else { log2 - log2.abs() / 4_194_304.0 }
}
