//! Prints how fast the emulator is, in million warp instructions a second on one core, best of five:
//! `cargo run --release -p natten-emulator --example speed`

use std::time::Instant;

use natten_emulator::{Launch, Memory, Module, Options, launch};

fn main() -> Result<(), Box<dyn std::error::Error>> {
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
        for (checks, races) in [("bounds + initialised", false), ("+ races", true)] {
            let options = Options { check_races: races, parallel: false, ..Options::default() };
            let mut best = f64::MAX;
            let mut instructions = 0;
            for _ in 0..5 {
                let start = Instant::now();
                instructions = launch(module, entry, shape, &memory, &options)?.warp_instructions();
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!(
                "{name:24} {checks:22} {:7.2} M warp instructions/s ({instructions} in {best:.3} s)",
                instructions as f64 / best / 1e6
            );
        }
    }
    Ok(())
}
