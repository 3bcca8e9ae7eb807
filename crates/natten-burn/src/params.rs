//! Which keys each query sees, whatever the rank.

use natten::{AttentionParams, DynParams, ElementType, Inputs, Layout, Mask, Params, Problem, ProblemError};

/// Parameters of neighborhood attention of any rank, or of plain attention. Whatever says one of them converts into it.
#[derive(Clone, Copy, Debug, PartialEq)]
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
        MaskParams::Neighborhood(params.into())
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
