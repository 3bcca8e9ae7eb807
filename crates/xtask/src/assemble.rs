//! Runs ptxas, and reads what it says of a kernel.

use std::path::Path;
use std::process::Command;

use crate::TaskError;
use crate::wheels;

/// What ptxas says about an entry.
pub(crate) struct Assembled {
    pub registers: u32,
    pub spill_bytes: u32,
    pub shared_bytes: u32,
    pub warnings: Vec<String>,
}

/// Assembles a text with the ptxas of a CUDA release.
pub(crate) fn assemble(
    root: &Path,
    (release, arch): (&str, &str),
    ptx: &Path,
    cubin: &Path,
) -> Result<Assembled, TaskError> {
    let ptxas = wheels::ptxas(root, release)?;
    let text = wheels::call(
        Command::new(ptxas).arg("-v").arg(format!("-arch={arch}")).arg(ptx).arg("-o").arg(cubin),
    )?;
    let number_before = |marker: &str| {
        let position = text.find(marker)?;
        text[..position].split_whitespace().next_back()?.parse::<u32>().ok()
    };
    let warnings = text
        .lines()
        // Serialised warpgroup products and ignored register counts come as mere information, with these numbers.
        .filter(|line| line.contains("warning") && !line.contains("deprecated") || line.contains("(C75"))
        .map(str::to_owned)
        .collect();
    Ok(Assembled {
        registers: number_before(" registers").unwrap_or_default(),
        spill_bytes: number_before(" bytes spill stores").unwrap_or_default()
            + number_before(" bytes spill loads").unwrap_or_default(),
        shared_bytes: number_before(" bytes smem").unwrap_or_default(),
        warnings,
    })
}
