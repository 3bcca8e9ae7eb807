//! Problems computed from host memory in slabs, on streams whose work happens at any time that they allow.

use natten_core::{Element, Inputs, Output, Problem, Tensor, TensorView, bf16};
use natten_cuda::out_of_core::{OutOfCore, OutOfCoreError, Report};
use natten_emulator::{Emulated, Streamed};
use natten_tests::{Reference, Spec, Subject, assert_close};

/// The output and the log-sum-exp, from buffers of so many bytes and little to copy through.
fn attend<E: Element>(
    device: &Streamed,
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    (memory_bytes, slabs): (u64, usize),
) -> Result<(Report, Tensor<E>, Tensor<f32>), OutOfCoreError> {
    let mut out = Tensor::zeros(&problem.out_shape())?;
    let mut lse = Tensor::zeros(&problem.lse_shape())?;
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let how = OutOfCore::within(memory_bytes).slabs(slabs).staging(2, 1000).threads(2);
    let report = how.forward(&device.cuda(), problem, inputs, output)?;
    Ok((report, out, lse))
}

fn check<E: Element>(spec: &Spec, capability: (u32, u32), most: f64) {
    let (problem, case) = (spec.problem(E::TYPE), spec.draw(5));
    let inputs = case.rounded::<E>();
    let expected = Reference.attend(&problem, &inputs).expect("the reference takes all");
    let gpu = Emulated::new(capability.0, capability.1);
    let views = inputs.map(Tensor::view);
    let whole = attend(&Streamed::new(gpu.clone(), 1), &problem, &views, (u64::MAX, 1)).expect("memory");
    assert_eq!(whole.0.slabs, 1);
    let mut slabs = 1;
    // Half of what is needed for all at once makes two slabs or three; what is queued is late and early by seed.
    let shares = [1, 2, 3, 4, 6, 9];
    for (seed, share) in (0..18).zip(shares.into_iter().cycle()) {
        let device = Streamed::new(gpu.clone(), seed);
        let (report, out, lse) = match attend(&device, &problem, &views, (whole.0.memory_bytes / share, 1)) {
            Ok(found) => found,
            Err(OutOfCoreError::Memory { .. }) => continue,
            Err(error) => panic!("{spec:?}: {error}"),
        };
        assert!(report.memory_bytes <= whole.0.memory_bytes / share, "{report:?}");
        // Each token goes once.
        let moved = |report: &Report| (report.uploaded_bytes, report.downloaded_bytes);
        assert_eq!(moved(&report), moved(&whole.0));
        slabs = slabs.max(report.slabs);
        let what = format!("{report:?} of {spec:?}");
        assert_close(&format!("out, {what}"), &out, &expected.out, most);
        assert_close(&format!("lse, {what}"), &lse, &expected.lse, most);
    }
    assert!(slabs > 3, "at most {slabs} slabs of {spec:?}");
}

#[test]
fn slabs_make_up_the_whole() {
    let specs = [
        Spec::na(&[60], &[7]),
        Spec::na(&[61], &[6]).stride(&[3]).dilation(&[2]).causal(&[true]).heads(4, 2),
        Spec::na(&[24, 9], &[3, 5]).batch(2).additional(3).dims(16, 24),
        // Along the second axis, whose slabs do not lie together in the host's tensors.
        Spec::na(&[4, 30, 5], &[4, 3, 3]).dilation(&[1, 2, 1]).heads(2, 1),
        // A part of a whole is one more whole to be cut.
        Spec::na(&[80, 6], &[5, 3]).region(0, 20..60, 10..70),
    ];
    for spec in &specs {
        check::<f32>(spec, (5, 0), 3e-5);
    }
    check::<bf16>(&specs[1].clone().dims(64, 64), (8, 0), 3e-2);
    check::<bf16>(&specs[3].clone().dims(64, 64), (9, 0), 3e-2);
}

/// Tensors of the host may lie in any way.
#[test]
fn host_tensors_have_any_strides() {
    let spec = Spec::na(&[20, 6], &[5, 3]).heads(3, 3);
    let (problem, case) = (spec.problem(natten_core::ElementType::F32), spec.draw(6));
    let inputs = case.rounded::<f32>();
    // Heads before tokens in memory.
    let turned = inputs.map(|tensor| tensor.view().permute(&[0, 3, 1, 2, 4]).expect("five axes").to_tensor());
    let views = turned.map(|tensor| tensor.view().permute(&[0, 2, 3, 1, 4]).expect("five axes"));
    let device = Streamed::new(Emulated::new(5, 0), 3);
    let dense = inputs.map(Tensor::view);
    let (whole, expected, _) = attend(&device, &problem, &dense, (u64::MAX, 1)).expect("memory");
    let (report, found, _) = attend(&device, &problem, &views, (whole.memory_bytes / 2, 1)).expect("memory");
    assert!(report.slabs > 1);
    assert_close("out", &found, &expected, 2e-6);
}

/// With memory for all of it there are slabs nevertheless, whose copies are beside kernels.
#[test]
fn there_are_several_slabs() {
    let spec = Spec::na(&[90, 4], &[5, 3]);
    let (problem, case) = (spec.problem(natten_core::ElementType::F32), spec.draw(3).rounded::<f32>());
    let device = Streamed::new(Emulated::new(5, 0), 4);
    let slabs = |at_least| {
        attend(&device, &problem, &case.map(Tensor::view), (u64::MAX, at_least)).expect("memory").0.slabs
    };
    assert_eq!([1, 2, 8].map(slabs), [1, 2, 8]);
    // None shorter than what it shares with the next.
    assert!((9..=90 / 4).contains(&slabs(90)), "{}", slabs(90));
}

/// Wherever the device fails, the call ends, and says so.
#[test]
fn a_failure_ends_all_three() {
    let spec = Spec::na(&[40, 3], &[5, 3]);
    let (problem, case) = (spec.problem(natten_core::ElementType::F32), spec.draw(3).rounded::<f32>());
    let mut failed = 0;
    for good in 0.. {
        let device = Streamed::new(Emulated::new(5, 0), good as u64);
        device.fail_after(good);
        match attend(&device, &problem, &case.map(Tensor::view), (u64::MAX, 4)) {
            Err(OutOfCoreError::Cuda(_)) => failed += 1,
            Err(other) => panic!("after {good}: {other}"),
            Ok(_) => break,
        }
    }
    assert!(failed > 20, "only {failed} failures");
}

#[test]
fn what_cannot_be_cut_is_told() {
    let device = Streamed::new(Emulated::new(5, 0), 1);
    let plain = Spec::attention(20, 30, false);
    let case = plain.draw(1).rounded::<f32>();
    let problem = plain.problem(natten_core::ElementType::F32);
    let error = attend(&device, &problem, &case.map(Tensor::view), (u64::MAX, 1)).unwrap_err();
    assert!(matches!(error, OutOfCoreError::PlainAttention), "{error}");
    let spec = Spec::na(&[20], &[5]);
    let case = spec.draw(1).rounded::<f32>();
    let problem = spec.problem(natten_core::ElementType::F32);
    let views = case.map(Tensor::view);
    let error = attend(&device, &problem, &views, (100, 8)).unwrap_err();
    assert!(matches!(error, OutOfCoreError::Memory { bound: 100, .. }), "{error}");
    // A tensor of another problem.
    let other = Spec::na(&[21], &[5]).draw(1).rounded::<f32>();
    let error = attend(&device, &problem, &other.map(Tensor::view), (u64::MAX, 1)).unwrap_err();
    assert!(matches!(error, OutOfCoreError::Problem(_)), "{error}");
}
