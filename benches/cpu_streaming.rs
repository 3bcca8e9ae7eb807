//! Frames that arrive one and four at a time, beside their share of one call on the whole clip.
//!
//! `cargo bench -p natten-benches --bench cpu_streaming -- [--only S0] [--elements f32] [--threads 2] [--seconds 2] [--cpu-time]`
//!
//! A line has the median milliseconds of a frame. *Boxes* is what a cache would take that held each frame once, in a ring, and
//! computed a frame from two calls over the older and the newer half of its keys, merged by their log-sum-exps; what it would
//! take to store the frame is not in it.

use std::time::Instant;

use natten::streaming::{FrameCache, Length};
use natten::{
    AxisParams, Call, DynParams, KernelSize, KernelSizePolicy, Operand, Region, Tensor, TensorView,
    merge_attentions,
};
use natten_benches::options::{Arguments, Named, one_and_all_threads};
use natten_benches::{Clock, time};
use natten_core::{Element, ElementType, bf16, f16};
use natten_cpu::Cpu;

/// A clip whose first axis is causal in a stream. 64 components a head.
struct Clip {
    name: &'static str,
    /// Frames, then the extents of one.
    tokens: &'static [usize],
    window: &'static [usize],
    heads: usize,
}

/// The first and the last stage of LTX-2.5's decoder (L0 and L5 of the bench set) with more frames, and a text.
const CLIPS: [Clip; 3] = [
    Clip { name: "S0", tokens: &[32, 32, 48], window: &[3, 7, 7], heads: 16 },
    Clip { name: "S1", tokens: &[33, 56, 56], window: &[11, 11, 11], heads: 4 },
    Clip { name: "S2", tokens: &[4096], window: &[1024], heads: 8 },
];

fn main() {
    let mut given = Arguments::of_program();
    let only: Vec<String> = given.list("--only").unwrap_or_default();
    let elements = given.list("--elements").unwrap_or_else(|| vec![Named(ElementType::F32)]);
    let threads = given.list("--threads").unwrap_or_else(one_and_all_threads);
    let seconds = given.list("--seconds").map_or(2.0, |list: Vec<f64>| list[0]);
    let clock = if given.flag("--cpu-time") { Clock::Cpu } else { Clock::Wall };
    given.finish();
    println!(
        "| clip | element | threads | whole | 1 at a time | of it append | 4 at a time | of it append | boxes |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for clip in CLIPS.iter().filter(|clip| only.is_empty() || only.iter().any(|only| only == clip.name)) {
        for &Named(element) in &elements {
            for &threads in &threads {
                let cpu = Cpu::new().threads(threads).expect("such a machine");
                let how = How { cpu, threads, seconds, clock };
                let row = match element {
                    ElementType::F16 => how.measure::<f16>(clip),
                    ElementType::Bf16 => how.measure::<bf16>(clip),
                    _ => how.measure::<f32>(clip),
                };
                let row: Vec<String> = row.iter().map(|seconds| format!("{:.3}", seconds * 1e3)).collect();
                println!("| {} | {element} | {threads} | {} |", clip.name, row.join(" | "));
            }
        }
    }
}

struct How {
    cpu: Cpu,
    threads: usize,
    seconds: f64,
    clock: Clock,
}

impl How {
    /// Seconds of a call, the median of groups of calls that take a twentieth of a second: the clock of threads is coarse.
    fn time(&self, mut call: impl FnMut()) -> f64 {
        let mut one_call = || {
            let begin = Instant::now();
            call();
            begin.elapsed().as_secs_f64()
        };
        let shortest = (0..8).map(|_| one_call()).fold(f64::INFINITY, f64::min);
        let calls = (0.05 / shortest).clamp(1.0, 1e5) as usize;
        let group = || (0..calls).for_each(|_| call());
        time(self.seconds, self.clock, self.threads, group).median / calls as f64
    }

    /// Seconds of a frame: of the whole clip, in appends of one and of four with the append alone, and from two boxes.
    fn measure<E: Element>(&self, clip: &Clip) -> [f64; 6] {
        let frames = clip.tokens[0];
        let [query, key, value] = [1, 2, 3].map(|seed| clip.draw::<E>(seed));
        let call =
            Call::new(&query, &key, &value).and_then(|call| call.on(self.cpu.clone())).expect("one device");
        // Into memory that is there, as a frame's output is from the allocator after the first few.
        let mut out = query.clone();
        let whole = self.time(|| call.forward_into(&clip.params(), &mut out).expect("a valid clip"));
        let [one, of_one] = self.stream(clip, [&query, &key, &value], 1);
        let [four, of_four] = self.stream(clip, [&query, &key, &value], 4);
        [whole / frames as f64, one, of_one, four, of_four, self.boxes(clip, [&query, &key, &value])]
    }

    /// Seconds of a frame, and of its append alone.
    fn stream<E: Element>(&self, clip: &Clip, tensors: [&Tensor<E>; 3], at_once: usize) -> [f64; 2] {
        let mut widest = tensors[1].shape().to_vec();
        widest[1] = at_once;
        let mut cache = FrameCache::new(self.cpu.clone(), clip.params(), Length::Unbounded, &widest, 64)
            .expect("a valid stream");
        let mut next = 0;
        let mut step = |attends: bool| {
            // The clip over and over.
            let new = tensors.map(|tensor| frames_of(tensor, next..next + at_once));
            next = if next + 2 * at_once > clip.tokens[0] { 0 } else { next + at_once };
            cache.append(&new[1], &new[2]).expect("the stream goes on");
            if attends {
                drop(cache.attend(&new[0]).expect("a valid call"));
            }
        };
        // Until every query sees as many frames as it ever will.
        (0..clip.window[0].div_ceil(at_once)).for_each(|_| step(false));
        [true, false].map(|attends| self.time(|| step(attends)) / at_once as f64)
    }

    /// Seconds of one frame from two boxes of keys, which is held to the frame from one box first.
    fn boxes<E: Element>(&self, clip: &Clip, [query, key, value]: [&Tensor<E>; 3]) -> f64 {
        let (end, window) = (clip.tokens[0], clip.window[0]);
        let query = frames_of(query, end - 1..end);
        let half = end - window.div_ceil(2);
        let over = |keys: std::ops::Range<usize>| {
            let seen = Region::of(keys.len()).queries(0..1).keys(0..keys.len());
            let [key, value] = [key, value].map(|tensor| frames_of(tensor, keys.clone()));
            let call = Call::new(&query, &key, &value).and_then(|call| call.on(self.cpu.clone()));
            call.and_then(|call| {
                call.forward_with_lse(&clip.with_first(KernelSize::Whole, false).region(0, seen))
            })
            .expect("a valid call")
        };
        let merged = || {
            let [(older, older_lse), (newer, newer_lse)] = [over(end - window..half), over(half..end)];
            merge_attentions(&[&older, &newer], &[&older_lse, &newer_lse]).expect("two results")
        };
        let ((found, _), (expected, _)) = (merged(), over(end - window..end));
        let far = found.as_slice().iter().zip(expected.as_slice());
        let far = far.map(|(a, b)| (a.to_f64() - b.to_f64()).abs()).fold(0.0, f64::max);
        assert!(far < 0.02, "{}: boxes give something else, {far}", clip.name);
        self.time(|| drop(merged()))
    }
}

impl Clip {
    fn params(&self) -> DynParams {
        self.with_first(KernelSize::Tokens(self.window[0]), true)
    }

    /// With another window of the first axis.
    fn with_first(&self, kernel_size: KernelSize, is_causal: bool) -> DynParams {
        let mut axes: Vec<_> = self.window.iter().map(|&window| AxisParams::new(window)).collect();
        axes[0] = AxisParams { kernel_size, is_causal, ..axes[0] };
        DynParams::new(&axes, None, KernelSizePolicy::Exact)
    }

    fn draw<E: Element>(&self, seed: usize) -> Tensor<E> {
        let shape = [&[1], self.tokens, &[self.heads, 64]].concat();
        Tensor::from_fn(&shape, |i| E::from_f64((((i * 37 + seed * 101) % 1009) as f64 / 504.0) - 1.0))
            .expect("memory")
    }
}

fn frames_of<'a, E: Element>(tensor: &'a Tensor<E>, frames: std::ops::Range<usize>) -> TensorView<'a, E> {
    Operand::view(tensor).narrow(1, frames).expect("frames there are")
}
