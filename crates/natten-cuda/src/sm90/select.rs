//! Whether a kernel of this family runs a forward pass: it must be able to, and be predicted to end before what the
//! other families offer.
//!
//! Both times come from exact counts of tiles and a few measured rates; only their ratio matters.

use natten_core::window::Axis;
use natten_core::{ElementType, Problem};

use super::classes::classes;
use super::kept::Kept;
use super::rates::{predict, predict_other, traffic};
use super::{Boxes, CAPABILITY, boxes_as, kernels};
use crate::device::Properties;
use crate::registry::Kernel;
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
    if request.entry.is_some_and(|entry| kernels().all(|k| k.entry != entry)) {
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

    /// Problems of tests/gpu/problems.json with their milliseconds on an H100 in bf16, on this family where it was timed and
    /// on sm80 (docs/performance.md, section 6). FLUX, s16, of head_dim 32 ran on tiles of 128 queries there.
    fn measured() -> Vec<(Problem, Option<f64>, f64)> {
        let few = |tokens, heads, window| problem(tokens, heads, 64, Params::new(window));
        let [every, long, short] = [[1, 1, 1], [16, 32, 48], [16, 24, 16]];
        let sparse = [16, 8, 8];
        let both = [
            (line(32, 1), 0.0451, 0.0450),
            (line(64, 1), 0.0505, 0.0622),
            (line(128, 1), 0.0638, 0.106),
            (line(256, 1), 0.110, 0.240),
            (line(32, 256), 0.0409, 0.0404),
            (line(64, 256), 0.0467, 0.0572),
            (line(128, 256), 0.0592, 0.0961),
            (line(32, 2048), 0.0406, 0.0403),
            (line(64, 2048), 0.0472, 0.0560),
            (line(128, 2048), 0.0577, 0.0933),
            (line(256, 2048), 0.101, 0.231),
            (image(24, 64, 1), 0.0670, 0.0728),
            (image(24, 128, 1), 0.0819, 0.115),
            (image(24, 256, 1), 0.137, 0.207),
            (image(24, 128, 8), 0.0582, 0.0707),
            (image(24, 32, 16), 0.0282, 0.0264),
            (image(24, 64, 16), 0.0311, 0.0355),
            (image(24, 128, 16), 0.0443, 0.0553),
            (image(24, 256, 16), 0.0955, 0.121),
            (flux(32, 1), 5.80, 6.72),
            (flux(64, 1), 6.95, 9.00),
            (flux(128, 1), 10.4, 15.7),
            (flux(256, 1), 19.2, 36.3),
            (flux(32, 16), 4.82, 5.00),
            (flux(64, 16), 5.66, 7.16),
            (flux(128, 16), 8.84, 12.5),
            (flux(256, 16), 16.8, 31.8),
            (hunyuan(32, every), 22.3, 26.4),
            (hunyuan(64, every), 27.3, 34.5),
            (hunyuan(128, every), 42.0, 61.9),
            (hunyuan(256, every), 82.9, 136.0),
            (hunyuan(32, sparse), 11.8, 14.2),
            (hunyuan(64, sparse), 15.4, 21.1),
            (hunyuan(128, sparse), 23.2, 37.2),
            (hunyuan(256, sparse), 41.7, 97.5),
            (problem([30, 48, 80], 24, 128, Params::new([30, 40, 40])), 115.0, 183.0),
            (cosmos(128, long, every), 37.5, 61.1),
            (cosmos(128, long, [1, 16, 16]), 36.2, 55.8),
            (cosmos(64, short, every), 7.23, 9.78),
            (cosmos(128, short, every), 11.5, 16.5),
            (cosmos(128, short, [1, 8, 16]), 9.51, 14.6),
            (problem([64, 64], 8, 64, Params::new([13, 13])), 0.0253, 0.0309),
            (few([16, 32, 32], 4, [7, 11, 11]), 0.133, 0.177),
            (problem([8192], 4, 64, Params::new([257])), 0.0198, 0.0196),
            (few([16, 32, 48], 16, [3, 7, 7]), 0.275, 0.330),
            (few([16, 64, 96], 8, [3, 7, 7]), 0.548, 0.672),
            (few([32, 64, 96], 4, [3, 5, 5]), 0.418, 0.440),
            (few([64, 256, 384], 2, [3, 3, 3]), 5.68, 5.71),
            (dilated(512, 128), 0.545, 0.665),
            (dilated(511, 128), 0.573, 0.666),
        ];
        let small = Params::new([7, 7]);
        let one = [
            (image(24, 32, 1), 0.0528),
            (image(24, 32, 8), 0.0274),
            (image(24, 64, 8), 0.0415),
            (dilated(512, 8), 0.309),
            (dilated(512, 32), 0.300),
            (dilated(512, 64), 0.415),
            (dilated(511, 64), 0.411),
            (problem([56, 56], 4, 32, small), 0.0100),
            (problem([56, 56], 4, 32, small.dilation([8, 8])), 0.0068),
        ];
        let both = both.into_iter().map(|(problem, own, other)| (problem, Some(own), other));
        both.chain(one.into_iter().map(|(problem, other)| (problem, None, other))).collect()
    }

    #[test]
    fn predictions_are_near_what_was_measured() {
        let properties = h100();
        for (problem, own, other) in measured() {
            let (kernel, boxes) = boxes(&problem, problem.axes(), None, properties.multiprocessors).unwrap();
            let choice = tiles::choose(&problem, ALIGNED, &properties, &Request::default()).unwrap();
            assert!(choice.tiling.is_some(), "{problem:?}");
            let heads = problem.batch() * problem.heads();
            let hopper = predict(kernel, &boxes, &classes(problem.axes()), heads, properties.multiprocessors);
            let ampere = predict_other(&problem, &choice, &properties);
            for (predicted, measured) in own.map(|own| (hopper, own)).into_iter().chain([(ampere, other)]) {
                let ratio = predicted.max(traffic(&problem)) / measured / 1e3;
                let told = format!("{predicted} us, measured {measured} ms: {problem:?}");
                assert!((0.78..1.15).contains(&ratio), "{told}");
            }
        }
    }

    /// Where both families were timed, the slower one is taken only where they are as good as equal.
    #[test]
    fn the_faster_family_is_taken() {
        for (problem, own, other) in measured() {
            let Some(own) = own else { continue };
            let taken = select(&problem, ALIGNED, &h100(), &Request::default());
            let time = if taken.is_ok() { own } else { other };
            assert!(time <= 1.03 * own.min(other), "{own} ms, on sm80 {other} ms, {taken:?}: {problem:?}");
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
