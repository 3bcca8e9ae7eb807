//! Assembles the committed PTX with old and new ptxas, and judges what came out without a GPU.

use std::path::Path;
use std::process::Command;

use crate::matrix::{Entry, Operation};
use crate::sass::{self, Mix};
use crate::{TaskError, wheels};

/// What ptxas says about an entry.
struct Assembled {
    registers: u32,
    spill_bytes: u32,
    shared_bytes: u32,
    warnings: Vec<String>,
}

/// Prints a table; fails if anything spills or does not assemble.
pub(crate) fn run(root: &Path, entries: &[Entry]) -> Result<(), TaskError> {
    let nvdisasm = wheels::nvdisasm(root)?;
    let scratch = root.join(".kernels-env/scratch");
    std::fs::create_dir_all(&scratch).map_err(|source| TaskError::File { path: scratch.clone(), source })?;
    println!(
        "{:<46} {:>5} {:>6} {:>4} {:>5} {:>4} | main loop: {:>5} {:>5} {:>4} {:>4} {:>4} {:>6} {:>6} {:>5}",
        "entry",
        "ptxas",
        "arch",
        "regs",
        "spill",
        "smem",
        "instr",
        "FFMA",
        "MUFU",
        "load",
        "SHFL",
        "tensor",
        "/score",
        "FFMA%"
    );
    let mut bad = 0;
    for entry in entries {
        for (release, arch) in entry.target.assemblers {
            let ptx = root.join(format!("crates/natten-cuda/ptx/{}.ptx", entry.name));
            let cubin = scratch.join(format!("{}.{release}.{arch}.cubin", entry.name));
            let assembled = match assemble(&wheels::ptxas(root, release)?, arch, &ptx, &cubin) {
                Ok(assembled) => assembled,
                Err(error) => {
                    eprintln!("{} {release} {arch}: {error}", entry.name);
                    bad += 1;
                    continue;
                }
            };
            bad += usize::from(assembled.spill_bytes > 0 || !assembled.warnings.is_empty());
            assembled.warnings.iter().for_each(|warning| eprintln!("{}: {warning}", entry.name));
            if entry.target.arch == "compute_90a" {
                let listing = wheels::call(Command::new(&nvdisasm).arg("-c").arg(&cubin))?;
                report_tiles(entry, release, &assembled, &sass::tile_loops(&listing));
                continue;
            }
            // The disassembler has dropped what came before sm_75.
            let old = matches!(*arch, "sm_50" | "sm_70");
            let mix = if old {
                None
            } else {
                sass::main_loop(&wheels::call(Command::new(&nvdisasm).arg("-c").arg(&cubin))?)
            };
            report(entry, release, arch, &assembled, mix);
        }
    }
    if bad > 0 { Err(TaskError::Score { count: bad }) } else { Ok(()) }
}

fn report(entry: &Entry, release: &str, arch: &str, assembled: &Assembled, mix: Option<Mix>) {
    let head = format!(
        "{:<46} {release:>5} {arch:>6} {:>4} {:>5} {:>4} |",
        entry.name, assembled.registers, assembled.spill_bytes, assembled.shared_bytes
    );
    let walks =
        matches!(entry.operation, Operation::Forward | Operation::BackwardQuery | Operation::BackwardKey);
    let Some(mix) = mix.filter(|_| walks) else {
        println!("{head}");
        return;
    };
    // One trip of the loop serves one token against every item: that many scores, spread over `lanes` lanes.
    let per_score = f64::from(mix.total * entry.lanes) / f64::from(entry.items);
    println!(
        "{head}            {:>5} {:>5} {:>4} {:>4} {:>4} {:>6} {:>6.0} {:>4.0}%",
        mix.total,
        mix.multiply_adds,
        mix.special,
        mix.loads,
        mix.shuffles,
        mix.tensor,
        per_score,
        100.0 * f64::from(mix.multiply_adds) / f64::from(mix.total.max(1))
    );
}

/// One line for each loop over tiles: issue slots of one of the four schedulers for a tile, against the clocks that its
/// products and its exponentials take (4096 and 16 a clock).
fn report_tiles(entry: &Entry, release: &str, assembled: &Assembled, loops: &[Mix]) {
    let [queries, keys] = entry.tile;
    let products = 4 * queries * keys * entry.head_dim / 4096;
    let exponentials = queries * keys / 16;
    for (kind, mix) in ["full", "masked"].into_iter().zip(loops) {
        let slots = mix.total * (queries / 64);
        println!(
            "{:<34} {release:>5} {:>4} regs {:>3} spilled | {kind:<6} {queries}x{keys}: {:>4} instr a warp, {slots:>5} slots, \
             products {products} clk, exp {exponentials} clk, time {:.2}",
            entry.name,
            assembled.registers,
            assembled.spill_bytes,
            mix.total,
            f64::from(slots.max(products).max(exponentials)) / f64::from(products.max(exponentials))
        );
    }
}

fn assemble(ptxas: &Path, arch: &str, ptx: &Path, cubin: &Path) -> Result<Assembled, TaskError> {
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
