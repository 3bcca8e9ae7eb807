//! Time per token at a fixed window, from 4 thousand tokens to a million: C3's window and heads on ever larger squares.
//!
//! `cargo bench -p natten-benches --bench cpu_linear -- [--sides 64,128,256,512,1024] [--elements f32] [--threads 2]
//! [--isa avx512] [--seconds 2] [--cold]`
//!
//! The largest square holds 2 GiB a tensor in f32, 8 GiB in all; the smallest, 32 MiB, may lie in a last-level cache
//! from one call to the next. `--cold` gives each call of a small square other tensors than the last ones, 512 MiB of
//! them in turn, so that every size starts from memory.

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
    let turns_bytes = if given.flag("--cold") { 512 << 20 } else { 0 };
    given.finish();
    println!("| element | threads | tokens | median ns a token | best | GFLOP/s | share of f32 peak |");
    println!("|---|---|---|---|---|---|---|");
    for &Named(element) in &elements {
        for &threads in &threads {
            let cpu = Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)).expect("such a machine");
            let how = How { cpu: &cpu, threads, seconds, turns_bytes };
            let per_token: Vec<f64> = sides
                .iter()
                .map(|&side| {
                    let extents = [side, side];
                    let bench = square(&extents);
                    let timing = match element {
                        ElementType::F16 => how.measure::<f16>(&bench),
                        ElementType::Bf16 => how.measure::<bf16>(&bench),
                        _ => how.measure::<f32>(&bench),
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

struct How<'a> {
    cpu: &'a Cpu,
    threads: usize,
    seconds: f64,
    /// Calls take turns on tensors of so many bytes in all.
    turns_bytes: usize,
}

impl How<'_> {
    fn measure<E: Element>(&self, bench: &Bench<'_>) -> Timing {
        let operands = bench.operands::<E>();
        let bytes = 4 * size_of_val(operands.tensors[0].as_slice());
        let mut turns = vec![(Results::new(&operands), operands)];
        while turns.len() * bytes < self.turns_bytes {
            let operands = turns[0].1.clone();
            turns.push((Results::new(&operands), operands));
        }
        let mut turn = 0;
        time(self.seconds, Clock::Wall, self.threads, || {
            turn = (turn + 1) % turns.len();
            let (results, operands) = &mut turns[turn];
            forward(self.cpu, operands, results);
        })
    }
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
