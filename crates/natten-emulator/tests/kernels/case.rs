//! One problem, run on the emulated device and on natten-core's reference, and compared: for tests that count what kernels
//! do. What they must do is in natten-tests.

use natten_core::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, Output, Params, Problem, Saved, Tensor,
    TensorView, reference,
};
use natten_cuda::{Cuda, CudaTensor, CudaView};
use natten_emulator::Emulated;
use natten_tests::compare::{each_within, each_within_at};

/// What a test varies. Token axes are `[X, Y, Z]`, leading ones 1 for lower ranks.
#[derive(Clone, Debug)]
pub struct Case {
    pub batch: usize,
    pub tokens: [usize; 3],
    pub heads: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub additional: usize,
    pub params: Params<3>,
    /// Tensors in memory as `[batch, heads, X, Y, Z, head_dim]`.
    pub heads_first: bool,
    pub seed: u64,
}

impl Case {
    /// One batch item, two heads, f32-friendly sizes; change what a test is about.
    pub fn new(tokens: [usize; 3], params: Params<3>) -> Self {
        Case {
            batch: 1,
            tokens,
            heads: 2,
            heads_kv: 2,
            head_dim: 8,
            head_dim_v: 8,
            additional: 0,
            params,
            heads_first: false,
            seed: 1,
        }
    }

    pub fn heads(self, heads: usize, heads_kv: usize) -> Self {
        Case { heads, heads_kv, ..self }
    }

    pub fn dims(self, head_dim: usize, head_dim_v: usize) -> Self {
        Case { head_dim, head_dim_v, ..self }
    }

    fn shape(&self, heads: usize, head_dim: usize) -> Vec<usize> {
        let [x, y, z] = self.tokens;
        if self.heads_first {
            vec![self.batch, heads, x, y, z, head_dim]
        } else {
            vec![self.batch, x, y, z, heads, head_dim]
        }
    }
}

/// Host tensors of a case, and the problem they make.
pub struct Operands<E> {
    pub heads_first: bool,
    pub query: Tensor<E>,
    pub key: Tensor<E>,
    pub value: Tensor<E>,
    pub additional: Option<[Tensor<E>; 2]>,
    pub d_out: Tensor<E>,
    pub d_lse: Tensor<f32>,
}

/// Numbers around 0, the same on every machine.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn draw(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    }

    pub fn tensor<E: Element>(&mut self, shape: &[usize]) -> Tensor<E> {
        Tensor::from_fn(shape, |_| E::from_f64(self.draw())).expect("small shapes")
    }
}

impl<E: Element> Operands<E> {
    pub fn draw(case: &Case) -> Self {
        let mut numbers = Numbers::new(case.seed);
        let extra = |head_dim| [case.batch, case.additional, case.heads_kv, head_dim];
        let [x, y, z] = case.tokens;
        Operands {
            heads_first: case.heads_first,
            query: numbers.tensor(&case.shape(case.heads, case.head_dim)),
            key: numbers.tensor(&case.shape(case.heads_kv, case.head_dim)),
            value: numbers.tensor(&case.shape(case.heads_kv, case.head_dim_v)),
            additional: (case.additional > 0)
                .then(|| [numbers.tensor(&extra(case.head_dim)), numbers.tensor(&extra(case.head_dim_v))]),
            d_out: numbers.tensor(&case.shape(case.heads, case.head_dim_v)),
            d_lse: numbers.tensor(&[case.batch, x, y, z, case.heads]),
        }
    }

    /// A view in the operator's order of axes.
    pub fn host<'a>(&self, tensor: &'a Tensor<E>) -> TensorView<'a, E> {
        let view = tensor.view();
        if self.heads_first { heads_last(view, |v, a, b| v.swap_axes(a, b).unwrap()) } else { view }
    }

    pub fn inputs(&self) -> Inputs<TensorView<'_, E>> {
        Inputs {
            query: self.host(&self.query),
            key: self.host(&self.key),
            value: self.host(&self.value),
            additional: self.additional.as_ref().map(|pair| pair.each_ref().map(|t| t.view())),
        }
    }

    pub fn problem(&self, params: &Params<3>) -> Problem {
        let layouts = self.inputs().map(|view| *view.layout());
        Problem::new(&params.to_dyn(), &layouts, E::TYPE).expect("a valid problem")
    }
}

/// `[batch, heads, X, Y, Z, d]` to `[batch, X, Y, Z, heads, d]` by swaps.
fn heads_last<V>(view: V, swap: impl Fn(V, usize, usize) -> V) -> V {
    swap(swap(swap(view, 1, 2), 2, 3), 3, 4)
}

/// Device tensors of a case.
pub struct OnDevice<E: Element> {
    heads_first: bool,
    query: CudaTensor<E, Emulated>,
    key: CudaTensor<E, Emulated>,
    value: CudaTensor<E, Emulated>,
    additional: Option<[CudaTensor<E, Emulated>; 2]>,
}

impl<E: Element> OnDevice<E> {
    pub fn upload(cuda: &Cuda<Emulated>, operands: &Operands<E>) -> Self {
        let up = |tensor: &Tensor<E>| cuda.upload(&tensor.view()).expect("an upload");
        OnDevice {
            heads_first: operands.heads_first,
            query: up(&operands.query),
            key: up(&operands.key),
            value: up(&operands.value),
            additional: operands.additional.as_ref().map(|pair| pair.each_ref().map(up)),
        }
    }

    fn view<'a>(&self, tensor: &'a CudaTensor<E, Emulated>) -> CudaView<'a, E> {
        let view = tensor.view();
        if self.heads_first { heads_last(view, |v, a, b| v.swap_axes(a, b).unwrap()) } else { view }
    }

    pub fn inputs(&self) -> Inputs<CudaView<'_, E>> {
        Inputs {
            query: self.view(&self.query),
            key: self.view(&self.key),
            value: self.view(&self.value),
            additional: self.additional.as_ref().map(|pair| pair.each_ref().map(|t| t.view())),
        }
    }
}

/// What the forward pass gives, on the host.
pub fn forward<E: Element>(
    cuda: &Cuda<Emulated>,
    problem: &Problem,
    device: &OnDevice<E>,
) -> Result<(Tensor<E>, Tensor<f32>), String> {
    let message = |error: natten_cuda::CudaError| error.to_string();
    let mut out = cuda.allocate::<E>(&problem.out_shape()).map_err(message)?;
    let mut lse = cuda.allocate::<f32>(&problem.lse_shape()).map_err(message)?;
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let call = ForwardCall::new(problem, device.inputs(), output).map_err(|error| error.to_string())?;
    cuda.forward(call).map_err(message)?;
    Ok((cuda.download(&out).map_err(message)?, cuda.download(&lse).map_err(message)?))
}

/// What the backward pass gives, on the host, in the shapes of the operands' views.
pub fn backward<E: Element>(
    cuda: &Cuda<Emulated>,
    problem: &Problem,
    operands: &Operands<E>,
    device: &OnDevice<E>,
    saved: (&Tensor<E>, &Tensor<f32>, bool),
) -> Result<Gradients<Tensor<E>>, String> {
    let message = |error: natten_cuda::CudaError| error.to_string();
    let (out, lse, with_lse) = saved;
    let (out, lse) = (cuda.upload(&out.view()).map_err(message)?, cuda.upload(&lse.view()).map_err(message)?);
    let d_out = cuda.upload(&operands.d_out.view()).map_err(message)?;
    let d_lse = cuda.upload(&operands.d_lse.view()).map_err(message)?;
    let zeros = |view: &TensorView<'_, E>| cuda.allocate::<E>(view.shape()).map_err(message);
    let host = operands.inputs();
    let (mut query, mut key, mut value) = (zeros(&host.query)?, zeros(&host.key)?, zeros(&host.value)?);
    let mut additional = match &host.additional {
        Some([keys, values]) => Some([zeros(keys)?, zeros(values)?]),
        None => None,
    };
    let saved = Saved {
        out: out.view(),
        lse: lse.view(),
        d_out: device.view(&d_out),
        d_lse: with_lse.then(|| d_lse.view()),
    };
    let gradients = Gradients {
        query: query.view_mut(),
        key: key.view_mut(),
        value: value.view_mut(),
        additional: additional.as_mut().map(|pair| pair.each_mut().map(|tensor| tensor.view_mut())),
    };
    let call = BackwardCall::new(problem, device.inputs(), saved, gradients);
    cuda.backward(call.map_err(|error| error.to_string())?).map_err(message)?;
    let down = |tensor: &CudaTensor<E, Emulated>| cuda.download(tensor).map_err(message);
    Ok(Gradients {
        query: down(&query)?,
        key: down(&key)?,
        value: down(&value)?,
        additional: match &additional {
            Some([keys, values]) => Some([down(keys)?, down(values)?]),
            None => None,
        },
    })
}

/// An emulated GPU older than the tensor-core kernels, as a backend: what is asked of it runs on CUDA cores.
pub fn emulated() -> Cuda<Emulated> {
    Cuda::new(Emulated::new(7, 5))
}

/// Weights are rounded to the element type before they meet the values, and the result once more: so each error stays
/// within one rounding of the sum of |weight * value|, and one of the result. f32 adds its own floor.
pub fn close<E: Element>(
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    out: &Tensor<E>,
    lse: &Tensor<f32>,
) -> Result<(), String> {
    let expected = reference::forward(problem, inputs);
    let magnitude = |view: &TensorView<'_, E>| {
        let dense = view.to_tensor();
        let values = dense.as_slice();
        Tensor::<E>::from_fn(dense.shape(), |i| E::from_f64(values[i].to_f64().abs()))
            .expect("the same shape")
    };
    let value = magnitude(&inputs.value);
    let list = inputs.additional.as_ref().map(|[_, values]| magnitude(values));
    let mut positive = *inputs;
    positive.value = value.view();
    positive.additional =
        inputs.additional.as_ref().zip(list.as_ref()).map(|([keys, _], values)| [*keys, values.view()]);
    let bound = reference::forward(problem, &positive).out;

    let unit = if E::TYPE.name() == "bf16" { 2f64.powi(-8) } else { 2f64.powi(-11) };
    let bounds = bound.as_slice();
    each_within_at("out", out, &expected.out, |i, exact| unit * 1.01 * (bounds[i] + exact.abs()) + 2e-5)?;
    each_within("lse", lse, &expected.lse, |exact| 2e-5 * exact.abs().max(1.0))
}
