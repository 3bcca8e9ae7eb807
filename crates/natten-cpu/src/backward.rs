//! The backward, deterministic: each gradient row is summed by one task in one order.
//!
//! ```text
//! pass 1, lanes are queries, the stream is the keys they see:          d_query
//! pass 2, lanes are keys, the stream is the queries that see them:     d_key, d_value
//! pass 3, lanes are additional keys, the stream is all queries:        their d_key, d_value
//!
//! for each pair of groups, for each piece of the stream:
//!     scores   = scale * query . key             products = d_out . value        arch/tiles.rs
//!     weights  = exp(scores - lse)               products = scale * weights * (products - delta)
//!     d_query += products x keys    or    d_key += products x queries, d_value += weights x d_out
//! ```
//!
//! `delta = d_out . out - d_lse`. Scores are computed in both of the first passes: 7 products instead of 5, for no
//! atomics, no locks and no buffer of the problem's size. No mask is needed at all: weights of what a lane does not
//! see are computed and never read.

use natten_core::{Element, Gradients, Inputs, Problem, Saved, TensorView, TensorViewMut, bf16, f16};

use crate::Cpu;
use crate::arch::rows::SharedRows;
use crate::arch::{Kernel, Simd, dispatch};
use crate::isa::Isa;
use crate::pack::{Groups, Rows, Tokens, pack_lanes, pack_rows, positions, reserve};
use crate::parallel::{Scratch, for_each_task};
use crate::schedule::{ADDITIONAL_TILE, Place, Schedule, lane_tokens, plain_tokens, stream_tokens};
use crate::softmax::{StripShape, exp};
use crate::strips::{Meeting, ScoreOperands, SumOperands, pairs};
use crate::tasks::{Box3, Spans, cut, plain_tile, volume};

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
        let count = pass.len(problem);
        for_each_task(cpu.pool(), count, problem.useful_flops(), |index, scratch| {
            dispatch(isa, Task { operands: &operands, pass: &pass, index, scratch });
        });
    };
    let d_query = SharedRows::of_rows(gradients.query);
    run(Pass::Queries { schedule: Schedule::new(isa, problem, false), d_query });
    let (d_key, d_value) = (SharedRows::of_rows(gradients.key), SharedRows::of_rows(gradients.value));
    run(Pass::Keys { schedule: Schedule::new(isa, problem, true), d_key, d_value });
    if let Some([keys, values]) = gradients.additional {
        let (d_key, d_value) = (SharedRows::of_rows(keys), SharedRows::of_rows(values));
        run(Pass::Additional { schedule: Schedule::new(isa, problem, true), d_key, d_value });
    }
}

/// One of the three passes, with what it writes.
enum Pass<'a, E> {
    Queries { schedule: Schedule<'a>, d_query: SharedRows<'a, E> },
    Keys { schedule: Schedule<'a>, d_key: SharedRows<'a, E>, d_value: SharedRows<'a, E> },
    Additional { schedule: Schedule<'a>, d_key: SharedRows<'a, E>, d_value: SharedRows<'a, E> },
}

impl<E: Element> Pass<'_, E> {
    fn len(&self, problem: &Problem) -> usize {
        match self {
            Pass::Queries { schedule, .. } | Pass::Keys { schedule, .. } => schedule.len(),
            Pass::Additional { .. } => {
                problem.batch() * problem.heads_kv() * problem.additional_keys().div_ceil(ADDITIONAL_TILE)
            }
        }
    }
}

/// One task of a pass.
struct Task<'a, 'c, E> {
    operands: &'a Operands<'c, E>,
    pass: &'a Pass<'c, E>,
    index: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for Task<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { operands, pass, index, scratch } = self;
        match pass {
            Pass::Queries { schedule, d_query } => {
                let place = schedule.place(index);
                simd.vectorize(OfQueries { operands, schedule, place: &place, d_query, scratch });
            }
            Pass::Keys { schedule, d_key, d_value } => {
                let place = schedule.place(index);
                let rows = [&operands.key, &operands.value];
                simd.vectorize(OfKeys {
                    operands,
                    schedule,
                    place: &place,
                    rows,
                    additional: false,
                    d_key,
                    d_value,
                    scratch,
                });
            }
            Pass::Additional { schedule, d_key, d_value } => {
                let Some([keys, values]) = &operands.additional else { return };
                let place = additional_place(operands.problem, index);
                let rows = [keys, values];
                simd.vectorize(OfKeys {
                    operands,
                    schedule,
                    place: &place,
                    rows,
                    additional: true,
                    d_key,
                    d_value,
                    scratch,
                });
            }
        }
    }
}

/// The tile of additional keys number `index`.
fn additional_place(problem: &Problem, index: usize) -> Place {
    let tiles = problem.additional_keys().div_ceil(ADDITIONAL_TILE);
    let (rest, tile) = (index / tiles, index % tiles);
    let (batch, head_kv) = (rest / problem.heads_kv(), rest % problem.heads_kv());
    let first = tile * ADDITIONAL_TILE;
    let per_kv = problem.heads_per_kv();
    Place {
        tile: plain_tile(first..(first + ADDITIONAL_TILE).min(problem.additional_keys())),
        batch,
        head_kv,
        heads: head_kv * per_kv..(head_kv + 1) * per_kv,
    }
}

/// Pass 1 for one tile.
struct OfQueries<'a, 'c, E> {
    operands: &'a Operands<'c, E>,
    schedule: &'a Schedule<'c>,
    place: &'a Place,
    d_query: &'a SharedRows<'c, E>,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for OfQueries<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let OfQueries { operands, place, scratch, .. } = self;
        let shape = Shape::new::<S>(operands.problem);
        let groups =
            Groups::new(self.schedule.blocking.group, place.tile.each_ref().map(|axis| axis.lanes.len()));
        let mut spans = std::mem::take(&mut scratch.spans);
        // One head after the other: packing keys again is cheap beside the three products that use them.
        for head in place.heads.clone() {
            let tokens = lane_tokens(&place.tile, place.batch, head);
            begin(simd, &shape, &groups, [&operands.query, &operands.d_out], &tokens, scratch);
            operands.pack_lane_scalars(&groups, &tokens, S::LANES, &mut scratch.lane_scalars);
            spans.of_tile(&place.tile);
            let tokens = stream_tokens(&place.tile, place.batch, place.head_kv);
            for stream in cut(&spans.all(), self.schedule.blocking.stream, 512) {
                pack_stream(simd, &shape, [&operands.key, &operands.value], &tokens, &stream, scratch);
                simd.vectorize(Take::<true> {
                    shape: &shape,
                    groups: &groups,
                    spans: &spans,
                    stream: &stream,
                    scratch,
                });
            }
            if let Some([keys, values]) = &operands.additional {
                let all = [0..1, 0..1, 0..operands.problem.additional_keys()];
                let tokens = plain_tokens(place.batch, place.head_kv);
                spans.everything(&place.tile, &all);
                for stream in cut(&all, self.schedule.blocking.stream, 512) {
                    pack_stream(simd, &shape, [keys, values], &tokens, &stream, scratch);
                    simd.vectorize(Take::<true> {
                        shape: &shape,
                        groups: &groups,
                        spans: &spans,
                        stream: &stream,
                        scratch,
                    });
                }
            }
            let tokens = lane_tokens(&place.tile, place.batch, head);
            store(simd, &groups, &tokens, (&scratch.sums[0], shape.widths[0]), shape.dims[0], self.d_query);
        }
        scratch.spans = spans;
    }
}

/// Pass 2 or 3 for one tile: keys and values, or additional ones.
struct OfKeys<'a, 'c, E> {
    operands: &'a Operands<'c, E>,
    schedule: &'a Schedule<'c>,
    place: &'a Place,
    rows: [&'a Rows<'c, E>; 2],
    /// Whether lanes are additional keys, which all queries see.
    additional: bool,
    d_key: &'a SharedRows<'c, E>,
    d_value: &'a SharedRows<'c, E>,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for OfKeys<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let OfKeys { operands, schedule, place, scratch, .. } = self;
        let shape = Shape::new::<S>(operands.problem);
        let additional = self.additional;
        let group = if additional { [1, 1, S::LANES] } else { schedule.blocking.group };
        let groups = Groups::new(group, place.tile.each_ref().map(|axis| axis.lanes.len()));
        let tokens = lane_tokens(&place.tile, place.batch, place.head_kv);
        begin(simd, &shape, &groups, self.rows, &tokens, scratch);
        let mut spans = std::mem::take(&mut scratch.spans);
        let seen = if additional {
            let all = operands.problem.axes().each_ref().map(|axis| 0..axis.query_extent);
            spans.everything(&place.tile, &all);
            all
        } else {
            spans.of_tile(&place.tile);
            spans.all()
        };
        for head in place.heads.clone() {
            let tokens = match additional {
                true => plain_tokens(place.batch, head),
                false => stream_tokens(&place.tile, place.batch, head),
            };
            for stream in cut(&seen, schedule.blocking.stream, 512) {
                pack_stream(simd, &shape, [&operands.query, &operands.d_out], &tokens, &stream, scratch);
                operands.pack_stream_scalars(&tokens, &stream, &mut scratch.stream_scalars);
                simd.vectorize(Take::<false> {
                    shape: &shape,
                    groups: &groups,
                    spans: &spans,
                    stream: &stream,
                    scratch,
                });
            }
        }
        scratch.spans = spans;
        store(simd, &groups, &tokens, (&scratch.sums[0], shape.widths[0]), shape.dims[0], self.d_key);
        store(simd, &groups, &tokens, (&scratch.sums[1], shape.widths[1]), shape.dims[1], self.d_value);
    }
}

/// Components of the two kinds of rows, query and key first, value and output second.
struct Shape {
    dims: [usize; 2],
    /// Rounded up to whole vectors.
    widths: [usize; 2],
    scale: f32,
}

impl Shape {
    fn new<S: Simd>(problem: &Problem) -> Self {
        let dims = [problem.head_dim(), problem.head_dim_v()];
        let widths = dims.map(|dim| dim.next_multiple_of(S::WIDE));
        Shape { dims, widths, scale: problem.scale() as f32 }
    }
}

/// Packs both operands of the lanes and clears the sums.
#[inline(always)]
fn begin<S: Simd, E: Element>(
    simd: S,
    shape: &Shape,
    groups: &Groups,
    rows: [&Rows<'_, E>; 2],
    tokens: &Tokens,
    scratch: &mut Scratch,
) {
    for (i, rows) in rows.into_iter().enumerate() {
        let lanes = reserve(&mut scratch.lanes[i], groups.len() * shape.dims[i] * S::LANES);
        pack_lanes::<S, E, false>(simd, rows, tokens, groups, &mut scratch.stage, lanes);
        reserve(&mut scratch.sums[i], groups.len() * S::LANES * shape.widths[i]).fill(0.0);
    }
}

/// Packs both operands of a box of the stream.
#[inline(always)]
fn pack_stream<S: Simd, E: Element>(
    simd: S,
    shape: &Shape,
    rows: [&Rows<'_, E>; 2],
    tokens: &Tokens,
    stream: &Box3,
    scratch: &mut Scratch,
) {
    for (i, rows) in rows.into_iter().enumerate() {
        pack_rows(simd, rows, tokens, stream, shape.widths[i], &mut scratch.stream[i]);
    }
}

impl<E: Element> Operands<'_, E> {
    /// `lse` and `delta` of a query.
    #[inline(always)]
    fn scalars(&self, tokens: &Tokens, position: [usize; 3]) -> (f32, f32) {
        let (batch, token, head) = (tokens.batch, tokens.at(position), tokens.head);
        let (out, d_out) = (self.out.row(batch, token, head), self.d_out.row(batch, token, head));
        // Eight sums side by side: more exact than one, and vectors for the compiler.
        let mut sums = [0f32; 8];
        for (out, d_out) in out.chunks(8).zip(d_out.chunks(8)) {
            for ((sum, out), d_out) in sums.iter_mut().zip(out).zip(d_out) {
                *sum += out.to_f32() * d_out.to_f32();
            }
        }
        let d_lse = self.d_lse.as_ref().map_or(0.0, |d_lse| d_lse.row(batch, token, head)[0]);
        (self.lse.row(batch, token, head)[0], sums.iter().sum::<f32>() - d_lse)
    }

    /// Those of the lanes; absent lanes keep 0.
    #[inline(always)]
    fn pack_lane_scalars(&self, groups: &Groups, tokens: &Tokens, lanes: usize, to: &mut [Vec<f32>; 2]) {
        let [lse, delta] = to.each_mut().map(|buffer| reserve(buffer, groups.len() * lanes));
        lse.fill(0.0);
        delta.fill(0.0);
        for group in 0..groups.len() {
            for (lane, position) in groups.lanes_of(group) {
                let index = group * lanes + lane;
                (lse[index], delta[index]) = self.scalars(tokens, position);
            }
        }
    }

    /// Those of a box of the stream.
    #[inline(always)]
    fn pack_stream_scalars(&self, tokens: &Tokens, stream: &Box3, to: &mut [Vec<f32>; 2]) {
        let [lse, delta] = to.each_mut().map(|buffer| reserve(buffer, volume(stream)));
        for ((position, lse), delta) in positions(stream).zip(lse).zip(delta) {
            (*lse, *delta) = self.scalars(tokens, position);
        }
    }
}

/// Takes a packed box of the stream into the sums of all groups: those of queries, or else of keys.
struct Take<'a, const OF_QUERIES: bool> {
    shape: &'a Shape,
    groups: &'a Groups,
    spans: &'a Spans,
    stream: &'a Box3,
    scratch: &'a mut Scratch,
}

impl<const OF_QUERIES: bool> Kernel for Take<'_, OF_QUERIES> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for pair in pairs(self.groups) {
            let Some(meeting) = Meeting::new(self.spans, self.groups, pair, self.stream) else { continue };
            for piece in meeting.pieces() {
                self.take_piece(simd, &meeting, &piece);
            }
        }
    }
}

impl<const OF_QUERIES: bool> Take<'_, OF_QUERIES> {
    #[inline(always)]
    fn take_piece<S: Simd>(&mut self, simd: S, meeting: &Meeting<'_>, piece: &Box3) {
        let Scratch { lanes, stream, strips, list, sums, lane_scalars, stream_scalars, .. } =
            &mut *self.scratch;
        let strip = Meeting::strip_len::<S>(piece);
        for (i, scale) in [self.shape.scale, 1.0].into_iter().enumerate() {
            let operands = ScoreOperands {
                lanes: &lanes[i],
                words: self.shape.dims[i],
                stream: &stream[i],
                pitch: self.shape.widths[i],
                scale,
            };
            let strips = reserve(&mut strips[i], 2 * strip);
            meeting.scores::<S, false>(simd, &operands, piece, list, strips);
        }
        for g in 0..meeting.pair.count {
            let shape = meeting.shape(g, piece);
            if shape.columns == 0 {
                continue;
            }
            let group = meeting.pair.first + g;
            let [scores, products] = strips.each_mut().map(|strips| &mut strips[g * strip..][..strip]);
            let [lane_lse, lane_delta] = &*lane_scalars;
            let [row_lse, row_delta] = &*stream_scalars;
            let at = group * S::LANES;
            let first = meeting.row(piece[0].start, piece[1].start, piece[2].start + shape.first);
            let steps = [self.stream[1].len() * self.stream[2].len(), self.stream[2].len()];
            let numbers = match OF_QUERIES {
                true => Numbers::OfLanes(simd.load(&lane_lse[at..]), simd.load(&lane_delta[at..])),
                false => Numbers::OfRows { lse: row_lse, delta: row_delta, first, steps },
            };
            weigh(simd, scores, products, &shape, &numbers, self.shape.scale);
            let widths = self.shape.widths;
            let mut add = |weights: &[f32], rows: &[f32], which: usize| {
                let width = widths[which];
                let sums = &mut sums[which][group * S::LANES * width..][..S::LANES * width];
                let operands = SumOperands { weights, stream: rows, width, has_non_finite: false };
                meeting.weighted_sums::<S, false>(simd, g, piece, &operands, sums);
            };
            add(products, &stream[0], 0);
            if !OF_QUERIES {
                add(scores, &stream[1], 1);
            }
        }
    }
}

/// Where the log-sum-exp and delta of a score come from: its lane or its row of the stream.
enum Numbers<'a, V> {
    OfLanes(V, V),
    OfRows { lse: &'a [f32], delta: &'a [f32], first: usize, steps: [usize; 2] },
}

/// Turns scores into weights, and products into gradients of the unscaled scores.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    scores: &mut [f32],
    products: &mut [f32],
    shape: &StripShape,
    numbers: &Numbers<'_, S::V>,
    scale: f32,
) {
    let scale = simd.splat(scale);
    for x in 0..shape.x {
        for y in 0..shape.y {
            let start = ((x * shape.y + y) * shape.pitch + shape.first) * S::LANES;
            let range = start..start + shape.columns * S::LANES;
            let scores = scores[range.clone()].chunks_exact_mut(S::LANES);
            let slots = scores.zip(products[range].chunks_exact_mut(S::LANES));
            match numbers {
                Numbers::OfLanes(lse, delta) => {
                    for (score, product) in slots {
                        weigh_slot(simd, score, product, [*lse, *delta, scale]);
                    }
                }
                Numbers::OfRows { lse, delta, first, steps } => {
                    let at = first + x * steps[0] + y * steps[1];
                    let of_rows = lse[at..][..shape.columns].iter().zip(&delta[at..][..shape.columns]);
                    for ((score, product), (&lse, &delta)) in slots.zip(of_rows) {
                        weigh_slot(simd, score, product, [simd.splat(lse), simd.splat(delta), scale]);
                    }
                }
            }
        }
    }
}

/// One slot of [`weigh`]. No closure: closures do not inherit the instructions of the function around them.
#[inline(always)]
fn weigh_slot<S: Simd>(simd: S, score: &mut [f32], product: &mut [f32], [lse, delta, scale]: [S::V; 3]) {
    let weight = exp(simd, simd.sub(simd.load(score), lse));
    let gradient = simd.mul(simd.mul(weight, scale), simd.sub(simd.load(product), delta));
    simd.store(score, weight);
    simd.store(product, gradient);
}

/// Writes the sums of all lanes.
#[inline(always)]
fn store<S: Simd, E: Element>(
    simd: S,
    groups: &Groups,
    tokens: &Tokens,
    (sums, width): (&[f32], usize),
    dim: usize,
    to: &SharedRows<'_, E>,
) {
    for group in 0..groups.len() {
        for (lane, position) in groups.lanes_of(group) {
            let sums = &sums[(group * S::LANES + lane) * width..][..dim];
            to.fill(tokens.batch, tokens.at(position), tokens.head, |row| simd.narrow(sums, row));
        }
    }
}
