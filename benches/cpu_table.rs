//! The CPU backend on the bench set, as useful GFLOP/s and as a share of the machine's peak measured in between.
//!
//! `cargo bench -p natten-benches --bench cpu_table -- [--only C1,C3] [--isa avx2] [--elements f32,bf16]
//! [--threads 1,2] [--pass forward,backward] [--seconds 0.4] [--markdown | --json] [--cpu-time]`
//!
//! Prints a row for each measurement, with `--json` an object a line. `--markdown` prints the tables of
//! docs/performance.md instead: medians, a table for each pass and number of threads.
//!
//! `--cpu-time` (Linux) counts the time that the program's threads ran instead of the time that passed, divided by
//! their number: what a machine shared with other work allows.

mod table;

use std::cell::LazyCell;

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
        for &Named(element) in &options.elements {
            match element {
                ElementType::F16 => options.measure::<f16>(bench, &mut rows),
                ElementType::Bf16 => options.measure::<bf16>(bench, &mut rows),
                _ => options.measure::<f32>(bench, &mut rows),
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
        // Scalar code is measured where it is asked for or all there is.
        let vectors = || {
            let all: Vec<Isa> = Isa::available().collect();
            all[usize::from(all.len() > 1)..].to_vec()
        };
        let options = Options {
            only: given.list("--only").unwrap_or_default(),
            isas: given.list("--isa").unwrap_or_else(vectors),
            elements: given.list("--elements").unwrap_or_else(every_element),
            threads: given.list("--threads").unwrap_or_else(one_and_all_threads),
            passes: given.list("--pass").unwrap_or_else(|| vec![Pass::Forward, Pass::Backward]),
            seconds: given.list("--seconds").map_or(0.4, |list| list[0]),
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

    fn measure<E: Element>(&self, bench: &Bench<'static>, rows: &mut Vec<Row>) {
        let operands = bench.operands::<E>();
        let d_out = LazyCell::new(|| bench.d_out::<E>());
        let mut results = Results::new(&operands);
        for &threads in &self.threads {
            for &isa in &self.isas {
                let cpu = match Cpu::new().isa(isa).and_then(|cpu| cpu.threads(threads)) {
                    Ok(cpu) => cpu,
                    Err(error) => {
                        eprintln!("{error}");
                        continue;
                    }
                };
                let time = |call: &mut dyn FnMut()| time(self.seconds, self.clock, threads, call);
                // The forward first, whose results the backward takes.
                for pass in Pass::ALL.into_iter().filter(|pass| self.passes.contains(pass)) {
                    let timing = match pass {
                        Pass::Forward => time(&mut || forward(&cpu, &operands, &mut results)),
                        Pass::Backward => {
                            forward(&cpu, &operands, &mut results);
                            time(&mut || backward(&cpu, &operands, &d_out, &mut results))
                        }
                    };
                    rows.push(Row { bench: *bench, element: E::TYPE, isa, threads, pass, timing });
                    self.style.row(rows);
                }
            }
        }
    }
}
