//! Streams on the CPU, in f64 by the reference: the same as one call on the whole clip, however frames arrive; and what is refused.

use natten::cpu::{Cpu, CpuError};
use natten::cuda::Cuda;
use natten::dynamic::AnyView;
use natten::streaming::{AnyFrameCache, FrameCache, Length, StreamError};
use natten::{
    Element, ElementType, Error, Params, ProblemError, Role, Tensor, TensorAxis, bf16, f16, na1d, na2d,
};
use natten_emulator::Emulated;
use natten_tests::streams::Stream;
use natten_tests::{Rng, Spec};
use proptest::prelude::*;

/// Clips of one to three axes with each flag alone and several at once.
fn clips() -> Vec<Spec> {
    vec![
        Spec::na(&[19], &[5]).causal(&[true]),
        Spec::na(&[23], &[6]).stride(&[4]).causal(&[true]),
        Spec::na(&[31], &[4]).dilation(&[5]).causal(&[true]).heads(4, 2).batch(2),
        Spec::na(&[41], &[4]).stride(&[3]).dilation(&[3]).causal(&[true]).additional(3),
        Spec::na(&[17], &[5]).stride(&[5]).causal(&[true]).dims(16, 24),
        Spec::na(&[12], &[1]).causal(&[true]),
        Spec::na(&[12], &[12]).stride(&[7]).causal(&[true]),
        Spec::na(&[14, 7], &[4, 3]).stride(&[2, 2]).causal(&[true, false]).heads(2, 1),
        Spec::na(&[15, 9], &[3, 4]).dilation(&[2, 2]).causal(&[true, true]).additional(2).batch(2),
        Spec::na(&[9, 8], &[3, 5]).causal(&[true, false]).region(1, 2..6, 0..8),
        Spec::na(&[11, 5, 6], &[3, 3, 4]).stride(&[2, 1, 3]).causal(&[true, false, false]).heads(3, 1),
        Spec::na(&[13, 6, 5], &[2, 3, 2])
            .stride(&[2, 3, 1])
            .dilation(&[3, 2, 2])
            .causal(&[true, false, true]),
    ]
}

fn each_type(stream: &Stream, seed: u64) {
    stream.expect_whole::<Cpu, f64>(&Cpu::new(), seed);
    stream.expect_whole::<Cpu, f32>(&Cpu::new(), seed);
    stream.expect_whole::<Cpu, f16>(&Cpu::new(), seed);
    stream.expect_whole::<Cpu, bf16>(&Cpu::new(), seed);
}

#[test]
fn frames_that_arrive_in_any_number_make_up_the_clip() {
    for (n, clip) in clips().iter().enumerate() {
        for appends in [&[1][..], &[3], &[4, 1, 2], &[64]] {
            let stream = Stream::of(clip, appends);
            each_type(&stream, 90 + n as u64);
            each_type(&stream.endless(), 90 + n as u64);
        }
    }
}

/// Many times around the ring, and around the numbers that frames are counted in.
#[test]
fn a_stream_goes_on() {
    let clip = Spec::na(&[600], &[4]).stride(&[3]).dilation(&[2]).causal(&[true]);
    for appends in [&[1][..], &[2, 5, 1, 1]] {
        Stream::of(&clip, appends).expect_whole::<Cpu, f32>(&Cpu::new(), 91);
        Stream::of(&clip, appends).endless().expect_whole::<Cpu, f64>(&Cpu::new(), 91);
    }
}

/// An axis of so many tokens that is causal in time.
fn drawn(rng: &mut Rng, most: usize, is_causal: bool) -> ([usize; 4], bool) {
    let extent = rng.range(1, most);
    let dilation = rng.range(1, extent.min(4));
    let window = rng.range(1, extent / dilation);
    let stride = rng.range(1, window);
    ([extent, window, stride, dilation], is_causal)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stream(seed in any::<u64>(), rank in 1..=3usize, is_endless in any::<bool>()) {
        let mut rng = Rng::new(seed);
        let axes: Vec<_> = (0..rank)
            .map(|axis| {
                let is_causal = axis == 0 || rng.chance(0.3);
                drawn(&mut rng, [36, 9, 6][axis], is_causal)
            })
            .collect();
        let of = |i: usize| -> Vec<usize> { axes.iter().map(|axis| axis.0[i]).collect() };
        let is_causal: Vec<bool> = axes.iter().map(|axis| axis.1).collect();
        let groups = rng.range(1, 2);
        let clip = Spec::na(&of(0), &of(1))
            .stride(&of(2))
            .dilation(&of(3))
            .causal(&is_causal)
            .heads(2 * groups, 2)
            .additional(rng.range(0, 2))
            .dims(3, 5);
        let appends: Vec<usize> = (0..5).map(|_| rng.range(1, 6)).collect();
        let stream = Stream::of(&clip, &appends);
        let stream = if is_endless { stream.endless() } else { stream };
        stream.expect_whole::<Cpu, f64>(&Cpu::new(), seed);
        stream.expect_whole::<Cpu, f32>(&Cpu::new(), seed);
    }
}

/// `[batch, frames, heads, head_dim]` of numbers that differ.
fn frames<E: Element>(shape: &[usize], seed: u64) -> Tensor<E> {
    let mut rng = Rng::new(seed);
    Tensor::from_fn(shape, |_| E::from_f64(rng.normal())).expect("small")
}

#[test]
fn a_cleared_cache_begins_anew() {
    let params = Params::new(3).stride(2).is_causal(true);
    let mut cache = FrameCache::new(Cpu::new(), params, Length::Tokens(7), &[1, 4, 2, 8], 8).expect("valid");
    let clip = frames::<f32>(&[1, 7, 2, 8], 92);
    let expected = na1d(&clip, &clip, &clip, &params).expect("valid");
    for _ in 0..3 {
        for range in [0..4, 4..7] {
            let new = clip.view().narrow(1, range.clone()).expect("frames there are");
            cache.append(&new, &new).expect("room");
            let out = cache.attend(&new).expect("the last append's");
            let expected = expected.view().narrow(1, range).expect("frames there are").to_tensor();
            natten_tests::assert_close("a clip after another", &out, &expected, 1e-6);
        }
        assert!(matches!(cache.append(&clip, &clip), Err(StreamError::TooManyFrames { found: 7, most: 4 })));
        cache.clear();
        assert_eq!(cache.frames(), 0);
        let none = cache.attend(&clip).expect_err("nothing was appended");
        assert_eq!(none.to_string(), "query has 7 frames, the last append 0");
    }
}

/// Frames are copied, so they may lie in any way; appends that nobody attends from count too, and those without a frame.
#[test]
fn appends_of_any_strides() {
    let params = Params::new([3, 2]).is_causal([true, false]);
    // Heads before rows before frames, and their components apart.
    let clip = frames::<f32>(&[2, 16, 3, 6, 5], 93);
    let clip = clip.view().permute(&[0, 4, 3, 2, 1]).expect("an order of all axes");
    let dense = clip.to_tensor();
    let expected = na2d(&dense, &dense, &dense, &params).expect("valid");
    let mut cache =
        FrameCache::new(Cpu::new(), params, Length::Unbounded, &[2, 2, 6, 3, 16], 16).expect("valid");
    assert_eq!((cache.most_frames(), cache.stored_frames()), (2, 8));
    for range in [0..2, 2..2, 2..3, 3..5] {
        let new = clip.narrow(1, range.clone()).expect("frames there are");
        cache.append(&new, &new).expect("room");
        if range.is_empty() {
            let (out, lse) = cache.attend_with_lse(&new.to_tensor()).expect("no queries");
            assert_eq!((out.shape(), lse.shape()), (&[2, 0, 6, 3, 16][..], &[2, 0, 6, 3][..]));
        }
    }
    let out = cache.attend(&dense.view().narrow(1, 3..5).expect("frames there are")).expect("valid");
    let expected = expected.view().narrow(1, 3..5).expect("frames there are").to_tensor();
    natten_tests::assert_close("the last frames", &out, &expected, 1e-6);
}

/// An empty batch makes empty outputs, however many frames there would be.
#[test]
fn a_stream_of_no_items() {
    let params = Params::new([1 << 40]).stride(1 << 39).dilation(1 << 10).is_causal(true);
    let widest = [0, 3, 2, 4];
    let mut cache = FrameCache::new(Cpu::new(), params, Length::Unbounded, &widest, 4).expect("no memory");
    let frames = frames::<f32>(&widest, 97);
    for step in 1..5 {
        cache.append(&frames, &frames).expect("room");
        assert_eq!(cache.attend(&frames).expect("valid").shape(), &widest);
        assert_eq!(cache.frames(), 3 * step);
    }
}

fn cache_of(
    params: &Params<2>,
    length: Length,
    widest: &[usize],
) -> Result<FrameCache<Cpu, f32>, StreamError> {
    FrameCache::new(Cpu::new(), params, length, widest, 4)
}

fn message<T>(outcome: Result<T, StreamError>) -> String {
    outcome.err().expect("an error").to_string()
}

#[test]
fn no_cache_for_what_is_no_stream() {
    let video = Params::new([3, 3]).is_causal([true, false]);
    let widest = [1, 2, 5, 1, 8];
    let no = |params, length, widest| message(cache_of(&params, length, widest));
    assert_eq!(
        no(video.is_causal([false, true]), Length::Tokens(9), &widest),
        "axis 0 is not causal, a stream's frames see none that come later"
    );
    assert_eq!(
        no(video.whole_axis(0), Length::Unbounded, &widest),
        "axis 0 has a window over all frames of a stream of unknown length, expected a number of them"
    );
    assert!(cache_of(&video.whole_axis(0), Length::Tokens(9), &widest).is_ok());
    let short = no(video.dilation([2, 1]), Length::Tokens(5), &widest);
    assert_eq!(short, "axis 0: kernel_size 3 x dilation 2 exceeds the token extent 5");
    assert_eq!(no(video.stride(4), Length::Unbounded, &widest), "axis 0: stride 4 exceeds kernel_size 3");
    assert_eq!(no(video, Length::Unbounded, &widest[1..]), "key has 4 axes, expected 5");
    let vast = cache_of(&Params::new([1 << 50, 1]).is_causal([true, false]), Length::Unbounded, &widest);
    let backend = match vast.expect_err("a petabyte") {
        StreamError::Call(Error::Backend { source, .. }) => source,
        other => panic!("{other}"),
    };
    assert!(matches!(backend.downcast_ref(), Some(CpuError::Tensor(_))), "{backend}");
}

/// What is refused leaves the stream as it was.
#[test]
fn no_step_that_is_none_of_the_stream() {
    let params = Params::new([2, 3]).is_causal([true, false]);
    let mut cache = cache_of(&params, Length::Tokens(5), &[1, 2, 5, 2, 8]).expect("valid");
    let of = |shape: &[usize]| frames::<f32>(shape, 94);
    let (key, value) = (of(&[1, 2, 5, 2, 8]), of(&[1, 2, 5, 2, 4]));
    cache.append(&key, &value).expect("the first two");
    let before = cache.attend(&key).expect("valid");

    let wide = message(cache.append(&of(&[1, 3, 5, 2, 8]), &of(&[1, 3, 5, 2, 4])));
    assert_eq!(wide, "an append of 3 frames, the cache takes at most 2 at once");
    let mut wrong = |of_key: &[usize], of_value: &[usize], tensor, axis, [expected, found]: [usize; 2]| {
        let rule = ProblemError::ShapeMismatch { tensor, axis, expected, found };
        assert_eq!(message(cache.append(&of(of_key), &of(of_value))), rule.to_string());
    };
    let (of_key, of_value) = (key.shape(), value.shape());
    wrong(&[2, 2, 5, 2, 8], of_value, Role::Key, TensorAxis::Batch, [1, 2]);
    wrong(&[1, 2, 4, 2, 8], of_value, Role::Key, TensorAxis::Token(1), [5, 4]);
    wrong(&[1, 2, 5, 1, 8], of_value, Role::Key, TensorAxis::Heads, [2, 1]);
    wrong(&[1, 2, 5, 2, 9], of_value, Role::Key, TensorAxis::HeadDim, [8, 9]);
    wrong(of_key, &[1, 1, 5, 2, 4], Role::Value, TensorAxis::Token(0), [2, 1]);
    wrong(of_key, &[1, 2, 5, 2, 8], Role::Value, TensorAxis::HeadDim, [4, 8]);
    assert_eq!(message(cache.append(&of(&[2, 5, 2, 8]), &value)), "key has 4 axes, expected 5");
    assert_eq!(
        message(cache.append_at(3, &key, &value)),
        "frame 3 is appended, the stream's next is frame 2"
    );
    assert_eq!(message(cache.attend(&of(&[1, 1, 5, 2, 8]))), "query has 1 frames, the last append 2");
    assert_eq!(message(cache.attend(&of(&[2, 2, 8]))), "query has 3 axes, expected 5");
    // What a call itself refuses: three heads over two.
    let heads = message(cache.attend(&of(&[1, 2, 5, 3, 8])));
    assert!(heads.contains("heads"), "{heads}");
    assert_eq!((cache.frames(), cache.attend(&key).expect("valid")), (2, before));

    cache.append_at(2, &key, &value).expect("the stream's next");
    assert_eq!(message(cache.append(&key, &value)), "2 frames after the first 4 of a stream of 5");
    let [last, of_last] = [&key, &value].map(|tensor| tensor.view().narrow(1, 0..1).expect("a frame"));
    cache.append(&last, &of_last).expect("the last frame");
    assert_eq!(message(cache.append(&last, &of_last)), "1 frames after the first 5 of a stream of 5");
}

#[test]
fn another_device_is_refused() {
    let [gpu, other] = [Cuda::new(Emulated::new(8, 0)), Cuda::new(Emulated::new(8, 0))];
    let params = Params::new([3]).is_causal(true);
    let widest = [1, 1, 1, 8];
    let mut cache = FrameCache::new(gpu.clone(), params, Length::Unbounded, &widest, 8).expect("valid");
    let [here, there] =
        [&gpu, &other].map(|cuda| cuda.upload(&frames::<f32>(&widest, 96).view()).expect("memory"));
    let of = |role: &str| {
        let [expected, found] = [&gpu, &other].map(natten::Backend::device_name);
        format!("{role} lives on {found}, the cache on {expected}")
    };
    assert_eq!(message(cache.append(&there, &here)), of("key"));
    assert_eq!(message(cache.append(&here, &there)), of("value"));
    cache.append(&here, &here).expect("the cache's device");
    assert_eq!(message(cache.attend(&there)), of("query"));
}

#[test]
fn another_element_type_is_refused() {
    let params = Params::new([3]).is_causal(true);
    let widest = [1, 1, 1, 8];
    let [half, single] = [ElementType::F16, ElementType::F32].map(|element_type| {
        AnyFrameCache::new(Cpu::new(), element_type, params, Length::Unbounded, &widest, 8).expect("valid")
    });
    let (token, narrow) = (frames::<f32>(&widest, 95), frames::<f16>(&widest, 95));
    let (token, narrow) = (AnyView::from(&token), AnyView::from(&narrow));
    for (mut cache, right, wrong, names) in
        [(half, narrow, token, ["f32", "f16"]), (single, token, narrow, ["f16", "f32"])]
    {
        let [found, expected] = names;
        let of = |role: &str| format!("{role} holds {found}, the cache {expected}");
        assert_eq!(message(cache.append(&wrong, &right)), of("key"));
        assert_eq!(message(cache.append(&right, &wrong)), of("value"));
        assert_eq!(cache.frames(), 0);
        cache.append(&right, &right).expect("its type");
        assert_eq!(message(cache.attend(&wrong)), of("query"));
        let (out, lse) = cache.attend(&right).expect("its type");
        assert_eq!((out.view().element_type(), lse.shape()), (cache.element_type(), &[1, 1, 1][..]));
        // One key has all the weight.
        assert_eq!(format!("{:?}", out.view().to_layout()), format!("{:?}", right.to_layout()));
        cache.clear();
        assert_eq!(cache.frames(), 0);
    }
}
