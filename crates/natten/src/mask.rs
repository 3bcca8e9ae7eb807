//! Which keys each query sees: the parameters that a call is made with.

use natten_core::{
    AttentionParams, DynParams, ElementType, Inputs, Layout, Params, Problem, ProblemError, Sequences,
};

/// Which keys each query sees: turns operands into a validated [`Problem`].
pub trait Mask {
    /// The problem that these operands pose.
    ///
    /// # Errors
    /// The rule that is broken.
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError>;
}

impl<const RANK: usize> Mask for Params<RANK> {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::new(&self.to_dyn(), inputs, element_type)
    }
}

impl Mask for DynParams {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::new(self, inputs, element_type)
    }
}

impl Mask for AttentionParams {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::attention(self, inputs, element_type)
    }
}

/// Plain attention inside each sequence of a packed batch.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Causality and scale.
    pub params: AttentionParams,
    /// Where each sequence begins.
    pub sequences: &'a Sequences,
}

impl Mask for Packed<'_> {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::packed_attention(&self.params, self.sequences, inputs, element_type)
    }
}

/// Parameters of neighborhood attention of any rank, or of plain attention: for code that keeps them, such as an engine's node in
/// a graph. Whatever says one of them converts into it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "copied once a call; a box would take `Copy` from it")]
pub enum MaskParams {
    /// Every query sees its window.
    Neighborhood(DynParams),
    /// Every query sees every key, or a causal part of them.
    Plain(AttentionParams),
}

impl Mask for MaskParams {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        match self {
            MaskParams::Neighborhood(params) => params.problem(inputs, element_type),
            MaskParams::Plain(params) => params.problem(inputs, element_type),
        }
    }
}

impl<const RANK: usize> From<&Params<RANK>> for MaskParams {
    fn from(params: &Params<RANK>) -> Self {
        MaskParams::Neighborhood(params.to_dyn())
    }
}

impl From<DynParams> for MaskParams {
    fn from(params: DynParams) -> Self {
        MaskParams::Neighborhood(params)
    }
}

impl From<&AttentionParams> for MaskParams {
    fn from(params: &AttentionParams) -> Self {
        MaskParams::Plain(*params)
    }
}
