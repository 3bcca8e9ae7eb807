//! Shapes, flags and layouts: all that the operator allows, on every kernel.

use natten_core::{Params, bf16, f16};

use crate::case::{Case, emulated, verify};

fn check(case: Case) {
    let cuda = emulated();
    if let Err(error) = verify::<f32>(&cuda, &case) {
        panic!("{error}\n{case:?}");
    }
}

/// Every element type and row length: each kernel of the registry runs here at least once.
#[test]
fn every_kernel() {
    let cuda = emulated();
    let params = Params::new([1, 3, 3]).dilation([1, 1, 2]).is_causal([false, true, false]);
    let aligned = [(8, 8), (16, 32), (64, 64), (40, 64), (128, 72), (256, 8)];
    let unaligned = [(5, 3), (63, 64), (1, 1), (255, 129), (33, 200)];
    for (head_dim, head_dim_v) in aligned.into_iter().chain(unaligned) {
        let mut case = Case::new([1, 4, 7], params).dims(head_dim, head_dim_v).heads(2, 1);
        case.additional = 1;
        for (name, result) in [
            ("f32", verify::<f32>(&cuda, &case)),
            ("f16", verify::<f16>(&cuda, &case)),
            ("bf16", verify::<bf16>(&cuda, &case)),
        ] {
            assert!(result.is_ok(), "{name} {case:?}: {}", result.unwrap_err());
        }
    }
    let run: Vec<_> = cuda.device().take_counters().into_keys().collect();
    let shipped = natten_cuda::registry::kernels().map(|kernel| kernel.entry);
    let others = ["natten_merge_f32", "natten_merge_f16", "natten_merge_bf16", "natten_window_dump"];
    let missed: Vec<_> = shipped.filter(|entry| !run.contains(entry) && !others.contains(entry)).collect();
    assert!(missed.is_empty(), "never ran: {missed:?}");
}
