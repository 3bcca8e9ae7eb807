//! The forward: each task computes one tile of queries for a few heads.
//!
//! ```text
//! pack the tile's queries as vectors over lanes
//! for each box of keys that the tile sees, then for each box of additional keys:
//!     pack its keys and values
//!     for each head, for each pair of groups, for each piece of the box that the pair sees:
//!         scores     = scale * queries . keys                            arch/tiles.rs
//!         scores     = -inf where a lane does not see the key            softmax.rs
//!         max', sum' = online softmax; sums *= exp(max - max')
//!         sums      += exp(scores - max') x values                       arch/tiles.rs
//! out = sums / sum, lse = max + ln sum
//! ```

use natten_core::{Element, ElementType, Inputs, Output, Problem, TensorView, TensorViewMut, bf16, f16};

use crate::Cpu;
use crate::arch::rows::SharedRows;
use crate::arch::{Kernel, Simd, dispatch};
use crate::isa::Isa;
use crate::pack::{Groups, Rows, Tokens, pack_lanes, pack_row_pairs, pack_rows, pack_words, reserve};
use crate::parallel::{Scratch, for_each_task};
use crate::schedule::{Place, Schedule, lane_tokens, plain_tokens, stream_tokens};
use crate::softmax::{StripShape, exp, exponentiate, finite_max, mask_and_max};
use crate::strips::{Meeting, ScoreOperands, SumOperands, pairs};
use crate::tasks::{Box3, Spans, cut};

/// All that the tasks of a call share.
struct Call<'a, E> {
    problem: &'a Problem,
    schedule: Schedule<'a>,
    query: Rows<'a, E>,
    key: Rows<'a, E>,
    value: Rows<'a, E>,
    additional: Option<[Rows<'a, E>; 2]>,
    out: SharedRows<'a, E>,
    lse: Option<SharedRows<'a, f32>>,
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
            output: Output<TensorViewMut<'_, $type>, TensorViewMut<'_, f32>>,
        ) {
            forward(cpu, isa, problem, inputs, output);
        }
    };
}

of_type!(of_f32, f32);
of_type!(of_f16, f16);
of_type!(of_bf16, bf16);

/// Computes `out` and `lse`.
fn forward<E: Element>(
    cpu: &Cpu,
    isa: Isa,
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    output: Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
) {
    let call = Call {
        problem,
        schedule: Schedule::new(isa, problem, false),
        query: Rows::of_rows(&inputs.query),
        key: Rows::of_rows(&inputs.key),
        value: Rows::of_rows(&inputs.value),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(Rows::of_rows)),
        out: SharedRows::of_rows(output.out),
        lse: output.lse.map(SharedRows::of_scalars),
    };
    for_each_task(cpu.pool(), call.schedule.len(), problem.useful_flops(), |index, scratch| {
        dispatch(isa, Task { call: &call, index, scratch });
    });
}

/// One task of a call.
struct Task<'a, 'c, E> {
    call: &'a Call<'c, E>,
    index: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for Task<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if S::BF16_DOT && E::TYPE == ElementType::Bf16 {
            forward_tile::<S, E, true>(simd, self.call, self.index, self.scratch);
        } else {
            forward_tile::<S, E, false>(simd, self.call, self.index, self.scratch);
        }
    }
}

#[inline(always)]
fn forward_tile<S: Simd, E: Element, const DOT: bool>(
    simd: S,
    call: &Call<'_, E>,
    index: usize,
    scratch: &mut Scratch,
) {
    let place = call.schedule.place(index);
    let groups =
        Groups::new(call.schedule.blocking.group, place.tile.each_ref().map(|axis| axis.lanes.len()));
    let mut state = TileState::<DOT>::begin::<S, E>(simd, call, &place, &groups, scratch);
    let mut spans = std::mem::take(&mut scratch.spans);
    spans.of_tile(&place.tile);
    let tokens = stream_tokens(&place.tile, place.batch, place.head_kv);
    for stream in cut(&spans.all(), call.schedule.blocking.stream, 512) {
        state.pack_stream(simd, [&call.key, &call.value], &tokens, &stream, scratch);
        state.attend(simd, &spans, &stream, scratch);
    }
    if let Some([keys, values]) = &call.additional {
        let all = [0..1, 0..1, 0..call.problem.additional_keys()];
        let tokens = plain_tokens(place.batch, place.head_kv);
        spans.everything(&place.tile, &all);
        for stream in cut(&all, call.schedule.blocking.stream, 512) {
            state.pack_stream(simd, [keys, values], &tokens, &stream, scratch);
            state.attend(simd, &spans, &stream, scratch);
        }
    }
    scratch.spans = spans;
    state.finish(simd, call, &place, scratch);
}

/// A tile on its way through the stream. Lanes, sums and running maxima are in the scratch buffers, all groups of
/// the first head before those of the next.
struct TileState<'a, const DOT: bool> {
    groups: &'a Groups,
    heads: usize,
    head_dim: usize,
    /// Words of a query or key.
    words: usize,
    /// Components of a value, rounded up to whole vectors.
    width: usize,
    scale: f32,
    /// Whether the packed pairs of values hold a NaN or an infinity.
    has_non_finite: bool,
}

impl<'a, const DOT: bool> TileState<'a, DOT> {
    /// Packs the queries and clears sums, maxima and denominators.
    #[inline(always)]
    fn begin<S: Simd, E: Element>(
        simd: S,
        call: &Call<'_, E>,
        place: &Place,
        groups: &'a Groups,
        scratch: &mut Scratch,
    ) -> Self {
        let head_dim = call.problem.head_dim();
        let words = if DOT { head_dim.div_ceil(2) } else { head_dim };
        let width = call.problem.head_dim_v().next_multiple_of(S::WIDE);
        let (heads, vectors) = (place.heads.len(), place.heads.len() * groups.len());
        let of_head = groups.len() * words * S::LANES;
        let lanes = reserve(&mut scratch.lanes[0], heads * of_head);
        for (head, lanes) in place.heads.clone().zip(lanes.chunks_exact_mut(of_head)) {
            let tokens = lane_tokens(&place.tile, place.batch, head);
            pack_lanes::<S, E, DOT>(simd, &call.query, &tokens, groups, &mut scratch.stage, lanes);
        }
        reserve(&mut scratch.lane_scalars[0], vectors * S::LANES).fill(f32::NEG_INFINITY);
        reserve(&mut scratch.lane_scalars[1], vectors * S::LANES).fill(0.0);
        reserve(&mut scratch.sums[0], vectors * S::LANES * width).fill(0.0);
        let scale = call.problem.scale() as f32;
        TileState { groups, heads, head_dim, words, width, scale, has_non_finite: false }
    }

    /// Packs the keys and values of a box.
    #[inline(always)]
    fn pack_stream<S: Simd, E: Element>(
        &mut self,
        simd: S,
        [keys, values]: [&Rows<'_, E>; 2],
        tokens: &Tokens,
        stream: &Box3,
        scratch: &mut Scratch,
    ) {
        if DOT {
            pack_words(simd, keys, tokens, stream, &mut scratch.stream[0]);
            self.has_non_finite =
                !pack_row_pairs(simd, values, tokens, stream, self.width, &mut scratch.paired);
        } else {
            pack_rows(simd, keys, tokens, stream, self.head_dim, &mut scratch.stream[0]);
            pack_rows(simd, values, tokens, stream, self.width, &mut scratch.stream[1]);
        }
    }

    /// Takes the packed box into every group's softmax.
    #[inline(always)]
    fn attend<S: Simd>(&self, simd: S, spans: &Spans, stream: &Box3, scratch: &mut Scratch) {
        simd.vectorize(Attend { state: self, spans, stream, scratch });
    }

    /// As [`TileState::attend`].
    #[inline(always)]
    fn attend_here<S: Simd>(&self, simd: S, spans: &Spans, stream: &Box3, scratch: &mut Scratch) {
        let of_head = self.groups.len() * self.words * S::LANES;
        for head in 0..self.heads {
            for pair in pairs(self.groups) {
                let Some(meeting) = Meeting::new(spans, self.groups, pair, stream) else { continue };
                for piece in meeting.pieces() {
                    let strip = Meeting::strip_len::<S>(&piece);
                    let operands = ScoreOperands {
                        lanes: &scratch.lanes[0][head * of_head..],
                        words: self.words,
                        stream: &scratch.stream[0],
                        pitch: self.words,
                        scale: self.scale,
                    };
                    let strips = reserve(&mut scratch.strips[0], 2 * strip);
                    meeting.scores::<S, DOT>(simd, &operands, &piece, &mut scratch.list, strips);
                    for g in 0..pair.count {
                        self.accumulate(simd, &meeting, head, g, &piece, scratch);
                    }
                }
            }
        }
    }

    /// The softmax of one group's strip, and its share of the output.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        simd: S,
        meeting: &Meeting<'_>,
        head: usize,
        g: usize,
        piece: &Box3,
        scratch: &mut Scratch,
    ) {
        let shape = meeting.shape(g, piece);
        if shape.columns == 0 {
            return;
        }
        let strip_len = Meeting::strip_len::<S>(piece);
        let strip = &mut scratch.strips[0][g * strip_len..][..strip_len];
        let masks = meeting.masks(g, piece, &mut scratch.masks);
        let vector = head * self.groups.len() + meeting.pair.first + g;
        let [maxima, denominators] = &mut scratch.lane_scalars;
        let (max, sum) = (
            &mut maxima[vector * S::LANES..][..S::LANES],
            &mut denominators[vector * S::LANES..][..S::LANES],
        );
        let sums = &mut scratch.sums[0][vector * S::LANES * self.width..][..S::LANES * self.width];
        let old = simd.load(max);
        let new = simd.max(mask_and_max(simd, strip, &shape, &masks), old);
        simd.store(max, new);
        let safe = finite_max(simd, new);
        let factor = exp(simd, simd.sub(old, safe));
        rescale(simd, factor, sums, self.width);
        let piece_sum = exponentiate(simd, strip, &shape, safe);
        simd.store(sum, simd.fma(simd.load(sum), factor, piece_sum));
        let (width, has_non_finite) = (self.width, self.has_non_finite);
        if DOT {
            let words = reserve(&mut scratch.words, strip_len / 2);
            pair_words(simd, strip, &shape, words);
            let operands = SumOperands { weights: words, stream: &scratch.paired, width, has_non_finite };
            meeting.weighted_sums::<S, true>(simd, g, piece, &operands, sums);
        } else {
            let operands = SumOperands { weights: strip, stream: &scratch.stream[1], width, has_non_finite };
            meeting.weighted_sums::<S, false>(simd, g, piece, &operands, sums);
        }
    }

    /// Divides by the denominators and writes the tile.
    #[inline(always)]
    fn finish<S: Simd, E: Element>(&self, simd: S, call: &Call<'_, E>, place: &Place, scratch: &mut Scratch) {
        let row = reserve(&mut scratch.stage, self.width);
        let head_dim_v = call.problem.head_dim_v();
        for (h, head) in place.heads.clone().enumerate() {
            let tokens = lane_tokens(&place.tile, place.batch, head);
            for group in 0..self.groups.len() {
                for (lane, position) in self.groups.lanes_of(group) {
                    let index = (h * self.groups.len() + group) * S::LANES + lane;
                    let (max, sum) = (scratch.lane_scalars[0][index], scratch.lane_scalars[1][index]);
                    let token = tokens.at(position);
                    // A query without keys has no denominator: out is 0 and lse minus infinity.
                    let factor = if sum == 0.0 { 0.0 } else { sum.recip() };
                    let sums = &scratch.sums[0][index * self.width..][..self.width];
                    row.iter_mut().zip(sums).for_each(|(to, from)| *to = from * factor);
                    call.out.fill(place.batch, token, head, |out| simd.narrow(&row[..head_dim_v], out));
                    if let Some(lse) = &call.lse {
                        lse.fill(place.batch, token, head, |lse| lse[0] = max + sum.ln());
                    }
                }
            }
        }
    }
}

/// The part that does not depend on the element type, as a function of its own.
struct Attend<'a, 's, const DOT: bool> {
    state: &'a TileState<'s, DOT>,
    spans: &'a Spans,
    stream: &'a Box3,
    scratch: &'a mut Scratch,
}

impl<const DOT: bool> Kernel for Attend<'_, '_, DOT> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.state.attend_here(simd, self.spans, self.stream, self.scratch);
    }
}

/// Multiplies each lane's sum; nothing to do where no lane's maximum moved.
#[inline(always)]
fn rescale<S: Simd>(simd: S, factor: S::V, sums: &mut [f32], width: usize) {
    let mut factors = [1.0; 32];
    simd.store(&mut factors, factor);
    if factors[..S::LANES].iter().all(|&factor| factor == 1.0) {
        return;
    }
    for (row, &factor) in sums.chunks_exact_mut(width).zip(&factors[..S::LANES]) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Weights of a strip as words of two neighbours. A neighbour outside the group's columns weighs 0.
#[inline(always)]
fn pair_words<S: Simd>(simd: S, strip: &mut [f32], shape: &StripShape, words: &mut [f32]) {
    let (first, end) = (shape.first / 2 * 2, (shape.first + shape.columns).next_multiple_of(2));
    let zero = simd.splat(0.0);
    for row in 0..shape.x * shape.y {
        let strip = &mut strip[row * shape.pitch * S::LANES..][..shape.pitch * S::LANES];
        if first < shape.first {
            simd.store(&mut strip[first * S::LANES..], zero);
        }
        if shape.first + shape.columns < end {
            simd.store(&mut strip[(end - 1) * S::LANES..], zero);
        }
        let words = &mut words[row * shape.pitch / 2 * S::LANES..];
        let from = strip[first * S::LANES..end * S::LANES].chunks_exact(2 * S::LANES);
        let to = words[first / 2 * S::LANES..].chunks_exact_mut(S::LANES);
        for (from, to) in from.zip(to) {
            let (even, odd) = from.split_at(S::LANES);
            simd.store(to, simd.pair(simd.load(even), simd.load(odd)));
        }
    }
}
