//! Prints how fast the emulator is, in million warp instructions a second on one core, best of five: four small kernels
//! that the target is stated for, then shipped ones, whose speed is most of the test suite's time.
//! `cargo run --release -p natten-emulator --example speed [part of a name]`

use std::time::Instant;

use natten_core::{Backend, ForwardCall, Inputs, Layout, Output, Params, Problem, Tensor, bf16};
use natten_cuda::Cuda;
use natten_cuda::Request;
use natten_emulator::{Emulated, Launch, Memory, Module, Options, launch};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    small_kernels(&wanted)?;
    shipped_kernels(&wanted)
}

/// Runs `work`, which returns the warp instructions it took, five times without and five with races checked.
fn measure(name: &str, wanted: &str, mut work: impl FnMut(Options) -> Result<u64>) -> Result<()> {
    if !name.contains(wanted) {
        return Ok(());
    }
    for (checks, check_races) in [("bounds + initialised", false), ("+ races", true)] {
        let options = Options { check_races, parallel: false, ..Options::default() };
        let mut best = f64::MAX;
        let mut instructions = 0;
        for _ in 0..5 {
            let start = Instant::now();
            instructions = work(options)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let rate = instructions as f64 / best / 1e6;
        println!("{name:36} {checks:20} {rate:7.2} M/s ({instructions} in {best:.3} s)");
    }
    Ok(())
}

fn small_kernels(wanted: &str) -> Result<()> {
    let simt = Module::parse(include_str!("../tests/kernels/simt.ptx"))?;
    let ampere = Module::parse(include_str!("../tests/kernels/ampere.ptx"))?;
    let memory = Memory::new();
    let data = memory.alloc(1 << 24);
    memory.fill(data, 0, 1 << 24)?;
    let out = memory.alloc(1 << 22);
    let pointers = |l: Launch, list: &[u64]| list.iter().fold(l, |l, p| l.arg(p.to_le_bytes()));
    let int = |l: Launch, v: i32| l.arg(v.to_le_bytes());
    let matmul = pointers(Launch::new([4, 4, 1], [16, 16, 1]), &[data, data, out]);
    let matmul = int(int(int(matmul, 64), 64), 1024);
    let collatz = int(pointers(Launch::new([8, 1, 1], [256, 1, 1]), &[out, out + (1 << 16)]), 7);
    let softmax = int(pointers(Launch::new([8, 1, 1], [256, 1, 1]), &[data, out]), 2048);
    let gemm = int(pointers(Launch::new([1, 1, 1], [128, 1, 1]), &[data, data, out]), 16384);
    for (name, module, entry, shape) in [
        ("shared-memory product", &simt, "matmul", &matmul),
        ("divergent integers", &simt, "collatz", &collatz),
        ("softmax", &simt, "softmax", &softmax),
        ("mma.sync product", &ampere, "gemm", &gemm),
    ] {
        measure(name, wanted, |options| {
            Ok(launch(module, entry, shape, &memory, &options)?.warp_instructions())
        })?;
    }
    Ok(())
}

/// bf16 video of 64 channels: the same problem on CUDA cores, by `mma.sync` and by `wgmma`.
fn shipped_kernels(wanted: &str) -> Result<()> {
    let ampere = Request { entry: Some("natten_forward_sm80_bf16_d64_q64_k64"), ..Request::default() };
    for (name, cuda) in [
        ("natten_forward_simt_bf16_d64", Cuda::new(Emulated::new(7, 5))),
        ("natten_forward_sm80_bf16_d64_q64_k64", Cuda::new(Emulated::new(8, 0)).with_request(ampere)),
        ("natten_forward_sm90_bf16_d64", Cuda::new(Emulated::new(9, 0))),
    ] {
        let shape = [1, 4, 16, 16, 1, 64];
        let params = Params::new([4, 12, 12]);
        let layout = Layout::contiguous(&shape)?;
        let layouts = Inputs::new(layout, layout, layout);
        let problem = Problem::new(&params.to_dyn(), &layouts, natten_core::ElementType::Bf16)?;
        let host = Tensor::<bf16>::from_fn(&shape, |i| bf16::from_f32((i % 17) as f32 / 8.0 - 1.0))?;
        let (query, key, value) =
            (cuda.upload(&host.view())?, cuda.upload(&host.view())?, cuda.upload(&host.view())?);
        let inputs = Inputs::new(query.view(), key.view(), value.view());
        let mut out = cuda.allocate::<bf16>(&problem.out_shape())?;
        let mut lse = cuda.allocate::<f32>(&problem.lse_shape())?;
        measure(name, wanted, |options| {
            cuda.device().set_options(options);
            let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
            cuda.forward(ForwardCall::new(&problem, inputs, output)?)?;
            let counters = cuda.device().take_counters();
            assert!(
                counters.keys().any(|entry| entry.starts_with(name)),
                "selection took {:?}",
                counters.keys()
            );
            Ok(counters.values().map(|c| c.warp_instructions()).sum())
        })?;
    }
    Ok(())
}
