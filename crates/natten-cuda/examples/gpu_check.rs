//! First run on a real GPU: every kernel against the f64 reference, then times of the bench problems by CUDA events.
//!
//! `cargo run --release -p natten-cuda --example gpu_check [device]`; prints one line a kernel and problem, and fails
//! if any result is wrong. Without a device it says so.

use std::process::ExitCode;

use cudarc::driver::sys::CUevent_flags;
use natten_core::{
    Backend, BackwardCall, Element, ElementType, ForwardCall, Gradients, Inputs, Layout, Output, Params,
    Problem, Saved, Tensor, bf16, f16, reference,
};
use natten_cuda::driver::Driver;
use natten_cuda::{Cuda, CudaError, CudaTensor, Device, cudarc};

type Gpu = Cuda<Driver>;

fn main() -> ExitCode {
    let ordinal = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let gpu = match Driver::new(ordinal) {
        Ok(driver) => Cuda::new(driver),
        Err(error) => {
            eprintln!("no usable device: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{:?}", gpu.device().properties());
    match check(&gpu).and_then(|wrong| times(&gpu).map(|()| wrong)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} results are wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A problem of the check or the bench.
#[derive(Clone, Copy)]
struct Spec {
    name: &'static str,
    tokens: [usize; 3],
    heads: [usize; 2],
    dims: [usize; 2],
    additional: usize,
    params: Params<3>,
}

/// Host operands: a small linear congruence is random enough, and the same everywhere.
fn fill<E: Element>(shape: &[usize], seed: u32) -> Result<Tensor<E>, CudaError> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    Ok(Tensor::from_fn(shape, |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        E::from_f64(f64::from(state >> 8) / f64::from(1u32 << 23) - 1.0)
    })?)
}

struct Operands<E> {
    query: Tensor<E>,
    key: Tensor<E>,
    value: Tensor<E>,
    additional: Option<[Tensor<E>; 2]>,
    d_out: Tensor<E>,
    d_lse: Tensor<f32>,
}

impl<E: Element> Operands<E> {
    fn of(spec: &Spec) -> Result<Self, CudaError> {
        let ([x, y, z], [heads, heads_kv], [dim, dim_v]) = (spec.tokens, spec.heads, spec.dims);
        let additional = match spec.additional {
            0 => None,
            n => Some([fill(&[1, n, heads_kv, dim], 6)?, fill(&[1, n, heads_kv, dim_v], 7)?]),
        };
        Ok(Operands {
            query: fill(&[1, x, y, z, heads, dim], 1)?,
            key: fill(&[1, x, y, z, heads_kv, dim], 2)?,
            value: fill(&[1, x, y, z, heads_kv, dim_v], 3)?,
            additional,
            d_out: fill(&[1, x, y, z, heads, dim_v], 4)?,
            d_lse: fill(&[1, x, y, z, heads], 5)?,
        })
    }

    fn inputs(&self) -> Inputs<&Tensor<E>> {
        Inputs {
            query: &self.query,
            key: &self.key,
            value: &self.value,
            additional: self.additional.as_ref().map(|pair| pair.each_ref()),
        }
    }
}

/// Device copies, and room for results.
struct OnDevice<E: Element> {
    inputs: Inputs<CudaTensor<E, Driver>>,
    out: CudaTensor<E, Driver>,
    lse: CudaTensor<f32, Driver>,
    d_out: CudaTensor<E, Driver>,
    d_lse: CudaTensor<f32, Driver>,
    grads: Inputs<CudaTensor<E, Driver>>,
    workspace: CudaTensor<f32, Driver>,
}

impl<E: Element> OnDevice<E> {
    fn of(gpu: &Gpu, problem: &Problem, operands: &Operands<E>) -> Result<Self, CudaError> {
        let up = |tensor: &Tensor<E>| gpu.upload(&tensor.view());
        let all = |inputs: &Inputs<&Tensor<E>>| -> Result<Inputs<CudaTensor<E, Driver>>, CudaError> {
            let additional = match &inputs.additional {
                Some([keys, values]) => Some([up(keys)?, up(values)?]),
                None => None,
            };
            Ok(Inputs {
                query: up(inputs.query)?,
                key: up(inputs.key)?,
                value: up(inputs.value)?,
                additional,
            })
        };
        Ok(OnDevice {
            inputs: all(&operands.inputs())?,
            out: gpu.allocate(&problem.out_shape())?,
            lse: gpu.allocate(&problem.lse_shape())?,
            d_out: up(&operands.d_out)?,
            d_lse: gpu.upload(&operands.d_lse.view())?,
            grads: all(&operands.inputs())?,
            workspace: gpu.allocate(&[gpu.backward_workspace_len(problem).max(1)])?,
        })
    }

    fn forward(&mut self, gpu: &Gpu, problem: &Problem) -> Result<(), CudaError> {
        let output = Output { out: self.out.view_mut(), lse: Some(self.lse.view_mut()) };
        gpu.forward(ForwardCall::new(problem, self.inputs.map(CudaTensor::view), output)?)
    }

    fn backward(&mut self, gpu: &Gpu, problem: &Problem) -> Result<(), CudaError> {
        let saved = Saved {
            out: self.out.view(),
            lse: self.lse.view(),
            d_out: self.d_out.view(),
            d_lse: Some(self.d_lse.view()),
        };
        let gradients = Gradients {
            query: self.grads.query.view_mut(),
            key: self.grads.key.view_mut(),
            value: self.grads.value.view_mut(),
            additional: self.grads.additional.as_mut().map(|pair| pair.each_mut().map(CudaTensor::view_mut)),
        };
        let inputs = self.inputs.map(CudaTensor::view);
        let call = BackwardCall::new(problem, inputs, saved, gradients)?;
        gpu.backward_with(call, &mut self.workspace.view_mut())
    }
}

fn problem<E: Element>(spec: &Spec, operands: &Operands<E>) -> Problem {
    let layouts: Inputs<Layout> = operands.inputs().map(|tensor| *tensor.view().layout());
    Problem::new(&spec.params.to_dyn(), &layouts, E::TYPE).expect("the specs are valid")
}

/// Checks every kernel; returns how many results are wrong.
fn check(gpu: &Gpu) -> Result<usize, CudaError> {
    let mixed = Params::new([2, 3, 3]).stride([1, 2, 1]).dilation([2, 1, 2]).is_causal([true, false, false]);
    let plain = Params::new([3, 5, 5]);
    let mut wrong = 0;
    for dims in [[8, 8], [32, 16], [64, 64], [40, 64], [128, 72], [256, 8], [5, 3], [63, 64], [255, 129]] {
        for (name, params) in [("all flags", mixed.scale(-0.4)), ("3x5x5", plain)] {
            let spec = Spec { name, tokens: [5, 9, 14], heads: [4, 2], dims, additional: 5, params };
            wrong += check_type::<f32>(gpu, &spec)? + check_type::<f16>(gpu, &spec)?;
            wrong += check_type::<bf16>(gpu, &spec)?;
        }
    }
    Ok(wrong)
}

fn check_type<E: Element>(gpu: &Gpu, spec: &Spec) -> Result<usize, CudaError> {
    let operands = Operands::<E>::of(spec)?;
    let problem = problem(spec, &operands);
    let mut device = OnDevice::of(gpu, &problem, &operands)?;
    device.forward(gpu, &problem)?;
    device.backward(gpu, &problem)?;
    let (out, lse) = (gpu.download(&device.out)?, gpu.download(&device.lse)?);

    let views = operands.inputs().map(|tensor| tensor.view());
    let expected = reference::forward(&problem, &views);
    let (d_out, d_lse) = (operands.d_out.view(), operands.d_lse.view());
    let saved = Saved { out: out.view(), lse: lse.view(), d_out, d_lse: Some(d_lse) };
    let grads = reference::backward(&problem, &views, &saved);
    let mut errors = vec![
        error(&out, &expected.out),
        error(&lse, &expected.lse),
        error(&gpu.download(&device.grads.query)?, &grads.query),
        error(&gpu.download(&device.grads.key)?, &grads.key),
        error(&gpu.download(&device.grads.value)?, &grads.value),
    ];
    if let (Some(found), Some(expected)) = (&device.grads.additional, &grads.additional) {
        for (found, expected) in found.iter().zip(expected) {
            errors.push(error(&gpu.download(found)?, expected));
        }
    }
    let allowed = match E::TYPE {
        ElementType::Bf16 => 1.0 / 256.0,
        ElementType::F16 => 1.0 / 2048.0,
        _ => 1e-5,
    };
    let errors: Vec<f64> = errors.into_iter().map(|error| (error * 1e8).round() / 1e8).collect();
    let wrong = errors.iter().filter(|&&error| error.is_nan() || error > allowed).count();
    let verdict = if wrong == 0 { "ok" } else { "WRONG" };
    println!("{verdict:<5} {:<4} {:?} {:<9} relative errors {errors:?}", E::TYPE, spec.dims, spec.name);
    Ok(wrong)
}

/// Largest error relative to the largest entry, or to 1.
fn error<E: Element>(found: &Tensor<E>, expected: &Tensor<f64>) -> f64 {
    let largest = expected.as_slice().iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    let pairs = found.as_slice().iter().zip(expected.as_slice());
    pairs
        .map(|(found, expected)| (found.to_f64() - expected).abs() / largest)
        .fold(0.0, |worst: f64, e| if worst.is_nan() || e.is_nan() { f64::NAN } else { worst.max(e) })
}

/// The bench set: L after LTX-2.5, N after NAF, and small ones for launch overhead.
fn bench() -> Vec<Spec> {
    let spec = |name, tokens, heads, dim, params: Params<3>| Spec {
        name,
        tokens,
        heads: [heads; 2],
        dims: [dim; 2],
        additional: 0,
        params,
    };
    let naf = Params::new([1, 9, 9]).dilation([1, 16, 16]);
    vec![
        spec("L0", [16, 32, 48], 16, 64, Params::new([3, 7, 7]).scale(1.0)),
        spec("L1", [16, 64, 96], 8, 64, Params::new([3, 7, 7]).scale(1.0)),
        spec("L2", [32, 64, 96], 4, 64, Params::new([3, 5, 5]).scale(1.0)),
        spec("L4", [64, 256, 384], 2, 64, Params::new([3, 3, 3]).scale(1.0)),
        spec("N1 d8", [1, 512, 512], 4, 8, naf),
        spec("N1 d64", [1, 512, 512], 4, 64, naf),
        spec("2-D 7x7", [1, 128, 128], 8, 64, Params::new([1, 7, 7])),
        spec("1-D 33", [1, 1, 16_384], 8, 64, Params::new([1, 1, 33])),
    ]
}

fn times(gpu: &Gpu) -> Result<(), CudaError> {
    for spec in bench() {
        time_type::<bf16>(gpu, &spec)?;
        time_type::<f32>(gpu, &spec)?;
    }
    Ok(())
}

fn time_type<E: Element>(gpu: &Gpu, spec: &Spec) -> Result<(), CudaError> {
    let operands = Operands::<E>::of(spec)?;
    let problem = problem(spec, &operands);
    let mut device = OnDevice::of(gpu, &problem, &operands)?;
    let scores: f64 = problem.batch() as f64
        * problem.heads() as f64
        * problem
            .axes()
            .iter()
            .map(|axis| axis.query_extent as f64 * axis.kernel_size as f64)
            .product::<f64>();
    let forward = median_ms(gpu, || device.forward(gpu, &problem))?;
    let backward = median_ms(gpu, || device.backward(gpu, &problem))?;
    let flops = 2.0 * scores * (problem.head_dim() + problem.head_dim_v()) as f64;
    println!(
        "{:<8} {:<4} forward {forward:>8.3} ms ({:>6.2} TFLOP/s)   backward {backward:>8.3} ms",
        spec.name,
        E::TYPE,
        flops / forward / 1e9,
    );
    Ok(())
}

/// Median of 10 runs after one that compiles, each between two events.
fn median_ms(gpu: &Gpu, mut run: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    run()?;
    gpu.synchronize()?;
    let stream = gpu.device().stream();
    let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("events work here");
    let mut times = Vec::new();
    for _ in 0..10 {
        let start = event();
        run()?;
        let end = event();
        times.push(f64::from(start.elapsed_ms(&end).expect("events were recorded")));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
