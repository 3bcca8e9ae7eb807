//! Which backward passes run on this family, on which kernels, in how many launches.

use natten_core::{AttentionParams, ElementType, Inputs, Layout, Params, Problem};

use crate::choose::choose;
use crate::device::Properties;
use crate::explain::explain;
use crate::families::sm80::tests::{device, problem};
use crate::family::{Offer, Pass, Query, Request};
use crate::views::Views;

const HALF: ElementType = ElementType::Bf16;

fn offered(problem: &Problem, is_aligned: bool, properties: &Properties, request: &Request) -> Offer {
    let mut views = Views::dense(problem).with_dense_backward();
    views.is_aligned = is_aligned;
    let choice = choose(&Query::new(Pass::Backward(problem), &views, properties, request)).unwrap();
    (*choice.offer).clone()
}

/// The kernels that an A100 is given, with their ctas.
fn launched(problem: &Problem) -> Vec<(&'static str, [u32; 3])> {
    let offer = offered(problem, true, &device(108, 163), &Request::default());
    offer.launches.iter().map(|launch| (launch.kernel.entry, launch.grid)).collect()
}

#[test]
fn large_windows_run_on_both_passes() {
    let video = problem([30, 48, 80], 24, 128, Params::new([18, 24, 24]).stride([16, 8, 8]), HALF);
    // Where shared memory holds 128 queries just once, 64 are taken.
    let (of_queries, of_keys) =
        ("natten_backward_query_sm80_bf16_d128_q64_k32", "natten_backward_key_sm80_bf16_d128_q32_k64");
    let boxes = 30 * 48 * 80 / 64 * 24;
    let roomy = offered(&video, true, &device(132, 227), &Request::default());
    assert_eq!(roomy.bid.kernel.entry, "natten_backward_query_sm80_bf16_d128_q128_k32");
    let entries: Vec<_> = launched(&video).into_iter().map(|(entry, grid)| (entry, grid[1])).collect();
    assert_eq!(entries, [("natten_delta_bf16", 1), (of_queries, 1), (of_keys, 1)]);
    assert!(launched(&video)[1].1[0] >= boxes);
    let views = Views::dense(&video).with_dense_backward();
    let (properties, request) = (device(108, 163), Request::default());
    let query = Query::new(Pass::Backward(&video), &views, &properties, &request);
    let decisions = explain(&query).unwrap();
    let told: Vec<_> = decisions.iter().map(|decision| decision.kernel).collect();
    assert_eq!(told, [of_queries, of_keys]);
    assert!(decisions.iter().all(|decision| (1.0..1.1).contains(&decision.issued_over_useful)));
}

/// Partial sums are there where boxes of keys are few, in the workspace after the statistics, whatever the device.
#[test]
fn few_keys_are_shared() {
    let layout = |tokens| Layout::contiguous(&[1, tokens, 1, 64]).unwrap();
    let inputs = Inputs::new(layout(5000), layout(100), layout(100));
    let problem = Problem::attention(&AttentionParams::new(), &inputs, HALF).unwrap();
    let [small, large] = [1, 200].map(|count| device(count, 163));
    let small = offered(&problem, true, &small, &Request::default());
    // On more multiprocessors another family may be faster.
    let entry = Some(small.bid.kernel.entry);
    let large = offered(&problem, true, &large, &Request { entry, ..Request::default() });
    let grids = |offer: &Offer| -> Vec<_> { offer.launches.iter().map(|launch| launch.grid).collect() };
    assert_eq!(grids(&small), grids(&large));
    let (keys, splits) = (small.launches[2].grid[0], small.launches[2].grid[1]);
    assert_eq!((keys, splits, small.launches.len()), (1, 39, 5));
    assert_eq!(small.workspace_bytes, 5000 * 8 + 2 * 100 * 64 * 4 * splits as usize + 192);
}

#[test]
fn what_goes_elsewhere() {
    let video = problem([30, 48, 80], 2, 64, Params::new([18, 24, 24]), HALF);
    let request = Request::default();
    let leads = |problem: &Problem, is_aligned, kib| {
        offered(problem, is_aligned, &device(108, kib), &request).bid.kernel.entry
    };
    assert_eq!(leads(&video, true, 99), "natten_backward_query_sm80_bf16_d64_q128_k32");
    assert!(leads(&video, false, 163).contains("_simt_"));
    assert!(leads(&video, true, 48).contains("_simt_"));
    let single = problem([30, 48, 80], 2, 64, Params::new([18, 24, 24]), ElementType::F32);
    assert!(leads(&single, true, 163).contains("_simt_f32_"));
    // Of Hopper's kernels the faster are taken there, and these by name.
    let hopper = Properties {
        compute_capability: crate::capability::ComputeCapability { major: 9, minor: 0 },
        ..device(132, 227)
    };
    let entry = "natten_backward_query_sm80_bf16_d64_q128_k32";
    let asked = offered(&video, true, &hopper, &Request { entry: Some(entry), ..Request::default() });
    let entries: Vec<_> = asked.launches.iter().map(|launch| launch.kernel.entry).collect();
    assert_eq!(entries[1..], [entry, "natten_backward_key_sm80_bf16_d64_q32_k128"]);
}
