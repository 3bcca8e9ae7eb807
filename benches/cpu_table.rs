//! The CPU backend on the bench set, as useful GFLOP/s and as a share of the FMA peak measured in between.
//!
//! `cargo bench --bench cpu_table -- [--only C1,C3] [--isa avx2] [--elements f32,bf16] [--threads 1,2] [--seconds 1]
//! [--forward] [--cpu-time]`
//!
//! `--cpu-time` (Linux) counts the time that the program's threads ran instead of the time that passed, divided by
//! their number: what a machine shared with other work allows.

use std::time::Instant;

use natten_benches::peak::{Arithmetic, measure};
use natten_benches::{Bench, problems};
use natten_core::{Backend, Element, Gradients, Output, Saved, Tensor, bf16, f16};
use natten_cpu::{Cpu, Isa};

fn main() {
    let options = Options::parse();
    println!("| problem | element | isa | threads | pass | ms | GFLOP/s | f32 peak | share |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for &threads in &options.threads {
        for &isa in &options.isas {
            let Ok(cpu) = Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)) else { continue };
            for bench in problems().iter().filter(|bench| options.wants(bench.name)) {
                for element in &options.elements {
                    let run = Run { options: &options, cpu: &cpu, isa, threads, bench };
                    match element.as_str() {
                        "f32" => run.print::<f32>(),
                        "f16" => run.print::<f16>(),
                        "bf16" => run.print::<bf16>(),
                        other => eprintln!("no element type {other}"),
                    }
                }
            }
        }
    }
}

struct Options {
    only: Vec<String>,
    isas: Vec<Isa>,
    elements: Vec<String>,
    threads: Vec<usize>,
    seconds: f64,
    forward_only: bool,
    cpu_time: bool,
}

impl Options {
    fn parse() -> Self {
        let args: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = args.iter().position(|arg| arg == name)?;
            args.get(at + 1).map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>())
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let isas = value("--isa").map(|list| list.iter().filter_map(|name| name.parse().ok()).collect());
        let threads = value("--threads").map(|list| list.iter().filter_map(|n| n.parse().ok()).collect());
        let seconds = value("--seconds").and_then(|list| list[0].parse().ok());
        Options {
            only: value("--only").unwrap_or_default(),
            isas: isas.unwrap_or_else(|| Isa::available().collect()),
            elements: value("--elements").unwrap_or_else(|| ["f32", "f16", "bf16"].map(String::from).into()),
            threads: threads.unwrap_or_else(|| vec![1, cores]),
            seconds: seconds.unwrap_or(0.5),
            forward_only: args.iter().any(|arg| arg == "--forward"),
            cpu_time: args.iter().any(|arg| arg == "--cpu-time"),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Time that all threads of this program have run, where the system tells.
fn cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0f64;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let path = task.ok()?.path().join("schedstat");
        let text = std::fs::read_to_string(path).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds * 1e-9)
}

struct Run<'a> {
    options: &'a Options,
    cpu: &'a Cpu,
    isa: Isa,
    threads: usize,
    bench: &'a Bench,
}

impl Run<'_> {
    fn print<E: Element>(&self) {
        let operands = self.bench.operands::<E>();
        let problem = &operands.problem;
        let inputs = operands.inputs();
        let mut out = Tensor::<E>::zeros(&problem.out_shape()).expect("a small shape");
        let mut lse = Tensor::<f32>::zeros(&problem.lse_shape()).expect("a small shape");
        self.measure::<E>("forward", problem.useful_flops(), || {
            let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
            self.cpu.forward(problem, &inputs, output).expect("the problem is valid");
        });
        if self.options.forward_only {
            return;
        }
        let mut grads = [0, 1, 2].map(|i| operands.tensors[i].clone());
        let saved =
            Saved { out: out.view(), lse: lse.view(), d_out: operands.tensors[3].view(), d_lse: None };
        self.measure::<E>("backward", 2.5 * problem.useful_flops(), || {
            let [query, key, value] = grads.each_mut().map(Tensor::view_mut);
            let gradients = Gradients { query, key, value, additional: None };
            self.cpu.backward(problem, &inputs, &saved, gradients).expect("the problem is valid");
        });
    }

    /// Best of several, with the peak measured before and after; on a shared machine both take the better moments.
    fn measure<E: Element>(&self, pass: &str, flops: f64, mut call: impl FnMut()) {
        let peak = |seconds| measure(Arithmetic::Fma, self.threads, seconds).unwrap_or(f64::NAN);
        call();
        let mut limit = 0f64;
        let mut best = f64::INFINITY;
        for _ in 0..4 {
            limit = limit.max(peak(self.options.seconds / 40.0));
            let start = Instant::now();
            while start.elapsed().as_secs_f64() < self.options.seconds / 4.0 {
                let (begin, ran) = (Instant::now(), cpu_seconds());
                call();
                let passed = begin.elapsed().as_secs_f64();
                let used = || Some((cpu_seconds()? - ran?) / self.threads as f64);
                best = best.min(if self.options.cpu_time { used().unwrap_or(passed) } else { passed });
            }
        }
        let rate = flops / best / 1e9;
        println!(
            "| {} | {} | {} | {} | {pass} | {:.3} | {rate:.1} | {limit:.1} | {:.3} |",
            self.bench.name,
            E::TYPE,
            self.isa,
            self.threads,
            best * 1e3,
            rate / limit
        );
    }
}
