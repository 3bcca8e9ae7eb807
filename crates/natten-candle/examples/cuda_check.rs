//! Holds the operator on a GPU to the CPU's, through candle: results and gradients, what is allocated, graph capture, and the
//! host's time to queue a call. `cargo run --release --features cuda --example cuda_check`, or `cuda-build.sh`.
//!
//! It multiplies no matrices and draws no numbers on the GPU, so it runs without cuBLAS and cuRAND.

use std::process::ExitCode;
use std::time::Instant;

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{DType, Device, Error, IndexOp, Result, Tensor, Var, bail};
use natten_candle::{
    AxisParams, Call, DynParams, KernelSize, KernelSizePolicy, Params, na2d, neighborhood_attention_qkv,
};

/// A neighborhood and how large its operands are.
#[derive(Clone, Copy)]
struct Problem {
    name: &'static str,
    tokens: &'static [usize],
    heads: [usize; 2],
    dims: [usize; 2],
    window: &'static [usize],
    stride: usize,
    dilation: usize,
    is_causal: bool,
    additional: usize,
}

const IMAGE: Problem = Problem {
    name: "image",
    tokens: &[24, 20],
    heads: [4, 4],
    dims: [64, 64],
    window: &[7, 7],
    stride: 1,
    dilation: 1,
    is_causal: false,
    additional: 0,
};

/// Rows of 64, 128 and 32 numbers go to tensor cores in half types; odd ones to CUDA cores in every type.
const PROBLEMS: [Problem; 10] = [
    IMAGE,
    Problem { name: "sequence", tokens: &[300], window: &[33], ..IMAGE },
    Problem { name: "video", tokens: &[5, 12, 14], window: &[3, 7, 7], ..IMAGE },
    Problem { name: "stride", stride: 3, ..IMAGE },
    Problem { name: "dilation", dilation: 2, ..IMAGE },
    Problem { name: "causal", is_causal: true, dims: [128, 128], ..IMAGE },
    Problem { name: "groups", heads: [8, 2], dims: [32, 32], ..IMAGE },
    Problem { name: "long values", dims: [32, 80], ..IMAGE },
    Problem { name: "odd rows", dims: [20, 12], ..IMAGE },
    Problem { name: "additional", additional: 9, ..IMAGE },
];

impl Problem {
    fn params(&self) -> DynParams {
        let axes = self.window.iter().map(|&window| AxisParams {
            kernel_size: KernelSize::Tokens(window),
            stride: self.stride,
            dilation: self.dilation,
            is_causal: self.is_causal,
        });
        DynParams::new(&axes.collect::<Vec<_>>(), None, KernelSizePolicy::Exact)
    }

    fn operands(&self, dtype: DType) -> Result<Vec<Tensor>> {
        let ([heads, heads_kv], [dim, dim_v]) = (self.heads, self.dims);
        let mut shapes = vec![];
        for (tokens, heads, dim) in
            [(self.tokens, heads, dim), (self.tokens, heads_kv, dim), (self.tokens, heads_kv, dim_v)]
        {
            shapes.push([&[2], tokens, &[heads, dim]].concat());
        }
        if self.additional > 0 {
            shapes
                .extend([vec![2, self.additional, heads_kv, dim], vec![2, self.additional, heads_kv, dim_v]]);
        }
        let random = |shape: Vec<usize>| Tensor::randn(0f32, 1f32, shape, &Device::Cpu)?.to_dtype(dtype);
        shapes.into_iter().map(random).collect()
    }

    /// Output, log-sum-exp and all gradients, on a device, brought to the CPU.
    fn run(&self, operands: &[Tensor], weights: &[Tensor; 2], device: &Device) -> Result<Vec<Tensor>> {
        let on_device = |tensor: &Tensor| Var::from_tensor(&tensor.to_device(device)?);
        let vars: Vec<Var> = operands.iter().map(on_device).collect::<Result<_>>()?;
        let call = Call::new(&vars[0], &vars[1], &vars[2]);
        let call = if self.additional > 0 { call.additional(&vars[3], &vars[4]) } else { call };
        let (out, lse) = call.forward_with_lse(self.params())?;
        let of_out = out.mul(&weights[0].to_device(device)?)?.sum_all()?.to_dtype(DType::F32)?;
        let of_lse = lse.mul(&weights[1].to_device(device)?)?.sum_all()?;
        let gradients = (of_out + of_lse)?.backward()?;
        let missing = || Error::msg("a gradient is missing");
        let mut results = vec![out, lse];
        for var in &vars {
            results.push(gradients.get(var).ok_or_else(missing)?.clone());
        }
        results.iter().map(|tensor| tensor.detach().to_device(&Device::Cpu)).collect()
    }
}

fn main() -> ExitCode {
    match check() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} checks failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn check() -> Result<usize> {
    let mut failed = 0;
    let mut report = |name: &str, result: Result<String>| match result {
        Ok(text) => println!("ok      {name}: {text}"),
        Err(error) => {
            failed += 1;
            println!("FAILED  {name}: {error}");
        }
    };
    // Candle's usual device, whose tensors track their uses by events; and one on a stream of its own.
    for (stream, device) in
        [("thread's stream", Device::new_cuda(0)?), ("own stream", Device::new_cuda_with_stream(0)?)]
    {
        for (dtype, most) in [(DType::F32, 1e-4), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            for problem in &PROBLEMS {
                let name = format!("{stream}, {}, {}", problem.name, dtype.as_str());
                report(&name, compare(problem, dtype, most, &device));
            }
        }
        report(&format!("{stream}, allocations"), allocations(&device));
        report(&format!("{stream}, views of packed qkv"), views(&device));
        report(&format!("{stream}, f64"), no_f64(&device));
        report(&format!("{stream}, time"), time(&device));
    }
    report("graph capture", capture());
    Ok(failed)
}

/// How far results are from the CPU's, over the largest of each.
fn compare(problem: &Problem, dtype: DType, most: f64, device: &Device) -> Result<String> {
    let operands = problem.operands(dtype)?;
    let out_shape = [&operands[0].dims()[..problem.tokens.len() + 2], &[problem.dims[1]]].concat();
    let lse_shape = &out_shape[..out_shape.len() - 1];
    let weights = [
        Tensor::randn(0f32, 1f32, &out_shape[..], &Device::Cpu)?.to_dtype(dtype)?,
        Tensor::randn(0f32, 1f32, lse_shape, &Device::Cpu)?,
    ];
    let expected = problem.run(&operands, &weights, &Device::Cpu)?;
    let found = problem.run(&operands, &weights, device)?;
    let mut worst = 0f64;
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = apart(found, expected)?;
        // No number is not close to anything.
        if apart.is_nan() || apart > most {
            bail!("result {i} is {apart:.2e} apart, at most {most:.0e} allowed");
        }
        worst = worst.max(apart);
    }
    Ok(format!("at most {worst:.1e} apart"))
}

fn apart(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let (found, expected) = (found.to_dtype(DType::F64)?, expected.to_dtype(DType::F64)?);
    let largest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
    Ok(largest(&(found - &expected)?)? / largest(&expected)?.max(1e-3))
}

/// Bytes that are allocated at most while something runs, above what was before, in the pool that candle allocates from.
fn peak_bytes(device: &Device, work: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<u64> {
    use sys::CUmemPool_attribute_enum::{CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH};
    device.synchronize()?;
    let stream = device.as_cuda_device()?.cuda_stream();
    let mut pool = std::ptr::null_mut();
    let get = |pool, attribute| {
        let mut value = 0u64;
        // SAFETY: both attributes are 64 bits long.
        let code = unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) };
        code.result().map(|()| value).map_err(Error::wrap)
    };
    // SAFETY: the device is candle's, the pool's handle is written before it is read, and 0 is how the peak is set back.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device())
            .result()
            .map_err(Error::wrap)?;
        let mut zero = 0u64;
        let reset = sys::cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut zero).cast());
        reset.result().map_err(Error::wrap)?;
    }
    let before = get(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    let results = work()?;
    device.synchronize()?;
    drop(results);
    Ok(get(pool, CU_MEMPOOL_ATTR_USED_MEM_HIGH)? - before)
}

/// A forward allocates its output and, where it is asked for, the log-sum-exp: nothing else, for views neither.
fn allocations(device: &Device) -> Result<String> {
    let (batch, side, heads, dim) = (2, 64, 4, 64);
    let rows = batch * side * side * heads;
    let params = Params::<2>::new(7);
    let qkv =
        Tensor::randn(0f32, 1f32, (batch, side, side, 3, heads, dim), &Device::Cpu)?.to_device(device)?;
    let views: Vec<_> = (0..3).map(|i| qkv.i((.., .., .., i))).collect::<Result<_>>()?;
    let (out_bytes, lse_bytes) = ((rows * dim * 4) as u64, (rows * 4) as u64);
    let without = peak_bytes(device, || Ok(vec![na2d(&views[0], &views[1], &views[2], &params)?]))?;
    let with_lse = peak_bytes(device, || {
        let (out, lse) = Call::new(&views[0], &views[1], &views[2]).forward_with_lse(&params)?;
        Ok(vec![out, lse])
    })?;
    // Memory comes in pieces of 512 bytes; these sizes are whole ones.
    if (without, with_lse) != (out_bytes, out_bytes + lse_bytes) {
        bail!("{without} and {with_lse} bytes, expected {out_bytes} and {}", out_bytes + lse_bytes);
    }
    Ok(format!("the output's {without} bytes, and with the log-sum-exp {with_lse}"))
}

/// Views of a packed tensor, the packed tensor itself, and copies give the same.
fn views(device: &Device) -> Result<String> {
    let params = Params::<2>::new(7).dilation([1, 2]);
    let qkv = Tensor::randn(0f32, 1f32, (2, 16, 20, 3, 4, 64), &Device::Cpu)?;
    for dtype in [DType::F32, DType::BF16] {
        let qkv = Var::from_tensor(&qkv.to_dtype(dtype)?.to_device(device)?)?;
        let third = |i: usize| qkv.i((.., .., .., i));
        let dense = |i: usize| third(i)?.contiguous();
        let of_copies = na2d(&dense(0)?, &dense(1)?, &dense(2)?, &params)?;
        let of_views = na2d(&third(0)?, &third(1)?, &third(2)?, &params)?;
        let of_packed = neighborhood_attention_qkv(&qkv, params)?;
        let gradient = |out: &Tensor| {
            let gradients = out.sqr()?.sum_all()?.backward()?;
            let gradient = gradients.get(&qkv).ok_or_else(|| Error::msg("no gradient"))?;
            gradient.detach().to_device(&Device::Cpu)
        };
        let (expected, most) = (gradient(&of_copies)?, if dtype == DType::F32 { 1e-5 } else { 2e-2 });
        for (name, out) in [("views", &of_views), ("packed", &of_packed)] {
            let host = |tensor: &Tensor| tensor.detach().to_device(&Device::Cpu);
            let (out_apart, apart) =
                (apart(&host(out)?, &host(&of_copies)?)?, apart(&gradient(out)?, &expected)?);
            if out_apart.max(apart) > most || apart.is_nan() {
                bail!("{name}, {}: {out_apart:.1e} and {apart:.1e} apart", dtype.as_str());
            }
        }
    }
    Ok("as copies".into())
}

fn no_f64(device: &Device) -> Result<String> {
    let x = Tensor::zeros((1, 8, 8, 2, 32), DType::F64, &Device::Cpu)?.to_device(device)?;
    match na2d(&x, &x, &x, &Params::new(3)) {
        Ok(_) => bail!("f64 ran"),
        Err(error) if error.to_string().contains("runs on the CPU only") => Ok(error.to_string()),
        Err(error) => Err(error),
    }
}

/// The first call loads its kernel, the second does not; and what a call costs the host.
fn time(device: &Device) -> Result<String> {
    // A problem of its own, so that nothing is loaded yet for the first device that gets here.
    let x = Tensor::randn(0f32, 1f32, (1, 32, 32, 2, 96), &Device::Cpu)?
        .to_dtype(DType::F16)?
        .to_device(device)?;
    let params = Params::<2>::new(5).is_causal(true);
    let timed = |calls: usize| {
        let mut seconds = Vec::with_capacity(calls);
        for call in 0..calls {
            let began = Instant::now();
            let out = na2d(&x, &x, &x, &params)?;
            seconds.push(began.elapsed().as_secs_f64() * 1e6);
            drop(out);
            if call % 64 == 63 {
                device.synchronize()?;
            }
        }
        seconds.sort_by(f64::total_cmp);
        Ok::<_, Error>(seconds[calls / 2])
    };
    let (first, second) = (timed(1)?, timed(1)?);
    device.synchronize()?;
    let median = timed(2000)?;
    if second > 5e3 {
        bail!("the second call took {second:.0} us, the first {first:.0} us: it loaded a kernel again");
    }
    Ok(format!("first call {first:.0} us, second {second:.0} us, median of 2000 to queue {median:.2} us"))
}

/// Captures a call, changes its operands in place, and replays it.
fn capture() -> Result<String> {
    let device = Device::new_cuda_with_stream(0)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: one stream does all that follows.
    unsafe { cuda.disable_event_tracking() };
    let random = || {
        Tensor::randn(0f32, 1f32, (1, 16, 16, 4, 64), &Device::Cpu)?.to_dtype(DType::F16)?.to_device(&device)
    };
    let operands = [random()?, random()?, random()?].map(|tensor| Var::from_tensor(&tensor));
    let [query, key, value] = operands;
    let (query, key, value) = (query?, key?, value?);
    let params = Params::<2>::new(7);
    let call =
        || na2d(&query.as_detached_tensor(), &key.as_detached_tensor(), &value.as_detached_tensor(), &params);
    call()?;
    device.synchronize()?;
    let stream = cuda.cuda_stream();
    use sys::{CUgraphInstantiate_flags_enum as Flags, CUstreamCaptureMode_enum as Mode};
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(Error::wrap)?;
    let captured = call();
    let graph =
        stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).map_err(Error::wrap)?;
    let (out, graph) = (captured?, graph.ok_or_else(|| Error::msg("nothing was captured"))?);
    let mut worst = 0f64;
    for _ in 0..3 {
        query.set(&random()?)?;
        value.set(&random()?)?;
        graph.launch().map_err(Error::wrap)?;
        let found = out.to_device(&Device::Cpu)?;
        worst = worst.max(apart(&found, &call()?.to_device(&Device::Cpu)?)?);
    }
    if worst > 0.0 || worst.is_nan() {
        bail!("replayed, it is {worst:.1e} from the call itself");
    }
    Ok("three replays over changed operands give what calls give, bit for bit".into())
}
