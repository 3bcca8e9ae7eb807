//! Kernels on tiles: each of them, all shapes of boxes, every flag, and what they count.

use natten_core::plan::{KeyStart, TileCounts, Tiling};
use natten_core::{
    AttentionParams, Backend, Element, ForwardCall, Inputs, Output, Params, Problem, Sequences, Tensor, bf16,
    f16, reference,
};
use natten_cuda::Cuda;
use natten_cuda::registry::{Facts, Kernel, Operation, kernels_of};
use natten_cuda::{Request, bytes_read};
use natten_emulator::{Counters, Emulated};
use natten_tests::subject::Weights;
use natten_tests::suites::oracle::Expected;
use natten_tests::{Spec, Subject, largest_error};

use crate::case::{Case, Numbers, OnDevice, Operands, forward};
use crate::subject::OnEmulator;

fn on_tiles() -> impl Iterator<Item = &'static Kernel> {
    kernels_of("sm80", Operation::Forward)
}

fn kernel(entry: &str) -> &'static Kernel {
    on_tiles().find(|kernel| kernel.entry == entry).expect("a kernel on tiles")
}

/// A backend that runs one forward kernel, on the boxes of its choice unless some are given.
fn only(kernel: &Kernel, tiling: Option<Tiling>) -> Cuda<Emulated> {
    Cuda::new(Emulated::new(8, 0)).with_request(Request { entry: Some(kernel.entry), tiling })
}

/// Weights are rounded to the element type before they meet the values, and the result once more: so each error stays
/// within one rounding of the sum of |weight * value|, and one of the result. f32 adds its own floor.
pub fn close<E: Element>(
    problem: &Problem,
    inputs: &Inputs<natten_core::TensorView<'_, E>>,
    out: &Tensor<E>,
    lse: &Tensor<f32>,
) -> Result<(), String> {
    let expected = reference::forward(problem, inputs);
    let magnitude = |view: &natten_core::TensorView<'_, E>| {
        let dense = view.to_tensor();
        let values = dense.as_slice();
        Tensor::<E>::from_fn(dense.shape(), |i| E::from_f64(values[i].to_f64().abs()))
            .expect("the same shape")
    };
    let value = magnitude(&inputs.value);
    let list = inputs.additional.as_ref().map(|[_, values]| magnitude(values));
    let mut positive = *inputs;
    positive.value = value.view();
    positive.additional =
        inputs.additional.as_ref().zip(list.as_ref()).map(|([keys, _], values)| [*keys, values.view()]);
    let bound = reference::forward(problem, &positive).out;

    let unit = if E::TYPE.name() == "bf16" { 2f64.powi(-8) } else { 2f64.powi(-11) };
    for (i, found) in out.as_slice().iter().enumerate() {
        let (found, expected, bound) = (found.to_f64(), expected.out.as_slice()[i], bound.as_slice()[i]);
        let tolerance = unit * (1.01 * bound + 1.01 * expected.abs()) + 2e-5;
        if !((found - expected).abs() <= tolerance || found.is_nan() && expected.is_nan()) {
            return Err(format!("out[{i}] = {found}, expected {expected} within {tolerance}"));
        }
    }
    for (i, (&found, &expected)) in lse.as_slice().iter().zip(expected.lse.as_slice()).enumerate() {
        let found = f64::from(found);
        let equal = found == expected || found.is_nan() && expected.is_nan();
        let is_close = (found - expected).abs() <= 2e-5 * expected.abs().max(1.0);
        if !equal && !is_close {
            return Err(format!("lse[{i}] = {found}, expected {expected}"));
        }
    }
    Ok(())
}

/// Queries of a tile.
fn queries(kernel: &Kernel) -> usize {
    kernel.tile().map_or(0, |tile| tile.queries)
}

/// The table of masks' starting scores is short where the memory for copies of it is not there; its rows may meet in a bank
/// then, for windows shorter than seven keys.
fn has_short_table(kernel: &Kernel) -> bool {
    kernel.max_head_dim == 256 || kernel.max_head_dim == 128 && queries(kernel) == 128
}

/// Runs a case on one kernel; returns what the launch counted.
fn check<E: Element>(kernel: &Kernel, case: &Case, tiling: Option<Tiling>) -> Counters {
    let cuda = only(kernel, tiling);
    let operands = Operands::<E>::draw(case);
    let problem = operands.problem(&case.params);
    let result = forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands))
        .and_then(|(out, lse)| close(&problem, &operands.inputs(), &out, &lse));
    if let Err(error) = result {
        panic!("{}: {error}\n{tiling:?}\n{case:?}", kernel.entry);
    }
    let counters = cuda.device().take_counters().remove(kernel.entry).unwrap_or_default();
    assert!(
        counters.shared_bank_conflicts == 0 || has_short_table(kernel),
        "{} conflicts: {} {case:?}",
        counters.shared_bank_conflicts,
        kernel.entry
    );
    counters
}

fn check_kernel(kernel: &Kernel, case: &Case, tiling: Option<Tiling>) -> Counters {
    match kernel.element_type().name() {
        "f16" => check::<f16>(kernel, case, tiling),
        _ => check::<bf16>(kernel, case, tiling),
    }
}

/// One kernel of each size, elements by turns: the types share all code but two instructions.
fn sizes() -> impl Iterator<Item = &'static Kernel> {
    on_tiles()
        .enumerate()
        .filter(|(i, kernel)| (i % 2 == 0) == (kernel.element_type().name() == "f16"))
        .map(|(_, k)| k)
}

/// Every kernel, on two token axes with borders, dilation, causality, shared heads and additional keys, and rows shorter
/// than its own.
#[test]
fn every_kernel() {
    for kernel in on_tiles() {
        let params = Params::new([1, 5, 9]).dilation([1, 1, 2]).is_causal([false, true, false]);
        let mut case = Case::new([1, 9, 21], params).heads(2, 1);
        case = case.dims(kernel.longest_row(), kernel.longest_row());
        check_kernel(kernel, &case, None);
        case.additional = 3;
        check_kernel(kernel, &case.clone().dims(kernel.longest_row() - 8, kernel.longest_row() - 24), None);
    }
}

/// One token, a tile less one, a tile, a tile and one; windows of one token and of all.
#[test]
fn extents_around_the_tile() {
    for kernel in sizes() {
        let dim = kernel.longest_row();
        for extent in [1, queries(kernel) - 1, queries(kernel), queries(kernel) + 1] {
            for window in [1, extent.div_ceil(2), extent] {
                let case = Case::new([1, 1, extent], Params::new([1, 1, window])).heads(1, 1).dims(dim, dim);
                check_kernel(kernel, &case, None);
            }
        }
    }
}

/// Scores computed and bytes read are the planner's, exactly, and no two rows meet in a bank: on windows longer and shorter
/// than a key tile, rows shorter than the kernel's, dilation and causality.
#[test]
fn work_is_what_the_plan_says() {
    for kernel in sizes() {
        let tile = kernel.tile().expect("on tiles");
        let dim = kernel.longest_row();
        let plain = Case::new([1, 14, 30], Params::new([1, 5, 11])).heads(2, 2).dims(dim, dim);
        let all = Params::new([1, 3, 9]).dilation([1, 2, 3]).is_causal([false, true, false]);
        let all = Case { batch: 2, ..Case::new([1, 14, 30], all).heads(2, 1).dims(dim - 8, dim - 16) };
        for (mut case, additional) in [(plain.clone(), 0), (plain, 70), (all, 5)] {
            case.additional = additional;
            let tiling = Tiling {
                query_tile: [1, 8, tile.queries / 8],
                key_tile: [1, 4, tile.keys / 4],
                key_start: KeyStart::Dynamic,
            };
            let counters = check_kernel(kernel, &case, Some(tiling));
            let problem = Operands::<f16>::draw(&case).problem(&case.params);
            let counts = TileCounts::of(&problem, &tiling);
            let heads = (case.batch * case.heads) as u64;
            assert_eq!(
                counters.mma_flops,
                heads * counts.issued * 4 * dim as u64,
                "{} {case:?}",
                kernel.entry
            );
            assert_eq!(
                counters.global_load_bytes,
                bytes_read(&problem, &tiling),
                "{} {case:?}",
                kernel.entry
            );
            assert_eq!(counters.shared_bank_conflicts, 0, "{} {case:?}", kernel.entry);
        }
    }
}

/// Every shape of box on three axes, with windows, strides and dilations that fit none of them.
#[test]
fn all_boxes() {
    let params = Params::new([2, 5, 7]).stride([1, 2, 3]).dilation([2, 1, 2]).is_causal([false, false, true]);
    let kernel = kernel("natten_forward_sm80_f16_d32_q128_k64");
    for x in 0..=6 {
        for y in 0..=6 - x {
            let sides = |x: u32, y: u32, z: u32| [1usize << x, 1 << y, 1 << z];
            // Queries in the mirrored order, one bit more.
            let tiling = Tiling {
                query_tile: sides(6 - x - y, y, x + 1),
                key_tile: sides(x, y, 6 - x - y),
                key_start: KeyStart::Dynamic,
            };
            let case = Case::new([5, 6, 17], params).heads(1, 1).dims(16, 16);
            check::<f16>(kernel, &case, Some(tiling));
        }
    }
}

/// Full tiles first, in grids where they are none, some, whole rows and all.
#[test]
fn full_and_partial_tiles() {
    let kernel = kernel("natten_forward_sm80_bf16_d32_q64_k64");
    for (tokens, params) in [
        ([1, 1, 700], Params::new([1, 1, 400])),
        ([1, 1, 512], Params::new([1, 1, 256]).stride([1, 1, 256])),
        ([1, 40, 40], Params::new([1, 24, 40])),
        ([1, 40, 40], Params::new([1, 40, 24])),
        ([1, 32, 32], Params::new([1, 32, 32])),
        ([1, 48, 24], Params::new([1, 33, 23]).is_causal([false, true, false])),
        ([10, 10, 20], Params::new([9, 7, 15])),
    ] {
        let case = Case::new(tokens, params).heads(1, 1).dims(32, 32);
        check_kernel(kernel, &case, None);
    }
}

/// Views with strides of their own: heads before tokens, several batch items.
#[test]
fn layouts() {
    for kernel in sizes() {
        let mut case = Case::new([2, 5, 9], Params::new([1, 3, 5])).heads(6, 3).dims(32, 16);
        (case.heads_first, case.batch) = (true, 2);
        check_kernel(kernel, &case, None);
    }
}

/// Scales: none, negative, and large enough that references move again and again.
#[test]
fn scales() {
    for kernel in sizes() {
        for scale in [0.0, -1.0, 4.0, 1e-4] {
            let params = Params::new([1, 9, 17]).scale(scale);
            let case = Case::new([1, 12, 40], params).heads(1, 1).dims(32, 32);
            check_kernel(kernel, &case, None);
        }
    }
}

/// NaN in the neighbouring head, in unseen tokens of other tiles, and past the rows' end in memory.
#[test]
fn poison_next_door() {
    for (entry, head_dim) in [
        ("natten_forward_sm80_f16_d64_q128_k64", 40),
        ("natten_forward_sm80_bf16_d128_q128_k64", 72),
        ("natten_forward_sm80_f16_d128_q64_k64", 80),
        ("natten_forward_sm80_bf16_d128_q64_k64", 96),
        ("natten_forward_sm80_f16_d256_q64_k32", 136),
    ] {
        let case = Case::new([1, 9, 13], Params::new([1, 3, 5])).heads(3, 3).dims(head_dim, head_dim);
        match kernel(entry).element_type().name() {
            "f16" => poisoned::<f16>(kernel(entry), &case),
            _ => poisoned::<bf16>(kernel(entry), &case),
        }
    }
}

fn poisoned<E: Element>(kernel: &Kernel, case: &Case) {
    let mut operands = Operands::<E>::draw(case);
    let (heads, dim) = (case.heads, case.head_dim);
    for tensor in [&mut operands.query, &mut operands.key, &mut operands.value] {
        for (row, values) in tensor.as_mut_slice().chunks_mut(dim).enumerate() {
            if row % heads != 1 {
                values.fill(E::from_f64(f64::NAN));
            }
        }
    }
    let problem = operands.problem(&case.params);
    let cuda = only(kernel, None);
    let (out, lse) = forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands)).expect("a launch");
    close(&problem, &operands.inputs(), &out, &lse)
        .unwrap_or_else(|error| panic!("{}: {error}", kernel.entry));
}

/// The problems that NATTEN's own arrays are of, in f16, against the reference that those arrays hold to account.
#[test]
fn golden() {
    let mut count = 0;
    for path in &natten_tests::golden::files() {
        let golden = natten_tests::golden::read(path);
        let problem = golden.case.spec.problem(f16::TYPE);
        let longest = problem.head_dim().max(problem.head_dim_v());
        if !problem.head_dim().is_multiple_of(8) || !problem.head_dim_v().is_multiple_of(8) {
            continue;
        }
        let fits = |kernel: &&Kernel| kernel.element_type() == f16::TYPE && kernel.longest_row() >= longest;
        let kernel = on_tiles().filter(fits).min_by_key(|kernel| kernel.max_head_dim).expect("up to 256");
        let inputs = golden.case.rounded::<f16>();
        let (out, lse) = OnEmulator(only(kernel, None)).attend(&problem, &inputs);
        close(&problem, &inputs.map(Tensor::view), &out, &lse)
            .unwrap_or_else(|error| panic!("{} on {}: {error}", golden.file, kernel.entry));
        count += 1;
    }
    assert!(count >= 20, "only {count} files have rows of whole chunks");
}

/// The tolerance that every backend is held to: twice the error of a naive implementation that rounds its weights too.
#[test]
fn as_close_as_a_naive_implementation() {
    for kernel in on_tiles() {
        let dim = kernel.longest_row();
        for (i, spec) in [
            Spec::na(&[150], &[71]).dims(dim, dim).heads(2, 1),
            Spec::na(&[18, 29], &[7, 10]).dims(dim, dim).stride(&[2, 3]).causal(&[false, true]).additional(5),
            Spec::na(&[129], &[128]).dims(dim, dim).heads(2, 1),
            Spec::na(&[33, 20], &[12, 13]).stride(&[4, 8]).dims(dim, dim).heads(3, 3),
            Spec::attention(100, 90, true).dims(dim, dim).heads(2, 2),
        ]
        .into_iter()
        .enumerate()
        {
            let case = spec.draw(300 + i as u64);
            let [rounded, _] = match kernel.element_type().name() {
                "f16" => errors::<f16>(kernel, &case),
                _ => errors::<bf16>(kernel, &case),
            };
            assert!(rounded <= 1.0, "{}: {rounded} of the tolerance, {spec:?}", kernel.entry);
        }
    }
}

/// Problems and numbers of the suite for real devices: few keys, whose weights are large, so that rounding them shows.
#[test]
fn rounded_weights_of_few_keys() {
    for (seed, spec) in [
        (9037, Spec::na(&[5, 12, 17], &[3, 7, 9]).dims(128, 128).heads(2, 2)),
        (9044, Spec::attention(200, 130, true).dims(128, 128).heads(2, 2)),
    ] {
        for entry in ["natten_forward_sm80_bf16_d128_q64_k64", "natten_forward_sm80_bf16_d128_q128_k64"] {
            let [rounded, unrounded] = errors::<bf16>(kernel(entry), &spec.draw(seed));
            println!(
                "{seed} {entry}: {rounded} of the tolerance, {unrounded} of that without rounded weights"
            );
            assert!(rounded <= 1.0, "{entry} {seed}: {rounded} of the tolerance");
        }
    }
}

/// The error of a kernel over either tolerance.
fn errors<E: Element>(kernel: &Kernel, case: &natten_tests::Case) -> [f64; 2] {
    let expected = Expected::<E>::of(case);
    let problem = case.spec.problem(E::TYPE);
    let (out, _) = OnEmulator(only(kernel, None)).attend(&problem, &case.rounded::<E>());
    let error = largest_error(&out, &expected.forward().out);
    [Weights::InElementType, Weights::Unrounded].map(|weights| error / expected.tolerance(weights))
}

/// Plain attention: lengths that differ, causal, no keys, packed sequences.
#[test]
fn plain_attention() {
    let mut numbers = Numbers::new(3);
    for kernel in sizes().filter(|kernel| kernel.element_type().name() == "f16" && kernel.max_head_dim >= 64)
    {
        for (queries, keys) in [(5, 200), (200, 5), (1, 1), (7, 0), (130, 131)] {
            for is_causal in [false, true] {
                let host = [[1, queries, 4, 32], [1, keys, 2, 32], [1, keys, 2, 24]]
                    .map(|s| numbers.tensor::<f16>(&s));
                let [query, key, value] = &host;
                let layouts = Inputs::new(query.view(), key.view(), value.view()).map(|view| *view.layout());
                let params = AttentionParams::new().is_causal(is_causal);
                attend(kernel, &Problem::attention(&params, &layouts, f16::TYPE).expect("valid"), &host);
            }
        }
        let host =
            [[1, 220, 4, 32], [1, 223, 2, 32], [1, 223, 2, 24]].map(|shape| numbers.tensor::<f16>(&shape));
        let layouts = Inputs::new(host[0].view(), host[1].view(), host[2].view()).map(|view| *view.layout());
        let sequences = Sequences::from_lengths(&[3, 0, 150, 67], &[5, 4, 214, 0]).expect("lengths");
        let params = AttentionParams::new().is_causal(true);
        let problem = Problem::packed_attention(&params, &sequences, &layouts, f16::TYPE).expect("valid");
        attend(kernel, &problem, &host);
    }
}

fn attend(kernel: &Kernel, problem: &Problem, host: &[Tensor<f16>; 3]) {
    let cuda = only(kernel, None);
    let [query, key, value] = host.each_ref().map(|tensor| cuda.upload(&tensor.view()).expect("an upload"));
    let mut out = cuda.allocate::<f16>(&problem.out_shape()).expect("memory");
    let mut lse = cuda.allocate::<f32>(&problem.lse_shape()).expect("memory");
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let inputs = Inputs::new(query.view(), key.view(), value.view());
    cuda.forward(ForwardCall::new(problem, inputs, output).expect("they fit")).expect("a launch");
    let inputs = Inputs::new(host[0].view(), host[1].view(), host[2].view());
    let (out, lse) = (cuda.download(&out).expect("out"), cuda.download(&lse).expect("lse"));
    close(problem, &inputs, &out, &lse)
        .unwrap_or_else(|error| panic!("{}: {error}\n{problem:?}", kernel.entry));
}
