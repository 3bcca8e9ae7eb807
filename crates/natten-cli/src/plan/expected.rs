//! What would run on a device, and how long the kernels' cost models expect it to take: no device is needed to ask.

use natten::Problem;
use natten::plan::Tiling;
use serde_json::{Value, json};

use super::tone;
use crate::device::{DeviceName, Limits};
use crate::output::{self, Rows, plain};

/// A device's limits, and what its kernels would do there.
pub struct Foreseen {
    pub limits: Limits,
    pub forward: Option<Expected>,
    /// Where one is asked for.
    pub backward: Option<ExpectedBackward>,
}

impl Foreseen {
    /// On a device.
    pub fn on(limits: Limits, problem: &Problem, has_backward: bool) -> Self {
        let forward = Expected::of(problem, limits.device);
        let backward = if has_backward { ExpectedBackward::of(problem, limits.device) } else { None };
        Foreseen { limits, forward, backward }
    }
}

/// The kernels of a backward on each device, if there are any. Each pass has tiles of its own, over what its rows see or are seen
/// by.
pub fn backward_table(devices: &[Foreseen]) -> String {
    if devices.iter().all(|device| device.backward.is_none()) {
        return String::new();
    }
    let header = ["device", "gradients of", "issued/useful", "expected backward", "its kernel"];
    let mut table = Rows::new(&header);
    for Foreseen { limits, backward, .. } in devices {
        let Some(backward) = backward else { continue };
        let expected = backward.seconds.map_or("-".to_owned(), output::duration);
        for (i, &(gradients, kernel, ratio)) in backward.passes.iter().enumerate() {
            let (device, expected) = if i == 0 { (limits.name, expected.as_str()) } else { ("", "") };
            table.push([
                plain(device),
                plain(gradients),
                (format!("{ratio:.2}"), tone(ratio)),
                plain(expected),
                plain(kernel),
            ]);
        }
    }
    format!(
        "\nthe backward as its kernels cut it: pairs that each pass computes for each one wanted\n{}",
        table.render()
    )
}

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

/// A backward foreseen.
#[derive(Clone, Debug)]
pub struct ExpectedBackward {
    /// The gradients that a kernel computes, its name, and the pairs that it computes for each one that is wanted.
    pub passes: Vec<(&'static str, &'static str, f64)>,
    /// All passes together.
    pub issued_over_useful: f64,
    /// Nothing where the model's rates do not hold.
    pub seconds: Option<f64>,
}

impl ExpectedBackward {
    /// `None` as for [`Expected::of`].
    #[cfg(feature = "cuda")]
    pub fn of(problem: &Problem, device: DeviceName) -> Option<Self> {
        let foreseen = natten::cuda::predict_backward(problem, &device.properties()?).ok()?;
        let names: &[&str] = if foreseen.passes.len() == 1 { &["all"] } else { &["queries", "keys, values"] };
        let passes = names.iter().zip(&foreseen.passes);
        Some(ExpectedBackward {
            passes: passes.map(|(&name, pass)| (name, pass.kernel, pass.issued_over_useful)).collect(),
            issued_over_useful: foreseen.issued_over_useful(),
            seconds: foreseen.seconds,
        })
    }

    #[cfg(not(feature = "cuda"))]
    pub fn of(_: &Problem, _: DeviceName) -> Option<Self> {
        None
    }

    /// For a JSON report.
    pub fn to_json(&self) -> Value {
        let pass = |&(gradients, kernel, ratio): &(&str, &str, f64)| json!({"gradients_of": gradients, "kernel": kernel, "issued_over_useful": ratio});
        json!({
            "passes": self.passes.iter().map(pass).collect::<Vec<_>>(),
            "issued_over_useful": self.issued_over_useful,
            "seconds": self.seconds,
        })
    }
}
