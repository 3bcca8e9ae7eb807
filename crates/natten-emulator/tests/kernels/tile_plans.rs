//! Kernels on tiles do what the planner says, on boxes of any shape: scores computed, bytes read.

use natten_core::plan::{KeyStart, TileCounts, Tiling};
use natten_core::{Element, Params, bf16, f16};
use natten_cuda::Cuda;
use natten_cuda::registry::{Facts, Kernel, Operation, kernels_of};
use natten_cuda::{Request, bytes_read};
use natten_emulator::{Counters, Emulated};

use crate::case::{Case, OnDevice, Operands, close, forward};

/// The kernels that are held to a plan.
pub fn on_tiles() -> impl Iterator<Item = &'static Kernel> {
    kernels_of("sm80", Operation::Forward)
}

/// Runs a case on one kernel, on boxes of its choice unless some are given, and compares; returns what the launch counted.
fn check<E: Element>(
    device: &Emulated,
    kernel: &Kernel,
    case: &Case,
    tiling: Option<Tiling>,
) -> Result<Counters, String> {
    let cuda = Cuda::new(device.clone()).with_request(Request {
        entry: Some(kernel.entry),
        tiling,
        ..Request::default()
    });
    let operands = Operands::<E>::draw(case);
    let problem = operands.problem(&case.params);
    device.take_counters();
    let found = forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands));
    let result = found.and_then(|(out, lse)| close(&problem, &operands.inputs(), &out, &lse));
    result.map_err(|error| format!("{}: {error}\n{tiling:?}\n{case:?}", kernel.entry))?;
    Ok(device.take_counters().remove(kernel.entry).unwrap_or_default())
}

/// On windows longer and shorter than a key tile, rows shorter than the kernel's, dilation and causality the kernel computes
/// as many scores and reads as many bytes as the planner says, exactly, and no two rows meet in a bank. Returns the sum of
/// what was counted.
pub fn work_is_planned(device: &Emulated, kernel: &Kernel) -> Result<Counters, String> {
    let tile = kernel.tile().expect("on tiles");
    let dim = kernel.longest_row();
    let plain = Case::new([1, 14, 30], Params::new([1, 5, 11])).heads(2, 2).dims(dim, dim);
    let all = Params::new([1, 3, 9]).dilation([1, 2, 3]).is_causal([false, true, false]);
    let all = Case { batch: 2, ..Case::new([1, 14, 30], all).heads(2, 1).dims(dim - 8, dim - 16) };
    let mut sum = Counters::default();
    for (mut case, additional) in [(plain.clone(), 0), (plain, 70), (all, 5)] {
        case.additional = additional;
        let tiling = Tiling {
            query_tile: [1, 8, tile.queries / 8],
            key_tile: [1, 4, tile.keys / 4],
            key_start: KeyStart::Dynamic,
        };
        let counters = match kernel.element_type().name() {
            "f16" => check::<f16>(device, kernel, &case, Some(tiling)),
            _ => check::<bf16>(device, kernel, &case, Some(tiling)),
        }?;
        let problem = Operands::<f16>::draw(&case).problem(&case.params);
        let issued = TileCounts::of(&problem, &tiling).issued;
        let heads = (case.batch * case.heads) as u64;
        let planned = [heads * issued * 4 * dim as u64, bytes_read(&problem, &tiling), 0];
        let found = [counters.mma_flops, counters.global_load_bytes, counters.shared_bank_conflicts];
        if found != planned {
            let what = "operations, bytes read and bank conflicts";
            return Err(format!("{}: {what} {found:?}, planned {planned:?}: {case:?}", kernel.entry));
        }
        sum += &counters;
    }
    Ok(sum)
}

#[test]
fn work_is_what_the_plan_says() {
    for kernel in on_tiles() {
        work_is_planned(&Emulated::new(8, 0), kernel).unwrap();
    }
}

/// Every shape of box on three axes, with windows, strides and dilations that fit none of them.
#[test]
fn all_boxes() {
    let params = Params::new([2, 5, 7]).stride([1, 2, 3]).dilation([2, 1, 2]).is_causal([false, false, true]);
    let entry = "natten_forward_sm80_f16_d32_q128_k64";
    let kernel = on_tiles().find(|kernel| kernel.entry == entry).expect("a kernel on tiles");
    for x in 0..=6 {
        for y in 0..=6 - x {
            let sides = |x: u32, y: u32, z: u32| [1usize << x, 1 << y, 1 << z];
            // Queries in the mirrored order, one bit more.
            let tiling = Tiling {
                query_tile: sides(6 - x - y, y, x + 1),
                key_tile: sides(x, y, 6 - x - y),
                key_start: KeyStart::Dynamic,
            };
            let case = Case::new([5, 6, 17], params).heads(1, 1).dims(16, 16);
            check::<f16>(&Emulated::new(8, 0), kernel, &case, Some(tiling)).unwrap();
        }
    }
}
