//! Which forward passes run on this family, with which tiles, and why others do not.

use std::sync::Arc;

use natten_core::plan::{KeyStart, Tiling};
use natten_core::{ElementType, Inputs, Layout, Params, Problem};

use crate::capability::ComputeCapability;
use crate::choose::choose;
use crate::device::Properties;
use crate::error::CudaError;
use crate::explain::{Decision, explain};
use crate::family::{Offer, Pass, Query, Request};
use crate::rejection::{RejectionReason, Rejections};
use crate::views::Views;

pub(super) fn device(multiprocessors: u32, shared_kib: usize) -> Properties {
    Properties {
        name: "a device".to_owned(),
        compute_capability: ComputeCapability { major: 8, minor: 0 },
        multiprocessors,
        shared_bytes_per_block: shared_kib << 10,
        memory_bytes: 1 << 34,
    }
}

pub(super) fn problem<const RANK: usize>(
    tokens: [usize; RANK],
    heads: usize,
    head_dim: usize,
    params: Params<RANK>,
    element_type: ElementType,
) -> Problem {
    let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([heads, head_dim]).collect();
    let layout = Layout::contiguous(&shape).unwrap();
    Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), element_type).unwrap()
}

fn decide(
    problem: &Problem,
    is_aligned: bool,
    properties: &Properties,
    request: &Request,
) -> Result<Decision, CudaError> {
    let mut views = Views::dense(problem);
    views.is_aligned = is_aligned;
    let query = Query::new(Pass::Forward(problem), &views, properties, request);
    explain(&query).map(|decisions| decisions.into_iter().next().unwrap())
}

fn chosen(problem: &Problem, properties: &Properties) -> Decision {
    decide(problem, true, properties, &Request::default()).unwrap()
}

fn offered(problem: &Problem, properties: &Properties, request: &Request) -> Arc<Offer> {
    let views = Views::dense(problem);
    choose(&Query::new(Pass::Forward(problem), &views, properties, request)).unwrap().offer
}

fn reason(decision: &Decision, entry: &str) -> String {
    decision.rejections.0.iter().find(|r| r.kernel == entry).expect(entry).reason.to_string()
}

#[test]
fn large_windows_run_on_large_tiles() {
    let video = problem([30, 48, 80], 24, 128, Params::new([18, 24, 24]), ElementType::Bf16);
    let choice = chosen(&video, &device(108, 163));
    assert_eq!(choice.kernel, "natten_forward_sm80_bf16_d128_q128_k64");
    let tiling = choice.tiling.unwrap();
    assert_eq!((tiling.query_tile.iter().product(), tiling.key_tile.iter().product()), (128usize, 64usize));
    assert!(choice.issued_over_useful < 1.6);
    let other = "natten_forward_sm80_bf16_d128_q64_k64";
    assert_eq!(reason(&choice, other), format!("would take longer than {}", choice.kernel));
}

#[test]
fn few_tiles_are_made_smaller() {
    let image = problem([64, 64], 4, 64, Params::new([16, 16]).stride([8, 8]), ElementType::F16);
    assert_eq!(chosen(&image, &device(108, 163)).kernel, "natten_forward_sm80_f16_d64_q64_k64");
}

#[test]
fn tiny_windows_walk() {
    let small = problem([64, 96], 2, 64, Params::new([3, 3]), ElementType::Bf16);
    let choice = chosen(&small, &device(108, 163));
    assert_eq!(choice.kernel, "natten_forward_simt_bf16_d64");
    assert!(
        reason(&choice, "natten_forward_sm80_bf16_d64_q64_k64").contains("% of the scores in the windows")
    );
}

#[test]
fn what_tiles_cannot_do() {
    let params = Params::new([200]);
    let single = problem([400], 1, 64, params, ElementType::F32);
    assert_eq!(chosen(&single, &device(108, 163)).kernel, "natten_forward_simt_f32_d64");
    let half = problem([400], 1, 128, params, ElementType::F16);
    let small = chosen(&half, &device(108, 64));
    assert!(reason(&small, "natten_forward_sm80_f16_d128_q64_k64").starts_with("needs 70400 bytes"));
    let choice = decide(&half, false, &device(108, 163), &Request::default()).unwrap();
    assert!(choice.tiling.is_none() && choice.kernel.ends_with("_unaligned"));
    let wide = problem([70_000], 1, 64, Params::new([50_000]).stride([40_000]), ElementType::F16);
    let choice = chosen(&wide, &device(108, 163));
    assert!(reason(&choice, "natten_forward_sm80_f16_d64_q128_k64").contains("stride up to 32768"));
}

#[test]
fn requests_are_met_or_refused() {
    let half = problem([40, 40], 1, 64, Params::new([3, 3]), ElementType::F16);
    let entry = Some("natten_forward_sm80_f16_d64_q64_k64");
    let tiling = Tiling { query_tile: [1, 4, 16], key_tile: [1, 2, 32], key_start: KeyStart::Dynamic };
    let request = Request { entry, tiling: Some(tiling), ..Request::default() };
    let choice = decide(&half, true, &device(1, 163), &request).unwrap();
    assert_eq!((Some(choice.kernel), choice.tiling), (entry, Some(tiling)));
    let wrong = Tiling { key_tile: [1, 3, 21], ..tiling };
    let asked = Request { entry, tiling: Some(wrong), ..Request::default() };
    let Err(CudaError::Unsupported(Rejections(reasons))) = decide(&half, true, &device(1, 163), &asked)
    else {
        panic!("no such boxes");
    };
    assert!(!reasons.is_empty() && reasons.iter().all(|r| r.reason == RejectionReason::NotAskedFor));
}

/// A choice that was kept is the one that is made anew, and belongs to its device and request alone.
#[test]
fn choices_are_kept_apart() {
    let image = problem([64, 64], 4, 64, Params::new([16, 16]).stride([8, 8]), ElementType::F16);
    let anything = Request::default();
    let [many, again, one] = [108, 108, 1].map(|count| offered(&image, &device(count, 163), &anything));
    assert!(Arc::ptr_eq(&many, &again) && !Arc::ptr_eq(&many, &one));
    let entry = Some("natten_forward_sm80_f16_d64_q128_k64");
    let asked = offered(&image, &device(108, 163), &Request { entry, ..Request::default() });
    assert_eq!(Some(asked.bid.kernel.entry), entry);
    assert_ne!(Some(many.bid.kernel.entry), entry);
    // Another scale is another parameter.
    let params = Params::new([16, 16]).stride([8, 8]).scale(0.5);
    let scaled = offered(&problem([64, 64], 4, 64, params, ElementType::F16), &device(108, 163), &anything);
    assert_ne!(scaled.launches[0].params, many.launches[0].params);
}
