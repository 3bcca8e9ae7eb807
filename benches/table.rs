//! How measurements are printed: a row each, an object each, or the grids of docs/performance.md.

use std::str::FromStr;

use natten_benches::{Bench, Timing};
use natten_core::ElementType;
use natten_cpu::Isa;

/// Direction of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Out and log-sum-exp.
    Forward,
    /// Gradients of query, key and value.
    Backward,
}

impl Pass {
    /// Both, in the order in which they are measured.
    pub const ALL: [Pass; 2] = [Pass::Forward, Pass::Backward];

    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }
}

impl FromStr for Pass {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Pass::ALL.into_iter().find(|pass| pass.name() == name).ok_or(())
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub bench: Bench<'static>,
    pub element: ElementType,
    pub isa: Isa,
    pub threads: usize,
    pub pass: Pass,
    pub timing: Timing,
}

impl Row {
    /// Useful GFLOP/s of a call of so many seconds; a backward counts 2.5 times a forward.
    fn rate(&self, seconds: f64) -> f64 {
        let factor = if self.pass == Pass::Backward { 2.5 } else { 1.0 };
        factor * self.bench.useful_flops() / seconds / 1e9
    }

    fn median_rate(&self) -> f64 {
        self.rate(self.timing.median)
    }

    /// Shares of the median rate in the peak of f32, and of bf16 dot products where elements are bf16.
    fn shares(&self) -> (f64, Option<f64>) {
        let bf16 = self.timing.bf16_peak.filter(|_| self.element == ElementType::Bf16);
        (self.median_rate() / self.timing.peak, bf16.map(|peak| self.median_rate() / peak))
    }
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Rows,
    Json,
    Markdown,
}

impl Style {
    /// Before the first measurement.
    pub fn begin(self) {
        if self == Style::Rows {
            println!(
                "| problem | pass | element | isa | threads | best ms | median ms | GFLOP/s | f32 peak | share | bf16 peak | share |"
            );
            println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        }
    }

    /// After each measurement, the last of `rows`.
    pub fn row(self, rows: &[Row]) {
        let Some(row) = rows.last() else { return };
        let Row { bench, element, isa, threads, pass, timing } = row;
        let [best, median] = [timing.best, timing.median].map(|seconds| seconds * 1e3);
        let (name, pass, rate, (share, bf16_share)) =
            (bench.name, pass.name(), row.median_rate(), row.shares());
        match self {
            Style::Rows => {
                let bf16 = match (timing.bf16_peak, bf16_share) {
                    (Some(peak), Some(share)) => format!("{peak:.1} | {share:.3}"),
                    _ => "| ".into(),
                };
                println!(
                    "| {name} | {pass} | {element} | {isa} | {threads} | {best:.4} | {median:.4} | {rate:.1} | {:.1} | {share:.3} | {bf16} |",
                    timing.peak
                );
            }
            Style::Json => println!(
                r#"{{"problem":"{name}","who":"natten {isa}","pass":"{pass}","element":"{element}","threads":{threads},"best_ms":{best:.5},"median_ms":{median:.5},"gflops":{rate:.3},"share":{share:.4}}}"#
            ),
            Style::Markdown => eprintln!("{name} {pass} {element} {isa} {threads} threads: {rate:.1}"),
        }
    }

    /// After the last one.
    pub fn finish(self, rows: &[Row]) {
        if self != Style::Markdown {
            return;
        }
        for pass in Pass::ALL {
            for threads in distinct(rows.iter().map(|row| row.threads)) {
                let same = |row: &&Row| row.pass == pass && row.threads == threads;
                let part: Vec<&Row> = rows.iter().filter(same).collect();
                if !part.is_empty() {
                    grid(pass, threads, &part, rows);
                }
            }
        }
    }
}

/// Problems down, elements and instructions across.
fn grid(pass: Pass, threads: usize, part: &[&Row], all: &[Row]) {
    let peak = |of: fn(&Timing) -> Option<f64>| {
        let mut peaks: Vec<f64> = part.iter().filter_map(|row| of(&row.timing)).collect();
        peaks.sort_by(f64::total_cmp);
        let (first, last) = (peaks.first()?, peaks.last()?);
        Some(format!("{first:.0} to {last:.0} GFLOP/s"))
    };
    let columns = distinct(part.iter().map(|row| (row.isa, row.element)));
    let f32_peak = peak(|timing| Some(timing.peak)).unwrap_or_default();
    let bf16_peak = peak(|timing| timing.bf16_peak).map_or(String::new(), |peak| format!(", bf16 {peak}"));
    println!("\n{}, threads: {threads}, peak f32 {f32_peak}{bf16_peak}:\n", pass.name());
    let heads: Vec<String> = columns.iter().map(|(isa, element)| format!(" {isa} {element} |")).collect();
    println!("| problem |{} {} |", heads.concat(), last_head(pass));
    println!("|---|{}---|", "---|".repeat(columns.len()));
    for name in distinct(part.iter().map(|row| row.bench.name)) {
        let find = |column: &(Isa, ElementType)| {
            part.iter().find(|row| row.bench.name == name && (row.isa, row.element) == *column)
        };
        let cells: Vec<String> = columns.iter().map(|column| cell(find(column).copied(), all)).collect();
        let target = part.iter().find(|row| row.bench.name == name).and_then(|row| row.bench.target);
        let last = match pass {
            Pass::Forward => target.map_or(String::new(), |target| format!("{target:.2}")),
            Pass::Backward => "0.60".into(),
        };
        println!("| {name} |{} {last} |", cells.concat());
    }
}

fn last_head(pass: Pass) -> &'static str {
    match pass {
        Pass::Forward => "target of f32",
        Pass::Backward => "target of backward over forward",
    }
}

/// Rate with its share of the peak; for bf16 the time of f32 over its own, for a backward its rate over the forward's.
fn cell(row: Option<&Row>, all: &[Row]) -> String {
    let Some(row) = row else { return " |".into() };
    let same =
        |other: &&Row| (other.bench.name, other.isa, other.threads) == (row.bench.name, row.isa, row.threads);
    let (share, bf16_share) = row.shares();
    let mut notes = vec![format!("{share:.2}")];
    notes.extend(bf16_share.map(|share| format!("of bf16 {share:.2}")));
    let f32_of_it = all.iter().filter(same).find(|o| o.element == ElementType::F32 && o.pass == row.pass);
    if let (ElementType::Bf16, Some(f32_of_it)) = (row.element, f32_of_it) {
        notes.push(format!("{:.2}x f32", f32_of_it.timing.median / row.timing.median));
    }
    let forward = all.iter().filter(same).find(|o| o.element == row.element && o.pass == Pass::Forward);
    if let (Pass::Backward, Some(forward)) = (row.pass, forward) {
        notes.push(format!("{:.2} of forward", row.median_rate() / forward.median_rate()));
    }
    format!(" {:.1} ({}) |", row.median_rate(), notes.join("; "))
}

fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    for item in items {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all
}
