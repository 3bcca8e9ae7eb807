//! Problems of any shapes, strides and parameters: an error with its sentence, or a problem whose every answer holds.

use natten_core::window::Axis;
use natten_core::{
    AttentionParams, AxisParams, DynParams, ElementType, Gradients, Inputs, KernelSize, KernelSizePolicy,
    Layout, Output, Params, Problem, ProblemError, Region, Saved, Sequences, region,
};

use crate::bytes::Bytes;

/// Makes one problem out of the bytes, and asks it everything.
pub fn body(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let rank = usize::from(bytes.byte() % 5);
    let Some(shapes) = Shapes::of(bytes, rank) else { return };
    let Some(inputs) = shapes.inputs(bytes) else { return };
    let made = match bytes.byte() % 4 {
        0 => Problem::attention(&attention(bytes), &inputs, ElementType::F32),
        1 => packed(bytes, &inputs),
        2 => Problem::new(&two_axes(bytes).to_dyn(), &inputs, ElementType::F16),
        _ => {
            let params = any_axes(bytes, rank);
            Problem::new(&any_regions(params, &shapes, bytes), &inputs, ElementType::Bf16)
        }
    };
    match made {
        Ok(problem) => ask(&problem, &shapes, bytes),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Extents of one call, nearly always ones that fit each other.
struct Shapes {
    batch: usize,
    tokens: Vec<usize>,
    keys: Vec<usize>,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    head_dim_v: usize,
    additional: Option<usize>,
}

impl Shapes {
    fn of(bytes: &mut Bytes<'_>, rank: usize) -> Option<Self> {
        let tokens: Vec<usize> = (0..rank).map(|_| bytes.number()).collect();
        let keys =
            if bytes.once_in(4) { (0..rank).map(|_| bytes.number()).collect() } else { tokens.clone() };
        let heads_kv = bytes.number();
        Some(Shapes {
            batch: bytes.number(),
            tokens,
            keys,
            heads: heads_kv.checked_mul(bytes.number())?,
            heads_kv,
            head_dim: bytes.number(),
            head_dim_v: bytes.number(),
            additional: bytes.once_in(3).then(|| bytes.number()),
        })
    }

    fn inputs(&self, bytes: &mut Bytes<'_>) -> Option<Inputs<Layout>> {
        let mut inputs = Inputs::new(
            self.rows(bytes, &self.tokens, self.heads, self.head_dim)?,
            self.rows(bytes, &self.keys, self.heads_kv, self.head_dim)?,
            self.rows(bytes, &self.keys, self.heads_kv, self.head_dim_v)?,
        );
        if let Some(count) = self.additional {
            inputs = inputs.with_additional(
                self.rows(bytes, &[count], self.heads_kv, self.head_dim)?,
                self.rows(bytes, &[count], self.heads_kv, self.head_dim_v)?,
            );
        }
        Some(inputs)
    }

    fn rows(&self, bytes: &mut Bytes<'_>, tokens: &[usize], heads: usize, width: usize) -> Option<Layout> {
        let mut shape = [&[self.batch], tokens, &[heads, width]].concat();
        if bytes.once_in(16) {
            let at = usize::from(bytes.byte()) % shape.len();
            shape[at] = bytes.number();
        }
        if bytes.once_in(16) {
            shape.pop();
        }
        if bytes.once_in(4) {
            let strides: Vec<isize> = shape.iter().map(|_| bytes.stride()).collect();
            return Layout::strided(&shape, &strides).ok();
        }
        Layout::contiguous(&shape).ok()
    }
}

fn attention(bytes: &mut Bytes<'_>) -> AttentionParams {
    let params = match bytes.byte() % 4 {
        1 => AttentionParams::new().is_causal(true),
        3 => AttentionParams::new().causal_from_end(),
        _ => AttentionParams::new(),
    };
    if bytes.once_in(2) { params.scale(bytes.float()) } else { params }
}

fn packed(bytes: &mut Bytes<'_>, inputs: &Inputs<Layout>) -> Result<Problem, ProblemError> {
    let mut lengths = || (0..bytes.byte() % 5).map(|_| bytes.number()).collect::<Vec<_>>();
    let sequences = Sequences::from_lengths(&lengths(), &lengths())?;
    Problem::packed_attention(&attention(bytes), &sequences, inputs, ElementType::F32)
}

fn policy(bytes: &mut Bytes<'_>) -> KernelSizePolicy {
    if bytes.once_in(2) { KernelSizePolicy::Clamp } else { KernelSizePolicy::Exact }
}

/// By the builder, as callers do.
fn two_axes(bytes: &mut Bytes<'_>) -> Params<2> {
    let mut params = Params::new([bytes.number(), bytes.number()])
        .stride([bytes.number(), bytes.number()])
        .dilation([bytes.number(), bytes.number()])
        .is_causal([bytes.once_in(2), bytes.once_in(2)])
        .policy(policy(bytes));
    if bytes.once_in(2) {
        params = params.whole_axis(bytes.number());
    }
    if bytes.once_in(2) { params.scale(bytes.float()) } else { params }
}

fn any_axes(bytes: &mut Bytes<'_>, rank: usize) -> DynParams {
    let rank = if bytes.once_in(8) { usize::from(bytes.byte()) } else { rank };
    let axes: Vec<AxisParams> = (0..rank)
        .map(|_| AxisParams {
            kernel_size: if bytes.once_in(5) {
                KernelSize::Whole
            } else {
                KernelSize::Tokens(bytes.number())
            },
            stride: bytes.number(),
            dilation: bytes.number(),
            is_causal: bytes.once_in(2),
        })
        .collect();
    let scale = bytes.once_in(2).then(|| bytes.float());
    DynParams::new(&axes, scale, policy(bytes))
}

/// Parts of axes, as often as not such that the tensors fit them.
fn any_regions(params: DynParams, shapes: &Shapes, bytes: &mut Bytes<'_>) -> DynParams {
    let count = bytes.byte() % 3;
    (0..count).fold(params, |params, _| {
        let axis = usize::from(bytes.byte() % 4);
        let mut range = |held: &[usize]| {
            let start = bytes.number();
            let held = held.get(axis).copied().filter(|_| !bytes.once_in(4));
            start..held.map_or_else(|| bytes.number(), |held| start.saturating_add(held))
        };
        let (queries, keys) = (range(&shapes.tokens), range(&shapes.keys));
        let most = queries.end.max(keys.end);
        let extent = if bytes.once_in(3) { bytes.number() } else { most.saturating_add(bytes.number()) };
        params.region(axis, Region::of(extent).queries(queries).keys(keys))
    })
}

/// What a part needs, who sees it, and the whole in parts.
fn look_around(problem: &Problem, bytes: &mut Bytes<'_>) {
    for axis in problem.axes().iter().filter(|_| !problem.is_packed()) {
        let queries = axis.query_start..axis.query_start + axis.query_extent;
        let needed = region::keys_needed(axis, queries.clone());
        let held = axis.key_start..axis.key_start + axis.key_extent;
        if problem.has_region() && problem.query_tokens() > 0 {
            assert!(held.start <= needed.start && needed.end <= held.end, "{axis:?} {needed:?}");
            let seeing = region::queries_seeing(axis, needed);
            assert!(seeing.start <= queries.start && queries.end <= seeing.end, "{axis:?} {seeing:?}");
        }
    }
    let (start, end) = (bytes.number(), bytes.number());
    for axis in
        problem.axes().iter().filter(|axis| !problem.is_packed() && !problem.is_plain() && axis.extent > 0)
    {
        let [keys, queries] = [region::keys_needed, region::queries_seeing].map(|of| of(axis, start..end));
        assert!(keys.end <= axis.extent && queries.end <= axis.extent, "{axis:?} {start}..{end}");
    }
    let (ranks, axis) = (usize::from(bytes.byte() % 5), usize::from(bytes.byte() % 4));
    match region::Split::new(problem, ranks, &[axis]) {
        Ok(split) => {
            assert_eq!(split.parts().len(), ranks);
            assert!(
                split.params(&DynParams::new(&[], None, KernelSizePolicy::Exact), bytes.number()).is_err()
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn ask(problem: &Problem, shapes: &Shapes, bytes: &mut Bytes<'_>) {
    assert!(problem.scale().is_finite());
    assert_eq!(problem.heads(), problem.heads_kv() * problem.heads_per_kv());
    assert_eq!(problem.out_shape().len(), problem.rank() + 3);
    assert_eq!(problem.lse_shape().len(), problem.rank() + 2);
    let extents: usize = problem.axes().iter().map(|axis| axis.query_extent).product();
    assert_eq!(problem.query_tokens(), extents);
    assert!(problem.key_tokens() <= isize::MAX as usize);
    let whole = problem.of_whole();
    assert!(whole.query_tokens() >= problem.query_tokens() && !whole.has_region());
    assert!(whole.useful_flops() >= 0.0);
    assert_eq!(region::block_tokens(problem), region::block_tokens(&whole));
    let flops = problem.useful_flops();
    assert!(flops >= 0.0 && !flops.is_nan(), "{flops}");
    let mut covered = [0, 0];
    for sequence in problem.sequences() {
        assert!(sequence.query_start >= covered[0] && sequence.key_start >= covered[1]);
        let axis = sequence.axes[2];
        covered = [sequence.query_start + axis.query_extent, sequence.key_start + axis.key_extent];
        sequence.axes.iter().for_each(|axis| look_through(axis, bytes));
    }
    assert!(covered[0] <= problem.axes()[2].query_extent && covered[1] <= problem.axes()[2].key_extent);
    look_around(problem, bytes);
    check_others(problem, shapes, bytes);
}

/// Windows and their inverse at some tokens of an axis.
fn look_through(axis: &Axis, bytes: &mut Bytes<'_>) {
    for g in [0, axis.dilation / 2, axis.dilation - 1, bytes.number() % axis.dilation] {
        let residue = axis.residue(g);
        let some = |len: usize, any: usize| [0, len / 2, len.wrapping_sub(1), any % len.max(1)];
        for i in some(residue.query_len, bytes.number()).into_iter().filter(|&i| i < residue.query_len) {
            let window = residue.window(i);
            // Causal queries before the first key see none.
            assert!(
                window.end <= residue.key_len && (window.start <= window.end || axis.is_causal),
                "{axis:?} {i}"
            );
            if window.start < window.end {
                assert!(window.len() <= axis.kernel_size);
                for k in [window.start, window.end - 1] {
                    assert!(residue.inverse_window(k).contains(&i), "{axis:?}: query {i} sees {k}");
                }
            }
        }
        for k in some(residue.key_len, bytes.number()).into_iter().filter(|&k| k < residue.key_len) {
            let queries = residue.inverse_window(k);
            assert!(queries.start >= queries.end || queries.end <= residue.query_len, "{axis:?} {k}");
        }
    }
    assert_eq!(axis.residue_kinds().map(|(_, count)| count).sum::<usize>(), axis.dilation);
}

/// The tensors that a call writes or reads back.
fn check_others(problem: &Problem, shapes: &Shapes, bytes: &mut Bytes<'_>) {
    let Some(out) = shapes.rows(bytes, &shapes.tokens, shapes.heads, shapes.head_dim_v) else { return };
    let Some(lse) = Layout::contiguous(&problem.lse_shape()).ok() else { return };
    let _ = problem.check_output(&Output { out, lse: Some(lse) }).map_err(|error| error.to_string());
    let saved = Saved { out, lse, d_out: out, d_lse: bytes.once_in(2).then_some(lse) };
    let _ = problem.check_saved(&saved).map_err(|error| error.to_string());
    let Some(inputs) = shapes.inputs(bytes) else { return };
    let Inputs { query, key, value, additional } = inputs;
    let _ = problem
        .check_gradients(&Gradients { query, key, value, additional })
        .map_err(|error| error.to_string());
}
