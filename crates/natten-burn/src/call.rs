//! One call spelled out: burn's tensors, then what to do with them.

use burn::Tensor;
use burn::backend::flex::FlexTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind,
    Flex, GradientCheckpointingStrategy, TensorMetadata,
};
use natten::{Inputs, Role};

use crate::autodiff::{self, Recorded};
use crate::{Error, MaskParams, flex};

/// The operands of one call, for what the plain functions do not cover: additional keys and values.
///
/// `D` counts their axes, `[batch, tokens.., heads, head_dim]`.
///
/// # Examples
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use natten_burn::{Call, Params};
/// # fn main() -> Result<(), natten_burn::Error> {
/// let device = Device::flex();
/// let x = Tensor::<5>::random([1, 8, 8, 2, 16], Distribution::Default, &device);
/// let registers = Tensor::<4>::random([1, 4, 2, 16], Distribution::Default, &device);
/// let call = Call::new(x.clone(), x.clone(), x).additional(registers.clone(), registers);
/// let (out, lse) = call.forward_with_lse::<4>(&Params::new([3, 3]))?;
/// assert_eq!((out.dims(), lse.dims()), ([1, 8, 8, 2, 16], [1, 8, 8, 2]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Call<const D: usize> {
    inputs: Inputs<DispatchTensor>,
}

impl<const D: usize> Call<D> {
    /// A call on query, key and value.
    pub fn new(query: Tensor<D>, key: Tensor<D>, value: Tensor<D>) -> Self {
        Call { inputs: Inputs::new(query, key, value).into_map(Tensor::into_dispatch) }
    }

    /// Adds keys `[batch, n, heads_kv, head_dim]` and values `[batch, n, heads_kv, head_dim_v]` that every query sees
    /// besides its window, in the same softmax.
    pub fn additional(self, keys: Tensor<4>, values: Tensor<4>) -> Self {
        Call { inputs: self.inputs.with_additional(keys.into_dispatch(), values.into_dispatch()) }
    }

    /// Attends, and returns the output.
    ///
    /// # Errors
    /// As [`na2d`](crate::na2d).
    pub fn forward(self, params: impl Into<MaskParams>) -> Result<Tensor<D>, Error> {
        let params = params.into();
        let out = match strategy(&self.inputs)? {
            None => plain(flex::forward(taken(self.inputs, take_plain)?, &params)?),
            Some(strategy) => {
                recorded(autodiff::forward(taken(self.inputs, take_recorded)?, params)?, strategy)
            }
        };
        Ok(Tensor::from_dispatch(out))
    }

    /// Attends, and returns the output and the log-sum-exp, an f32 tensor of one axis less: `LSE` is `D - 1`, and anything
    /// else does not compile.
    ///
    /// # Errors
    /// As [`na2d`](crate::na2d).
    pub fn forward_with_lse<const LSE: usize>(
        self,
        params: impl Into<MaskParams>,
    ) -> Result<(Tensor<D>, Tensor<LSE>), Error> {
        const { assert!(LSE + 1 == D, "the log-sum-exp has one axis less than the output") };
        let params = params.into();
        let [out, lse] = match strategy(&self.inputs)? {
            None => flex::forward_with_lse(taken(self.inputs, take_plain)?, &params)?.map(plain),
            Some(strategy) => autodiff::forward_with_lse(taken(self.inputs, take_recorded)?, params)?
                .map(|tensor| recorded(tensor, strategy)),
        };
        Ok((Tensor::from_dispatch(out), Tensor::from_dispatch(lse)))
    }
}

/// How the operands record gradients, if one of them does; the others are constants then, as in burn's own operations.
fn strategy(inputs: &Inputs<DispatchTensor>) -> Result<Option<GradientCheckpointingStrategy>, Error> {
    let mut strategy = None;
    for (tensor, operand) in inputs.roles() {
        if let DispatchAutodiffContext::Enabled(found) = operand.autodiff {
            let expected = *strategy.get_or_insert(found);
            if expected != found {
                return Err(Error::Checkpointing { tensor, expected, found });
            }
        }
    }
    Ok(strategy)
}

/// Each operand out of burn's runtime dispatch.
fn taken<T>(
    inputs: Inputs<DispatchTensor>,
    take: fn(Role, DispatchTensorKind) -> Result<T, Error>,
) -> Result<Inputs<T>, Error> {
    let Inputs { query, key, value, additional } = inputs.into_map(|tensor| tensor.kind);
    Ok(Inputs {
        query: take(Role::Query, query)?,
        key: take(Role::Key, key)?,
        value: take(Role::Value, value)?,
        additional: match additional {
            Some([keys, values]) => {
                Some([take(Role::AdditionalKeys, keys)?, take(Role::AdditionalValues, values)?])
            }
            None => None,
        },
    })
}

fn take_plain(tensor: Role, kind: DispatchTensorKind) -> Result<FlexTensor, Error> {
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Float(flex)) => Ok(flex),
        DispatchTensorKind::Flex(other) => Err(Error::ElementType { tensor, found: other.dtype() }),
        other => Err(Error::Backend { tensor, device: format!("{:?}", other.device()) }),
    }
}

fn take_recorded(tensor: Role, kind: DispatchTensorKind) -> Result<Recorded, Error> {
    match kind {
        DispatchTensorKind::Autodiff(kind) => match *kind {
            DispatchTensorKind::Flex(BackendTensor::Autodiff(recorded)) => Ok(recorded),
            other => Err(Error::Backend { tensor, device: format!("{:?}", other.device()) }),
        },
        other => take_plain(tensor, other).map(Autodiff::<Flex>::from_inner),
    }
}

fn plain(tensor: FlexTensor) -> DispatchTensor {
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(tensor));
    DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled }
}

fn recorded(tensor: Recorded, strategy: GradientCheckpointingStrategy) -> DispatchTensor {
    let kind = DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor));
    let kind = DispatchTensorKind::Autodiff(Box::new(kind));
    DispatchTensor { kind, autodiff: DispatchAutodiffContext::Enabled(strategy) }
}
