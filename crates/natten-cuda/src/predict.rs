//! What a forward pass would run on a device and how long it should take, from facts about the device alone.

use natten_core::Problem;
use natten_core::plan::Tiling;

use crate::capability::ComputeCapability;
use crate::choose::choose;
use crate::cost::traffic;
use crate::device::Properties;
use crate::error::CudaError;
use crate::family::{Pass, Query, Request};
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
    let pass = Pass::Forward(problem);
    let choice = choose(&Query::new(pass, &views, properties, &request)).map_err(|error| match error {
        CudaError::Unsupported(rejections) => rejections,
        _ => Rejections(Vec::new()),
    })?;
    let bid = &choice.offer.bid;
    let is_fitted = properties.compute_capability == FITTED;
    let seconds = is_fitted.then(|| bid.microseconds.max(traffic(&pass)) * 1e-6);
    Ok(Prediction { kernel: bid.kernel.entry, tiling: bid.tiling, seconds })
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
            shared_bytes_per_block: 227 << 10,
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
}
