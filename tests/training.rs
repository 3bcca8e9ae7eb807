//! The training example learns the same from attention on the CPU, in the reference and on an emulated GPU.

// The example's own modules; a program uses more of them than this test.
#[allow(dead_code)]
#[path = "../examples/train/attention.rs"]
mod attention;
#[allow(dead_code)]
#[path = "../examples/train/digits.rs"]
mod digits;
#[path = "../examples/train/gpu.rs"]
mod gpu;
#[allow(dead_code)]
#[path = "../examples/train/layers.rs"]
mod layers;
#[allow(dead_code)]
#[path = "../examples/train/network.rs"]
mod network;
#[allow(dead_code)]
#[path = "../examples/train/training.rs"]
mod training;

use attention::{Attention, Qkv};
use digits::Digits;
use natten::cpu::Cpu;
use natten::cuda::Cuda;
use natten::{ElementType, Error, Params, Problem, Saved, Tensor, reference};
use natten_emulator::Emulated;
use natten_tests::suites::scope::Breadth;
use training::{Settings, Training};

/// Of losses of 2 and below; what the example allows a GPU.
const APART: f32 = 1e-3;

/// Attention by the formula, in f64, between layers in f32.
struct Reference;

impl Reference {
    fn problem(params: &Params<2>, qkv: &Qkv<f32>) -> Result<Problem, Error> {
        Ok(Problem::new(&params.to_dyn(), &qkv.views()?.map(|view| *view.layout()), ElementType::F32)?)
    }
}

impl Attention<f32> for Reference {
    type Kept = (Qkv<f32>, reference::Forward);

    fn forward(&self, params: &Params<2>, qkv: Qkv<f32>) -> Result<(Vec<f32>, Self::Kept), Error> {
        let forward = reference::forward(&Self::problem(params, &qkv)?, &qkv.views()?);
        Ok((forward.out.cast::<f32>().into_vec(), (qkv, forward)))
    }

    fn backward(
        &self,
        params: &Params<2>,
        (qkv, forward): Self::Kept,
        d_out: Vec<f32>,
    ) -> Result<Qkv<f32>, Error> {
        let d_out = Tensor::from_vec(forward.out.shape(), d_out)?.cast::<f64>();
        let (out, lse) = (forward.out.view(), forward.lse.view());
        let saved = Saved { out, lse, d_out: d_out.view(), d_lse: None };
        let gradients = reference::backward(&Self::problem(params, &qkv)?, &qkv.views()?, &saved);
        Ok(Qkv::join(&gradients.map(Tensor::cast)))
    }
}

/// The first losses, of batches small enough for a slow device.
fn losses(device: impl Attention<f32>, steps: usize, seed: u64) -> Vec<f32> {
    let [digits, _] = Digits::bundled();
    let settings = Settings { epochs: 1, batch: 4, rate: 6e-3, seed };
    let mut training = Training::new(device, digits, settings);
    (0..steps).map(|_| training.step().expect("every device serves this")).collect()
}

fn assert_learns_the_same(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let apart = (found - expected).abs() / expected;
        assert!(apart < APART, "{name}, step {step}: {found}, {expected} expected");
    }
}

#[test]
fn the_cpu_learns_what_the_reference_does() {
    let expected = losses(Reference, 20, 1);
    assert_learns_the_same("CPU", &losses(Cpu::new(), 20, 1), &expected);
    // The comparison can fail: another start is no such training.
    let other = losses(Cpu::new(), 20, 2);
    assert!(other.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.1 * b));
}

#[test]
fn a_gpu_learns_what_the_reference_does() {
    let steps = if Breadth::asked() > Breadth::Usual { 20 } else { 4 };
    let expected = losses(Reference, steps, 1);
    for (major, minor) in [(8, 0), (9, 0)] {
        let gpu = Cuda::new(Emulated::new(major, minor));
        assert_learns_the_same(&format!("GPU {major}.{minor}"), &losses(gpu, steps, 1), &expected);
    }
}

#[test]
fn the_same_seed_trains_the_same_network_on_any_number_of_threads() {
    let on = |threads| losses(Cpu::new().threads(threads).expect("few"), 6, 3);
    assert_eq!(on(1), on(2));
    assert_eq!(on(2), on(3));
}
