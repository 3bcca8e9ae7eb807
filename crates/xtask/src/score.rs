//! Assembles the committed PTX with old and new ptxas, and judges what came out without a GPU.

use std::path::Path;
use std::process::Command;

use crate::assemble::{Assembled, assemble};
use crate::compile::{committed, scratch, write};
use crate::facts::Facts;
use crate::matrix::{Entry, Operation, Shape};
use crate::sass::{self, Mix, TileLoop};
use crate::{TaskError, wheels};

/// Bytes that a kernel may store to and load from the stack where there are no uniform registers, before sm_75: numbers that a warp
/// shares take registers of every lane there, and registers are given out for newer devices.
const SPILL_BYTES_OF_OLD: u32 = 400;

/// The same on newer devices: two words.
const SPILL_BYTES: u32 = 8;

/// Prints a table; fails if anything spills beyond that, does not assemble, or takes too many instructions a score.
pub(crate) fn run(root: &Path, entries: &[Entry]) -> Result<(), TaskError> {
    let nvdisasm = wheels::nvdisasm(root)?;
    let scratch = scratch(root)?;
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
        let text = committed(root, entry)?;
        let ptx = scratch.join(format!("{}.ptx", entry.name));
        write(&ptx, &text)?;
        let facts = Facts::of(&text).ok_or_else(|| TaskError::Facts { entry: entry.name.clone() })?;
        for &(release, arch) in entry.target.assemblers {
            let cubin = scratch.join(format!("{}.{release}.{arch}.cubin", entry.name));
            let assembled = match assemble(root, (release, arch), &ptx, &cubin) {
                Ok(assembled) => assembled,
                Err(error) => {
                    eprintln!("{} {release} {arch}: {error}", entry.name);
                    bad += 1;
                    continue;
                }
            };
            // The disassembler has dropped what came before sm_75.
            let old = matches!(arch, "sm_50" | "sm_70");
            let most_spilled = if old { SPILL_BYTES_OF_OLD } else { SPILL_BYTES };
            bad += usize::from(assembled.spill_bytes > most_spilled || !assembled.warnings.is_empty());
            assembled.warnings.iter().for_each(|warning| eprintln!("{}: {warning}", entry.name));
            let listing = if old {
                String::new()
            } else {
                wheels::call(Command::new(&nvdisasm).arg("-c").arg(&cubin))?
            };
            match entry.shape {
                Shape::Tiles { queries, keys } if entry.family == "sm90" => {
                    report_warpgroups(entry, release, &assembled, [queries, keys], &listing);
                }
                Shape::Tiles { queries, keys } if entry.family == "sm100" => {
                    let tile = [queries, keys];
                    bad += usize::from(!report_softmax(entry, release, &assembled, facts, tile, &listing));
                }
                Shape::Tiles { queries, keys } => {
                    let loops = sass::tile_loops(&listing);
                    let on = (release, arch);
                    bad += usize::from(!report_tiles(entry, on, &assembled, facts, [queries, keys], &loops));
                }
                _ => report(entry, release, arch, &assembled, sass::main_loop(&listing)),
            }
        }
    }
    if bad > 0 { Err(TaskError::Score { count: bad }) } else { Ok(()) }
}

/// Most instructions per score that a forward kernel on tiles may spend in its loop without masks, rare blocks included, where
/// tiles are large.
const LIMIT_PER_SCORE: f64 = 12.0;

/// Judges the loops of a kernel on tiles, without masks and with them; false if the first is beyond the limit. A forward's third
/// loop, over tiles once more where references came to lie far from 0, is for scores that are hardly met.
fn report_tiles(
    entry: &Entry,
    (release, arch): (&str, &str),
    assembled: &Assembled,
    facts: Facts,
    [queries, keys]: [u32; 2],
    loops: &[TileLoop],
) -> bool {
    let scores = f64::from(queries * keys) / f64::from(facts.threads);
    let (full, partial) = match (entry.operation, loops) {
        (Operation::Forward, &[full, second, third]) => {
            (full, if second.trip <= third.trip { second } else { third })
        }
        (Operation::BackwardQuery | Operation::BackwardKey, &[full, partial]) => (full, partial),
        _ => {
            eprintln!("{}: {} loops over tiles, not those of its operation", entry.name, loops.len());
            return false;
        }
    };
    let per_score =
        |instructions: u32| (f64::from(instructions) - f64::from(full.mix.tensor) - scores) / scores;
    println!(
        "{:<46} {release:>5} {arch:>6} {:>4} {:>5} {:>5} | full tile: {:>4} MMA, {:>4} instr ({:>5.2} a score), common way {:>4} ({:>5.2}) | partial: {:>4} ({:.2} x)",
        entry.name,
        assembled.registers,
        assembled.spill_bytes,
        facts.shared_bytes,
        full.mix.tensor,
        full.mix.total,
        per_score(full.mix.total),
        full.trip,
        per_score(full.trip),
        partial.trip,
        f64::from(partial.trip) / f64::from(full.trip),
    );
    entry.operation != Operation::Forward
        || queries < 128
        || entry.max_head_dim < 64
        || per_score(full.mix.total) <= LIMIT_PER_SCORE
}

fn report(entry: &Entry, release: &str, arch: &str, assembled: &Assembled, mix: Option<Mix>) {
    let head = format!(
        "{:<46} {release:>5} {arch:>6} {:>4} {:>5} {:>4} |",
        entry.name, assembled.registers, assembled.spill_bytes, assembled.shared_bytes
    );
    let (Shape::Walk { lanes, items }, Some(mix)) = (entry.shape, mix) else {
        println!("{head}");
        return;
    };
    // One trip of the loop serves so many tokens against every item: that many scores, spread over `lanes` lanes.
    let per_score = f64::from(mix.total * lanes) / f64::from(items * entry.tokens());
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
/// products and its exponentials take (4096 and 16 a clock) and that products read shared memory for (128 bytes a clock).
fn report_warpgroups(
    entry: &Entry,
    release: &str,
    assembled: &Assembled,
    [queries, keys]: [u32; 2],
    listing: &str,
) {
    // A warpgroup has 64 rows: queries, but in the pass over keys.
    let (rows, columns) = match entry.operation {
        Operation::BackwardKey => (keys, queries),
        _ => (queries, keys),
    };
    let kinds = warpgroup_products(entry);
    let loops = sass::warpgroup_loops(listing, kinds.len());
    let exponentials = rows * columns / 16;
    let named = kinds.iter().flat_map(|of_tile| [("full", of_tile), ("masked", of_tile)]);
    for ((kind, of_tile), mix) in named.zip(&loops) {
        let products = 2 * (of_tile.scores + of_tile.sums) * rows * columns * entry.max_head_dim / 4096;
        let shared = (rows / 64) * of_tile.shared_clocks(columns, entry.max_head_dim);
        let slots = mix.total * (rows / 64);
        let least = products.max(exponentials).max(shared);
        println!(
            "{:<34} {release:>5} {:>4} regs {:>3} spilled | {kind:<6} {queries}x{keys}: {:>4} instr a warp, {slots:>5} slots, \
             products {products} clk, shared {shared} clk, exp {exponentials} clk, time {:.2}",
            entry.name,
            assembled.registers,
            assembled.spill_bytes,
            mix.total,
            f64::from(slots.max(least)) / f64::from(least)
        );
    }
}

/// As [`report_warpgroups`], of a softmax warpgroup's loops: products are issued by one thread beside them, and tensor memory holds
/// what they are added up in and an operand of each sum. False where there are not two loops or anything spills.
fn report_softmax(
    entry: &Entry,
    release: &str,
    assembled: &Assembled,
    facts: Facts,
    [queries, keys]: [u32; 2],
    listing: &str,
) -> bool {
    let warpgroups = facts.threads / 128 - 1;
    // Both operands of a product for 128 rows in shared memory, or the columns alone.
    let columns = if entry.operation == Operation::BackwardKey { queries } else { keys };
    let boxes = queries * keys / columns / 128;
    let Products { scores, sums } = warpgroup_products(entry)[0];
    let products = (scores + sums) * queries * keys * entry.max_head_dim / 4096;
    let shared = boxes * (scores * (128 + columns) + sums * columns) * entry.max_head_dim * 2 / 128;
    let exponentials = queries * keys / 16;
    let loops = sass::softmax_loops(listing, queries * keys / (128 * warpgroups));
    for (kind, mix) in ["full", "masked"].into_iter().zip(&loops) {
        let slots = mix.total * warpgroups;
        let least = products.max(exponentials).max(shared);
        println!(
            "{:<36} {release:>5} {:>4} regs {:>3} spilled | {kind:<6} {queries}x{keys}: {:>4} instr a warp, {slots:>5} slots, \
             products {products} clk, shared {shared} clk, exp {exponentials} clk, time {:.2}",
            entry.name,
            assembled.registers,
            assembled.spill_bytes,
            mix.total,
            f64::from(slots.max(least)) / f64::from(least)
        );
    }
    loops.len() == 2 && assembled.spill_bytes == 0
}

/// Matrix products of a tile of columns.
struct Products {
    /// Of rows and columns, both in shared memory.
    scores: u32,
    /// Of registers and columns.
    sums: u32,
}

impl Products {
    /// Clocks that reading a warpgroup's operands from shared memory takes: steps of 16 elements, two bytes each.
    fn shared_clocks(&self, columns: u32, head_dim: u32) -> u32 {
        let of_scores = head_dim / 16 * (64 + columns) * 32;
        let of_sums = columns / 16 * head_dim * 32;
        (self.scores * of_scores + self.sums * of_sums) / 128
    }
}

/// What a kernel's items compute for a tile: a forward scores and their sum, a backward pass scores, their gradients, and one
/// or two sums of those. Gradients of long values and keys have items of their own.
fn warpgroup_products(entry: &Entry) -> Vec<Products> {
    let one = Products { scores: 1, sums: 1 };
    match entry.operation {
        Operation::BackwardQuery => vec![Products { scores: 2, sums: 1 }],
        Operation::BackwardKey if entry.max_head_dim > 128 => vec![one, Products { scores: 2, sums: 1 }],
        Operation::BackwardKey => vec![Products { scores: 2, sums: 2 }],
        _ => vec![one],
    }
}
