//! The CPU backend on the bench set, as useful GFLOP/s and as a share of the machine's peak measured in between.
//!
//! `cargo bench -p natten-benches --bench cpu_table -- [--only C1,C3] [--isa avx2] [--elements f32,bf16]
//! [--threads 1,2] [--pass forward,backward] [--seconds 0.5] [--markdown | --json] [--cpu-time]`
//!
//! Prints a row for each measurement, with `--json` an object a line. `--markdown` prints the tables of
//! docs/performance.md instead: medians, a table for each pass and number of threads.
//!
//! `--cpu-time` (Linux) counts the time that the program's threads ran instead of the time that passed, divided by
//! their number: what a machine shared with other work allows.

mod table;

use natten_benches::options::{Arguments, Named, one_and_all_threads};
use natten_benches::{Bench, Clock, Results, backward, forward, problems, time};
use natten_core::{Element, ElementType, bf16, f16};
use natten_cpu::{Cpu, Isa};
use table::{Pass, Row, Style};

fn main() {
    let options = Options::parse();
    options.style.begin();
    let mut rows = Vec::new();
    for bench in problems().iter().filter(|bench| options.wants(bench.name)) {
        for &threads in &options.threads {
            for &isa in &options.isas {
                let Ok(cpu) = Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)) else { continue };
                let run = Run { options: &options, cpu: &cpu, isa, threads, bench };
                for &Named(element) in &options.elements {
                    match element {
                        ElementType::F16 => run.measure::<f16>(&mut rows),
                        ElementType::Bf16 => run.measure::<bf16>(&mut rows),
                        _ => run.measure::<f32>(&mut rows),
                    }
                }
            }
        }
    }
    options.style.finish(&rows);
}

struct Options {
    only: Vec<String>,
    isas: Vec<Isa>,
    elements: Vec<Named>,
    threads: Vec<usize>,
    passes: Vec<Pass>,
    seconds: f64,
    clock: Clock,
    style: Style,
}

impl Options {
    fn parse() -> Self {
        let mut given = Arguments::of_program();
        let every_element = || [ElementType::F32, ElementType::F16, ElementType::Bf16].map(Named).into();
        let vectors = || Isa::available().filter(|&isa| isa != Isa::Scalar).collect();
        let options = Options {
            only: given.list("--only").unwrap_or_default(),
            isas: given.list("--isa").unwrap_or_else(vectors),
            elements: given.list("--elements").unwrap_or_else(every_element),
            threads: given.list("--threads").unwrap_or_else(one_and_all_threads),
            passes: given.list("--pass").unwrap_or_else(|| vec![Pass::Forward, Pass::Backward]),
            seconds: given.list("--seconds").map_or(0.5, |list| list[0]),
            clock: if given.flag("--cpu-time") { Clock::Cpu } else { Clock::Wall },
            style: match (given.flag("--markdown"), given.flag("--json")) {
                (true, _) => Style::Markdown,
                (_, true) => Style::Json,
                _ => Style::Rows,
            },
        };
        given.finish();
        options
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

struct Run<'a> {
    options: &'a Options,
    cpu: &'a Cpu,
    isa: Isa,
    threads: usize,
    bench: &'a Bench<'static>,
}

impl Run<'_> {
    /// The passes asked for, in the order of [`Pass::ALL`]: a backward is compared with the forward before it.
    fn measure<E: Element>(&self, rows: &mut Vec<Row>) {
        let operands = self.bench.operands::<E>();
        let mut results = Results::new(&operands);
        for pass in Pass::ALL.into_iter().filter(|pass| self.options.passes.contains(pass)) {
            let (seconds, clock) = (self.options.seconds, self.options.clock);
            let timing = match pass {
                Pass::Forward => {
                    time(seconds, clock, self.threads, || forward(self.cpu, &operands, &mut results))
                }
                Pass::Backward => {
                    let d_out = self.bench.d_out::<E>();
                    forward(self.cpu, &operands, &mut results);
                    time(seconds, clock, self.threads, || backward(self.cpu, &operands, &d_out, &mut results))
                }
            };
            let (isa, threads, element) = (self.isa, self.threads, E::TYPE);
            rows.push(Row { bench: *self.bench, element, isa, threads, pass, timing });
            self.options.style.row(rows);
        }
    }
}
