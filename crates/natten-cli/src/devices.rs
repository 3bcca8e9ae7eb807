//! `natten devices`: what this machine has, and which kernels can run on it.

use std::process::ExitCode;

use clap::Args;
use natten::cpu::{Cpu, ISA_VARIABLE, Isa};
use serde_json::{Value, json};

use crate::error::CliError;
use crate::machine;
use crate::output::{self, Rows, Tone, plain};

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
    let threads = machine::threads();
    let (gpus, no_gpu) = gpus();
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
            "gpus": gpus.iter().map(Gpu::to_json).collect::<Vec<_>>(),
            "no_gpu": no_gpu,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = cpu_name().unwrap_or_else(|| "CPU".to_owned());
    let mut table = Rows::new(&["kernel", "runs here"]);
    for isa in Isa::ALL {
        let tone = if isa == chosen { Tone::Good } else { Tone::Plain };
        table.push([plain(format!("cpu_{isa}")), (note(isa, chosen), tone)]);
    }
    let mut text = format!("{name} ({}, {threads} threads)\n{}", std::env::consts::ARCH, table.render());
    text += &gpus.iter().map(Gpu::text).collect::<String>();
    if let Some(reason) = no_gpu {
        text += &format!("\nno GPU: {reason}\n");
    }
    if cfg!(feature = "emulator") {
        text += "\nGPU kernels can run emulated: natten verify FILE --backend emulator\n";
    }
    output::emit(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A GPU and its kernels, each with the reason why it cannot run here, if there is one.
struct Gpu {
    name: String,
    capability: String,
    memory_bytes: u64,
    kernels: Vec<(String, Option<String>)>,
}

impl Gpu {
    #[cfg(feature = "cuda")]
    fn new(
        properties: &natten::cuda::device::Properties,
        kernels: impl Iterator<Item = (&'static str, Option<natten::cuda::RejectionReason>)>,
    ) -> Self {
        let kernel = |(entry, reason): (&str, Option<natten::cuda::RejectionReason>)| {
            (entry.to_owned(), reason.map(|reason| reason.to_string()))
        };
        Gpu {
            name: properties.name.clone(),
            capability: properties.compute_capability.to_string(),
            memory_bytes: properties.memory_bytes,
            kernels: kernels.map(kernel).collect(),
        }
    }

    /// Kernels that differ in element type and row length alone, on one line: family, how many, and the reason.
    fn families(&self) -> Vec<(&str, usize, &Option<String>)> {
        let mut families: Vec<(&str, usize, &Option<String>)> = Vec::new();
        for (kernel, reason) in &self.kernels {
            let end = ["_f32", "_f16", "_bf16"].iter().filter_map(|name| kernel.find(name)).min();
            let family = &kernel[..end.unwrap_or(kernel.len())];
            match families.iter_mut().find(|(name, _, other)| (*name, *other) == (family, reason)) {
                Some((_, count, _)) => *count += 1,
                None => families.push((family, 1, reason)),
            }
        }
        families
    }

    fn to_json(&self) -> Value {
        let kernels = self.kernels.iter().map(
            |(kernel, reason)| json!({"kernel": kernel, "is_available": reason.is_none(), "note": reason}),
        );
        json!({
            "name": self.name,
            "compute_capability": self.capability,
            "memory_bytes": self.memory_bytes,
            "kernels": kernels.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let memory = output::with_prefix(self.memory_bytes as f64, "B");
        let mut table = Rows::new(&["kernels", "how many", "run here"]);
        for (family, count, reason) in self.families() {
            let runs = reason.as_ref().map_or("can run".to_owned(), |reason| format!("no: {reason}"));
            table.push([plain(family), plain(count.to_string()), plain(runs)]);
        }
        format!("\n{} (compute capability {}, {memory})\n{}", self.name, self.capability, table.render())
    }
}

/// The GPUs of this machine, and why there are none.
#[cfg(feature = "cuda")]
fn gpus() -> (Vec<Gpu>, Option<String>) {
    use natten::cuda::{Cuda, Device, driver::Driver};
    let mut found = Vec::new();
    loop {
        let driver = match Driver::new(found.len()) {
            Ok(driver) => driver,
            // Past the last one the driver knows no such device.
            Err(_) if !found.is_empty() => return (found, None),
            Err(error) => return (found, Some(error.to_string())),
        };
        // Kernels that no chip has run are held to others here, as a first call would.
        let cuda = Cuda::new(driver);
        found.push(Gpu::new(cuda.device().properties(), cuda.kernels()));
    }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> (Vec<Gpu>, Option<String>) {
    (Vec::new(), Some("this program was built without the feature cuda".to_owned()))
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
fn lacks(isa: Isa) -> String {
    if let Some(lack) = isa.lack() {
        return lack.to_string();
    }
    let needs = match isa {
        Isa::Avx2 => "needs x86-64 with AVX2, FMA and F16C",
        Isa::Avx512 => "needs x86-64 with AVX-512 F, BW, DQ and VL",
        Isa::Avx512Bf16 => "needs x86-64 with AVX-512 BF16",
        Isa::Neon => "needs AArch64",
        _ => "the machine lacks its instructions",
    };
    needs.to_owned()
}

/// The processor's own name, where the system tells.
pub fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use natten::cuda::device::Properties;
    use natten::cuda::{ComputeCapability, kernels_on};

    use super::*;

    fn families_on(major: u32, minor: u32, shared_bytes: usize) -> String {
        let properties = Properties {
            name: "a GPU".to_owned(),
            compute_capability: ComputeCapability { major, minor },
            multiprocessors: 1,
            shared_bytes_per_block: shared_bytes,
            memory_bytes: 1 << 30,
        };
        Gpu::new(&properties, kernels_on(&properties)).text()
    }

    #[test]
    fn every_family_says_whether_it_runs() {
        let line = |text: &str, start: &str| {
            text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default().to_owned()
        };
        let hopper = families_on(9, 0, 227 << 10);
        assert!(line(&hopper, "natten_forward_sm90 ").ends_with("can run"), "{hopper}");
        assert!(!hopper.contains("window_dump"), "{hopper}");
        let refused: Vec<&str> = hopper.lines().filter(|line| line.contains("no:")).collect();
        assert!(
            refused.iter().all(|line| line.contains("runs on compute capability 10.0 alone")),
            "{hopper}"
        );
        let blackwell = families_on(10, 0, 227 << 10);
        assert!(line(&blackwell, "natten_forward_sm100 ").ends_with("can run"), "{blackwell}");
        let ada = families_on(8, 9, 99 << 10);
        assert!(line(&ada, "natten_forward_sm90 ").contains("runs on compute capability 9.0 alone"), "{ada}");
        assert!(line(&ada, "natten_forward_sm80 ").ends_with("can run"), "{ada}");
        let turing = families_on(7, 5, 64 << 10);
        assert!(line(&turing, "natten_forward_sm80 ").contains("needs compute capability 8.0"), "{turing}");
        assert!(line(&turing, "natten_forward_simt ").ends_with("can run"), "{turing}");
    }
}
