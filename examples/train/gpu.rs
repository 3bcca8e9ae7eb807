//! The same layer on a GPU: operands are copied there, gradients come back. The rest of the network stays on the CPU.

use natten::cuda::{Cuda, CudaError, CudaTensor, Device};
use natten::{Error, Gradients, Inputs, Params, Saved, TensorView, na2d_backward, na2d_with_lse};

use crate::attention::{Attention, Qkv};
use crate::layers::Real;

/// What stays on the device.
pub struct OnGpu<F, D: Device> {
    inputs: Inputs<CudaTensor<F, D>>,
    out: CudaTensor<F, D>,
    lse: CudaTensor<f32, D>,
}

impl<F: Real, D: Device> Attention<F> for Cuda<D> {
    type Kept = OnGpu<F, D>;

    fn forward(&self, params: &Params<2>, qkv: Qkv<F>) -> Result<(Vec<F>, OnGpu<F, D>), Error> {
        let inputs = qkv.views()?.try_map(|_, view| self.upload(view)).map_err(device_failed)?;
        let (out, lse) = na2d_with_lse(&inputs.query, &inputs.key, &inputs.value, params)?;
        let numbers = self.download(&out).map_err(device_failed)?.into_vec();
        Ok((numbers, OnGpu { inputs, out, lse }))
    }

    fn backward(&self, params: &Params<2>, kept: OnGpu<F, D>, d_out: Vec<F>) -> Result<Qkv<F>, Error> {
        let OnGpu { inputs, out, lse } = kept;
        let d_out = TensorView::from_slice(out.shape(), &d_out)?;
        let d_out = self.upload(&d_out).map_err(device_failed)?;
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
        let gradients = na2d_backward(&inputs.query, &inputs.key, &inputs.value, params, &saved)?;
        let host = |tensor| self.download(tensor).map_err(device_failed);
        let Gradients { query, key, value, .. } = &gradients;
        Ok(Qkv::join(&Gradients {
            query: host(query)?,
            key: host(key)?,
            value: host(value)?,
            additional: None,
        }))
    }
}

fn device_failed(source: CudaError) -> Error {
    Error::Backend { backend: "cuda", source: Box::new(source) }
}
