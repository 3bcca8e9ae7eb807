//! Streams on emulated devices: keys and values stay there, and every frame is the whole clip's.

use std::collections::BTreeSet;

use natten_core::{ElementType, bf16, f16};
use natten_cuda::Cuda;
use natten_emulator::Emulated;
use natten_tests::kernels::{Operation, Shipped, asking_for, shipped};
use natten_tests::streams::Stream;
use natten_tests::{Spec, Watched};

/// Small clips with each flag, whose frames go around the storage several times.
fn clips() -> Vec<Spec> {
    vec![
        Spec::na(&[17], &[4]).stride(&[3]).dilation(&[2]).causal(&[true]).heads(4, 2).batch(2),
        Spec::na(&[13, 7], &[3, 3]).stride(&[2, 1]).causal(&[true, false]).additional(3),
        Spec::na(&[11, 4, 5], &[2, 3, 2]).dilation(&[3, 1, 2]).causal(&[true, false, true]),
    ]
}

fn each_stream(check: impl Fn(&Stream, u64)) {
    for (n, clip) in clips().iter().enumerate() {
        let of = |appends| Stream::of(clip, appends);
        for stream in [of(&[1]), of(&[1]).endless(), of(&[4, 1, 2]).endless(), of(&[64])] {
            check(&stream, 97 + n as u64);
        }
    }
}

#[test]
fn on_cuda_cores() {
    let cuda = Cuda::new(Emulated::new(5, 0));
    each_stream(|stream, seed| {
        stream.expect_whole::<_, f32>(&cuda, seed);
        stream.expect_whole::<_, bf16>(&cuda, seed);
    });
}

/// Each family's kernels for rows of 64, which small problems like these would leave to CUDA cores.
#[test]
fn on_tensor_cores() {
    let is_asked = |kernel: &&Shipped| {
        let Shipped { operation, element_type, head_dim, on_tensor_cores, .. } = **kernel;
        on_tensor_cores
            && operation == Operation::Forward
            && (element_type, head_dim) == (ElementType::F16, 64)
    };
    let mut families = BTreeSet::new();
    for kernel in shipped().iter().filter(is_asked) {
        let device = Watched::new(Emulated::new(kernel.capability.major, kernel.capability.minor));
        let cuda = asking_for(Cuda::new(device.clone()), kernel);
        each_stream(|stream, seed| {
            let stream = Stream { clip: stream.clip.clone().dims(64, 64), ..stream.clone() };
            stream.expect_whole::<_, f16>(&cuda, seed);
        });
        assert!(device.take_launches().contains_key(kernel.entry), "{} did not run", kernel.entry);
        families.insert(kernel.capability.major);
    }
    assert_eq!(families, BTreeSet::from([8, 9, 10]));
}
