//! The same problems under criterion, for its statistics and its comparison with the run before.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use natten_benches::problems;
use natten_core::{Backend, Element, Gradients, Output, Saved, Tensor, bf16, f16};
use natten_cpu::{Cpu, Isa};

fn all(criterion: &mut Criterion) {
    for isa in Isa::available() {
        for threads in [1, 0] {
            let Ok(cpu) = Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)) else { continue };
            let threads = if threads == 0 { "all" } else { "one" };
            one_element::<f32>(criterion, &cpu, isa, threads);
            one_element::<f16>(criterion, &cpu, isa, threads);
            one_element::<bf16>(criterion, &cpu, isa, threads);
        }
    }
}

fn one_element<E: Element>(criterion: &mut Criterion, cpu: &Cpu, isa: Isa, threads: &str) {
    for bench in problems() {
        let operands = bench.operands::<E>();
        let (problem, inputs) = (&operands.problem, operands.inputs());
        let mut out = Tensor::<E>::zeros(&problem.out_shape()).expect("a small shape");
        let mut lse = Tensor::<f32>::zeros(&problem.lse_shape()).expect("a small shape");
        let mut group = criterion.benchmark_group(format!("{}/{}/{isa}/{threads}", bench.name, E::TYPE));
        group.sample_size(10).throughput(Throughput::Elements(problem.useful_flops() as u64));
        group.bench_function(BenchmarkId::from_parameter("forward"), |b| {
            b.iter(|| {
                let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
                cpu.forward(black_box(problem), &inputs, output).expect("the problem is valid");
            });
        });
        let mut grads = [0, 1, 2].map(|i| operands.tensors[i].clone());
        let saved =
            Saved { out: out.view(), lse: lse.view(), d_out: operands.tensors[3].view(), d_lse: None };
        group.bench_function(BenchmarkId::from_parameter("backward"), |b| {
            b.iter(|| {
                let [query, key, value] = grads.each_mut().map(Tensor::view_mut);
                let gradients = Gradients { query, key, value, additional: None };
                cpu.backward(black_box(problem), &inputs, &saved, gradients).expect("the problem is valid");
            });
        });
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
