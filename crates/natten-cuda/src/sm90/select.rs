//! Whether a kernel of this family runs a forward pass: it must be able to, and be predicted to end before what the
//! other families offer.
//!
//! Both times come from exact counts of tiles and a few measured rates; only their ratio matters.

use natten_core::window::Axis;
use natten_core::{ElementType, Problem};

use super::classes::classes;
use super::kept::Kept;
use super::rates::{predict, predict_other, traffic};
use super::{Boxes, CAPABILITY, KERNELS, Kernel, boxes_as};
use crate::device::Properties;
use crate::select::{LayoutSummary, RejectionReason};
use crate::tiles::{self, Request};

/// The kernel that runs a forward pass, or the reason against the family. Views may still turn out to have no tensor map.
pub(crate) fn select(
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    request: &Request,
) -> Result<&'static Kernel, RejectionReason> {
    let found = properties.compute_capability;
    if found != CAPABILITY {
        return Err(RejectionReason::OnlyOn { only: CAPABILITY, found });
    }
    if request.entry.is_some_and(|entry| KERNELS.iter().all(|k| k.entry != entry)) {
        return Err(RejectionReason::NotAskedFor);
    }
    if !layout.is_aligned {
        return Err(RejectionReason::Alignment);
    }
    let (kernel, boxes) = boxes_as(problem, problem.axes(), request, properties.multiprocessors)?;
    if *request != Request::default() {
        return Ok(kernel);
    }
    verdict(problem, layout, properties, kernel, &boxes).map_or(Ok(kernel), Err)
}

/// What a verdict depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    axes: [Axis; 3],
    counts: [usize; 5],
    element_type: ElementType,
    multiprocessors: u32,
}

static VERDICTS: Kept<Key, Option<RejectionReason>> = Kept::new();

/// The reason against the kernel if another family is faster.
fn verdict(
    problem: &Problem,
    layout: LayoutSummary,
    properties: &Properties,
    kernel: &Kernel,
    boxes: &Boxes,
) -> Option<RejectionReason> {
    let compare = || {
        let other = tiles::choose(problem, layout, properties, &Request::default()).ok()?;
        let classes = classes(problem.axes());
        let heads = problem.batch() * problem.heads();
        let own = predict(kernel, boxes, &classes, heads, properties.multiprocessors);
        let times = [own, predict_other(problem, &other, properties)];
        let least = traffic(problem);
        let [own_nanoseconds, nanoseconds] = times.map(|microseconds| (microseconds.max(least) * 1e3) as u64);
        let than = other.kernel.entry;
        (nanoseconds < own_nanoseconds).then_some(RejectionReason::PredictedSlower {
            than,
            nanoseconds,
            own_nanoseconds,
        })
    };
    if problem.is_packed() {
        return compare();
    }
    let counts = [
        problem.batch(),
        problem.heads(),
        problem.head_dim(),
        problem.head_dim_v(),
        problem.additional_keys(),
    ];
    let key = Key {
        axes: *problem.axes(),
        counts,
        element_type: problem.element_type(),
        multiprocessors: properties.multiprocessors,
    };
    VERDICTS.get_or(key, compare)
}

#[cfg(test)]
mod tests {
    use natten_core::{Inputs, Layout, Params};

    use super::*;
    use crate::select::ComputeCapability;
    use crate::sm90::boxes;

    const ALIGNED: LayoutSummary = LayoutSummary { is_aligned: true };

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

    /// Problems with their milliseconds on an H100, on this family and on sm80 (docs/performance.md, section 6).
    fn measured() -> Vec<(&'static str, Problem, f64, f64)> {
        let line = Params::new([2048]);
        let plane = Params::new([80, 80]);
        let video = Params::new([18, 24, 24]);
        let few = |tokens, heads, window| problem(tokens, heads, 64, Params::new(window));
        vec![
            ("1-D", problem([32768], 1, 128, line), 0.0643, 0.106),
            ("1-D, s2048", problem([32768], 1, 128, line.stride([2048])), 0.0578, 0.095),
            ("2-D", image(24, 128, 1), 0.0857, 0.128),
            ("2-D, s8", image(24, 128, 8), 0.0622, 0.075),
            ("2-D, s16", image(24, 128, 16), 0.0516, 0.059),
            ("FLUX", problem([256, 256], 24, 128, plane), 9.99, 16.0),
            ("FLUX, s16", problem([256, 256], 24, 128, plane.stride([16, 16])), 7.84, 12.5),
            ("Hunyuan", problem([30, 48, 80], 24, 128, video), 42.2, 65.3),
            ("Hunyuan, s16", problem([30, 48, 80], 24, 128, video.stride([16, 8, 8])), 25.3, 35.5),
            ("Cosmos", problem([16, 44, 80], 32, 128, Params::new([16, 24, 16])), 10.6, 15.9),
            ("L0", few([16, 32, 48], 16, [3, 7, 7]), 0.308, 0.375),
            ("L1", few([16, 64, 96], 8, [3, 7, 7]), 0.614, 0.755),
            ("L2", few([32, 64, 96], 4, [3, 5, 5]), 0.489, 0.498),
            ("L4", few([64, 256, 384], 2, [3, 3, 3]), 6.38, 6.74),
            ("C3", problem([64, 64], 8, 64, Params::new([13, 13])), 0.0258, 0.033),
        ]
    }

    #[test]
    fn predictions_are_near_what_was_measured() {
        let properties = h100();
        for (name, problem, own, other) in measured() {
            let (kernel, boxes) = boxes(&problem, problem.axes(), None, properties.multiprocessors).unwrap();
            let choice = tiles::choose(&problem, ALIGNED, &properties, &Request::default()).unwrap();
            assert!(choice.tiling.is_some(), "{name}");
            let heads = problem.batch() * problem.heads();
            let predicted = [
                predict(kernel, &boxes, &classes(problem.axes()), heads, properties.multiprocessors),
                predict_other(&problem, &choice, &properties),
            ];
            for (predicted, measured) in predicted.into_iter().zip([own, other]) {
                let ratio = predicted.max(traffic(&problem)) / measured / 1e3;
                assert!((0.75..1.25).contains(&ratio), "{name}: {predicted} us, measured {measured} ms");
            }
            assert!(select(&problem, ALIGNED, &properties, &Request::default()).is_ok(), "{name}");
        }
    }

    #[test]
    fn short_rows_and_small_windows_go_to_the_faster_family() {
        let reason = |problem: &Problem| select(problem, ALIGNED, &h100(), &Request::default()).unwrap_err();
        let slower = reason(&image(24, 32, 8));
        assert!(
            matches!(slower, RejectionReason::PredictedSlower { than, .. } if than.contains("sm80_bf16_d32"))
        );
        assert!(slower.to_string().starts_with("would take "), "{slower}");
        let tiny = problem([512, 512], 1, 32, Params::new([1, 1]));
        assert!(matches!(reason(&tiny), RejectionReason::PredictedSlower { .. }));
        // What is asked for by name runs.
        let entry = Some("natten_forward_sm90_bf16_d32");
        let request = Request { entry, tiling: None };
        assert_eq!(select(&tiny, ALIGNED, &h100(), &request).map(|kernel| kernel.entry).ok(), entry);
    }

    /// Residues of four lengths are four launches: nothing to a large image, all the difference to a small one.
    #[test]
    fn every_length_of_residues_costs_a_launch() {
        let own = |problem: &Problem| {
            let (kernel, boxes) = boxes(problem, problem.axes(), None, 132).unwrap();
            let classes = classes(problem.axes());
            (classes.len(), predict(kernel, &boxes, &classes, problem.heads(), 132))
        };
        let squares = |side: usize, window: usize| {
            [side, side - 1].map(|side| {
                let params = Params::new([window, window]).dilation([2, 2]);
                problem([side, side], 8, 128, params)
            })
        };
        let [even, uneven] = squares(512, 80);
        let ((one, whole), (four, parts)) = (own(&even), own(&uneven));
        assert_eq!((one, four), (1, 4));
        assert!((parts / whole - 1.0).abs() < 0.1, "{parts} us, in one launch {whole}");
        assert!(select(&uneven, ALIGNED, &h100(), &Request::default()).is_ok());
        let [even, uneven] = squares(64, 16);
        let ((_, whole), (_, parts)) = (own(&even), own(&uneven));
        assert!(parts > whole + 12.0, "{parts} us, in one launch {whole}");
        assert!(select(&even, ALIGNED, &h100(), &Request::default()).is_ok());
        let slower = select(&uneven, ALIGNED, &h100(), &Request::default()).unwrap_err();
        assert!(matches!(slower, RejectionReason::PredictedSlower { .. }), "{slower}");
    }

    #[test]
    fn what_the_family_cannot_do() {
        let video = problem([30, 48, 80], 24, 128, Params::new([18, 24, 24]));
        let reason = |layout, properties: &Properties| {
            select(&video, layout, properties, &Request::default()).unwrap_err()
        };
        assert_eq!(reason(LayoutSummary { is_aligned: false }, &h100()), RejectionReason::Alignment);
        let older = Properties { compute_capability: ComputeCapability { major: 8, minor: 9 }, ..h100() };
        assert!(matches!(reason(ALIGNED, &older), RejectionReason::OnlyOn { .. }));
        let long = problem([64], 1, 264, Params::new([64]));
        let refused = select(&long, ALIGNED, &h100(), &Request::default());
        assert_eq!(
            refused.map(|kernel| kernel.entry),
            Err(RejectionReason::HeadDim { max: 256, found: 264 })
        );
    }
}
