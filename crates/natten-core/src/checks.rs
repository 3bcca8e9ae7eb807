//! Which layouts fit a problem, and which a merge: the rules of [`ProblemError`] on tensors.

use crate::element::ElementType;
use crate::error::{ProblemError, Role, TensorAxis};
use crate::layout::Layout;
use crate::operands::{Gradients, Inputs, Output, Partials, Saved};
use crate::problem::Problem;

impl Problem {
    /// Checks that these are operands of the problem: those it was made of, or others of the same shapes and type.
    ///
    /// # Errors
    /// [`ProblemError::ElementType`], [`ProblemError::AdditionalMissing`], and as [`Problem::check_output`].
    pub fn check_inputs(
        &self,
        inputs: &Inputs<Layout>,
        element_type: ElementType,
    ) -> Result<(), ProblemError> {
        if element_type != self.element_type() {
            return Err(ProblemError::ElementType { expected: self.element_type(), found: element_type });
        }
        self.expect_queries(Role::Query, &inputs.query)?;
        self.expect_keys(Role::Key, &inputs.key, self.head_dim())?;
        self.expect_keys(Role::Value, &inputs.value, self.head_dim_v())?;
        let additional_keys = self.additional_keys();
        match &inputs.additional {
            None if additional_keys > 0 => Err(ProblemError::AdditionalMissing { additional_keys }),
            None => Ok(()),
            Some([keys, values]) => {
                self.expect_additional(Role::AdditionalKeys, keys, self.head_dim())?;
                self.expect_additional(Role::AdditionalValues, values, self.head_dim_v())
            }
        }
    }

    /// Checks the tensors that a forward call writes.
    ///
    /// # Errors
    /// [`ProblemError::TensorRank`], [`ProblemError::ShapeMismatch`], [`ProblemError::LastAxisNotContiguous`].
    pub fn check_output(&self, output: &Output<Layout, Layout>) -> Result<(), ProblemError> {
        self.expect_out(Role::Out, &output.out)?;
        output.lse.as_ref().map_or(Ok(()), |lse| self.expect_lse(Role::Lse, lse))
    }

    /// Checks what a backward call reads besides the inputs.
    ///
    /// # Errors
    /// As [`Problem::check_output`].
    pub fn check_saved(&self, saved: &Saved<Layout, Layout>) -> Result<(), ProblemError> {
        self.expect_out(Role::Out, &saved.out)?;
        self.expect_lse(Role::Lse, &saved.lse)?;
        self.expect_out(Role::DOut, &saved.d_out)?;
        saved.d_lse.as_ref().map_or(Ok(()), |d_lse| self.expect_lse(Role::DLse, d_lse))
    }

    /// Checks the tensors that a backward call writes.
    ///
    /// # Errors
    /// As [`Problem::check_output`], and [`ProblemError::AdditionalGradientsMissing`].
    pub fn check_gradients(&self, gradients: &Gradients<Layout>) -> Result<(), ProblemError> {
        self.expect_queries(Role::DQuery, &gradients.query)?;
        self.expect_keys(Role::DKey, &gradients.key, self.head_dim())?;
        self.expect_keys(Role::DValue, &gradients.value, self.head_dim_v())?;
        let additional_keys = self.additional_keys();
        match &gradients.additional {
            None if additional_keys > 0 => Err(ProblemError::AdditionalGradientsMissing { additional_keys }),
            None => Ok(()),
            Some([keys, values]) => {
                self.expect_additional(Role::DAdditionalKeys, keys, self.head_dim())?;
                self.expect_additional(Role::DAdditionalValues, values, self.head_dim_v())
            }
        }
    }

    fn expect_queries(&self, role: Role, layout: &Layout) -> Result<(), ProblemError> {
        self.expect_rows_of(role, layout, false, self.heads(), self.head_dim())
    }

    fn expect_keys(&self, role: Role, layout: &Layout, head_dim: usize) -> Result<(), ProblemError> {
        self.expect_rows_of(role, layout, true, self.heads_kv(), head_dim)
    }

    fn expect_additional(&self, role: Role, layout: &Layout, head_dim: usize) -> Result<(), ProblemError> {
        expect_rows(role, layout, self.rank())?;
        expect_tokens(role, layout, &[self.additional_keys()])?;
        self.expect_ends(role, layout, self.heads_kv(), head_dim)
    }

    fn expect_out(&self, role: Role, layout: &Layout) -> Result<(), ProblemError> {
        self.expect_rows_of(role, layout, false, self.heads(), self.head_dim_v())
    }

    fn expect_lse(&self, role: Role, layout: &Layout) -> Result<(), ProblemError> {
        expect_rank(role, layout, self.rank() + 2)?;
        expect_tokens(role, layout, &self.token_shape(false)[..self.rank()])?;
        expect(role, TensorAxis::Batch, self.batch(), layout.shape()[0])?;
        expect(role, TensorAxis::Heads, self.heads(), layout.shape()[self.rank() + 1])
    }

    fn expect_rows_of(
        &self,
        role: Role,
        layout: &Layout,
        of_keys: bool,
        heads: usize,
        head_dim: usize,
    ) -> Result<(), ProblemError> {
        expect_rows(role, layout, self.rank())?;
        expect_tokens(role, layout, &self.token_shape(of_keys)[..self.rank()])?;
        self.expect_ends(role, layout, heads, head_dim)
    }

    fn expect_ends(
        &self,
        role: Role,
        layout: &Layout,
        heads: usize,
        head_dim: usize,
    ) -> Result<(), ProblemError> {
        let found = Shape::of(layout);
        expect(role, TensorAxis::Batch, self.batch(), found.batch)?;
        expect(role, TensorAxis::Heads, heads, found.heads)?;
        expect(role, TensorAxis::HeadDim, head_dim, found.head_dim)
    }
}

impl Partials<Layout, Layout> {
    /// Checks that there are at least two partial results, all of one shape `[batch, tokens.., heads, head_dim]`
    /// with log-sum-exps `[batch, tokens.., heads]`.
    ///
    /// # Errors
    /// [`ProblemError::MergeLseCount`], [`ProblemError::MergeCount`], [`ProblemError::TensorRank`],
    /// [`ProblemError::ShapeMismatch`], [`ProblemError::LastAxisNotContiguous`].
    pub fn check(&self) -> Result<(), ProblemError> {
        let (outs, lses) = (self.outs.len(), self.lses.len());
        if outs != lses {
            return Err(ProblemError::MergeLseCount { outs, lses });
        }
        if outs < 2 {
            return Err(ProblemError::MergeCount { found: outs });
        }
        let shape = self.outs[0].shape().to_vec();
        if !(4..=6).contains(&shape.len()) {
            return Err(ProblemError::TensorRank { tensor: Role::Out, expected: 4, found: shape.len() });
        }
        for out in &self.outs {
            check_shape(Role::Out, &shape, out)?;
        }
        self.lses.iter().try_for_each(|lse| check_shape(Role::Lse, &shape[..shape.len() - 1], lse))
    }

    /// Checks the tensors that a merge writes against the partial results.
    ///
    /// # Errors
    /// As [`Partials::check`].
    pub fn check_output(&self, output: &Output<Layout, Layout>) -> Result<(), ProblemError> {
        let Some(first) = self.outs.first() else { return Err(ProblemError::MergeCount { found: 0 }) };
        let shape = first.shape();
        check_shape(Role::Out, shape, &output.out)?;
        output.lse.as_ref().map_or(Ok(()), |lse| check_shape(Role::Lse, &shape[..shape.len() - 1], lse))
    }

    /// Checks the tensors that the gradient of a merge writes: as many as there are partial results, shaped as they are.
    ///
    /// # Errors
    /// As [`Partials::check`].
    pub fn check_gradients(&self, gradients: &Partials<Layout, Layout>) -> Result<(), ProblemError> {
        let (outs, lses) = (gradients.outs.len(), gradients.lses.len());
        if outs != lses {
            return Err(ProblemError::MergeLseCount { outs, lses });
        }
        if outs != self.outs.len() {
            return Err(ProblemError::MergeGradientCount { expected: self.outs.len(), found: outs });
        }
        for (expected, found) in self.outs.iter().zip(&gradients.outs) {
            check_shape(Role::DOut, expected.shape(), found)?;
        }
        let mut lses = self.lses.iter().zip(&gradients.lses);
        lses.try_for_each(|(expected, found)| check_shape(Role::DLse, expected.shape(), found))
    }
}

fn check_shape(tensor: Role, expected: &[usize], layout: &Layout) -> Result<(), ProblemError> {
    let found = layout.shape();
    if found.len() != expected.len() {
        return Err(ProblemError::TensorRank { tensor, expected: expected.len(), found: found.len() });
    }
    let has_head_dim = matches!(tensor, Role::Out | Role::DOut);
    let heads = found.len() - 1 - usize::from(has_head_dim);
    for (i, (&expected, &found)) in expected.iter().zip(found).enumerate() {
        let axis = match i {
            0 => TensorAxis::Batch,
            i if i == heads => TensorAxis::Heads,
            i if i > heads => TensorAxis::HeadDim,
            i => TensorAxis::Token(i - 1),
        };
        if expected != found {
            return Err(ProblemError::ShapeMismatch { tensor, axis, expected, found });
        }
    }
    let stride = layout.strides()[found.len() - 1];
    if has_head_dim && stride != 1 && found[found.len() - 1] > 1 {
        return Err(ProblemError::LastAxisNotContiguous { tensor, stride });
    }
    Ok(())
}

/// Batch, heads and head_dim of `[batch, tokens.., heads, head_dim]`.
pub(crate) struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Shape {
    pub fn of(layout: &Layout) -> Self {
        let shape = layout.shape();
        Shape { batch: shape[0], heads: shape[shape.len() - 2], head_dim: shape[shape.len() - 1] }
    }
}

pub(crate) fn expect(
    tensor: Role,
    axis: TensorAxis,
    expected: usize,
    found: usize,
) -> Result<(), ProblemError> {
    if expected == found {
        return Ok(());
    }
    Err(ProblemError::ShapeMismatch { tensor, axis, expected, found })
}

pub(crate) fn non_empty(tensor: Role, axis: TensorAxis, extent: usize) -> Result<(), ProblemError> {
    if extent > 0 { Ok(()) } else { Err(ProblemError::EmptyAxis { tensor, axis }) }
}

fn expect_rank(tensor: Role, layout: &Layout, expected: usize) -> Result<(), ProblemError> {
    let found = layout.rank();
    if found == expected { Ok(()) } else { Err(ProblemError::TensorRank { tensor, expected, found }) }
}

/// The shape `[batch, tokens.., heads, head_dim]` with a contiguous last axis.
pub(crate) fn expect_rows(tensor: Role, layout: &Layout, rank: usize) -> Result<(), ProblemError> {
    let tokens = match tensor {
        Role::AdditionalKeys | Role::AdditionalValues => 1,
        Role::DAdditionalKeys | Role::DAdditionalValues => 1,
        _ => rank,
    };
    expect_rank(tensor, layout, tokens + 3)?;
    if !layout.has_contiguous_rows() {
        return Err(ProblemError::LastAxisNotContiguous { tensor, stride: layout.strides()[tokens + 2] });
    }
    Ok(())
}

pub(crate) fn expect_tokens(tensor: Role, layout: &Layout, expected: &[usize]) -> Result<(), ProblemError> {
    for (axis, (&expected, &found)) in expected.iter().zip(&layout.shape()[1..]).enumerate() {
        expect(tensor, TensorAxis::Token(axis), expected, found)?;
    }
    Ok(())
}
