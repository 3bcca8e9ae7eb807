//! What a pass would run on a device and how long it should take, from facts about the device alone.

use natten_core::Problem;
use natten_core::plan::Tiling;

use crate::capability::ComputeCapability;
use crate::choose::choose;
use crate::cost::traffic;
use crate::device::Properties;
use crate::error::CudaError;
use crate::explain::issued;
use crate::family::{Bid, Pass, Query, Request};
use crate::rejection::Rejections;
use crate::views::Views;

/// The families' rates are those of an H100's multiprocessors.
const FITTED: ComputeCapability = ComputeCapability { major: 9, minor: 0 };

/// A forward pass foreseen.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The kernel's entry.
    pub kernel: &'static str,
    /// Its boxes, for a kernel on tiles; of a whole cta.
    pub tiling: Option<Tiling>,
    /// The time by the families' cost models; nothing on devices that their rates were not fitted on.
    pub seconds: Option<f64>,
}

/// The forward pass of a problem on dense tensors, with neither a device nor tensors at hand.
///
/// # Errors
/// The reason against each kernel; none where the problem is beyond counting.
pub fn predict_forward(problem: &Problem, properties: &Properties) -> Result<Prediction, Rejections> {
    let (views, request) = (Views::dense(problem), Request::default());
    let query = Query::new(Pass::Forward(problem), &views, properties, &request);
    let (bid, seconds) = foresee(&query)?;
    Ok(Prediction { kernel: bid.kernel.entry, tiling: bid.tiling, seconds })
}

/// A backward pass foreseen.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardPrediction {
    /// The kernels that compute pairs of a query and a key: the one of the queries' gradients first, and if it is another that of
    /// keys and values.
    pub passes: Vec<PredictedPass>,
    /// As [`Prediction::seconds`], of all launches together.
    pub seconds: Option<f64>,
}

/// What one kernel of a backward does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictedPass {
    /// The kernel's entry.
    pub kernel: &'static str,
    /// Pairs of a query and a key that it computes for each one that is wanted.
    pub issued_over_useful: f64,
}

impl BackwardPrediction {
    /// Of the passes together: of seven products for each pair, that of the queries makes three and the other four.
    pub fn issued_over_useful(&self) -> f64 {
        match self.passes[..] {
            [of_queries, of_keys] => {
                (3.0 * of_queries.issued_over_useful + 4.0 * of_keys.issued_over_useful) / 7.0
            }
            _ => self.passes.iter().map(|pass| pass.issued_over_useful).fold(1.0, f64::max),
        }
    }
}

/// The backward pass of a problem on dense tensors, with neither a device nor tensors at hand.
///
/// # Errors
/// As [`predict_forward`].
pub fn predict_backward(
    problem: &Problem,
    properties: &Properties,
) -> Result<BackwardPrediction, Rejections> {
    let (views, request) = (Views::dense(problem).with_dense_backward(), Request::default());
    let query = Query::new(Pass::Backward(problem), &views, properties, &request);
    let (bid, seconds) = foresee(&query)?;
    let passes = issued(&bid, &query).into_iter();
    let passes =
        passes.map(|(kernel, ratio)| PredictedPass { kernel: kernel.entry, issued_over_useful: ratio });
    Ok(BackwardPrediction { passes: passes.collect(), seconds })
}

/// The bid that would run, and the time that it is predicted to take.
fn foresee(query: &Query<'_>) -> Result<(Bid, Option<f64>), Rejections> {
    let choice = choose(query).map_err(|error| match error {
        CudaError::Unsupported(rejections) => rejections,
        _ => Rejections(Vec::new()),
    })?;
    let bid = choice.offer.bid;
    let is_fitted = query.properties.compute_capability == FITTED;
    Ok((bid, is_fitted.then(|| bid.microseconds.max(traffic(&query.pass)) * 1e-6)))
}

#[cfg(test)]
mod tests {
    use natten_core::{ElementType, Inputs, Layout, Params};

    use super::*;

    fn video(element_type: ElementType) -> Problem {
        let layout = Layout::contiguous(&[1, 30, 48, 80, 24, 128]).unwrap();
        let params = Params::new([18, 24, 24]).stride([16, 8, 8]);
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), element_type).unwrap()
    }

    fn gpu(major: u32, minor: u32) -> Properties {
        Properties {
            name: "a GPU".to_owned(),
            compute_capability: ComputeCapability { major, minor },
            multiprocessors: 132,
            shared_bytes_per_block: if major == 9 { 227 << 10 } else { 163 << 10 },
            memory_bytes: 80 << 30,
        }
    }

    /// 23.2 ms were measured on an H100.
    #[test]
    fn what_runs_is_foreseen() {
        let hopper = predict_forward(&video(ElementType::Bf16), &gpu(9, 0)).unwrap();
        assert_eq!(hopper.kernel, "natten_forward_sm90_bf16_d128");
        let seconds = hopper.seconds.unwrap();
        assert!((0.02..0.027).contains(&seconds), "{seconds}");
        let tiling = hopper.tiling.unwrap();
        assert_eq!(tiling.query_tile.iter().product::<usize>(), 128);
        let ampere = predict_forward(&video(ElementType::Bf16), &gpu(8, 0)).unwrap();
        assert_eq!((ampere.kernel, ampere.seconds), ("natten_forward_sm80_bf16_d128_q128_k64", None));
        let single = predict_forward(&video(ElementType::F32), &gpu(9, 0)).unwrap();
        assert_eq!((single.kernel, single.tiling), ("natten_forward_simt_f32_d128", None));
        assert!(single.seconds.unwrap() > 10.0 * seconds);
        assert!(predict_forward(&video(ElementType::F64), &gpu(9, 0)).is_err());
    }

    /// Strided windows of Hunyuan make every tile of either pass full; unstrided ones of the same size do not.
    #[test]
    fn both_passes_of_a_backward_are_foreseen() {
        let strided = predict_backward(&video(ElementType::Bf16), &gpu(9, 0)).unwrap();
        let kernels: Vec<_> = strided.passes.iter().map(|pass| pass.kernel).collect();
        assert_eq!(kernels, ["natten_backward_query_sm90_bf16_d128", "natten_backward_key_sm90_bf16_d128"]);
        assert!(strided.passes.iter().all(|pass| pass.issued_over_useful == 1.0), "{strided:?}");
        assert_eq!(strided.issued_over_useful(), 1.0);
        assert!(strided.seconds.is_some_and(|seconds| seconds > 0.03));
        let layout = Layout::contiguous(&[1, 30, 48, 80, 24, 128]).unwrap();
        let params = Params::new([18, 24, 24]).to_dyn();
        let inputs = Inputs::new(layout, layout, layout);
        let unstrided = Problem::new(&params, &inputs, ElementType::Bf16).unwrap();
        let passes = predict_backward(&unstrided, &gpu(9, 0)).unwrap().passes;
        assert!(passes.iter().all(|pass| (1.4..1.7).contains(&pass.issued_over_useful)), "{passes:?}");
        assert_ne!(passes[0].issued_over_useful, passes[1].issued_over_useful);
        let older = predict_backward(&video(ElementType::F32), &gpu(8, 0)).unwrap();
        assert!(
            older.passes[1].kernel.starts_with("natten_backward_key_simt_f32") && older.seconds.is_none()
        );
        assert!(predict_backward(&video(ElementType::F64), &gpu(9, 0)).is_err());
    }
}
