//! Wrong arguments: each rule is broken once through the public API, and the error has the variant, the values and
//! the name of the argument. Nothing panics, however absurd.

use natten::cpu::{Cpu, Isa};
use natten::dynamic::{self, AnyTensor};
use natten::{
    AttentionParams, AxisParams, Call, DynParams, ElementType, Error, Gradients, Inputs, KernelSize,
    KernelSizePolicy, Layout, Packed, Params, Problem, ProblemError, Role, Saved, Sequences, Tensor,
    TensorAxis, TensorError, TensorView, TensorViewMut, attention, attention_into, bf16, f16,
    merge_attentions, merge_attentions_backward, na1d, na1d_backward, na1d_with_lse, na2d, na2d_into,
};

fn zeros(shape: &[usize]) -> Tensor<f32> {
    Tensor::zeros(shape).expect("small")
}

/// The call breaks this rule, and its message says so in these words.
fn expect<T: std::fmt::Debug>(result: Result<T, Error>, rule: ProblemError, message: &str) {
    match result {
        Err(Error::Problem(found)) => {
            assert_eq!(found, rule);
            assert_eq!(found.to_string(), message);
        }
        other => panic!("expected {rule:?}, got {other:?}"),
    }
}

fn mismatch(tensor: Role, axis: TensorAxis, expected: usize, found: usize) -> ProblemError {
    ProblemError::ShapeMismatch { tensor, axis, expected, found }
}

#[test]
fn ranks() {
    let (x, flat) = (zeros(&[1, 4, 4, 1, 2]), zeros(&[1, 4, 1, 2]));
    let rank = |tensor, expected, found| ProblemError::TensorRank { tensor, expected, found };
    expect(na2d(&flat, &x, &x, &Params::new(1)), rank(Role::Query, 5, 4), "query has 4 axes, expected 5");
    expect(na2d(&x, &flat, &x, &Params::new(1)), rank(Role::Key, 5, 4), "key has 4 axes, expected 5");
    expect(na2d(&x, &x, &flat, &Params::new(1)), rank(Role::Value, 5, 4), "value has 4 axes, expected 5");
    let call = Call::new(&x, &x, &x).and_then(|call| call.additional(&x, &x)).expect("one device");
    let rule = rank(Role::AdditionalKeys, 4, 5);
    expect(call.forward(&Params::<2>::new(1)), rule, "additional_keys has 5 axes, expected 4");
    for axes in [0, 4, 9] {
        let params = DynParams::new(&vec![AxisParams::new(1); axes], None, KernelSizePolicy::Exact);
        let result = Call::new(&x, &x, &x).expect("one device").forward(&params);
        expect(result, ProblemError::Rank { rank: axes }, &format!("{axes} token axes, expected 1, 2 or 3"));
    }
}

#[test]
fn shapes_that_disagree() {
    let q = zeros(&[2, 4, 5, 4, 8]);
    let run = |k: &[usize], v: &[usize]| na2d(&q, &zeros(k), &zeros(v), &Params::new(1));
    let (key, value) = (Role::Key, Role::Value);
    let fine = [2, 4, 5, 2, 8];
    expect(
        run(&[3, 4, 5, 2, 8], &fine),
        mismatch(key, TensorAxis::Batch, 2, 3),
        "key: batch has extent 3, expected 2",
    );
    expect(
        run(&fine, &[2, 4, 6, 2, 8]),
        mismatch(value, TensorAxis::Token(1), 5, 6),
        "value: token axis 1 has extent 6, expected 5",
    );
    let both = [2, 3, 5, 2, 8];
    expect(
        run(&both, &both),
        mismatch(key, TensorAxis::Token(0), 4, 3),
        "key: token axis 0 has extent 3, expected 4",
    );
    expect(
        run(&fine, &[2, 4, 5, 1, 8]),
        mismatch(value, TensorAxis::Heads, 2, 1),
        "value: heads has extent 1, expected 2",
    );
    expect(
        run(&[2, 4, 5, 2, 7], &fine),
        mismatch(key, TensorAxis::HeadDim, 8, 7),
        "key: head_dim has extent 7, expected 8",
    );
    expect(
        run(&fine, &[1, 4, 5, 2, 8]),
        mismatch(value, TensorAxis::Batch, 2, 1),
        "value: batch has extent 1, expected 2",
    );
    for heads_kv in [3, 8] {
        let kv = [2, 4, 5, heads_kv, 8];
        let rule = ProblemError::HeadsNotDivisible { heads: 4, heads_kv };
        expect(run(&kv, &kv), rule, &format!("heads = 4 is not a multiple of heads_kv = {heads_kv}"));
    }
    let kv = zeros(&fine);
    let additional = |k: &[usize], v: &[usize]| {
        let (k, v) = (zeros(k), zeros(v));
        let call = Call::new(&q, &kv, &kv).and_then(|call| call.additional(&k, &v)).expect("one device");
        call.forward(&Params::<2>::new(1))
    };
    let (keys, values) = (Role::AdditionalKeys, Role::AdditionalValues);
    let fine = [2, 3, 2, 8];
    for (k, v, rule) in [
        ([1, 3, 2, 8], fine, mismatch(keys, TensorAxis::Batch, 2, 1)),
        ([2, 3, 1, 8], fine, mismatch(keys, TensorAxis::Heads, 2, 1)),
        ([2, 3, 2, 9], fine, mismatch(keys, TensorAxis::HeadDim, 8, 9)),
        (fine, [2, 3, 2, 7], mismatch(values, TensorAxis::HeadDim, 8, 7)),
        (fine, [2, 4, 2, 8], mismatch(values, TensorAxis::Token(0), 3, 4)),
    ] {
        let message = rule.to_string();
        expect(additional(&k, &v), rule, &message);
        assert!(message.starts_with("additional_"), "{message}");
    }
}

#[test]
fn empty_axes() {
    let empty = |tensor, axis| ProblemError::EmptyAxis { tensor, axis };
    let run = |q: &[usize], kv: &[usize]| na1d(&zeros(q), &zeros(kv), &zeros(kv), &Params::new(1));
    expect(
        run(&[1, 0, 1, 2], &[1, 0, 1, 2]),
        empty(Role::Query, TensorAxis::Token(0)),
        "query: token axis 0 has extent 0",
    );
    expect(
        run(&[1, 3, 0, 2], &[1, 3, 1, 2]),
        empty(Role::Query, TensorAxis::Heads),
        "query: heads has extent 0",
    );
    expect(run(&[1, 3, 1, 2], &[1, 3, 0, 2]), empty(Role::Key, TensorAxis::Heads), "key: heads has extent 0");
    expect(
        run(&[1, 3, 1, 0], &[1, 3, 1, 0]),
        empty(Role::Query, TensorAxis::HeadDim),
        "query: head_dim has extent 0",
    );
    let (x, v) = (zeros(&[1, 3, 1, 2]), zeros(&[1, 3, 1, 0]));
    let result = attention(&x, &x, &v, &AttentionParams::new());
    expect(result, empty(Role::Value, TensorAxis::HeadDim), "value: head_dim has extent 0");
}

#[test]
fn windows() {
    let x = zeros(&[1, 6, 7, 1, 2]);
    let run = |params: Params<2>| na2d(&x, &x, &x, &params);
    let params = |kernel_size: [usize; 2]| Params::new(kernel_size);
    expect(
        run(params([3, 0])),
        ProblemError::KernelSizeZero { axis: 1 },
        "axis 1: kernel_size is 0, it must be at least 1",
    );
    expect(
        run(params([3, 3]).stride([0, 1])),
        ProblemError::StrideZero { axis: 0 },
        "axis 0: stride is 0, it must be at least 1",
    );
    expect(
        run(params([3, 3]).dilation([1, 0])),
        ProblemError::DilationZero { axis: 1 },
        "axis 1: dilation is 0, it must be at least 1",
    );
    expect(
        run(params([3, 4]).dilation(2)),
        ProblemError::KernelSizeTooLarge { axis: 1, kernel_size: 4, dilation: 2, token_extent: 7 },
        "axis 1: kernel_size 4 x dilation 2 exceeds the token extent 7",
    );
    expect(
        run(params([3, 3]).stride([4, 1])),
        ProblemError::StrideTooLarge { axis: 0, stride: 4, kernel_size: 3 },
        "axis 0: stride 4 exceeds kernel_size 3",
    );
    for scale in [f32::INFINITY, f32::NEG_INFINITY] {
        expect(
            run(params([3, 3]).scale(scale)),
            ProblemError::ScaleNotFinite { scale },
            &format!("scale is {scale}, it must be finite"),
        );
    }
    let nan = run(params([3, 3]).scale(f32::NAN));
    assert!(
        matches!(nan, Err(Error::Problem(ProblemError::ScaleNotFinite { scale })) if scale.is_nan()),
        "{nan:?}"
    );
    let plain = zeros(&[1, 6, 1, 2]);
    let nan = attention(&plain, &plain, &plain, &AttentionParams::new().scale(f32::NAN));
    assert!(matches!(nan, Err(Error::Problem(ProblemError::ScaleNotFinite { .. }))), "{nan:?}");
}

#[test]
fn clamping_and_whole_axes() {
    let x = natten_tests::Spec::na(&[6, 7], &[1, 1]).draw(3).rounded::<f32>();
    let run = |params: Params<2>| na2d(&x.query, &x.key, &x.value, &params).expect("valid");
    let clamp = |params: Params<2>| params.policy(KernelSizePolicy::Clamp);
    // Clamped to what fits, the stride with it; what fits stays as it is.
    assert_eq!(run(clamp(Params::new([9, 100]))), run(Params::new([6, 7])));
    assert_eq!(run(clamp(Params::new([9, 5]).dilation([2, 3]))), run(Params::new([3, 2]).dilation([2, 3])));
    assert_eq!(run(clamp(Params::new([9, 3]).stride([8, 2]))), run(Params::new([6, 3]).stride([6, 2])));
    assert_eq!(run(Params::new([3, 3]).whole_axis(0)), run(Params::new([6, 3])));
    assert_eq!(
        run(Params::new([KernelSize::Whole, KernelSize::Tokens(3)]).dilation([4, 1])),
        run(Params::new([1, 3]).dilation([4, 1]))
    );
    // Extent 7 in steps of 2: residue 0 has four tokens, residue 1 three, and three fit both.
    assert_eq!(run(Params::new(3).dilation([1, 2]).whole_axis(1)), run(Params::new([3, 3]).dilation([1, 2])));
    // The last of several that there are not is named; one that there is does not hide it.
    for params in [Params::new(3).whole_axis(2), Params::new(3).whole_axis(5).whole_axis(2).whole_axis(1)] {
        let result = na2d(&x.query, &x.key, &x.value, &params);
        let rule = ProblemError::NoSuchAxis { axis: 2, rank: 2 };
        expect(result, rule, "axis 2: there are 2 token axes, counted from 0");
    }
    // A stride longer than the window asked for is a mistake, not a matter of the axis.
    let result = na2d(&x.query, &x.key, &x.value, &clamp(Params::new(3)).stride([5, 1]));
    let rule = ProblemError::StrideTooLarge { axis: 0, stride: 5, kernel_size: 3 };
    expect(result, rule, "axis 0: stride 5 exceeds kernel_size 3");
    // A dilation longer than the axis cannot be clamped.
    let result = na2d(&x.query, &x.key, &x.value, &clamp(Params::new(3)).dilation([7, 1]));
    let rule = ProblemError::DilationTooLarge { axis: 0, dilation: 7, token_extent: 6 };
    let message = "axis 0: dilation 7 exceeds the token extent 6, so no window fits";
    expect(result, rule.clone(), message);
    // Nor can an axis be opened with it, while a window that was asked for by its size is named.
    let result = na2d(&x.query, &x.key, &x.value, &Params::new(3).dilation([7, 1]).whole_axis(0));
    expect(result, rule, message);
    let result = na2d(&x.query, &x.key, &x.value, &Params::new(1).dilation([7, 1]));
    let rule = ProblemError::KernelSizeTooLarge { axis: 0, kernel_size: 1, dilation: 7, token_extent: 6 };
    expect(result, rule, "axis 0: kernel_size 1 x dilation 7 exceeds the token extent 6");
}

#[test]
fn rows_must_be_contiguous_and_outputs_must_fit() {
    let x = zeros(&[1, 4, 3, 2, 5]);
    let turned = x.view().swap_axes(3, 4).expect("both axes exist");
    let rule = |tensor, stride| ProblemError::LastAxisNotContiguous { tensor, stride };
    let message =
        |tensor: &str| format!("{tensor}: the last axis has stride 5, it must be contiguous (stride 1)");
    expect(na2d(&turned, &x, &x, &Params::new(1)), rule(Role::Query, 5), &message("query"));
    let mut out = zeros(&[1, 4, 3, 5, 2]);
    let mut turned_out = out.view_mut().swap_axes(3, 4).expect("both axes exist");
    let result = na2d_into(&x, &x, &x, &Params::new(1), &mut turned_out);
    let rule = ProblemError::LastAxisNotContiguous { tensor: Role::Out, stride: 2 };
    expect(result, rule, "out: the last axis has stride 2, it must be contiguous (stride 1)");
    for (shape, rule) in [
        (&[1, 4, 3, 2, 6][..], mismatch(Role::Out, TensorAxis::HeadDim, 5, 6)),
        (&[1, 4, 4, 2, 5], mismatch(Role::Out, TensorAxis::Token(1), 3, 4)),
        (&[2, 4, 3, 2, 5], mismatch(Role::Out, TensorAxis::Batch, 1, 2)),
        (&[1, 4, 3, 1, 5], mismatch(Role::Out, TensorAxis::Heads, 2, 1)),
        (&[1, 4, 3, 5], ProblemError::TensorRank { tensor: Role::Out, expected: 5, found: 4 }),
    ] {
        let message = rule.to_string();
        assert!(message.starts_with("out"), "{message}");
        expect(na2d_into(&x, &x, &x, &Params::new(1), &mut zeros(shape)), rule, &message);
    }
    let call = Call::new(&x, &x, &x).expect("one device");
    let result =
        call.forward_with_lse_into(&Params::<2>::new(1), &mut zeros(x.shape()), &mut zeros(&[1, 4, 3, 1]));
    expect(result, mismatch(Role::Lse, TensorAxis::Heads, 2, 1), "lse: heads has extent 1, expected 2");
}

#[test]
fn what_a_backward_reads_and_writes() {
    let (x, lse) = (zeros(&[1, 6, 2, 4]), zeros(&[1, 6, 2]));
    let params = Params::<1>::new(3);
    let run = |out: &[usize], lse: &[usize], d_out: &[usize], d_lse: &[usize]| {
        let (out, lse, d_out, d_lse) = (zeros(out), zeros(lse), zeros(d_out), zeros(d_lse));
        let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: Some(&d_lse) };
        na1d_backward(&x, &x, &x, &params, &saved)
    };
    let (o, l) = (&[1, 6, 2, 4][..], &[1, 6, 2][..]);
    assert!(run(o, l, o, l).is_ok());
    expect(
        run(&[1, 5, 2, 4], l, o, l),
        mismatch(Role::Out, TensorAxis::Token(0), 6, 5),
        "out: token axis 0 has extent 5, expected 6",
    );
    expect(
        run(o, &[1, 6, 3], o, l),
        mismatch(Role::Lse, TensorAxis::Heads, 2, 3),
        "lse: heads has extent 3, expected 2",
    );
    expect(
        run(o, l, &[1, 6, 2, 3], l),
        mismatch(Role::DOut, TensorAxis::HeadDim, 4, 3),
        "d_out: head_dim has extent 3, expected 4",
    );
    expect(
        run(o, l, o, &[2, 6, 2]),
        mismatch(Role::DLse, TensorAxis::Batch, 1, 2),
        "d_lse: batch has extent 2, expected 1",
    );
    expect(
        run(o, o, o, l),
        ProblemError::TensorRank { tensor: Role::Lse, expected: 3, found: 4 },
        "lse has 4 axes, expected 3",
    );

    let extra = zeros(&[1, 2, 2, 4]);
    let call = Call::new(&x, &x, &x).and_then(|call| call.additional(&extra, &extra)).expect("one device");
    let saved = Saved { out: &x, lse: &lse, d_out: &x, d_lse: None };
    let write = |shapes: [&[usize]; 5], with_additional: bool| {
        let [mut q, mut k, mut v, mut ak, mut av] = shapes.map(zeros);
        let additional = with_additional.then_some([&mut ak, &mut av]);
        call.backward_into(
            &params,
            &saved,
            Gradients { query: &mut q, key: &mut k, value: &mut v, additional },
        )
    };
    let e = &[1, 2, 2, 4][..];
    assert!(write([o, o, o, e, e], true).is_ok());
    let rule = ProblemError::AdditionalGradientsMissing { additional_keys: 2 };
    expect(write([o, o, o, e, e], false), rule, "2 additional keys, but no tensors for their gradients");
    let wrong = &[1, 3, 2, 4][..];
    let roles = [
        (Role::DQuery, "d_query"),
        (Role::DKey, "d_key"),
        (Role::DValue, "d_value"),
        (Role::DAdditionalKeys, "d_additional_keys"),
        (Role::DAdditionalValues, "d_additional_values"),
    ];
    for (i, (role, name)) in roles.into_iter().enumerate() {
        let mut shapes = [o, o, o, e, e];
        shapes[i] = wrong;
        let expected = if i < 3 { 6 } else { 2 };
        let message = format!("{name}: token axis 0 has extent 3, expected {expected}");
        expect(write(shapes, true), mismatch(role, TensorAxis::Token(0), expected, 3), &message);
    }
}

#[test]
fn packed_sequences() {
    let x = zeros(&[1, 6, 1, 2]);
    let run = |x: &Tensor<f32>, q: &[usize], k: &[usize]| {
        let sequences = Sequences::from_lengths(q, k)?;
        Call::new(x, x, x)?.forward(&Packed { params: AttentionParams::new(), sequences: &sequences })
    };
    assert!(run(&x, &[2, 4], &[6, 0]).is_ok());
    let rule = ProblemError::SequenceCount { queries: 2, keys: 3 };
    expect(run(&x, &[2, 4], &[6, 0, 0]), rule, "2 query sequences but 3 key sequences");
    let lengths =
        |tensor, index, expected, found| ProblemError::CumulativeLengths { tensor, index, expected, found };
    expect(
        run(&x, &[2, 5], &[6, 0]),
        lengths(Role::Query, 2, 6, 7),
        "cumulative lengths of query: entry 2 is 7, expected 6",
    );
    expect(
        run(&x, &[2, 4], &[1, 1]),
        lengths(Role::Key, 2, 6, 2),
        "cumulative lengths of key: entry 2 is 2, expected 6",
    );
    let huge = [usize::MAX, usize::MAX];
    let message = format!("cumulative lengths of query: entry 2 is {}, expected 6", usize::MAX);
    expect(run(&x, &huge, &[6, 0]), lengths(Role::Query, 2, 6, usize::MAX), &message);
    let batch = zeros(&[2, 6, 1, 2]);
    let rule = ProblemError::PackedBatch { tensor: Role::Query, found: 2 };
    expect(run(&batch, &[2, 4], &[6, 0]), rule, "packed sequences need batch = 1, query has batch = 2");
    for (offsets, rule) in
        [(vec![1, 2], lengths(Role::Query, 0, 0, 1)), (vec![0, 5, 3], lengths(Role::Query, 2, 5, 3))]
    {
        assert_eq!(Sequences::from_offsets(offsets, vec![0, 1, 2]), Err(rule));
    }
    for (offsets, tensor) in [([vec![], vec![]], Role::Query), ([vec![0], vec![]], Role::Key)] {
        let [queries, keys] = offsets;
        let rule = ProblemError::NoCumulativeLengths { tensor };
        let message =
            format!("cumulative lengths of {tensor}: the list is empty, it must at least hold the leading 0");
        assert_eq!(rule.to_string(), message);
        assert_eq!(Sequences::from_offsets(queries, keys), Err(rule));
    }
}

#[test]
fn merges() {
    let (out, lse) = (zeros(&[1, 4, 2, 3]), zeros(&[1, 4, 2]));
    expect(
        merge_attentions(&[&out], &[&lse]),
        ProblemError::MergeCount { found: 1 },
        "merging needs at least 2 partial results, got 1",
    );
    let none: [&Tensor<f32>; 0] = [];
    expect(
        merge_attentions(&none, &none),
        ProblemError::MergeCount { found: 0 },
        "merging needs at least 2 partial results, got 0",
    );
    let rule = ProblemError::MergeLseCount { outs: 3, lses: 2 };
    expect(
        merge_attentions(&[&out; 3], &[&lse; 2]),
        rule,
        "merging 3 partial outputs with 2 log-sum-exps (lse)",
    );
    let (wide, short) = (zeros(&[1, 4, 2, 5]), zeros(&[1, 3, 2]));
    let rule = mismatch(Role::Out, TensorAxis::HeadDim, 3, 5);
    expect(merge_attentions(&[&out, &wide], &[&lse; 2]), rule, "out: head_dim has extent 5, expected 3");
    let rule = mismatch(Role::Lse, TensorAxis::Token(0), 4, 3);
    expect(merge_attentions(&[&out; 2], &[&lse, &short]), rule, "lse: token axis 0 has extent 3, expected 4");
    let rule = ProblemError::TensorRank { tensor: Role::Out, expected: 4, found: 3 };
    expect(merge_attentions(&[&lse; 2], &[&lse; 2]), rule, "out has 3 axes, expected 4");
    assert!(merge_attentions_backward(&[&out; 2], &[&lse; 2], &wide, None).is_err());
    assert!(merge_attentions_backward(&[&out; 2], &[&lse; 2], &out, Some(&short)).is_err());
    assert!(merge_attentions_backward(&[&out; 2], &[&lse; 2], &out, Some(&lse)).is_ok());
}

#[test]
fn tensors() {
    let data = [0f32; 12];
    assert_eq!(Tensor::<f32>::zeros(&[]), Err(TensorError::Rank { rank: 0, max: 6 }));
    assert_eq!(Tensor::<f32>::zeros(&[1; 7]), Err(TensorError::Rank { rank: 7, max: 6 }));
    assert_eq!(TensorError::Rank { rank: 7, max: 6 }.to_string(), "7 axes, a tensor has 1 to 6");
    let length = TensorError::Length { expected: 6, found: 12 };
    assert_eq!(Tensor::from_vec(&[2, 3], data.to_vec()), Err(length.clone()));
    assert_eq!(TensorView::from_slice(&[2, 3], &data).unwrap_err(), length);
    assert_eq!(length.to_string(), "the shape holds 6 elements, the buffer 12");
    let count = TensorError::StrideCount { shape: 2, strides: 1 };
    assert_eq!(TensorView::strided(&data, 0, &[2, 3], &[3]).unwrap_err(), count);
    assert_eq!(count.to_string(), "2 extents but 1 strides");
    let outside = |lowest, highest| TensorError::OutOfBounds { lowest, highest, len: 12 };
    assert_eq!(TensorView::strided(&data, 7, &[2, 3], &[3, 1]).unwrap_err(), outside(7, 12));
    assert_eq!(TensorView::strided(&data, 1, &[3], &[-1]).unwrap_err(), outside(-1, 1));
    assert_eq!(outside(-1, 1).to_string(), "elements -1 to 1 are addressed, the buffer holds 12");
    assert!(TensorView::strided(&data, 2, &[3], &[-1]).is_ok());
    let mut data = data;
    for (shape, strides) in [([2, 3], [0, 1]), ([2, 3], [2, 1]), ([3, 2], [1, -1])] {
        assert_eq!(TensorViewMut::strided(&mut data, 2, &shape, &strides).unwrap_err(), TensorError::Overlap);
    }
    assert_eq!(TensorError::Overlap.to_string(), "axes overlap in memory, a tensor to write to must not");
    for shape in [&[usize::MAX][..], &[usize::MAX / 2, 3], &[0, usize::MAX, 2], &[isize::MAX as usize]] {
        assert_eq!(Tensor::<f32>::zeros(shape), Err(TensorError::Overflow), "{shape:?}");
        assert_eq!(Tensor::from_fn(shape, |_| 0f32), Err(TensorError::Overflow), "{shape:?}");
    }
    // Few enough bytes to be asked for, more than any machine has.
    let most = isize::MAX as usize / size_of::<f32>();
    let refused = TensorError::OutOfMemory { bytes: most * size_of::<f32>() };
    assert_eq!(Tensor::<f32>::zeros(&[most]), Err(refused.clone()));
    assert_eq!(Tensor::from_fn(&[most], |_| 0f32), Err(refused));
    assert_eq!(TensorError::Overflow.to_string(), "the shape's element count overflows");
}

/// Nothing panics: not on parameters as large as they get, nor on views of as many tokens, one element behind.
#[test]
fn absurd_numbers() {
    let x = zeros(&[1, 4, 5, 1, 2]);
    let numbers = [0, 1, 2, 5, usize::MAX / 2, usize::MAX - 1, usize::MAX];
    let mut refused = 0;
    for kernel in numbers {
        for stride in numbers {
            for dilation in numbers {
                for policy in [KernelSizePolicy::Exact, KernelSizePolicy::Clamp] {
                    let params =
                        Params::new([1, kernel]).stride([1, stride]).dilation([1, dilation]).policy(policy);
                    refused += usize::from(na2d(&x, &x, &x, &params).is_err());
                }
            }
        }
    }
    assert!(refused > 500, "{refused} of 686 refused");

    let one = [1f32];
    for extent in [1 << 40, isize::MAX as usize] {
        let view =
            TensorView::strided(&one, 0, &[1, extent, 1, 1], &[0, 0, 0, 1]).expect("one element, many times");
        for kernel in [1, 3, extent / 2, extent] {
            let params = Params::<1>::new(kernel).stride(kernel).is_causal(true).to_dyn();
            let layouts = natten::Inputs::new(view, view, view).map(|view| *view.layout());
            let problem = Problem::new(&params, &layouts, ElementType::F32).expect("a valid problem");
            assert!(problem.scores() >= extent as u64);
            let residue = problem.axes()[2].residue(0);
            for token in [0, extent / 2, extent - 1] {
                assert!(residue.window(token).contains(&token));
                assert!(residue.inverse_window(token).contains(&token));
            }
        }
    }
    let view = TensorView::strided(&one, 0, &[1, isize::MAX as usize, 1, 1], &[0, 0, 0, 1]).expect("valid");
    let result = na1d(&view, &view, &view, &Params::new(3));
    assert!(matches!(result, Err(Error::Backend { backend: "cpu", .. })), "too large to answer: {result:?}");
    let source = std::error::Error::source(result.as_ref().expect_err("too large"));
    assert!(source.is_some_and(|source| source.to_string().contains("overflows")), "{source:?}");
    // What a backward reads is looked at before gradients of that size are asked for.
    let lse = TensorView::strided(&one, 0, &[1, isize::MAX as usize, 1], &[0, 0, 0]).expect("valid");
    let short = zeros(&[1, 4, 1, 1]);
    let saved = Saved { out: &view, lse: &lse, d_out: &short.view(), d_lse: None };
    let result = na1d_backward(&view, &view, &view, &Params::new(3), &saved);
    let rule = mismatch(Role::DOut, TensorAxis::Token(0), isize::MAX as usize, 4);
    expect(result, rule.clone(), &rule.to_string());
    let mut out = zeros(&[1, 4, 1, 1]);
    let result = attention_into(&view, &view, &view, &AttentionParams::new(), &mut out);
    let rule = mismatch(Role::Out, TensorAxis::Token(0), isize::MAX as usize, 4);
    expect(result, rule.clone(), &rule.to_string());
    assert_eq!(Layout::contiguous(&[usize::MAX, usize::MAX]), Err(TensorError::Overflow));
}

#[test]
fn element_types_at_run_time() {
    let x = natten_tests::Spec::na(&[6], &[3]).draw(4).inputs;
    let [q, k, v] = [&x.query, &x.key, &x.value];
    let params = Params::<1>::new(3);
    let run = |q: &AnyTensor, k: &AnyTensor, v: &AnyTensor| {
        dynamic::forward(&Inputs::new(q.view(), k.view(), v.view()), &params.to_dyn())
    };
    let single = [q, k, v].map(|t| AnyTensor::from(t.cast::<f32>()));
    let expected =
        na1d_with_lse(&q.cast::<f32>(), &k.cast::<f32>(), &v.cast::<f32>(), &params).expect("valid");
    assert_eq!(
        run(&single[0], &single[1], &single[2]).expect("valid"),
        (AnyTensor::F32(expected.0), expected.1)
    );
    for (tensors, element_type) in [
        ([q, k, v].map(|t| AnyTensor::from(t.cast::<f16>())), ElementType::F16),
        ([q, k, v].map(|t| AnyTensor::from(t.cast::<bf16>())), ElementType::Bf16),
        ([q, k, v].map(|t| AnyTensor::from(t.clone())), ElementType::F64),
    ] {
        let (out, lse) = run(&tensors[0], &tensors[1], &tensors[2]).expect("valid");
        assert_eq!((out.view().element_type(), lse.shape()), (element_type, &[1, 6, 1][..]));
        for (key, value, role) in
            [(&tensors[1], &single[2], Role::Value), (&single[1], &tensors[2], Role::Key)]
        {
            let Err(Error::ElementMismatch { tensor, expected, found }) = run(&tensors[0], key, value) else {
                panic!("{element_type} and f32 went together");
            };
            assert_eq!((tensor, expected, found), (role, element_type, ElementType::F32));
        }
        // The backward takes all five of one type too.
        let saved = |out, d_out| Saved { out, lse: lse.view(), d_out, d_lse: None };
        let backward = |saved| {
            let [q, k, v] = [0, 1, 2].map(|i| tensors[i].view());
            dynamic::backward(&Inputs::new(q, k, v), &params, &saved)
        };
        assert!(backward(saved(out.view(), out.view())).is_ok());
        let error = backward(saved(out.view(), single[0].view())).expect_err("f32 among others");
        assert_eq!(error.to_string(), format!("d_out holds f32, query {element_type}"));
        let error = backward(saved(single[0].view(), out.view())).expect_err("f32 among others");
        assert!(matches!(error, Error::ElementMismatch { tensor: Role::Out, .. }), "{error}");
    }
}

#[test]
fn additional_keys_at_run_time() {
    let case = natten_tests::Spec::na(&[6], &[3]).additional(4).draw(5);
    let inputs = case.inputs.map(|tensor| AnyTensor::from(tensor.cast::<f32>()));
    let (out, _) =
        dynamic::forward(&inputs.map(|tensor| tensor.view()), &Params::<1>::new(3)).expect("valid");
    assert_eq!(out.shape(), inputs.query.shape());
    let [keys, _] = inputs.additional.as_ref().expect("drawn with four");
    let other = AnyTensor::from(case.inputs.value.cast::<f16>());
    let mixed = inputs.map(|tensor| tensor.view()).with_additional(keys.view(), other.view());
    let error = dynamic::forward(&mixed, &Params::<1>::new(3)).expect_err("f16 among f32");
    assert_eq!(error.to_string(), "additional_values holds f16, query f32");
}

#[test]
fn instruction_sets() {
    for isa in Isa::ALL {
        match Cpu::new().isa(isa) {
            Ok(cpu) => assert_eq!(cpu.chosen_isa(), Ok(isa)),
            Err(error) => {
                let lack = isa.lack().map_or(String::new(), |lack| format!(": {lack}"));
                assert_eq!(error.to_string(), format!("this machine has no {isa}{lack}"));
            }
        }
    }
    assert!("sse9".parse::<Isa>().expect_err("no such thing").to_string().contains("\"sse9\""));
}
