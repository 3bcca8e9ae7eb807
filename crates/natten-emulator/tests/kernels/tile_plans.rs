//! Kernels on tiles do what the planner says, on boxes of any shape: scores computed, bytes read.

use natten_core::plan::{KeyStart, TileCounts, Tiling};
use natten_core::{Element, Params, bf16, f16};
use natten_cuda::Cuda;
use natten_cuda::registry::{Facts, Kernel, Operation, kernels_of};
use natten_cuda::{Request, bytes_read};
use natten_emulator::{Counters, Emulated};

use crate::case::{Case, OnDevice, Operands, close, forward};

fn on_tiles() -> impl Iterator<Item = &'static Kernel> {
    kernels_of("sm80", Operation::Forward)
}

/// A backend that runs one forward kernel, on the boxes of its choice unless some are given.
fn only(kernel: &Kernel, tiling: Option<Tiling>) -> Cuda<Emulated> {
    Cuda::new(Emulated::new(8, 0)).with_request(Request { entry: Some(kernel.entry), tiling })
}

/// Runs a case on one kernel; returns what the launch counted.
fn check<E: Element>(kernel: &Kernel, case: &Case, tiling: Option<Tiling>) -> Counters {
    let cuda = only(kernel, tiling);
    let operands = Operands::<E>::draw(case);
    let problem = operands.problem(&case.params);
    let result = forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands))
        .and_then(|(out, lse)| close(&problem, &operands.inputs(), &out, &lse));
    if let Err(error) = result {
        panic!("{}: {error}\n{tiling:?}\n{case:?}", kernel.entry);
    }
    cuda.device().take_counters().remove(kernel.entry).unwrap_or_default()
}

fn check_kernel(kernel: &Kernel, case: &Case, tiling: Option<Tiling>) -> Counters {
    match kernel.element_type().name() {
        "f16" => check::<f16>(kernel, case, tiling),
        _ => check::<bf16>(kernel, case, tiling),
    }
}

/// Scores computed and bytes read are the planner's, exactly, and no two rows meet in a bank: on windows longer and shorter
/// than a key tile, rows shorter than the kernel's, dilation and causality.
#[test]
fn work_is_what_the_plan_says() {
    for kernel in on_tiles() {
        let tile = kernel.tile().expect("on tiles");
        let dim = kernel.longest_row();
        let plain = Case::new([1, 14, 30], Params::new([1, 5, 11])).heads(2, 2).dims(dim, dim);
        let all = Params::new([1, 3, 9]).dilation([1, 2, 3]).is_causal([false, true, false]);
        let all = Case { batch: 2, ..Case::new([1, 14, 30], all).heads(2, 1).dims(dim - 8, dim - 16) };
        for (mut case, additional) in [(plain.clone(), 0), (plain, 70), (all, 5)] {
            case.additional = additional;
            let tiling = Tiling {
                query_tile: [1, 8, tile.queries / 8],
                key_tile: [1, 4, tile.keys / 4],
                key_start: KeyStart::Dynamic,
            };
            let counters = check_kernel(kernel, &case, Some(tiling));
            let problem = Operands::<f16>::draw(&case).problem(&case.params);
            let counts = TileCounts::of(&problem, &tiling);
            let heads = (case.batch * case.heads) as u64;
            assert_eq!(
                counters.mma_flops,
                heads * counts.issued * 4 * dim as u64,
                "{} {case:?}",
                kernel.entry
            );
            assert_eq!(
                counters.global_load_bytes,
                bytes_read(&problem, &tiling),
                "{} {case:?}",
                kernel.entry
            );
            assert_eq!(counters.shared_bank_conflicts, 0, "{} {case:?}", kernel.entry);
        }
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
            check::<f16>(kernel, &case, Some(tiling));
        }
    }
}
