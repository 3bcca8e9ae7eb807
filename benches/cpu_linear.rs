//! Time per token at a fixed window, from 4 thousand tokens to a million: C3's window and heads on ever larger squares.
//!
//! `cargo bench -p natten-benches --bench cpu_linear -- [--sides 64,128,256,512,1024] [--elements f32] [--threads 2]
//! [--isa avx512] [--seconds 2]`
//!
//! The largest square holds 2 GiB a tensor in f32, 8 GiB in all.

use natten_benches::options::{Arguments, Named, one_and_all_threads};
use natten_benches::{Bench, Clock, Results, Timing, forward, problems, time};
use natten_core::{Element, ElementType, bf16, f16};
use natten_cpu::{Cpu, Isa};

fn main() {
    let mut given = Arguments::of_program();
    let sides: Vec<usize> = given.list("--sides").unwrap_or_else(|| vec![64, 128, 256, 512, 1024]);
    let elements = given.list("--elements").unwrap_or_else(|| vec![Named(ElementType::F32)]);
    let threads = given.list("--threads").unwrap_or_else(one_and_all_threads);
    let best = || vec![Isa::available().last().unwrap_or(Isa::Scalar)];
    let isa: Isa = given.list("--isa").unwrap_or_else(best)[0];
    let seconds = given.list("--seconds").map_or(2.0, |list: Vec<f64>| list[0]);
    given.finish();
    println!("| element | threads | tokens | median ns a token | best | GFLOP/s | share of f32 peak |");
    println!("|---|---|---|---|---|---|---|");
    for &Named(element) in &elements {
        for &threads in &threads {
            let cpu = Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)).expect("such a machine");
            let per_token: Vec<f64> = sides
                .iter()
                .map(|&side| {
                    let extents = [side, side];
                    let bench = square(&extents);
                    let timing = match element {
                        ElementType::F16 => measure::<f16>(&cpu, &bench, threads, seconds),
                        ElementType::Bf16 => measure::<bf16>(&cpu, &bench, threads, seconds),
                        _ => measure::<f32>(&cpu, &bench, threads, seconds),
                    };
                    print_row(element, threads, &bench, &timing)
                })
                .collect();
            let least = per_token.iter().copied().fold(f64::INFINITY, f64::min);
            let most = per_token.iter().copied().fold(0.0, f64::max);
            println!("| {element} | {threads} | all | spread {:.1} % | | | |", (most / least - 1.0) * 100.0);
        }
    }
}

/// C3 on another square.
fn square(extents: &[usize]) -> Bench<'_> {
    let c3 = problems().into_iter().find(|bench| bench.name == "C3").expect("it is in the set");
    Bench { tokens: extents, ..c3 }
}

fn measure<E: Element>(cpu: &Cpu, bench: &Bench<'_>, threads: usize, seconds: f64) -> Timing {
    let operands = bench.operands::<E>();
    let mut results = Results::new(&operands);
    time(seconds, Clock::Wall, threads, || forward(cpu, &operands, &mut results))
}

/// Returns the median time of a token.
fn print_row(element: ElementType, threads: usize, bench: &Bench<'_>, timing: &Timing) -> f64 {
    let tokens = bench.tokens.iter().product::<usize>() as f64;
    let [median, best] = [timing.median, timing.best].map(|seconds| seconds / tokens * 1e9);
    let rate = bench.useful_flops() / timing.median / 1e9;
    let share = rate / timing.peak;
    println!("| {element} | {threads} | {tokens} | {median:.0} | {best:.0} | {rate:.1} | {share:.3} |");
    median
}
