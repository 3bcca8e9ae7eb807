//! The operators that candle's graph holds: the forward, its log-sum-exp, and the gradient of both.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail};
use natten::{Inputs, Saved};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;

use crate::MaskParams;
use crate::place::{Arrangement, GradientsOf3, Place};

/// What a forward gives: the output, its shape, and the log-sum-exp if it was asked for.
pub(crate) struct Results<S> {
    pub out: S,
    pub shape: Shape,
    pub lse: Option<Tensor>,
}

/// Operands where they lie, and which keys each query sees.
pub(crate) struct Request<'a, S> {
    pub inputs: Inputs<Place<'a, S>>,
    pub mask: MaskParams,
    /// Whether the operands are parts of one tensor, and so their gradients.
    pub is_packed: bool,
}

/// What a forward left for its backward, where it lies.
pub(crate) type SavedPlaces<'a, S> = Saved<Place<'a, S>, Place<'a, S>>;

/// Storage of candle's that natten has a backend for.
pub(crate) trait Runs: BackendStorage {
    fn of(storage: &Storage) -> Option<&Self>;

    /// Output, and the log-sum-exp if it is asked for.
    fn forward(request: &Request<Self>, with_lse: bool) -> Result<Results<Self>>;

    /// The gradients of all operands in one run of numbers.
    fn backward(request: &Request<Self>, saved: &SavedPlaces<Self>) -> Result<Self>;
}

/// Calls the operator on the three inputs that `arrangement` explains. The log-sum-exp is there if it is asked for.
pub(crate) fn call(
    inputs: [&Tensor; 3],
    arrangement: Arrangement,
    mask: MaskParams,
    with_lse: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let [first, second, third] = inputs;
    let is_tracked = inputs.iter().any(|input| input.track_op());
    let lse = (is_tracked || with_lse).then(Arc::default);
    let forward = Forward { arrangement, mask, lse };
    if !is_tracked {
        let out = first.apply_op3_no_bwd(second, third, &forward)?;
        return Ok((out, forward.lse.and_then(|lse| lse.get().cloned())));
    }
    let out = first.apply_op3(second, third, forward.clone())?;
    if !with_lse {
        return Ok((out, None));
    }
    let lse = LogSumExp { forward, out: out.detach() };
    Ok((out, Some(first.apply_op3(second, third, lse)?)))
}

/// One of the functions that an operator runs on one kind of storage.
macro_rules! on {
    ($storage:ty, $function:ident, $self:ident, $inputs:pat => $result:expr) => {
        fn $function(
            &$self,
            s1: &$storage,
            l1: &Layout,
            s2: &$storage,
            l2: &Layout,
            s3: &$storage,
            l3: &Layout,
        ) -> Result<($storage, Shape)> {
            let $inputs = [(s1, l1), (s2, l2), (s3, l3)];
            $result
        }
    };
}

/// The forward, which keeps its log-sum-exp for the backward.
#[derive(Clone)]
struct Forward {
    arrangement: Arrangement,
    mask: MaskParams,
    lse: Option<Arc<OnceLock<Tensor>>>,
}

impl Forward {
    fn run<S: Runs>(&self, inputs: [(&S, &Layout); 3]) -> Result<(S, Shape)> {
        let request = self.arrangement.request(inputs, self.mask)?;
        let Results { out, shape, lse } = S::forward(&request, self.lse.is_some())?;
        if let (Some(kept), Some(lse)) = (&self.lse, lse) {
            // The operator is made for one call, so nothing was kept before.
            let _ = kept.set(lse);
        }
        Ok((out, shape))
    }

    fn kept_lse(&self) -> Result<Tensor> {
        let kept = self.lse.as_ref().and_then(|lse| lse.get());
        kept.cloned().ok_or_else(no_lse)
    }

    fn gradient(&self, inputs: [&Tensor; 3], saved: Saved<Tensor, Tensor>) -> Result<GradientsOf3> {
        let gradient = Gradient { arrangement: self.arrangement.clone(), mask: self.mask, saved };
        let all = inputs[0].apply_op3(inputs[1], inputs[2], gradient)?;
        self.arrangement.gradients(&all, inputs)
    }
}

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        "neighborhood-attention"
    }

    on! { CpuStorage, cpu_fwd, self, inputs => self.run(inputs) }
    #[cfg(feature = "cuda")]
    on! { CudaStorage, cuda_fwd, self, inputs => self.run(inputs) }
    on! { MetalStorage, metal_fwd, self, _ => no_metal() }

    fn bwd(&self, a: &Tensor, b: &Tensor, c: &Tensor, out: &Tensor, d_out: &Tensor) -> Result<GradientsOf3> {
        let (out, lse, d_out) = (out.detach(), self.kept_lse()?, with_contiguous_rows(d_out)?);
        self.gradient([a, b, c], Saved { out, lse, d_out, d_lse: None })
    }
}

/// The log-sum-exp as a result of its own: an operator has one. Its gradient adds to that of the output.
struct LogSumExp {
    forward: Forward,
    out: Tensor,
}

impl LogSumExp {
    fn run<S: Runs>(&self) -> Result<(S, Shape)> {
        let lse = self.forward.kept_lse()?;
        let (storage, layout) = lse.storage_and_layout();
        Ok((here::<S>(&storage)?.try_clone(layout)?, layout.shape().clone()))
    }
}

impl CustomOp3 for LogSumExp {
    fn name(&self) -> &'static str {
        "neighborhood-attention-lse"
    }

    on! { CpuStorage, cpu_fwd, self, _ => self.run() }
    #[cfg(feature = "cuda")]
    on! { CudaStorage, cuda_fwd, self, _ => self.run() }

    fn bwd(&self, a: &Tensor, b: &Tensor, c: &Tensor, _: &Tensor, d_lse: &Tensor) -> Result<GradientsOf3> {
        let (out, lse, d_lse) = (self.out.clone(), self.forward.kept_lse()?, Some(d_lse.detach()));
        self.forward.gradient([a, b, c], Saved { d_out: out.zeros_like()?, out, lse, d_lse })
    }
}

/// The gradients of all inputs in one run of numbers. An operator too, so that a second derivative is an error: numbers
/// without a graph would count as constants.
struct Gradient {
    arrangement: Arrangement,
    mask: MaskParams,
    saved: Saved<Tensor, Tensor>,
}

impl Gradient {
    fn run<S: Runs>(&self, inputs: [(&S, &Layout); 3]) -> Result<(S, Shape)> {
        let lens = inputs.map(|(_, layout)| layout.shape().elem_count());
        let request = self.arrangement.request(inputs, self.mask)?;
        let len = if request.is_packed { lens[0] } else { lens.iter().sum() };
        let saved = self.saved.map(Tensor::storage_and_layout, Tensor::storage_and_layout);
        let saved = saved.try_map(
            |_, (storage, layout)| Place::of(here::<S>(storage)?, layout),
            |_, (storage, layout)| Place::of(here::<S>(storage)?, layout),
        )?;
        Ok((S::backward(&request, &saved)?, Shape::from(len)))
    }
}

impl CustomOp3 for Gradient {
    fn name(&self) -> &'static str {
        "neighborhood-attention-gradient"
    }

    on! { CpuStorage, cpu_fwd, self, inputs => self.run(inputs) }
    #[cfg(feature = "cuda")]
    on! { CudaStorage, cuda_fwd, self, inputs => self.run(inputs) }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<GradientsOf3> {
        bail!("neighborhood attention has no second derivative: detach its gradients before you use them")
    }
}

/// The same numbers with a contiguous last axis, which the gradient of a sum, being broadcast, has not.
fn with_contiguous_rows(tensor: &Tensor) -> Result<Tensor> {
    match tensor.stride().last() {
        Some(1) => Ok(tensor.detach()),
        _ => tensor.detach().contiguous(),
    }
}

fn here<S: Runs>(storage: &Storage) -> Result<&S> {
    S::of(storage)
        .ok_or_else(|| Error::msg("a tensor of neighborhood attention's backward is on another device"))
}

pub(crate) fn no_lse() -> Error {
    Error::msg("neighborhood attention kept no log-sum-exp")
}

fn no_metal<T>() -> Result<T> {
    bail!("neighborhood attention does not run on Metal: move its operands with to_device(&Device::Cpu)")
}

pub(crate) fn backend_failed(
    backend: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::wrap(natten::Error::Backend { backend, source: Box::new(source) })
}
