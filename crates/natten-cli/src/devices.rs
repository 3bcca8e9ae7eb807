//! `natten devices`: what this machine has, and which kernels can run on it.

use std::process::ExitCode;

use clap::Args;
use natten::cpu::{Cpu, ISA_VARIABLE, Isa};
use serde_json::json;

use crate::error::CliError;
use crate::output::{self, Rows, Tone, plain};
use crate::peak;

/// Show what this machine has and which kernels can run, or why they cannot.
#[derive(Args)]
pub struct DevicesArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &DevicesArgs) -> Result<ExitCode, CliError> {
    let chosen = Cpu::new().chosen_isa()?;
    let threads = peak::threads();
    if args.json {
        let kernels = Isa::ALL.map(|isa| {
            json!({
                "kernel": format!("cpu_{isa}"),
                "is_available": isa.is_available(),
                "is_chosen": isa == chosen,
                "note": note(isa, chosen),
            })
        });
        output::emit_json(&json!({
            "cpu": {"architecture": std::env::consts::ARCH, "threads": threads, "name": cpu_name(), "kernels": kernels},
            "gpus": [],
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = cpu_name().unwrap_or_else(|| "CPU".to_owned());
    let mut table = Rows::new(&["kernel", "runs here"]);
    for isa in Isa::ALL {
        let tone = if isa == chosen { Tone::Good } else { Tone::Plain };
        table.push([plain(format!("cpu_{isa}")), (note(isa, chosen), tone)]);
    }
    output::emit(&format!(
        "{name} ({}, {threads} threads)\n{}no GPU kernels: this program was built for the CPU alone\n",
        std::env::consts::ARCH,
        table.render()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn note(isa: Isa, chosen: Isa) -> String {
    let forced = std::env::var(ISA_VARIABLE).is_ok_and(|value| !value.is_empty());
    match (isa == chosen, isa.is_available()) {
        (true, _) if forced => format!("chosen by {ISA_VARIABLE}"),
        (true, _) => "chosen".to_owned(),
        (false, true) => "can run".to_owned(),
        (false, false) => format!("no: {}", lacks(isa)),
    }
}

/// What a machine must have.
fn lacks(isa: Isa) -> &'static str {
    match isa {
        Isa::Avx2 => "needs x86-64 with AVX2, FMA and F16C",
        Isa::Avx512 => "needs x86-64 with AVX-512 F, BW, DQ and VL",
        Isa::Avx512Bf16 => "needs x86-64 with AVX-512 BF16",
        Isa::Neon => "needs AArch64",
        _ => "the machine lacks its instructions",
    }
}

/// The processor's own name, where the system tells.
fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
