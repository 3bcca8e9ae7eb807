//! Neighborhood attention as a layer: where it runs is a type, so that one network trains on any device.

use natten::cpu::Cpu;
use natten::{
    Error, Gradients, Inputs, Params, Saved, Tensor, TensorError, TensorView, na2d_backward, na2d_with_lse,
};

use crate::digits::{SIDE, TOKENS};
use crate::layers::Real;

/// Queries, keys and values as one linear layer gives them, or their gradients: `[batch, 8, 8, 3, heads, head_dim]`.
#[derive(Clone, Debug)]
pub struct Qkv<F> {
    numbers: Vec<F>,
    heads: usize,
    head_dim: usize,
}

impl<F: Real> Qkv<F> {
    /// For so many heads.
    pub fn new(numbers: Vec<F>, heads: usize, head_dim: usize) -> Self {
        Qkv { numbers, heads, head_dim }
    }

    /// The numbers.
    pub fn into_numbers(self) -> Vec<F> {
        self.numbers
    }

    /// `[batch, 8, 8, heads, head_dim]`: of queries, of keys, of values and of what attention makes of them.
    pub fn shape(&self) -> [usize; 5] {
        let batch = self.numbers.len() / (TOKENS * 3 * self.width());
        [batch, SIDE, SIDE, self.heads, self.head_dim]
    }

    /// The three inside the buffer. Operands may have any strides, so nothing is moved.
    pub fn views(&self) -> Result<Inputs<TensorView<'_, F>>, TensorError> {
        let token = 3 * self.width() as isize;
        let side = SIDE as isize;
        let strides = [side * side * token, side * token, token, self.head_dim as isize, 1];
        let view = |i: usize| TensorView::strided(&self.numbers, i * self.width(), &self.shape(), &strides);
        Ok(Inputs::new(view(0)?, view(1)?, view(2)?))
    }

    /// The gradients of the three, side by side again.
    pub fn join(gradients: &Gradients<Tensor<F>>) -> Self {
        let Gradients { query, key, value, .. } = gradients;
        let (heads, head_dim) = (query.shape()[3], query.shape()[4]);
        let width = heads * head_dim;
        let tokens = 0..query.as_slice().len() / width;
        let rows = tokens
            .flat_map(|token| [query, key, value].map(|tensor| &tensor.as_slice()[token * width..][..width]));
        Qkv { numbers: rows.flatten().copied().collect(), heads, head_dim }
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// A place where attention runs.
pub trait Attention<F: Real> {
    /// What a backward needs of its forward.
    type Kept;

    /// What each query makes of the values in its window: `[batch, 8, 8, heads, head_dim]`.
    fn forward(&self, params: &Params<2>, qkv: Qkv<F>) -> Result<(Vec<F>, Self::Kept), Error>;

    /// The gradients of queries, keys and values from that of the output.
    fn backward(&self, params: &Params<2>, kept: Self::Kept, d_out: Vec<F>) -> Result<Qkv<F>, Error>;
}

/// What the CPU keeps.
pub struct OnCpu<F> {
    qkv: Qkv<F>,
    out: Tensor<F>,
    lse: Tensor<f32>,
}

impl<F: Real> Attention<F> for Cpu {
    type Kept = OnCpu<F>;

    fn forward(&self, params: &Params<2>, qkv: Qkv<F>) -> Result<(Vec<F>, OnCpu<F>), Error> {
        let Inputs { query, key, value, .. } = qkv.views()?;
        let (out, lse) = na2d_with_lse(&query, &key, &value, params)?;
        Ok((out.as_slice().to_vec(), OnCpu { qkv, out, lse }))
    }

    fn backward(&self, params: &Params<2>, kept: OnCpu<F>, d_out: Vec<F>) -> Result<Qkv<F>, Error> {
        let Inputs { query, key, value, .. } = kept.qkv.views()?;
        let d_out = Tensor::from_vec(kept.out.shape(), d_out)?;
        let saved = Saved { out: &kept.out, lse: &kept.lse, d_out: &d_out, d_lse: None };
        Ok(Qkv::join(&na2d_backward(&query, &key, &value, params, &saved)?))
    }
}
