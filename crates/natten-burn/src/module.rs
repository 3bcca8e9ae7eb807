//! Neighborhood attention with its projections, named as NATTEN's modules name theirs.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use natten::{AxisParams, DynParams, KernelSize, KernelSizePolicy};

use crate::error::ConfigError;
use crate::{Call, Error};

/// What a [`NeighborhoodAttention`] is made from; fields are named as the arguments of NATTEN's modules.
#[derive(Config, Debug)]
pub struct NeighborhoodAttentionConfig {
    /// Numbers of a token, a multiple of `num_heads`.
    pub embed_dim: usize,
    /// Heads.
    pub num_heads: usize,
    /// Window along each token axis: one, two or three entries.
    pub kernel_size: Vec<usize>,
    /// Queries sharing one window, along each axis; none stands for 1.
    pub stride: Option<Vec<usize>>,
    /// Step between the window's tokens, along each axis; none stands for 1.
    pub dilation: Option<Vec<usize>>,
    /// Whether later tokens are hidden, along each axis; none stands for no.
    pub is_causal: Option<Vec<bool>>,
    /// Whether `qkv` has a bias; `proj` always has one.
    #[config(default = true)]
    pub qkv_bias: bool,
    /// Factor on the scores; none stands for `head_dim^-1/2`.
    pub qk_scale: Option<f32>,
    /// Share of the output's numbers that training drops.
    #[config(default = 0.0)]
    pub proj_drop: f64,
}

impl NeighborhoodAttentionConfig {
    /// A module whose weights are drawn as those of [`Linear`].
    ///
    /// # Errors
    /// [`Error::Config`] naming the field. What also depends on the input's extents is reported by
    /// [`NeighborhoodAttention::forward`].
    pub fn init(&self, device: &Device) -> Result<NeighborhoodAttention, Error> {
        let &Self { embed_dim, num_heads, proj_drop, .. } = self;
        if num_heads == 0 || embed_dim == 0 || embed_dim % num_heads != 0 {
            return Err(ConfigError::Heads { embed_dim, num_heads }.into());
        }
        if !(0.0..1.0).contains(&proj_drop) {
            return Err(ConfigError::Dropout { proj_drop }.into());
        }
        Ok(NeighborhoodAttention {
            params: self.params()?,
            num_heads,
            qkv: LinearConfig::new(embed_dim, 3 * embed_dim).with_bias(self.qkv_bias).init(device),
            proj: LinearConfig::new(embed_dim, embed_dim).init(device),
            proj_drop: DropoutConfig::new(proj_drop).init(),
        })
    }

    fn params(&self) -> Result<DynParams, ConfigError> {
        let rank = self.kernel_size.len();
        if !(1..=3).contains(&rank) {
            return Err(ConfigError::Rank { found: rank });
        }
        let stride = entries("stride", rank, &self.stride, 1)?;
        let dilation = entries("dilation", rank, &self.dilation, 1)?;
        let is_causal = entries("is_causal", rank, &self.is_causal, false)?;
        let axis = |axis: usize| AxisParams {
            kernel_size: KernelSize::Tokens(self.kernel_size[axis]),
            stride: stride[axis],
            dilation: dilation[axis],
            is_causal: is_causal[axis],
        };
        let axes: Vec<_> = (0..rank).map(axis).collect();
        Ok(DynParams::new(&axes, self.qk_scale, KernelSizePolicy::Exact))
    }
}

/// One entry an axis.
fn entries<T: Copy>(
    field: &'static str,
    rank: usize,
    given: &Option<Vec<T>>,
    otherwise: T,
) -> Result<Vec<T>, ConfigError> {
    let entries = given.clone().unwrap_or_else(|| vec![otherwise; rank]);
    let found = entries.len();
    if found == rank { Ok(entries) } else { Err(ConfigError::Entries { field, expected: rank, found }) }
}

/// `proj(attend(qkv(x)))` over one, two or three token axes.
///
/// Its parameters are `qkv.weight`, `qkv.bias`, `proj.weight` and `proj.bias`, as in NATTEN's `NeighborhoodAttention1D`, `2D` and
/// `3D`, and the outputs of `qkv` are in its order: query, key, value, in each head by head. burn keeps a linear layer's weight as
/// `[inputs, outputs]` where PyTorch has `[outputs, inputs]`; `burn::store`'s `PyTorchToBurnAdapter` transposes it while loading.
///
/// # Examples
/// ```
/// use burn::tensor::{Device, Tensor};
/// use natten_burn::NeighborhoodAttentionConfig;
/// # fn main() -> Result<(), natten_burn::Error> {
/// let device = Device::flex();
/// let layer = NeighborhoodAttentionConfig::new(32, 4, vec![5, 5]).with_dilation(Some(vec![1, 2])).init(&device)?;
/// let image = Tensor::<4>::zeros([2, 12, 12, 32], &device);
/// assert_eq!(layer.forward(image)?.dims(), [2, 12, 12, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct NeighborhoodAttention {
    /// Token to query, key and value: weight `[embed_dim, 3 embed_dim]`, bias `[3 embed_dim]`.
    pub qkv: Linear,
    /// Heads to token: weight `[embed_dim, embed_dim]`, bias `[embed_dim]`.
    pub proj: Linear,
    /// On the output, in training.
    pub proj_drop: Dropout,
    num_heads: usize,
    #[module(skip)]
    params: DynParams,
}

impl NeighborhoodAttention {
    /// `[batch, tokens.., embed_dim]` to the same shape.
    ///
    /// # Errors
    /// [`Error::Input`], and those of [`na2d`](crate::na2d).
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Result<Tensor<D>, Error> {
        let token_axes = self.params.rank();
        let [embed_dim, _] = self.qkv.weight.dims();
        let shape = input.dims();
        if D != token_axes + 2 || shape[D - 1] != embed_dim {
            return Err(Error::Input { found: shape.to_vec(), token_axes, embed_dim });
        }
        // The rank with heads apart cannot be computed from `D` in a type.
        match D {
            3 => self.attend::<D, 4>(input),
            4 => self.attend::<D, 5>(input),
            _ => self.attend::<D, 6>(input),
        }
    }

    fn attend<const D: usize, const BY_HEAD: usize>(&self, input: Tensor<D>) -> Result<Tensor<D>, Error> {
        let shape = input.dims();
        let heads = D - 1;
        let mut by_head = [shape[heads] / self.num_heads; BY_HEAD];
        by_head[..heads].copy_from_slice(&shape[..heads]);
        by_head[heads] = 3 * self.num_heads;
        // Parts of one tensor, which are read where they are.
        let qkv = self.qkv.forward(input).reshape(by_head);
        let [query, key, value] =
            [0, 1, 2].map(|part| qkv.clone().narrow(heads, part * self.num_heads, self.num_heads));
        let out = Call::<BY_HEAD>::new(query, key, value).forward(self.params)?;
        Ok(self.proj_drop.forward(self.proj.forward(out.reshape(shape))))
    }
}
