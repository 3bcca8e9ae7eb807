//! A problem written down (`Spec`), and the same with its tensors (`Case`).

use natten::{
    AttentionParams, AxisParams, DynParams, Element, ElementType, Inputs, KernelSizePolicy, Layout, Problem,
    ProblemError, Region, Sequences, Tensor,
};

use std::ops::Range;

use crate::rng::Rng;

/// Which keys each query sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Mask {
    /// Windows over 1 to 3 token axes.
    Neighborhood {
        /// Extent of each token axis.
        token_shape: Vec<usize>,
        /// Window of each.
        axes: Vec<AxisParams>,
    },
    /// Every key, or those up to the query's place.
    Attention {
        /// Query tokens.
        queries: usize,
        /// Key tokens.
        keys: usize,
        /// Which keys are hidden.
        causality: Causality,
    },
    /// Attention inside each of several sequences.
    Packed {
        /// Query tokens of each sequence.
        queries: Vec<usize>,
        /// Key tokens of each.
        keys: Vec<usize>,
        /// Which keys of a sequence are hidden from its queries.
        causality: Causality,
    },
}

/// Which keys of plain attention are hidden from query `i` of `Q`, with `K` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causality {
    /// None.
    Open,
    /// Those after key `i`.
    FromStart,
    /// Those after key `i + K - Q`.
    FromEnd,
}

impl From<bool> for Causality {
    fn from(is_causal: bool) -> Self {
        if is_causal { Causality::FromStart } else { Causality::Open }
    }
}

/// A problem without its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Which keys each query sees.
    pub mask: Mask,
    /// The parts of a neighborhood's axes that the tensors hold, where that is not all.
    pub regions: Vec<(usize, Region)>,
    /// Independent items.
    pub batch: usize,
    /// Heads of the query.
    pub heads: usize,
    /// Heads of key and value.
    pub heads_kv: usize,
    /// Components of a query and a key.
    pub head_dim: usize,
    /// Components of a value.
    pub head_dim_v: usize,
    /// Keys that every query sees.
    pub additional: usize,
    /// `None` is the default.
    pub scale: Option<f32>,
}

impl Spec {
    /// Neighborhood attention with these extents and windows: one head of 8 components, all else default.
    pub fn na(token_shape: &[usize], kernel_size: &[usize]) -> Self {
        let axes = kernel_size.iter().map(|&size| AxisParams::new(size)).collect();
        Self::of(Mask::Neighborhood { token_shape: token_shape.to_vec(), axes })
    }

    /// Plain attention.
    pub fn attention(queries: usize, keys: usize, is_causal: bool) -> Self {
        Self::of(Mask::Attention { queries, keys, causality: is_causal.into() })
    }

    /// Packed attention.
    pub fn packed(queries: &[usize], keys: &[usize], is_causal: bool) -> Self {
        Self::of(Mask::Packed { queries: queries.to_vec(), keys: keys.to_vec(), causality: is_causal.into() })
    }

    /// Makes plain attention causal from the end.
    pub fn from_end(mut self) -> Self {
        match &mut self.mask {
            Mask::Attention { causality, .. } | Mask::Packed { causality, .. } => {
                *causality = Causality::FromEnd;
            }
            Mask::Neighborhood { .. } => panic!("as many queries as keys: {self:?}"),
        }
        self
    }

    fn of(mask: Mask) -> Self {
        let (regions, scale) = (Vec::new(), None);
        Spec {
            mask,
            regions,
            batch: 1,
            heads: 1,
            heads_kv: 1,
            head_dim: 8,
            head_dim_v: 8,
            additional: 0,
            scale,
        }
    }

    fn each_axis<T: Copy>(mut self, values: &[T], set: impl Fn(&mut AxisParams, T)) -> Self {
        let Mask::Neighborhood { axes, .. } = &mut self.mask else { panic!("no window to change: {self:?}") };
        assert_eq!(axes.len(), values.len(), "one value an axis");
        axes.iter_mut().zip(values).for_each(|(axis, &value)| set(axis, value));
        self
    }

    /// Sets the stride of each axis.
    pub fn stride(self, stride: &[usize]) -> Self {
        self.each_axis(stride, |axis, value| axis.stride = value)
    }

    /// Sets the dilation of each axis.
    pub fn dilation(self, dilation: &[usize]) -> Self {
        self.each_axis(dilation, |axis, value| axis.dilation = value)
    }

    /// Sets the causality of each axis.
    pub fn causal(self, is_causal: &[bool]) -> Self {
        self.each_axis(is_causal, |axis, value| axis.is_causal = value)
    }

    /// Makes it the part of a whole, the neighborhood's token shape, that has these queries and keys along an axis.
    pub fn region(mut self, axis: usize, queries: Range<usize>, keys: Range<usize>) -> Self {
        let Mask::Neighborhood { token_shape, .. } = &self.mask else { panic!("no whole: {self:?}") };
        self.regions.push((axis, Region::of(token_shape[axis]).queries(queries).keys(keys)));
        self
    }

    /// Sets heads and heads of key and value.
    pub fn heads(self, heads: usize, heads_kv: usize) -> Self {
        Spec { heads, heads_kv, ..self }
    }

    /// Sets components of keys and of values.
    pub fn dims(self, head_dim: usize, head_dim_v: usize) -> Self {
        Spec { head_dim, head_dim_v, ..self }
    }

    /// Sets the number of additional keys.
    pub fn additional(self, additional: usize) -> Self {
        Spec { additional, ..self }
    }

    /// Sets the scale.
    pub fn scale(self, scale: f32) -> Self {
        Spec { scale: Some(scale), ..self }
    }

    /// Sets the batch.
    pub fn batch(self, batch: usize) -> Self {
        Spec { batch, ..self }
    }

    /// Extents of the query's token axes.
    pub fn query_tokens(&self) -> Vec<usize> {
        match &self.mask {
            Mask::Neighborhood { token_shape, .. } => self.held(token_shape, Region::query_range),
            Mask::Attention { queries, .. } => vec![*queries],
            Mask::Packed { queries, .. } => vec![queries.iter().sum()],
        }
    }

    /// Extents of the key's token axes.
    pub fn key_tokens(&self) -> Vec<usize> {
        match &self.mask {
            Mask::Neighborhood { token_shape, .. } => self.held(token_shape, Region::key_range),
            Mask::Attention { keys, .. } => vec![*keys],
            Mask::Packed { keys, .. } => vec![keys.iter().sum()],
        }
    }

    /// A token shape with the extents of the regions' tokens.
    fn held(&self, token_shape: &[usize], tokens: fn(&Region) -> Range<usize>) -> Vec<usize> {
        let mut shape = token_shape.to_vec();
        self.regions.iter().for_each(|(axis, region)| shape[*axis] = tokens(region).len());
        shape
    }

    /// The parameters of a neighborhood.
    pub fn dyn_params(&self) -> Option<DynParams> {
        let Mask::Neighborhood { axes, .. } = &self.mask else { return None };
        let params = DynParams::new(axes, self.scale, KernelSizePolicy::Exact);
        Some(self.regions.iter().fold(params, |params, (axis, region)| params.region(*axis, *region)))
    }

    fn shape(&self, tokens: &[usize], heads: usize, dim: usize) -> Vec<usize> {
        [&[self.batch], tokens, &[heads, dim]].concat()
    }

    /// Shapes of all operands.
    pub fn shapes(&self) -> Inputs<Vec<usize>> {
        let (queries, keys) = (self.query_tokens(), self.key_tokens());
        let inputs = Inputs::new(
            self.shape(&queries, self.heads, self.head_dim),
            self.shape(&keys, self.heads_kv, self.head_dim),
            self.shape(&keys, self.heads_kv, self.head_dim_v),
        );
        if self.additional == 0 {
            return inputs;
        }
        let tokens = [self.additional];
        inputs.with_additional(
            self.shape(&tokens, self.heads_kv, self.head_dim),
            self.shape(&tokens, self.heads_kv, self.head_dim_v),
        )
    }

    /// The validated problem, for contiguous operands.
    pub fn problem(&self, element_type: ElementType) -> Problem {
        let layouts = self.shapes().map(|shape| Layout::contiguous(shape).expect("small"));
        natten::Mask::problem(self, &layouts, element_type)
            .unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Tensors of normal deviates, the same for the same seed.
    pub fn draw(&self, seed: u64) -> Case {
        let mut rng = Rng::new(seed);
        let mut normal = |shape: &[usize]| Tensor::from_fn(shape, |_| rng.normal()).expect("small");
        let shapes = self.shapes();
        let inputs = shapes.map(|shape| normal(shape));
        let out_shape = self.shape(&self.query_tokens(), self.heads, self.head_dim_v);
        let d_out = normal(&out_shape);
        let d_lse = normal(&out_shape[..out_shape.len() - 1]);
        Case { spec: self.clone(), inputs, d_out, d_lse: Some(d_lse) }
    }
}

impl natten::Mask for Spec {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        let params = |causality: &Causality| {
            let params = match causality {
                Causality::FromEnd => AttentionParams::new().causal_from_end(),
                other => AttentionParams::new().is_causal(*other == Causality::FromStart),
            };
            self.scale.map_or(params, |scale| params.scale(scale))
        };
        match &self.mask {
            Mask::Neighborhood { .. } => {
                Problem::new(&self.dyn_params().expect("of a neighborhood"), inputs, element_type)
            }
            Mask::Attention { causality, .. } => Problem::attention(&params(causality), inputs, element_type),
            Mask::Packed { queries, keys, causality } => {
                let sequences = Sequences::from_lengths(queries, keys)?;
                Problem::packed_attention(&params(causality), &sequences, inputs, element_type)
            }
        }
    }
}

/// A problem with its tensors, in f64.
#[derive(Clone, Debug)]
pub struct Case {
    /// The problem.
    pub spec: Spec,
    /// Operands.
    pub inputs: Inputs<Tensor<f64>>,
    /// Gradient of the output.
    pub d_out: Tensor<f64>,
    /// Gradient of the log-sum-exp.
    pub d_lse: Option<Tensor<f64>>,
}

impl Case {
    /// The same with scores around -60: a score of 0 beside them would have all the weight. Components are eighths, so that products
    /// add up exactly: where all of them have one sign, a unit that cuts sums off instead of rounding them errs always to one side.
    pub fn negative(mut self) -> Self {
        // The mean of a product of magnitudes of normal deviates is 2 / pi.
        self.spec.scale = Some(94.0 / self.spec.head_dim as f32);
        let each = |tensor: &mut Tensor<f64>, sign: f64| {
            tensor.as_mut_slice().iter_mut().for_each(|x| *x = sign * (8.0 * x.abs()).round() / 8.0);
        };
        each(&mut self.inputs.query, 1.0);
        each(&mut self.inputs.key, -1.0);
        if let Some([keys, _]) = &mut self.inputs.additional {
            each(keys, -1.0);
        }
        self
    }

    /// The operands rounded to an element type.
    pub fn rounded<E: Element>(&self) -> Inputs<Tensor<E>> {
        self.inputs.map(|tensor| tensor.cast())
    }
}
