//! The validated description of one call. `Problem::new` is the only way in, and the only validation.

use std::ops::Range;
use std::sync::Arc;

use crate::checks::{Shape, expect, expect_rows, expect_tokens, non_empty};
use crate::element::ElementType;
use crate::error::{ProblemError, Role, TensorAxis};
use crate::layout::Layout;
use crate::operands::Inputs;
use crate::packed::{PackedSequence, Sequences};
use crate::params::{AttentionParams, Causality, DynParams};
use crate::region::{RegionError, check_extents, missing_key};
use crate::window::Axis;

/// A valid problem: extents, heads, and the mask of every axis.
///
/// Token axes are always three: a problem of lower rank gets axes of one token in front, so a backend has one
/// loop nest and not three.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    rank: usize,
    batch: usize,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    head_dim_v: usize,
    additional_keys: usize,
    element_type: ElementType,
    scale: f64,
    axes: [Axis; 3],
    has_region: bool,
    is_plain: bool,
    packed: Option<Arc<[PackedSequence]>>,
}

impl Problem {
    /// Neighborhood attention of `query`, `key` and `value` `[batch, tokens.., heads, head_dim]`, where key and
    /// value may have fewer heads (a divisor) and value another `head_dim`; additional keys and values are
    /// `[batch, n, heads_kv, head_dim]`.
    ///
    /// Along an axis with a [`Region`](crate::Region) the tensors hold a part of the tokens; along all others key and value have
    /// the query's. A region without queries is legal and makes an empty output.
    ///
    /// # Errors
    /// The first rule of [`ProblemError`] that is broken, tensors before parameters.
    pub fn new(
        params: &DynParams,
        inputs: &Inputs<Layout>,
        element_type: ElementType,
    ) -> Result<Self, ProblemError> {
        let rank = params.rank;
        if !(1..=3).contains(&rank) {
            return Err(ProblemError::Rank { rank });
        }
        let mut problem = Self::of_tensors(rank, inputs, element_type)?;
        if let Some(axis) = params.no_such_axis {
            return Err(ProblemError::NoSuchAxis { axis, rank });
        }
        let tokens = inputs.query.shape()[1..=rank].iter().zip(&inputs.key.shape()[1..=rank]);
        for (axis, (&queries, &keys)) in tokens.clone().enumerate() {
            check_extents(params.regions[axis].as_ref(), axis, queries, keys)?;
        }
        for (axis, (&extent, _)) in tokens.enumerate() {
            let of_axis = match &params.regions[axis] {
                None => {
                    non_empty(Role::Query, TensorAxis::Token(axis), extent)?;
                    params.axis(axis, extent)?
                }
                Some(region) => region.part_of(params.axis(axis, region.extent())?),
            };
            problem.has_region |= !of_axis.is_whole();
            problem.axes[3 - rank + axis] = of_axis;
        }
        problem.expect_keys_held()?;
        problem.scale = resolve_scale(params.scale, problem.head_dim)?;
        Ok(problem)
    }

    /// Whether the call holds every key that its queries need.
    fn expect_keys_held(&self) -> Result<(), ProblemError> {
        // Without queries along one axis there is nobody to need a key along another.
        if !self.has_region || self.query_tokens() == 0 {
            return Ok(());
        }
        for (axis, of_axis) in self.axes[3 - self.rank..].iter().enumerate() {
            if let Some((key, query)) = missing_key(of_axis) {
                let (start, end) = (of_axis.key_start, of_axis.key_start + of_axis.key_extent);
                return Err(RegionError::KeyNotHeld { axis, key, query, start, end }.into());
            }
        }
        Ok(())
    }

    /// Plain attention: `query [batch, queries, heads, head_dim]` over `key` and `value` `[batch, keys, ..]`.
    /// No keys at all is legal: the output is then 0 and the log-sum-exp minus infinity.
    ///
    /// # Errors
    /// The first rule of [`ProblemError`] that is broken.
    pub fn attention(
        params: &AttentionParams,
        inputs: &Inputs<Layout>,
        element_type: ElementType,
    ) -> Result<Self, ProblemError> {
        let mut problem = Self::of_tensors(1, inputs, element_type)?;
        let (queries, keys) = (inputs.query.shape()[1], inputs.key.shape()[1]);
        problem.axes[2] = attention_axis(queries, keys, params.causality);
        problem.is_plain = true;
        problem.scale = resolve_scale(params.scale, problem.head_dim)?;
        Ok(problem)
    }

    /// Plain attention over several sequences packed one after another along the token axis; `batch` is 1.
    ///
    /// # Errors
    /// [`ProblemError::PackedBatch`], [`ProblemError::CumulativeLengths`] when the last entry is not the
    /// tensor's extent, and those of [`Problem::attention`].
    pub fn packed_attention(
        params: &AttentionParams,
        sequences: &Sequences,
        inputs: &Inputs<Layout>,
        element_type: ElementType,
    ) -> Result<Self, ProblemError> {
        let mut problem = Self::attention(params, inputs, element_type)?;
        if problem.batch != 1 {
            return Err(ProblemError::PackedBatch { tensor: Role::Query, found: problem.batch });
        }
        sequences.expect_totals(problem.axes[2].query_extent, problem.axes[2].key_extent)?;
        let packed = sequences.iter().map(|(queries, keys)| PackedSequence {
            query_start: queries.start,
            key_start: keys.start,
            axes: [Axis::UNIT, Axis::UNIT, attention_axis(queries.len(), keys.len(), params.causality)],
        });
        problem.packed = Some(packed.collect());
        Ok(problem)
    }

    /// Checks all that concerns tensors alone; the axes and the scale are filled in by the caller.
    fn of_tensors(
        rank: usize,
        inputs: &Inputs<Layout>,
        element_type: ElementType,
    ) -> Result<Self, ProblemError> {
        for (role, layout) in inputs.roles() {
            expect_rows(role, layout, rank)?;
        }
        let (query, key, value) =
            (Shape::of(&inputs.query), Shape::of(&inputs.key), Shape::of(&inputs.value));
        expect(Role::Key, TensorAxis::Batch, query.batch, key.batch)?;
        expect(Role::Value, TensorAxis::Batch, query.batch, value.batch)?;
        expect_tokens(Role::Value, &inputs.value, &inputs.key.shape()[1..=rank])?;
        expect(Role::Value, TensorAxis::Heads, key.heads, value.heads)?;
        expect(Role::Key, TensorAxis::HeadDim, query.head_dim, key.head_dim)?;
        non_empty(Role::Query, TensorAxis::Heads, query.heads)?;
        non_empty(Role::Key, TensorAxis::Heads, key.heads)?;
        non_empty(Role::Query, TensorAxis::HeadDim, query.head_dim)?;
        non_empty(Role::Value, TensorAxis::HeadDim, value.head_dim)?;
        if !query.heads.is_multiple_of(key.heads) {
            return Err(ProblemError::HeadsNotDivisible { heads: query.heads, heads_kv: key.heads });
        }
        let additional_keys = match &inputs.additional {
            None => 0,
            Some([keys, values]) => {
                let tokens = keys.shape()[1];
                let (keys, shape) = (Shape::of(keys), Shape::of(values));
                for (role, shape) in [(Role::AdditionalKeys, &keys), (Role::AdditionalValues, &shape)] {
                    expect(role, TensorAxis::Batch, query.batch, shape.batch)?;
                    expect(role, TensorAxis::Heads, key.heads, shape.heads)?;
                }
                expect(Role::AdditionalKeys, TensorAxis::HeadDim, query.head_dim, keys.head_dim)?;
                expect(Role::AdditionalValues, TensorAxis::HeadDim, value.head_dim, shape.head_dim)?;
                expect_tokens(Role::AdditionalValues, values, &[tokens])?;
                tokens
            }
        };
        Ok(Problem {
            rank,
            batch: query.batch,
            heads: query.heads,
            heads_kv: key.heads,
            head_dim: query.head_dim,
            head_dim_v: value.head_dim,
            additional_keys,
            element_type,
            scale: 0.0,
            axes: [Axis::UNIT; 3],
            has_region: false,
            is_plain: false,
            packed: None,
        })
    }

    /// The token extents in the caller's own rank, padded with 1 at the end.
    pub(crate) fn token_shape(&self, of_keys: bool) -> [usize; 3] {
        let extent = |axis: &Axis| if of_keys { axis.key_extent } else { axis.query_extent };
        std::array::from_fn(|i| self.axes.get(3 - self.rank + i).map_or(1, extent))
    }

    /// The shape of `out`: `[batch, tokens.., heads, head_dim_v]`.
    pub fn out_shape(&self) -> Vec<usize> {
        let mut shape = self.lse_shape();
        shape.push(self.head_dim_v);
        shape
    }

    /// The shape of `lse`: `[batch, tokens.., heads]`.
    pub fn lse_shape(&self) -> Vec<usize> {
        let mut shape = vec![self.batch];
        shape.extend(&self.token_shape(false)[..self.rank]);
        shape.push(self.heads);
        shape
    }

    /// Number of token axes the caller gave, 1 to 3.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Independent items.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Heads of query and output.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Heads of key and value, a divisor of [`Problem::heads`].
    pub fn heads_kv(&self) -> usize {
        self.heads_kv
    }

    /// Query heads that share one head of key and value: head `h` reads `h / heads_per_kv`.
    pub fn heads_per_kv(&self) -> usize {
        self.heads / self.heads_kv
    }

    /// Components of a query and a key.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Components of a value and an output.
    pub fn head_dim_v(&self) -> usize {
        self.head_dim_v
    }

    /// Keys that every query sees besides its window.
    pub fn additional_keys(&self) -> usize {
        self.additional_keys
    }

    /// Element type of query, key, value and output.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Factor on the scores before the softmax.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The three token axes, leading ones [`Axis::UNIT`] where the rank is lower. For packed sequences these are
    /// the totals; [`Problem::sequences`] has each.
    pub fn axes(&self) -> &[Axis; 3] {
        &self.axes
    }

    /// Whether the call holds only a part of a whole, as a [`Region`](crate::Region) says: never so of plain attention.
    pub fn has_region(&self) -> bool {
        self.has_region
    }

    /// Whether this is plain attention, packed or not.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The problem of the whole, where the call holds a part of one: windows and heads are the same.
    pub fn of_whole(&self) -> Problem {
        let whole = |axis: Axis| {
            let Axis { extent, kernel_size, stride, dilation, is_causal, .. } = axis;
            Axis { kernel_size, stride, dilation, is_causal, ..Axis::whole(extent) }
        };
        let axes = if self.has_region { self.axes.map(whole) } else { self.axes };
        Problem { axes, has_region: false, ..self.clone() }
    }

    /// The same problem with some of its queries and some of its keys along a token axis, both in tokens of the whole. As in
    /// [`Problem::new`], keys that the queries need are among those keys.
    ///
    /// # Errors
    /// [`ProblemError::NoSuchAxis`]; [`RegionError::Reversed`], [`RegionError::NotHeld`] and [`RegionError::KeyNotHeld`];
    /// [`RegionError::PlainAttention`].
    pub fn part(&self, axis: usize, queries: Range<usize>, keys: Range<usize>) -> Result<Self, ProblemError> {
        let rank = self.rank;
        if axis >= rank {
            return Err(ProblemError::NoSuchAxis { axis, rank });
        }
        if self.is_plain {
            return Err(RegionError::PlainAttention.into());
        }
        let mut part = self.clone();
        let of_axis = &mut part.axes[3 - rank + axis];
        let held = |start: usize, extent: usize| [start, start + extent];
        for (tensor, Range { start, end }, [from, to]) in [
            (Role::Query, &queries, held(of_axis.query_start, of_axis.query_extent)),
            (Role::Key, &keys, held(of_axis.key_start, of_axis.key_extent)),
        ] {
            let (start, end) = (*start, *end);
            if start > end {
                return Err(RegionError::Reversed { tensor, axis, start, end }.into());
            }
            if start < from || end > to {
                return Err(RegionError::NotHeld { tensor, axis, start, end, from, to }.into());
            }
        }
        (of_axis.query_start, of_axis.query_extent) = (queries.start, queries.len());
        (of_axis.key_start, of_axis.key_extent) = (keys.start, keys.len());
        part.has_region = part.axes[3 - rank..].iter().any(|axis| !axis.is_whole());
        part.expect_keys_held()?;
        Ok(part)
    }

    /// Whether this is a packed batch of sequences.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// The independent masks of the problem with where each begins along the last token axis: the problem itself,
    /// or each packed sequence.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = PackedSequence> + '_ {
        let whole = PackedSequence { query_start: 0, key_start: 0, axes: self.axes };
        let count = self.packed.as_ref().map_or(1, |packed| packed.len());
        (0..count).map(move |i| self.packed.as_ref().map_or(whole, |packed| packed[i]))
    }

    /// Query tokens of one batch item: of [`Problem::of_whole`], which need fit no tensor, at most `usize::MAX`.
    pub fn query_tokens(&self) -> usize {
        self.axes.iter().map(|axis| axis.query_extent).fold(1, usize::saturating_mul)
    }

    /// Key tokens of one batch item, additional ones not counted, as [`Problem::query_tokens`].
    pub fn key_tokens(&self) -> usize {
        self.axes.iter().map(|axis| axis.key_extent).fold(1, usize::saturating_mul)
    }
}

fn attention_axis(queries: usize, keys: usize, causality: Causality) -> Axis {
    match causality {
        Causality::Open => Axis::attention(queries, keys),
        Causality::FromStart => Axis::causal_from_start(queries, keys),
        Causality::FromEnd => Axis::causal_from_end(queries, keys),
    }
}

fn resolve_scale(scale: Option<f32>, head_dim: usize) -> Result<f64, ProblemError> {
    match scale {
        None => Ok((head_dim as f64).sqrt().recip()),
        Some(scale) if scale.is_finite() => Ok(f64::from(scale)),
        Some(scale) => Err(ProblemError::ScaleNotFinite { scale }),
    }
}
