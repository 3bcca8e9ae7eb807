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
        let out = match place(self.inputs)? {
            Placed::Plain(inputs) => plain(flex::forward(inputs, &params)?),
            Placed::Recorded(inputs, how) => recorded(autodiff::forward(inputs, params)?, how),
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
        let [out, lse] = match place(self.inputs)? {
            Placed::Plain(inputs) => flex::forward_with_lse(inputs, &params)?.map(plain),
            Placed::Recorded(inputs, how) => {
                autodiff::forward_with_lse(inputs, params)?.map(|tensor| recorded(tensor, how))
            }
        };
        Ok((Tensor::from_dispatch(out), Tensor::from_dispatch(lse)))
    }
}

/// Operands all of one kind.
enum Placed {
    Plain(Inputs<FlexTensor>),
    Recorded(Inputs<Recorded>, GradientCheckpointingStrategy),
}

/// One operand, out of burn's runtime dispatch.
enum Operand {
    Plain(FlexTensor),
    Recorded(Recorded),
}

/// Operands are recorded if one of them is; the others are constants then, as in burn's own operations.
fn place(inputs: Inputs<DispatchTensor>) -> Result<Placed, Error> {
    let mut strategy = None;
    for (tensor, operand) in inputs.roles() {
        if let DispatchAutodiffContext::Enabled(found) = operand.autodiff {
            let expected = *strategy.get_or_insert(found);
            if expected != found {
                return Err(Error::Checkpointing { tensor, expected, found });
            }
        }
    }
    let Inputs { query, key, value, additional } = inputs;
    let operands = Inputs {
        query: operand(Role::Query, query)?,
        key: operand(Role::Key, key)?,
        value: operand(Role::Value, value)?,
        additional: match additional {
            Some([keys, values]) => {
                Some([operand(Role::AdditionalKeys, keys)?, operand(Role::AdditionalValues, values)?])
            }
            None => None,
        },
    };
    Ok(match strategy {
        Some(strategy) => Placed::Recorded(operands.into_map(Operand::into_recorded), strategy),
        None => Placed::Plain(operands.into_map(Operand::into_plain)),
    })
}

fn operand(role: Role, tensor: DispatchTensor) -> Result<Operand, Error> {
    // With one backend alone in the build there is no other variant.
    #[allow(unreachable_patterns)]
    match tensor.kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => Ok(Operand::Plain(tensor)),
        DispatchTensorKind::Flex(tensor) => Err(Error::ElementType { tensor: role, found: tensor.dtype() }),
        DispatchTensorKind::Autodiff(kind) => match *kind {
            DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => Ok(Operand::Recorded(tensor)),
            kind => Err(Error::Backend { tensor: role, device: format!("{:?}", kind.device()) }),
        },
        kind => Err(Error::Backend { tensor: role, device: format!("{:?}", kind.device()) }),
    }
}

impl Operand {
    fn into_plain(self) -> FlexTensor {
        match self {
            Operand::Plain(tensor) => tensor,
            Operand::Recorded(tensor) => tensor.into_primitive(),
        }
    }

    fn into_recorded(self) -> Recorded {
        match self {
            Operand::Plain(tensor) => Autodiff::<Flex>::from_inner(tensor),
            Operand::Recorded(tensor) => tensor,
        }
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
