//! What would run on a device, and how long the kernels' cost models expect it to take: no device is needed to ask.

use natten::Problem;
use natten::plan::Tiling;
use serde_json::{Value, json};

use crate::device::DeviceName;

/// A forward foreseen.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub kernel: &'static str,
    /// Its boxes, for a kernel on tiles.
    tiling: Option<Tiling>,
    /// Nothing where the model's rates do not hold.
    pub seconds: Option<f64>,
}

impl Expected {
    /// `None` where no kernel serves the problem, on a CPU, and in a program without CUDA.
    #[cfg(feature = "cuda")]
    pub fn of(problem: &Problem, device: DeviceName) -> Option<Self> {
        let foreseen = natten::cuda::predict_forward(problem, &device.properties()?).ok()?;
        Some(Expected { kernel: foreseen.kernel, tiling: foreseen.tiling, seconds: foreseen.seconds })
    }

    #[cfg(not(feature = "cuda"))]
    pub fn of(_: &Problem, _: DeviceName) -> Option<Self> {
        None
    }

    /// For a JSON report.
    pub fn to_json(self, rank: usize) -> Value {
        let sides = |sides: [usize; 3]| sides[3 - rank..].to_vec();
        json!({
            "kernel": self.kernel,
            "seconds": self.seconds,
            "q_tile": self.tiling.map(|tiling| sides(tiling.query_tile)),
            "kv_tile": self.tiling.map(|tiling| sides(tiling.key_tile)),
        })
    }
}
