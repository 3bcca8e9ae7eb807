//! Parts of a whole: splits over ranks, windows of any kind, and what the suite of regions relies on.

use natten::cpu::{Cpu, Isa};
use natten::region::Split;
use natten::{ElementType, Inputs, Region, Tensor, na2d};
use natten_tests::subject::cpu;
use natten_tests::suites::regions::{expect_whole, tiled};
use natten_tests::{Reference, Rng, Spec, Subject, assert_close};
use proptest::prelude::*;

/// The same bits between tiles would be no promise, were there no two tiles.
#[test]
fn problems_have_several_tiles() {
    let instructions = Isa::ALL.into_iter().chain(Isa::BY_NAME);
    for subject in instructions.flat_map(cpu) {
        for element_type in [ElementType::F32, ElementType::Bf16] {
            let can_be_cut = |spec: &&Spec| {
                let problem = spec.problem(element_type);
                let grain = subject.grain(&problem).expect("a promise");
                let axes = problem.axes()[3 - problem.rank()..].iter();
                axes.zip(grain).any(|(axis, grain)| grain < axis.extent)
            };
            let (all, cut) = (tiled(), tiled().iter().filter(can_be_cut).count());
            assert!(cut == all.len(), "{} {element_type}: {cut} of {}", subject.name(), all.len());
        }
    }
}

/// An axis of up to so many tokens, and up to two cuts of it.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    extent: usize,
    window: usize,
    stride: usize,
    dilation: usize,
    is_causal: bool,
    cuts: [usize; 2],
}

fn axis(most: usize) -> impl Strategy<Value = Drawn> {
    let shares = (0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64);
    (1..=most, shares, any::<bool>()).prop_map(|(extent, (w, s, d, a, b), is_causal)| {
        let upto = |share: f64, most: usize| 1 + (share * most as f64) as usize;
        // Small windows and large dilations are as likely as the other way round.
        let dilation = upto(d * d, extent).min(extent);
        let window = upto(w, extent / dilation).min(extent / dilation);
        let stride = upto(s * s, window).min(window);
        let mut cuts = [a, b].map(|share| (share * (extent + 1) as f64) as usize);
        cuts.sort_unstable();
        Drawn { extent, window, stride, dilation, is_causal, cuts }
    })
}

fn hold(axes: &[Drawn], heads: (usize, usize), additional: usize) {
    fn each<T>(axes: &[Drawn], of: fn(&Drawn) -> T) -> Vec<T> {
        axes.iter().map(of).collect()
    }
    let spec = Spec::na(&each(axes, |axis| axis.extent), &each(axes, |axis| axis.window))
        .stride(&each(axes, |axis| axis.stride))
        .dilation(&each(axes, |axis| axis.dilation))
        .causal(&each(axes, |axis| axis.is_causal))
        .heads(heads.0 * heads.1, heads.1)
        .additional(additional)
        .dims(3, 5);
    let cuts = each(axes, |axis| axis.cuts.to_vec());
    expect_whole::<f64, _>(&Reference, &spec, &cuts, 81).expect("the reference takes every problem");
    expect_whole::<f32, _>(&Cpu::new(), &spec, &cuts, 82).expect("the CPU takes every problem");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parts_of_a_sequence(x in axis(40), heads in (1..=2usize, 1..=2usize), additional in 0..=2usize) {
        hold(&[x], heads, additional);
    }

    #[test]
    fn parts_of_an_image(x in axis(12), y in axis(12), heads in (1..=2usize, 1..=2usize)) {
        hold(&[x, y], heads, 0);
    }

    #[test]
    fn parts_of_a_video(x in axis(6), y in axis(5), z in axis(7), additional in 0..=1usize) {
        hold(&[x, y, z], (2, 1), additional);
    }
}

/// Each rank computes its part from its own tokens and what the lists say it receives, and from nothing else.
#[test]
fn ranks_that_exchange_what_the_split_says_compute_the_whole() {
    let spec =
        Spec::na(&[14, 15], &[4, 3]).stride(&[3, 1]).dilation(&[1, 2]).causal(&[true, false]).heads(4, 2);
    let (params, problem) = (spec.dyn_params().expect("a neighborhood"), spec.problem(ElementType::F32));
    let inputs = spec.draw(83).rounded::<f32>();
    let whole = Cpu::new().attend(&problem, &inputs).expect("the CPU takes every problem").out;
    for (ranks, axes) in (1..=5).flat_map(|ranks| [&[0][..], &[1], &[0, 1]].map(|axes| (ranks, axes))) {
        let split = Split::new(&problem, ranks, axes).expect("a whole");
        for (rank, part) in split.parts().iter().enumerate() {
            let held = |tensor: &Tensor<f32>| {
                let mut held = Tensor::from_fn(tensor.shape(), |_| f32::NAN).expect("small");
                let received = part.receives.iter().map(|transfer| &transfer.tokens);
                for tokens in [&part.queries].into_iter().chain(received) {
                    let row: usize = tensor.shape()[3..].iter().product();
                    for (x, y) in tokens[0].clone().flat_map(|x| tokens[1].clone().map(move |y| (x, y))) {
                        let at = (x * 15 + y) * row..(x * 15 + y + 1) * row;
                        held.as_mut_slice()[at.clone()].copy_from_slice(&tensor.as_slice()[at]);
                    }
                }
                held
            };
            let boxed = |tensor: &Tensor<f32>, tokens: &[std::ops::Range<usize>]| {
                let view = tensor
                    .view()
                    .narrow(1, tokens[0].clone())
                    .and_then(|view| view.narrow(2, tokens[1].clone()));
                view.expect("a box of the whole").to_tensor()
            };
            let query = boxed(&inputs.query, &part.queries);
            let [key, value] = [&inputs.key, &inputs.value].map(|tensor| boxed(&held(tensor), &part.keys));
            let call = natten::Call::new(&query, &key, &value).expect("one device");
            let found =
                call.forward(&split.params(&params, rank).expect("a rank of it")).expect("a valid part");
            let expected = boxed(&whole, &part.queries);
            assert_close(&format!("rank {rank} of {ranks} along {axes:?}"), &found, &expected, 2e-6);
        }
    }
}

/// A stream has no end to be said: far from both, its windows are those of any whole that is longer than they are.
#[test]
fn a_stream_without_end_is_a_whole() {
    let windows = |extent: usize| {
        let axis =
            Spec::na(&[extent, 6], &[5, 3]).stride(&[2, 1]).dilation(&[3, 1]).heads(2, 1).additional(1);
        [axis.clone(), axis.causal(&[true, false])]
    };
    let at = |start: usize| move |spec: Spec| spec.region(0, start..start + 9, start - 24..start + 30);
    for (endless, short) in windows(1 << 62).map(at(6 << 58)).into_iter().zip(windows(100).map(at(48))) {
        let subjects = Isa::ALL.into_iter().chain(Isa::BY_NAME).flat_map(cpu);
        for subject in subjects.chain([Cpu::new()]) {
            let case = short.draw(86);
            let inputs: Inputs<Tensor<f32>> = case.rounded();
            let (problem, expected) = (
                endless.problem(ElementType::F32),
                Reference.attend(&short.problem(ElementType::F32), &inputs),
            );
            let found = subject.attend(&problem, &inputs).expect("the CPU takes every problem");
            let expected = expected.expect("the reference takes every problem");
            assert_close("out", &found.out, &expected.out, 2e-6);
            let saved =
                natten::Saved { out: &found.out, lse: &found.lse, d_out: &case.d_out.cast(), d_lse: None };
            let of = |gradients: Result<Inputs<Tensor<f32>>, _>| gradients.expect("any problem is taken");
            let found = of(subject.differentiate(&problem, &inputs, &saved));
            let expected = of(Reference.differentiate(&short.problem(ElementType::F32), &inputs, &saved));
            for ((role, found), (_, expected)) in found.roles().zip(expected.roles()) {
                assert_close(&format!("gradient of {role}"), found, expected, 2e-5);
            }
            let grain = Cpu::grain(&subject, &problem).expect("instructions there are");
            assert!(grain.iter().all(|&tokens| tokens > 0), "{grain:?}");
        }
    }
}

/// What a part saved itself is the whole's to rounding, and so is the gradient of its queries.
#[test]
fn gradients_with_what_a_part_saved_are_the_wholes() {
    let whole = Spec::na(&[41, 6], &[7, 3]).stride(&[2, 1]).causal(&[true, false]).heads(2, 1).additional(2);
    let case = whole.draw(87);
    let (inputs, d_out): (Inputs<Tensor<f32>>, Tensor<f32>) = (case.rounded(), case.d_out.cast());
    let gradients = |spec: &Spec, inputs: &Inputs<Tensor<f32>>, d_out: &Tensor<f32>| {
        let problem = &spec.problem(ElementType::F32);
        let attended = Cpu::new().attend(problem, inputs).expect("the CPU takes every problem");
        let saved = natten::Saved { out: &attended.out, lse: &attended.lse, d_out, d_lse: None };
        Cpu::new().differentiate(problem, inputs, &saved).expect("the CPU takes every problem")
    };
    let of_whole = gradients(&whole, &inputs, &d_out);
    for (queries, keys) in [(0..9, 0..9), (9..30, 2..30), (30..41, 23..41)] {
        let part = whole.clone().region(0, queries.clone(), keys.clone());
        let narrow = |tensor: &Tensor<f32>, tokens: &std::ops::Range<usize>| {
            tensor.view().narrow(1, tokens.clone()).expect("frames of the whole").to_tensor()
        };
        let held = Inputs {
            query: narrow(&inputs.query, &queries),
            key: narrow(&inputs.key, &keys),
            value: narrow(&inputs.value, &keys),
            additional: inputs.additional.clone(),
        };
        let found = gradients(&part, &held, &narrow(&d_out, &queries));
        assert_close("d_query", &found.query, &narrow(&of_whole.query, &queries), 2e-5);
    }
}

/// Of frames without queries nothing comes out, and keys get no gradient: also where keys of the other axis are not there, which
/// nobody needs, and where that axis is any length.
#[test]
fn no_queries_make_no_output_and_no_gradients() {
    let frames =
        |rows: usize, window: usize| Spec::na(&[9, rows], &[3, window]).additional(2).region(0, 4..4, 2..7);
    let specs = [
        (frames(8, 3).region(1, 3..5, 0..8), 2),
        (frames(8, 3).region(1, 3..5, 0..1), 2),
        (frames(8, 3).region(1, 3..5, 6..6), 2),
        (frames(1 << 62, 1 << 61).region(1, 1 << 60..(1 << 60) + 3, 5..8), 3),
    ];
    for (subject, (spec, columns)) in [Cpu::new()]
        .into_iter()
        .chain(cpu(Isa::Scalar))
        .flat_map(|cpu| specs.clone().map(|spec| (cpu.clone(), spec)))
    {
        let (problem, case) = (spec.problem(ElementType::F32), spec.draw(84));
        let inputs: Inputs<Tensor<f32>> = case.rounded();
        let attended = subject.attend(&problem, &inputs).expect("the CPU takes every problem");
        assert_eq!(attended.out.shape(), [1, 0, columns, 1, 8]);
        let saved =
            natten::Saved { out: &attended.out, lse: &attended.lse, d_out: &case.d_out.cast(), d_lse: None };
        let gradients =
            subject.differentiate(&problem, &inputs, &saved).expect("the CPU takes every problem");
        for (role, gradient) in gradients.roles() {
            assert!(gradient.as_slice().iter().all(|&x| x == 0.0), "gradient of {role}");
        }
    }
}

/// A region of everything is no region.
#[test]
fn the_whole_as_a_region_is_the_whole() {
    let mut rng = Rng::new(85);
    let [q, k, v] =
        [(); 3].map(|()| Tensor::from_fn(&[1, 6, 7, 2, 8], |_| rng.normal() as f32).expect("small"));
    let params = natten::Params::new([3, 5]).stride([2, 1]);
    let all = params.region(0, Region::of(6)).region(1, Region::of(7).queries(0..7));
    assert_eq!(na2d(&q, &k, &v, &params).expect("valid"), na2d(&q, &k, &v, &all).expect("valid"));
}
