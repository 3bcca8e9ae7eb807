//! One problem over several ranks in threads, held to the whole on one device: every flag, any split, both passes.

use std::thread;
use std::time::Duration;

use natten::cpu::Cpu;
use natten::sharded::{InProcess, Rates, Sharded, ShardedError, Way};
use natten::{Call, ElementType, Ranks, Tensor, bf16};
use natten_tests::compare::same_bits;
use natten_tests::shards::{Cut, ShardCase, expect_whole, in_threads, narrow, whole_of};
use natten_tests::{Spec, assert_close};
use proptest::prelude::*;

/// Sums of a few hundred products of normal deviates, in f32.
const OF_F32: [f64; 2] = [4e-6, 6e-5];

fn flags() -> Vec<(Spec, usize)> {
    vec![
        (Spec::na(&[23], &[5]), 0),
        (Spec::na(&[23], &[6]).stride(&[4]), 0),
        (Spec::na(&[31], &[4]).dilation(&[5]), 0),
        (Spec::na(&[29], &[7]).causal(&[true]), 0),
        (Spec::na(&[31], &[4]).dilation(&[5]).stride(&[3]).causal(&[true]), 0),
        (Spec::na(&[19], &[7]).stride(&[5]).causal(&[true]).scale(0.3), 0),
        (Spec::na(&[12, 15], &[5, 4]).stride(&[2, 3]).heads(4, 2).dims(16, 24).batch(2), 0),
        (Spec::na(&[12, 15], &[5, 4]).stride(&[2, 3]).heads(4, 2).dims(16, 24).batch(2), 1),
        (Spec::na(&[13, 14], &[3, 4]).dilation(&[3, 2]).causal(&[false, true]).additional(5), 0),
        (Spec::na(&[13, 14], &[3, 4]).dilation(&[3, 2]).causal(&[false, true]).additional(5), 1),
        (Spec::na(&[16, 6, 5], &[3, 4, 3]).causal(&[true, false, false]).heads(3, 1), 0),
        (Spec::na(&[7, 9, 6], &[2, 3, 4]).stride(&[2, 2, 3]).heads(2, 1).additional(2), 1),
        (Spec::na(&[6, 5, 17], &[2, 3, 3]).dilation(&[1, 1, 2]).batch(2), 2),
        // Windows that reach over all of the axis, and of a single token.
        (Spec::na(&[10, 9], &[10, 3]).dilation(&[1, 3]), 0),
        (Spec::na(&[17], &[17]).causal(&[true]).heads(2, 1), 0),
        (Spec::na(&[18], &[9]).dilation(&[2]), 0),
        (Spec::na(&[11], &[1]), 0),
        (Spec::na(&[3], &[3]), 0),
        (Spec::na(&[9, 4], &[3, 3]).batch(0), 0),
    ]
}

#[test]
fn every_flag_on_one_to_five_ranks_is_the_whole() {
    for (seed, (spec, axis)) in flags().into_iter().enumerate() {
        for ranks in 1..=5 {
            expect_whole::<f32>(&spec, &Cut::even(ranks, axis), 900 + seed as u64, OF_F32);
        }
    }
}

#[test]
fn shards_of_any_length_are_the_whole() {
    let spec = Spec::na(&[40, 3], &[9, 3]).heads(4, 2).additional(1);
    let causal = spec.clone().causal(&[true, false]).stride(&[3, 1]);
    // Windows that reach over several neighbours, one of a single token and empty ones among them.
    for ends in [&[1, 2, 4, 40][..], &[20, 21, 22, 24, 40], &[0, 17, 17, 40], &[40, 40], &[3, 37, 40]] {
        for (seed, spec) in [&spec, &causal].into_iter().enumerate() {
            for grid in [None, Some(1), Some(4)] {
                let cut = Cut { grid, ..Cut::at(0, ends) };
                expect_whole::<f32>(spec, &cut, 920 + seed as u64, OF_F32);
            }
        }
    }
}

/// Half types have their own rounding, of outputs and of each sum of shares.
#[test]
fn shards_of_half_types_are_the_whole() {
    let spec = Spec::na(&[30, 4], &[7, 3]).heads(4, 2).dims(16, 16);
    expect_whole::<bf16>(&spec, &Cut::even(3, 0), 930, [2e-2, 8e-2]);
}

/// An axis of up to so many tokens.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    extent: usize,
    window: usize,
    stride: usize,
    dilation: usize,
    is_causal: bool,
}

fn axis(most: usize) -> impl Strategy<Value = Drawn> {
    (1..=most, (0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64), any::<bool>()).prop_map(
        |(extent, (w, s, d), is_causal)| {
            let upto = |share: f64, most: usize| 1 + (share * most as f64) as usize;
            // Small windows and large dilations are as likely as the other way round.
            let dilation = upto(d * d * d, extent).min(extent);
            let window = upto(w * w, extent / dilation).min(extent / dilation);
            let stride = upto(s * s, window).min(window);
            Drawn { extent, window, stride, dilation, is_causal }
        },
    )
}

fn hold(axes: &[Drawn], (heads, heads_kv): (usize, usize), additional: usize, cut: &[f64], seed: u64) {
    fn each<T>(axes: &[Drawn], of: fn(&Drawn) -> T) -> Vec<T> {
        axes.iter().map(of).collect()
    }
    let spec = Spec::na(&each(axes, |axis| axis.extent), &each(axes, |axis| axis.window))
        .stride(&each(axes, |axis| axis.stride))
        .dilation(&each(axes, |axis| axis.dilation))
        .causal(&each(axes, |axis| axis.is_causal))
        .heads(heads * heads_kv, heads_kv)
        .additional(additional)
        .batch(1 + seed as usize % 2)
        .dims(3, 5);
    let along = seed as usize % axes.len();
    let extent = axes[along].extent;
    let mut ends: Vec<usize> = cut.iter().map(|share| (share * (extent + 1) as f64) as usize).collect();
    ends.sort_unstable();
    ends.push(extent);
    let grid = (!seed.is_multiple_of(3)).then_some(1 + seed as usize % 4);
    // The CPU computes f64 as the reference does: what is left is the order of sums.
    let cut = Cut { grid, keeps_halos: seed.is_multiple_of(2), ..Cut::at(along, &ends) };
    expect_whole::<f64>(&spec, &cut, seed, [1e-12, 1e-11]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_on_any_ranks(
        x in axis(40), heads in (1..=2usize, 1..=2usize), additional in 0..=2usize,
        cut in prop::collection::vec(0.0..1.0f64, 0..=4), seed in 0..1000u64,
    ) {
        hold(&[x], heads, additional, &cut, seed);
    }

    #[test]
    fn any_image_on_any_ranks(
        x in axis(12), y in axis(12), heads in (1..=2usize, 1..=2usize),
        cut in prop::collection::vec(0.0..1.0f64, 0..=3), seed in 0..1000u64,
    ) {
        hold(&[x, y], heads, 0, &cut, seed);
    }

    #[test]
    fn any_video_on_any_ranks(
        x in axis(8), y in axis(4), z in axis(5), additional in 0..=1usize,
        cut in prop::collection::vec(0.0..1.0f64, 0..=3), seed in 0..1000u64,
    ) {
        hold(&[x, y, z], (2, 1), additional, &cut, seed);
    }
}

/// Where shards, and interior and border queries, meet between tiles, the parts are the whole to the bit.
#[test]
fn shards_between_tiles_have_the_wholes_bits() {
    let specs = [
        Spec::na(&[2100], &[9]).dims(16, 16),
        Spec::na(&[96, 40], &[25, 23]).dims(16, 16),
        Spec::na(&[90, 64], &[6, 6]).stride(&[2, 3]).heads(2, 1).additional(9),
    ];
    for (seed, spec) in specs.iter().enumerate() {
        let case = ShardCase::<f32>::of(spec, 940 + seed as u64);
        let problem = spec.problem(ElementType::F32);
        let (grain, extent) = (
            Cpu::new().grain(&problem).expect("instructions there are")[0],
            problem.axes()[3 - problem.rank()].extent,
        );
        assert!(2 * grain < extent, "{spec:?}: one tile of {grain}");
        let cut = Cut { grid: Some(grain), ..Cut::at(0, &[grain * (extent / grain / 2), extent]) };
        let whole = case.on_one_device();
        for (tokens, part) in case.on_ranks(&cut) {
            let own = |tensor: &Tensor<f32>| narrow(tensor, 0, &tokens);
            assert!(same_bits(&part.out, &own(&whole.out)), "out of {tokens:?} of {spec:?}");
            assert!(same_bits(&part.lse, &own(&whole.lse)), "lse of {tokens:?} of {spec:?}");
            let d_query = own(&whole.gradients.query);
            assert!(same_bits(&part.gradients.query, &d_query), "d_query of {tokens:?} of {spec:?}");
        }
    }
}

/// Shares arrive in any order and are added in one.
#[test]
fn results_do_not_depend_on_who_is_late() {
    let spec = Spec::na(&[37, 4], &[15, 3]).heads(2, 1).additional(3);
    let (case, whole) = (ShardCase::<f32>::of(&spec, 950), whole_of::<f32>(&spec));
    let run = |late: usize| {
        in_threads(4, |exchange| {
            let sharded = Sharded::new(exchange, &whole, 0).expect("valid");
            let shard = case.shard(0, &sharded.tokens());
            if sharded.exchange().rank() == late {
                thread::sleep(Duration::from_millis(20));
            }
            shard.on_rank(&sharded, late.is_multiple_of(2)).expect("every rank is there")
        })
    };
    let expected = run(0);
    for late in 1..4 {
        for (found, expected) in run(late).iter().zip(&expected) {
            assert!(same_bits(&found.out, &expected.out) && same_bits(&found.lse, &expected.lse));
            for ((role, found), (_, expected)) in found.gradients.roles().zip(expected.gradients.roles()) {
                assert!(same_bits(found, expected), "gradient of {role}, rank {late} late");
            }
        }
    }
}

/// Operands of any strides, as a frame of a larger tensor, with an axis of batch and one before the split one.
#[test]
fn operands_lie_as_they_lie() {
    let spec = Spec::na(&[5, 21], &[3, 5]).batch(2).heads(2, 2).dims(4, 4);
    let (case, whole) = (ShardCase::<f32>::of(&spec, 960), whole_of::<f32>(&spec));
    let expected = case.on_one_device().out;
    let outs = in_threads(3, |exchange| {
        let sharded = Sharded::new(exchange, &whole, 1).expect("valid");
        let tokens = sharded.tokens();
        // In the whole's memory: neither what is sent nor what is computed lies contiguously.
        let [query, key, value] = [&case.inputs.query, &case.inputs.key, &case.inputs.value]
            .map(|tensor| tensor.view().narrow(2, tokens.clone()).expect("tokens of the whole"));
        let call = Call::new(&query, &key, &value).expect("one device");
        (tokens.clone(), sharded.forward(&call).expect("every rank is there"))
    });
    for (tokens, out) in outs {
        assert_close("out", &out, &narrow(&expected, 1, &tokens), 4e-6);
    }
}

/// Windows that reach over all of the axis: keys of one rank after another, of uneven ranks, causal ones, with none, with additional
/// keys and with windows along other axes.
#[test]
fn keys_that_go_round_are_the_whole() {
    let specs = [
        (Spec::na(&[17], &[17]), 0),
        (Spec::na(&[17], &[17]).causal(&[true]).stride(&[3]).heads(4, 2).batch(2), 0),
        (Spec::na(&[13, 6], &[13, 3]).stride(&[4, 1]).dilation(&[1, 2]).additional(3).dims(4, 6), 0),
        (Spec::na(&[5, 11], &[2, 11]).causal(&[false, true]).additional(1).scale(0.2), 1),
    ];
    for (seed, (spec, axis)) in specs.iter().enumerate() {
        let extent = spec.query_tokens()[*axis];
        let even = (1..=5).map(|ranks| Cut::even(ranks, *axis));
        let uneven = [&[1, 4, extent][..], &[0, extent - 1, extent - 1, extent], &[extent, extent]];
        for cut in even.chain(uneven.map(|ends| Cut::at(*axis, ends))) {
            let round = Cut { way: Some(Way::Ring), ..cut.clone() };
            expect_whole::<f32>(spec, &round, 970 + seed as u64, OF_F32);
            // Partial results are merged by log-sum-exps, which are f32.
            expect_whole::<f64>(spec, &round, 970 + seed as u64, [1e-6, 1e-5]);
            expect_whole::<f64>(
                spec,
                &Cut { way: Some(Way::Halo), ..cut },
                970 + seed as u64,
                [1e-12, 1e-11],
            );
        }
    }
}

/// The faster way by the rates that are given, and no ring where windows do not reach over all of the axis.
#[test]
fn the_way_is_the_faster_one() {
    let of = |spec: &Spec| {
        let exchange = InProcess::group(2).expect("two ranks").swap_remove(0);
        Sharded::new(exchange, &whole_of::<f32>(spec), 0).expect("valid")
    };
    let all = Spec::na(&[64], &[64]).dims(64, 64);
    let slow_link = Rates { flops: 1e9, link_bytes: 1e6, memory_bytes: 1e12, latency: 1e-9 };
    let slow_memory = Rates { memory_bytes: 1e3, ..slow_link };
    let chosen = |rates| of(&all).rates(&rates).expect("positive");
    assert_eq!([chosen(slow_link).way(), chosen(slow_memory).way()], [Way::Ring, Way::Halo]);
    let predicted = chosen(slow_link).predicted();
    assert!(predicted.ring.is_some_and(|ring| ring < predicted.halo), "{predicted:?}");
    for spec in [Spec::na(&[64], &[63]), Spec::na(&[64], &[32]).dilation(&[2])] {
        let error = of(&spec).by(Way::Ring).expect_err("windows that do not reach over all");
        assert!(matches!(error, ShardedError::NoRing { axis: 0 }), "{error}");
        assert_eq!(of(&spec).rates(&slow_link).expect("positive").way(), Way::Halo);
    }
}

/// Across each cut go as many tokens of keys and values as a window has besides the query, with as many heads as these have.
#[test]
fn halos_are_as_large_as_the_closed_form_says() {
    for (window, heads_kv, ranks) in [(7, 2, 3), (7, 4, 3), (6, 1, 2), (1, 2, 4), (9, 2, 5)] {
        let spec = Spec::na(&[60, 5], &[window, 3]).heads(4, heads_kv).dims(8, 6).batch(2);
        let whole = whole_of::<f32>(&spec);
        let case = ShardCase::<f32>::of(&spec, 980);
        let received: u64 = in_threads(ranks, |exchange| {
            let sharded = Sharded::new(exchange, &whole, 0).expect("valid");
            let shard = case.shard(0, &sharded.tokens());
            sharded.forward(&shard.call()).expect("every rank is there");
            sharded.exchange().received_bytes()
        })
        .into_iter()
        .sum();
        let of_token = 2 * 5 * heads_kv * (8 + 6) * size_of::<f32>();
        assert_eq!(received, ((ranks - 1) * (window - 1) * of_token) as u64, "window {window}");
    }
}
