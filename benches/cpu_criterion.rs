//! The same problems under criterion, for its statistics and its comparison with the run before:
//! `cargo bench -p natten-benches --bench cpu_criterion -- C3/f32/avx512/one/forward`.
//!
//! An "element" of criterion's throughput is a floating-point operation, so its `Gelem/s` are useful GFLOP/s. The
//! share of the machine's peak is printed by `cpu_table`, and once here before all else.

use std::cell::LazyCell;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use natten_benches::options::one_and_all_threads;
use natten_benches::{Bench, Results, backward, forward, problems};
use natten_core::{Element, bf16, f16};
use natten_cpu::peak::{Arithmetic, measure};
use natten_cpu::{Cpu, Isa};

fn all(criterion: &mut Criterion) {
    for threads in one_and_all_threads() {
        for arithmetic in [Arithmetic::Fma, Arithmetic::Bf16Dot] {
            if let Some(peak) = measure(arithmetic, threads, Duration::from_millis(100)) {
                println!("{arithmetic:?}, {threads} threads: at most {:.1} GFLOP/s", peak * 1e-9);
            }
        }
    }
    for bench in problems() {
        one_element::<f32>(criterion, &bench);
        one_element::<f16>(criterion, &bench);
        one_element::<bf16>(criterion, &bench);
    }
}

/// Operands are made when the first benchmark that the command line chose asks for them.
fn one_element<E: Element>(criterion: &mut Criterion, bench: &Bench<'_>) {
    let operands = LazyCell::new(|| bench.operands::<E>());
    let d_out = LazyCell::new(|| bench.d_out::<E>());
    for isa in Isa::available() {
        for (threads, name) in one_and_all_threads().into_iter().zip(["one", "all"]) {
            let Ok(cpu) = Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)) else { continue };
            let mut group = criterion.benchmark_group(format!("{}/{}/{isa}/{name}", bench.name, E::TYPE));
            group.sample_size(10).warm_up_time(Duration::from_millis(200));
            group.measurement_time(Duration::from_secs(1));
            let flops = bench.useful_flops();
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(BenchmarkId::from_parameter("forward"), |b| {
                let mut results = Results::new(&operands);
                b.iter(|| forward(&cpu, &operands, &mut results));
            });
            group.throughput(Throughput::Elements((2.5 * flops) as u64));
            group.bench_function(BenchmarkId::from_parameter("backward"), |b| {
                let mut results = Results::new(&operands);
                forward(&cpu, &operands, &mut results);
                b.iter(|| backward(&cpu, &operands, &d_out, &mut results));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
