//! Which way keys and values go where windows reach over all of the split axis, by predicted time.
//!
//! The model knows four numbers. It takes a device to compute at a constant rate, a link to carry what one rank receives at another,
//! and every message to begin a constant time late; of ranks that wait for each other the slowest counts.

use std::ops::Range;

use natten_core::Problem;
use natten_core::region::Split;
use natten_core::window::Axis;

use super::ShardedError;

/// How keys and values reach the queries that need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Each rank receives all keys that it needs and has not, and computes the queries that need them at once. Where windows reach
    /// over all of the axis that is an all-gather.
    Halo,
    /// Where windows reach over all of the axis: a rank receives the keys and values of one other after another, attends to them
    /// while the next arrive, and merges. It holds two ranks' keys at a time, and partial outputs are rounded to the element type.
    Ring,
}

/// What a device and its link to the others do in a second. They are the same on every rank, as the choice must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating point operations of attention, a second.
    pub flops: f64,
    /// Bytes that a rank receives, a second, while it sends as many.
    pub link_bytes: f64,
    /// Bytes of its own memory that a rank reads or writes, a second.
    pub memory_bytes: f64,
    /// Seconds before a message begins to arrive, or a call to compute.
    pub latency: f64,
}

impl Default for Rates {
    /// Round numbers for a GPU of 2023 among eight that are linked all to all. Nothing of it was measured.
    fn default() -> Self {
        Rates { flops: 4e14, link_bytes: 2e11, memory_bytes: 2.5e12, latency: 2e-5 }
    }
}

impl Rates {
    pub(super) fn check(&self) -> Result<(), ShardedError> {
        let Rates { flops, link_bytes, memory_bytes, latency } = *self;
        let named = [
            ("flops", flops),
            ("link_bytes", link_bytes),
            ("memory_bytes", memory_bytes),
            ("latency", latency),
        ];
        match named.into_iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((name, value)) => Err(ShardedError::Rate { name, value }),
            None => Ok(()),
        }
    }
}

/// Predicted seconds of a forward on the slowest rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// With all keys received at once.
    pub halo: f64,
    /// With one rank's after another's; none where windows do not reach over all of the axis.
    pub ring: Option<f64>,
}

impl Predicted {
    /// The faster way.
    pub fn way(&self) -> Way {
        if self.ring.is_some_and(|ring| ring < self.halo) { Way::Ring } else { Way::Halo }
    }
}

/// Whether a ring can be: every rank's keys are seen by all queries, or by all that come after them.
pub(super) fn takes_ring(axis: &Axis) -> bool {
    axis.dilation == 1 && axis.kernel_size >= axis.extent
}

/// The blocks that one rank attends to in a ring: its own first, then those of the ranks before it, and round.
pub(super) fn sees(is_causal: bool, ranges: &[Range<usize>], (rank, other): (usize, usize)) -> bool {
    !ranges[rank].is_empty() && !ranges[other].is_empty() && (!is_causal || other <= rank)
}

/// Predicts both ways of a forward of a split along `axis`.
pub(super) fn predict(
    problem: &Problem,
    split: &Split,
    (axis, whole, interiors): (usize, &Axis, &[usize]),
    rates: &Rates,
) -> Predicted {
    let Rates { flops, link_bytes, memory_bytes, latency } = *rates;
    let heads = problem.batch() as f64 * problem.heads() as f64;
    let of_score = 2.0 * heads * (problem.head_dim() + problem.head_dim_v()) as f64;
    let compute = |scores: f64| scores * of_score / flops + latency;
    let parts = split.parts();
    let halo = parts.iter().zip(interiors).map(|(part, &interior)| {
        let bytes: f64 = part.receives.iter().map(|received| received.bytes as f64).sum();
        let transfer = if bytes > 0.0 { bytes / link_bytes + latency } else { 0.0 };
        let inside = part.scores * interior as f64 / part.queries[axis].len().max(1) as f64;
        match interior {
            0 => transfer + compute(part.scores),
            _ => transfer.max(compute(inside)) + compute(part.scores - inside),
        }
    });
    let halo = halo.fold(0.0, f64::max);
    if !takes_ring(whole) {
        return Predicted { halo, ring: None };
    }
    let ranges: Vec<Range<usize>> = parts.iter().map(|part| part.queries[axis].clone()).collect();
    let element_bytes = problem.element_type().size_bytes() as f64;
    let ring = (0..parts.len()).map(|rank| {
        let part = &parts[rank];
        let order = (0..parts.len()).map(|step| (rank + parts.len() - step) % parts.len());
        let blocks: Vec<usize> =
            order.filter(|&other| sees(whole.is_causal, &ranges, (rank, other))).collect();
        let bytes = |other: usize| {
            let received = part.receives.iter().find(|received| received.rank == other);
            received.map_or(0.0, |received| received.bytes as f64)
        };
        let seen: usize = blocks.iter().map(|&other| ranges[other].len()).sum();
        let scores = |other: usize| part.scores * ranges[other].len() as f64 / seen as f64;
        let rows: f64 = part.queries.iter().map(|range| range.len() as f64).product::<f64>() * heads;
        // A merge reads two outputs and writes one.
        let merge = 3.0 * rows * problem.head_dim_v() as f64 * element_bytes / memory_bytes + latency;
        let overlapped = blocks.windows(2).map(|pair| {
            let transfer = bytes(pair[1]) / link_bytes + latency;
            compute(scores(pair[0])).max(transfer) + merge
        });
        overlapped.sum::<f64>() + blocks.last().map_or(0.0, |&last| compute(scores(last)))
    });
    Predicted { halo, ring: Some(ring.fold(0.0, f64::max)) }
}

#[cfg(test)]
mod tests {
    use natten_core::{ElementType, Inputs, Layout, Params};

    use super::*;

    fn predicted(params: Params<1>, shape: [usize; 4], rates: &Rates) -> Predicted {
        let layout = Layout::contiguous(&shape).unwrap();
        let inputs = Inputs::new(layout, layout, layout);
        let problem = Problem::new(&params.to_dyn(), &inputs, ElementType::Bf16).unwrap();
        let split = Split::new(&problem, 8, &[0]).unwrap();
        predict(&problem, &split, (0, &problem.axes()[2], &[0; 8]), rates)
    }

    /// By hand, with rates at which every term is a round number.
    #[test]
    fn predictions_are_those_of_the_model() {
        let rates = Rates { flops: 1e6, link_bytes: 1e3, memory_bytes: 1e5, latency: 0.5 };
        let found = predicted(Params::new([64]), [1, 64, 1, 4], &rates);
        // 8 tokens a rank of 16 bytes; 56 others' arrive at once, then 8 x 64 scores of 16 operations.
        assert!((found.halo - (56.0 * 16.0 / 1e3 + 0.5 + 512.0 * 16.0 / 1e6 + 0.5)).abs() < 1e-9);
        // Seven steps in which 8 tokens arrive and a merge follows, and the last rank's keys.
        let step = (8.0 * 16.0 / 1e3 + 0.5_f64).max(64.0 * 16.0 / 1e6 + 0.5) + 3.0 * 8.0 * 8.0 / 1e5 + 0.5;
        let ring = found.ring.unwrap();
        assert!((ring - (7.0 * step + 64.0 * 16.0 / 1e6 + 0.5)).abs() < 1e-9, "{ring}");
        assert_eq!(found.way(), Way::Halo);
        assert_eq!(predicted(Params::new([63]), [1, 64, 1, 4], &rates).ring, None);
        assert_eq!(predicted(Params::new([32]).dilation(2), [1, 64, 1, 4], &rates).ring, None);
    }

    /// A ring hides what arrives behind what is computed, which pays once both take long.
    #[test]
    fn long_axes_go_round_and_short_ones_at_once() {
        let way = |tokens: usize, is_causal: bool| {
            let params = Params::new([tokens]).is_causal(is_causal);
            predicted(params, [1, tokens, 16, 64], &Rates::default()).way()
        };
        assert_eq!([way(1 << 10, false), way(1 << 17, false)], [Way::Halo, Way::Ring]);
        assert_eq!([way(1 << 10, true), way(1 << 17, true)], [Way::Halo, Way::Ring]);
    }

    #[test]
    fn rates_that_are_none_are_named() {
        assert!(Rates::default().check().is_ok());
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Rates { link_bytes: value, ..Rates::default() }.check().unwrap_err();
            assert!(matches!(error, ShardedError::Rate { name: "link_bytes", .. }), "{error}");
        }
    }
}
