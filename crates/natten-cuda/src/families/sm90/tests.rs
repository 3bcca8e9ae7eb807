//! Whether forward passes run on this family or on another, against times that were measured.

use natten_core::{ElementType, Inputs, Layout, Params, Problem};

use crate::capability::ComputeCapability;
use crate::choose::ask;
use crate::cost::traffic;
use crate::device::Properties;
use crate::explain::{Decision, explain};
use crate::family::{Bid, Pass, Query, Request};
use crate::rejection::RejectionReason;
use crate::views::Views;

fn h100() -> Properties {
    Properties {
        name: "H100".to_owned(),
        compute_capability: ComputeCapability { major: 9, minor: 0 },
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        memory_bytes: 80 << 30,
    }
}

fn problem<const RANK: usize>(
    tokens: [usize; RANK],
    heads: usize,
    hd: usize,
    params: Params<RANK>,
) -> Problem {
    let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([heads, hd]).collect();
    let layout = Layout::contiguous(&shape).unwrap();
    Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::Bf16).unwrap()
}

fn image(heads: usize, head_dim: usize, stride: usize) -> Problem {
    problem([64, 64], heads, head_dim, Params::new([16, 16]).stride([stride, stride]))
}

fn line(head_dim: usize, stride: usize) -> Problem {
    problem([32768], 1, head_dim, Params::new([2048]).stride([stride]))
}

fn flux(head_dim: usize, stride: usize) -> Problem {
    problem([256, 256], 24, head_dim, Params::new([80, 80]).stride([stride, stride]))
}

fn hunyuan(head_dim: usize, stride: [usize; 3]) -> Problem {
    problem([30, 48, 80], 24, head_dim, Params::new([18, 24, 24]).stride(stride))
}

fn cosmos(head_dim: usize, window: [usize; 3], stride: [usize; 3]) -> Problem {
    problem([16, 44, 80], 32, head_dim, Params::new(window).stride(stride))
}

/// N1 and N2.
fn dilated(side: usize, head_dim: usize) -> Problem {
    problem([side, side], 4, head_dim, Params::new([9, 9]).dilation([16, 16]))
}

/// Problems of tests/gpu/problems.json with their milliseconds in bf16 (docs/performance.md, section 6): on this family on an H200 in one run,
/// where it was timed, and on sm80 on an H100.
fn measured() -> Vec<(Problem, Option<f64>, f64)> {
    let few = |tokens, heads, window| problem(tokens, heads, 64, Params::new(window));
    let [every, long, short] = [[1, 1, 1], [16, 32, 48], [16, 24, 16]];
    let sparse = [16, 8, 8];
    let small = Params::new([7, 7]);
    let both = [
        (line(32, 1), 0.0420, 0.0450),
        (line(64, 1), 0.0463, 0.0622),
        (line(128, 1), 0.0582, 0.106),
        (line(256, 1), 0.105, 0.240),
        (line(32, 256), 0.0384, 0.0404),
        (line(64, 256), 0.0430, 0.0572),
        (line(128, 256), 0.0599, 0.0961),
        (line(32, 2048), 0.0386, 0.0403),
        (line(64, 2048), 0.0424, 0.0560),
        (line(128, 2048), 0.0538, 0.0933),
        (line(256, 2048), 0.0992, 0.231),
        (image(24, 32, 1), 0.0511, 0.0528),
        (image(24, 64, 1), 0.0543, 0.0728),
        (image(24, 128, 1), 0.0650, 0.115),
        (image(24, 256, 1), 0.119, 0.207),
        (image(24, 32, 8), 0.0312, 0.0274),
        (image(24, 64, 8), 0.0341, 0.0415),
        (image(24, 128, 8), 0.0431, 0.0707),
        (image(24, 32, 16), 0.0267, 0.0264),
        (image(24, 64, 16), 0.0294, 0.0355),
        (image(24, 128, 16), 0.0350, 0.0553),
        (image(24, 256, 16), 0.0719, 0.121),
        (flux(32, 1), 5.03, 6.72),
        (flux(64, 1), 6.29, 9.00),
        (flux(128, 1), 9.60, 15.7),
        (flux(256, 1), 17.9, 36.3),
        (flux(32, 16), 3.83, 5.00),
        (flux(64, 16), 4.92, 7.16),
        (flux(128, 16), 8.04, 12.5),
        (flux(256, 16), 14.7, 31.8),
        (hunyuan(32, every), 19.7, 26.4),
        (hunyuan(64, every), 21.4, 34.5),
        (hunyuan(128, every), 35.3, 61.9),
        (hunyuan(256, every), 74.5, 136.0),
        (hunyuan(32, sparse), 10.2, 14.2),
        (hunyuan(64, sparse), 13.4, 21.1),
        (hunyuan(128, sparse), 22.4, 37.2),
        (hunyuan(256, sparse), 42.5, 97.5),
        (problem([30, 48, 80], 24, 128, Params::new([30, 40, 40])), 114.9, 183.0),
        (cosmos(128, long, every), 34.7, 61.1),
        (cosmos(128, long, [1, 16, 16]), 33.7, 55.8),
        (cosmos(64, short, every), 6.20, 9.78),
        (cosmos(128, short, every), 9.94, 16.5),
        (cosmos(128, short, [1, 8, 16]), 8.35, 14.6),
        (problem([56, 56], 4, 32, small), 0.0111, 0.0100),
        (problem([64, 64], 8, 64, Params::new([13, 13])), 0.0201, 0.0309),
        (few([16, 32, 32], 4, [7, 11, 11]), 0.0880, 0.177),
        (problem([8192], 4, 64, Params::new([257])), 0.0182, 0.0196),
        (few([16, 32, 48], 16, [3, 7, 7]), 0.184, 0.330),
        (few([16, 64, 96], 8, [3, 7, 7]), 0.344, 0.672),
        (few([32, 64, 96], 4, [3, 5, 5]), 0.240, 0.440),
        (few([64, 256, 384], 2, [3, 3, 3]), 2.89, 5.71),
        (dilated(512, 64), 0.298, 0.415),
        (dilated(511, 64), 0.316, 0.411),
        (dilated(512, 128), 0.412, 0.665),
        (dilated(511, 128), 0.425, 0.666),
        (dilated(512, 32), 0.276, 0.300),
    ];
    // Those that this family was not timed on.
    let one = [(dilated(512, 8), 0.309), (problem([56, 56], 4, 32, small.dilation([8, 8])), 0.0068)];
    let both = both.into_iter().map(|(problem, own, other)| (problem, Some(own), other));
    both.chain(one.into_iter().map(|(problem, other)| (problem, None, other))).collect()
}

/// The best bid of each family that has one, by its name.
fn bids(problem: &Problem, properties: &Properties) -> Vec<(&'static str, Bid)> {
    let (views, request) = (Views::dense(problem), Request::default());
    let query = Query::new(Pass::Forward(problem), &views, properties, &request);
    let mut best: Vec<(&'static str, Bid)> = Vec::new();
    ask(&query, 1, |family, _, answer| {
        for bid in answer.into_iter().flatten() {
            match best.iter_mut().find(|(name, _)| *name == family.name()) {
                Some((_, other)) if bid.microseconds < other.microseconds => *other = bid,
                Some(_) => {}
                None => best.push((family.name(), bid)),
            }
        }
    });
    best
}

fn bid_of(problem: &Problem, family: &str) -> Bid {
    bids(problem, &h100()).into_iter().find(|(name, _)| *name == family).expect("it offers").1
}

fn decide(problem: &Problem, is_aligned: bool, properties: &Properties, request: &Request) -> Decision {
    let mut views = Views::dense(problem);
    views.is_aligned = is_aligned;
    let query = Query::new(Pass::Forward(problem), &views, properties, request);
    explain(&query).unwrap().into_iter().next().unwrap()
}

fn decide_on_h100(problem: &Problem) -> Decision {
    decide(problem, true, &h100(), &Request::default())
}

fn is_own(decision: &Decision) -> bool {
    decision.kernel.contains("sm90")
}

/// The reason against the family: that of its kernels for the element type and the rows.
fn reason(decision: &Decision, kernel: &str) -> RejectionReason {
    decision.rejections.0.iter().find(|one| one.kernel == kernel).expect(kernel).reason
}

#[test]
fn predictions_are_near_what_was_measured() {
    for (problem, own, other) in measured() {
        let times = [("sm90", own), ("sm80", Some(other))];
        for (family, measured) in times {
            let Some(measured) = measured else { continue };
            let predicted = bid_of(&problem, family).microseconds.max(traffic(&Pass::Forward(&problem)));
            let ratio = predicted / measured / 1e3;
            let told = format!("{family}: {predicted} us, measured {measured} ms: {problem:?}");
            assert!((0.78..1.15).contains(&ratio), "{told}");
        }
    }
}

/// Whole backwards of docs/performance.md, in milliseconds.
#[test]
fn predictions_of_backwards_are_near_what_was_measured() {
    let few = |tokens, heads, window| problem(tokens, heads, 64, Params::new(window));
    for (problem, measured) in [
        (line(32, 1), 0.124),
        (line(64, 1), 0.157),
        (line(128, 1), 0.243),
        (line(256, 1), 0.600),
        (image(24, 32, 1), 0.165),
        (image(24, 64, 1), 0.197),
        (image(24, 128, 1), 0.279),
        (image(24, 256, 1), 0.656),
        (image(24, 32, 16), 0.103),
        (image(24, 64, 16), 0.118),
        (image(24, 128, 16), 0.206),
        (image(24, 256, 16), 0.407),
        (flux(128, 1), 38.8),
        (flux(128, 16), 29.2),
        (flux(64, 16), 18.6),
        (hunyuan(128, [1, 1, 1]), 141.0),
        (hunyuan(128, [16, 8, 8]), 89.2),
        (hunyuan(64, [16, 8, 8]), 55.0),
        (hunyuan(32, [16, 8, 8]), 39.6),
        (hunyuan(256, [16, 8, 8]), 266.0),
        (problem([64, 64], 8, 64, Params::new([13, 13])), 0.0715),
        (few([16, 32, 32], 4, [7, 11, 11]), 0.442),
        (few([16, 32, 48], 16, [3, 7, 7]), 0.839),
        (few([16, 64, 96], 8, [3, 7, 7]), 1.69),
        (few([32, 64, 96], 4, [3, 5, 5]), 1.29),
        (few([33, 136, 240], 4, [11, 11, 11]), 31.9),
    ] {
        let (views, request, properties) =
            (Views::dense(&problem).with_dense_backward(), Request::default(), h100());
        let query = Query::new(Pass::Backward(&problem), &views, &properties, &request);
        let decision = explain(&query).unwrap().into_iter().next().unwrap();
        let ratio = decision.microseconds / measured / 1e3;
        assert!(is_own(&decision) && (0.85..1.15).contains(&ratio), "{ratio}: {decision:?}");
    }
}

/// The walking kernels' times of docs/performance.md.
#[test]
fn predictions_of_walking_are_near_what_was_measured() {
    let few = |tokens, heads, window| problem(tokens, heads, 64, Params::new(window));
    let small = problem([56, 56], 4, 32, Params::new([7, 7]));
    for (problem, measured) in [
        (line(128, 1), 2.41),
        (line(128, 256), 2.51),
        (line(128, 2048), 2.75),
        (image(24, 128, 1), 0.955),
        (image(24, 128, 8), 0.953),
        (image(24, 128, 16), 1.09),
        (few([16, 32, 48], 16, [3, 7, 7]), 1.23),
        (few([16, 64, 96], 8, [3, 7, 7]), 2.52),
        (few([32, 64, 96], 4, [3, 5, 5]), 1.55),
        (few([64, 256, 384], 2, [3, 3, 3]), 13.9),
        (dilated(512, 64), 2.12),
        (dilated(512, 8), 0.455),
        (dilated(512, 32), 1.07),
        (dilated(512, 128), 4.23),
        (dilated(511, 64), 2.13),
        (dilated(511, 128), 4.22),
        (small, 0.0410),
        (problem([64, 64], 8, 64, Params::new([13, 13])), 0.127),
        (few([16, 32, 32], 4, [7, 11, 11]), 1.18),
        (problem([8192], 4, 64, Params::new([257])), 0.178),
    ] {
        let predicted = bid_of(&problem, "simt").microseconds;
        let ratio = predicted / measured / 1e3;
        let told = format!("{predicted} us, measured {measured} ms: {problem:?}");
        assert!((0.7..1.22).contains(&ratio), "{told}");
    }
}

/// Where both families were timed, the slower one is taken only where they are as good as equal.
#[test]
fn the_faster_family_is_taken() {
    for (problem, own, other) in measured() {
        let Some(own) = own else { continue };
        let taken = decide_on_h100(&problem);
        assert!(taken.tiling.is_some(), "{problem:?}");
        let time = if is_own(&taken) { own } else { other };
        assert!(time <= 1.03 * own.min(other), "{own} ms, on sm80 {other} ms, {taken:?}: {problem:?}");
    }
}

#[test]
fn short_rows_and_small_windows_go_to_the_faster_family() {
    let slower = reason(&decide_on_h100(&image(24, 32, 8)), "natten_forward_sm90_bf16_d32");
    assert!(
        matches!(slower, RejectionReason::PredictedSlower { than, .. } if than.contains("sm80_bf16_d32"))
    );
    assert!(slower.to_string().starts_with("would take "), "{slower}");
    let tiny = problem([512, 512], 1, 32, Params::new([1, 1]));
    assert!(!is_own(&decide_on_h100(&tiny)));
    let wasted = reason(&decide_on_h100(&tiny), "natten_forward_sm90_bf16_d32");
    assert!(matches!(wasted, RejectionReason::WastedScores { .. }), "{wasted}");
    // What is asked for by name runs.
    let entry = Some("natten_forward_sm90_bf16_d32");
    let asked = decide(&tiny, true, &h100(), &Request { entry, ..Request::default() });
    assert_eq!(Some(asked.kernel), entry);
}

/// Residues of four lengths are four launches: nothing to a large image, all the difference to a small one.
#[test]
fn every_length_of_residues_costs_a_launch() {
    let squares = |side: usize, window: usize| {
        [side, side - 1].map(|side| {
            let params = Params::new([window, window]).dilation([2, 2]);
            problem([side, side], 8, 128, params)
        })
    };
    let own = |problem: &Problem| bid_of(problem, "sm90").microseconds;
    let [even, uneven] = squares(512, 80);
    let (whole, parts) = (own(&even), own(&uneven));
    assert!((parts / whole - 1.0).abs() < 0.1, "{parts} us, in one launch {whole}");
    assert!(is_own(&decide_on_h100(&uneven)));
    let [even, uneven] = squares(64, 16);
    let (whole, parts) = (own(&even), own(&uneven));
    assert!(parts > whole + 12.0, "{parts} us, in one launch {whole}");
    assert!(is_own(&decide_on_h100(&even)));
    let slower = reason(&decide_on_h100(&uneven), "natten_forward_sm90_bf16_d128");
    assert!(matches!(slower, RejectionReason::PredictedSlower { .. }), "{slower}");
}

#[test]
fn what_the_family_cannot_do() {
    let video = problem([30, 48, 80], 24, 128, Params::new([18, 24, 24]));
    let kernel = "natten_forward_sm90_bf16_d128";
    let unaligned = decide(&video, false, &h100(), &Request::default());
    assert_eq!(reason(&unaligned, kernel), RejectionReason::Alignment);
    let older = Properties { compute_capability: ComputeCapability { major: 8, minor: 9 }, ..h100() };
    let on_older = decide(&video, true, &older, &Request::default());
    assert!(matches!(reason(&on_older, kernel), RejectionReason::OnlyOn { .. }));
    let long = decide_on_h100(&problem([64], 1, 264, Params::new([64])));
    assert_eq!(long.kernel, "natten_forward_simt_bf16_d512");
    let own = reason(&long, "natten_forward_sm90_bf16_d256");
    assert_eq!(own, RejectionReason::HeadDim { max: 256, found: 264 });
}

/// Tensors without strides along an axis may claim any number of tokens: a backward of so many is refused before its tiles are
/// counted one by one.
#[test]
fn endless_axes_are_refused_at_once() {
    let endless = Layout::strided(&[1, 1 << 45, 1, 64], &[0, 0, 0, 1]).unwrap();
    let inputs = Inputs::new(endless, endless, endless);
    let problem = Problem::new(&Params::new([3]).to_dyn(), &inputs, ElementType::Bf16).unwrap();
    let (device, request, views) = (h100(), Request::default(), Views::dense(&problem));
    let query = Query::new(Pass::Backward(&problem), &views, &device, &request);
    let mut refused = 0;
    ask(&query, 1, |family, _, answer| {
        let reason = RejectionReason::TooManyTokens { found: 1 << 45 };
        refused += usize::from(family.name() == "sm90" && matches!(&answer, Err(found) if *found == reason));
    });
    assert!(refused > 0);
}
