//! A launch: arguments checked against the entry, then every CTA run, in parallel if asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rayon::prelude::*;

use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};
use crate::machine::cta::{Cta, Grid};
use crate::memory::Memory;
use crate::memory::view::View;
use crate::module::{Entry, Module};
use crate::options::{Launch, Options};
use crate::race::global::GlobalRaces;

/// Shared memory a CTA can have on the largest of today's devices.
const MAX_SHARED_BYTES: u64 = 227 * 1024;

/// Runs one kernel to its end.
///
/// # Errors
/// The first fault met, with its instruction and place. With `parallel`, when several CTAs fault,
/// the one of the lowest index among those that ran is reported.
pub fn launch(
    module: &Module,
    entry: &str,
    launch: &Launch,
    memory: &Memory,
    options: &Options,
) -> Result<Counters, Fault> {
    launch_ctas(module, entry, launch, memory, options, None)
}

/// [`launch`], or those of its CTAs that are listed.
pub(crate) fn launch_ctas(
    module: &Module,
    entry: &str,
    launch: &Launch,
    memory: &Memory,
    options: &Options,
    listed: Option<Vec<u32>>,
) -> Result<Counters, Fault> {
    let entry = module.entry(entry).ok_or_else(|| FaultKind::UnknownEntry { name: entry.to_owned() })?;
    check_shape(entry, launch)?;
    let params = params(entry, &launch.args)?;
    let ctas = launch.grid.iter().product::<u32>();
    let variables = allocate_variables(module, memory);
    let allocations = memory.snapshot();
    let is_whole = listed.is_none();
    let races = (options.check_races && is_whole && ctas > 1).then(|| GlobalRaces::new(ctas, &allocations));
    let grid = Grid {
        module,
        entry,
        kernel: Arc::clone(&entry.kernel),
        options: *options,
        grid: launch.grid,
        block: launch.block,
        dynamic_shared: launch.shared_bytes,
        params,
        view: View::new(allocations.into()),
        variables,
        races,
    };
    let result = match listed {
        Some(listed) => run_serial(&grid, listed.into_iter().filter(|&cta| cta < ctas)),
        None if options.parallel => run_parallel(&grid, ctas),
        None => run_serial(&grid, 0..ctas),
    };
    for &address in &grid.variables {
        let freed = memory.free(address);
        debug_assert!(freed.is_ok(), "the launch allocated it");
    }
    result
}

fn run_serial(grid: &Grid<'_>, ctas: impl Iterator<Item = u32>) -> Result<Counters, Fault> {
    let mut cta = Cta::new(grid);
    for index in ctas {
        cta.reset(index);
        cta.run()?;
    }
    Ok(cta.counters)
}

fn run_parallel(grid: &Grid<'_>, ctas: u32) -> Result<Counters, Fault> {
    let threads = rayon::current_num_threads().max(1) as u32;
    // A few pieces per thread balance the load; each piece reuses one CTA's buffers.
    let pieces = (threads * 4).min(ctas).max(1);
    let failed = AtomicBool::new(false);
    let results: Vec<Result<Counters, Fault>> = (0..pieces)
        .into_par_iter()
        .map(|piece| {
            let mut cta = Cta::new(grid);
            for index in (piece..ctas).step_by(pieces as usize) {
                if failed.load(Relaxed) {
                    break;
                }
                cta.reset(index);
                cta.run().inspect_err(|_| failed.store(true, Relaxed))?;
            }
            Ok(cta.counters)
        })
        .collect();
    let mut total = Counters::default();
    for counters in results {
        total += &counters?;
    }
    Ok(total)
}

fn check_shape(entry: &Entry, launch: &Launch) -> Result<(), FaultKind> {
    let refuse = |what, got: u64, allowed: u64| Err(FaultKind::LaunchConfiguration { what, got, allowed });
    let product = |extents: [u32; 3]| extents.iter().map(|&e| u64::from(e)).product::<u64>();
    let limits = [
        ("grid.x", launch.grid[0], 0x7fff_ffff),
        ("grid.y", launch.grid[1], 65535),
        ("grid.z", launch.grid[2], 65535),
    ];
    for (what, got, allowed) in limits {
        if got == 0 || got > allowed {
            return refuse(what, got.into(), allowed.into());
        }
    }
    if product(launch.grid) > 0x3fff_ffff {
        return refuse("CTAs of the grid", product(launch.grid), 0x3fff_ffff);
    }
    let threads = product(launch.block);
    if threads == 0 || threads > 1024 {
        return refuse("threads of a CTA", threads, 1024);
    }
    if let Some(max) = entry.maxntid
        && threads > product(max)
    {
        return refuse("threads of a CTA against .maxntid", threads, product(max));
    }
    if let Some(required) = entry.reqntid
        && launch.block != required
    {
        return refuse("threads of a CTA against .reqntid", threads, product(required));
    }
    if product(launch.cluster) != 1 {
        return refuse("CTAs of a cluster", product(launch.cluster), 1);
    }
    let shared =
        u64::from(entry.dynamic_shared.max(entry.static_shared_bytes)) + u64::from(launch.shared_bytes);
    if shared > MAX_SHARED_BYTES {
        return refuse("shared memory bytes", shared, MAX_SHARED_BYTES);
    }
    Ok(())
}

/// The parameter space: arguments at their offsets.
fn params(entry: &Entry, args: &[Vec<u8>]) -> Result<Vec<u8>, FaultKind> {
    if args.len() != entry.params.len() {
        let (index, expected, got) = (entry.params.len(), entry.params.len(), args.len());
        return Err(FaultKind::ArgumentSize { index, expected, got });
    }
    let mut space = Vec::new();
    for (index, (param, arg)) in entry.params.iter().zip(args).enumerate() {
        if arg.len() != param.bytes {
            return Err(FaultKind::ArgumentSize { index, expected: param.bytes, got: arg.len() });
        }
        space.resize(param.offset, 0);
        space.extend_from_slice(arg);
    }
    Ok(space)
}

/// Places the module's variables in device memory for the length of the launch.
fn allocate_variables(module: &Module, memory: &Memory) -> Vec<u64> {
    let place = |global: &crate::ptx::ast::GlobalDecl| {
        let bytes = (global.bytes as usize).max(global.initial.len()).max(1);
        let address = memory.alloc(bytes);
        // Variables without an initialiser start as zeros.
        let mut contents = vec![0; bytes];
        contents[..global.initial.len()].copy_from_slice(&global.initial);
        let written = memory.write(address, &contents);
        debug_assert!(written.is_ok(), "the allocation holds the variable");
        address
    };
    module.globals.iter().map(place).collect()
}
