//! The Hopper kernels on views of all sorts: neighbouring heads, repeated and reversed axes, and what is chosen and compiled.

use natten_core::plan::TileCounts;
use natten_core::{Backend, ForwardCall, Inputs, Layout, Output, Params, Tensor, bf16, reference};
use natten_cuda::registry::Operation;
use natten_cuda::{Cuda, CudaTensor, CudaView, Device, LayoutSummary, Request};
use natten_emulator::{Completion, Emulated};

use crate::case::{Case, OnDevice, Operands};
use crate::sm90::{compare, forward, hopper, run};

/// NaN right beside a head's rows, in the neighbouring heads and behind the last token, does not leak: on one to three
/// axes, in either order of heads and tokens, with one batch item and two.
#[test]
fn neighbouring_heads_do_not_leak() {
    for (tokens, window, dilation) in [
        ([1, 1, 150], [1, 1, 70], [1, 1, 1]),
        ([1, 12, 14], [1, 7, 9], [1, 1, 1]),
        ([4, 6, 9], [3, 5, 5], [1, 1, 1]),
        ([1, 20, 27], [1, 2, 2], [1, 10, 9]),
        ([1, 1, 151], [1, 1, 30], [1, 1, 4]),
        ([1, 23, 25], [1, 2, 2], [1, 10, 9]),
    ] {
        for (i, head_dim) in [40, 72, 80, 96, 8, 64].into_iter().enumerate() {
            let mut case = Case::new(tokens, Params::new(window).dilation(dilation))
                .dims(head_dim, head_dim)
                .heads(3, 3);
            (case.batch, case.heads_first) = (1 + i % 2, i % 3 == 0);
            unaffected_by_neighbours(&case);
        }
    }
}

fn unaffected_by_neighbours(case: &Case) {
    let clean = Operands::<bf16>::draw(case);
    let problem = clean.problem(&case.params);
    let mut poisoned = Operands::<bf16>::draw(case);
    let (tokens, head_dim) = (case.tokens.iter().product::<usize>(), case.head_dim);
    for tensor in [&mut poisoned.query, &mut poisoned.key, &mut poisoned.value] {
        for (row, values) in tensor.as_mut_slice().chunks_mut(head_dim).enumerate() {
            let head = if case.heads_first { row / tokens % 3 } else { row % 3 };
            if head != 1 {
                values.fill(bf16::NAN);
            }
        }
    }
    let cuda = hopper(1, Completion::Latest);
    let (out, lse) = forward(&cuda, None, &clean, &problem).unwrap();
    let (found, found_lse) = forward(&cuda, None, &poisoned, &problem).unwrap();
    for token in 0..case.batch * tokens {
        let at = token * 3 + 1;
        assert_eq!(lse.as_slice()[at], found_lse.as_slice()[at], "{case:?}");
        let row = at * head_dim..(at + 1) * head_dim;
        assert_eq!(out.as_slice()[row.clone()], found.as_slice()[row], "{case:?}");
    }
}

/// NaN in all tokens of other residues, which lie where a residue of an uneven dilation ends, does not leak either, nor
/// what lies before the tensor and after it.
#[test]
fn other_residues_do_not_leak() {
    for (tokens, window, dilation) in [
        ([1, 1, 151], [1, 1, 30], [1, 1, 4]),
        ([1, 11, 25], [1, 2, 2], [1, 4, 9]),
        ([1, 7, 26], [1, 3, 4], [1, 1, 3]),
        ([3, 5, 8], [1, 2, 2], [2, 2, 3]),
    ] {
        for (batch, heads_first) in [(1, false), (2, true)] {
            let mut case = Case::new(tokens, Params::new(window).dilation(dilation)).dims(64, 64).heads(2, 1);
            (case.batch, case.heads_first) = (batch, heads_first);
            // The first residue and the last of either length along each axis.
            let ends = [0, 1, 2].map(|a| [0, tokens[a] % dilation[a], dilation[a] - 1]);
            for pick in 0..3 {
                unaffected_by_other_residues(
                    &case,
                    dilation,
                    [0, 1, 2].map(|a: usize| ends[a][(pick + a) % 3]),
                );
            }
        }
    }
}

fn unaffected_by_other_residues(case: &Case, dilation: [usize; 3], residue: [usize; 3]) {
    let [_, y, z] = case.tokens;
    let is_of = |token: usize| {
        let at = [token / (y * z), token / z % y, token % z];
        (0..3).all(|a| at[a] % dilation[a] == residue[a])
    };
    let all = case.tokens.iter().product::<usize>();
    let clean = Operands::<bf16>::draw(case);
    let problem = clean.problem(&case.params);
    let mut poisoned = Operands::<bf16>::draw(case);
    for (tensor, heads) in [(&mut poisoned.query, 2), (&mut poisoned.key, 1), (&mut poisoned.value, 1)] {
        for (row, values) in tensor.as_mut_slice().chunks_mut(64).enumerate() {
            if !is_of(if case.heads_first { row } else { row / heads } % all) {
                values.fill(bf16::NAN);
            }
        }
    }
    let cuda = hopper(1, Completion::Latest);
    let (out, lse) = forward(&cuda, None, &clean, &problem).unwrap();
    let framed = [&poisoned.query, &poisoned.key, &poisoned.value].map(|tensor| {
        let rows = tensor.as_slice();
        let around = vec![bf16::NAN; 64 * all];
        let flat =
            Tensor::from_vec(&[rows.len() + 2 * around.len()], [&around, rows, &around].concat()).unwrap();
        (cuda.upload(&flat.view()).unwrap(), *poisoned.host(tensor).layout())
    });
    let [query, key, value] =
        framed.each_ref().map(|(flat, at)| view(&cuda, flat, at.shape(), at.strides(), 64 * all));
    let found = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let found_lse = cuda.allocate::<f32>(&problem.lse_shape()).unwrap();
    run(&cuda, None, &problem, &Inputs::new(query, key, value), &found, &found_lse).unwrap();
    let (found, found_lse) = (cuda.download(&found).unwrap(), cuda.download(&found_lse).unwrap());
    for row in (0..case.batch * all * 2).filter(|row| is_of(row / 2 % all)) {
        assert_eq!(lse.as_slice()[row], found_lse.as_slice()[row], "{residue:?} {case:?}");
        let row = row * 64..(row + 1) * 64;
        assert_eq!(out.as_slice()[row.clone()], found.as_slice()[row], "{residue:?} {case:?}");
    }
}

/// A tensor and a view of it with other strides, in elements, and another first element.
fn view<'a>(
    cuda: &Cuda<Emulated>,
    tensor: &'a CudaTensor<bf16, Emulated>,
    shape: &[usize],
    strides: &[isize],
    first: usize,
) -> CudaView<'a, bf16> {
    // SAFETY: the callers' views stay within their tensors, which outlive them.
    #[allow(unsafe_code)]
    unsafe {
        cuda.view_of_raw(tensor.address() + first as u64 * 2, Layout::strided(shape, strides).unwrap())
    }
}

/// Keys and values that all heads share by a stride of 0, instead of by their number, and one batch item for two.
#[test]
fn repeated_heads_and_batch_items() {
    let case = Case::new([1, 9, 20], Params::new([1, 5, 8])).dims(64, 64).heads(4, 1);
    let operands = Operands::<bf16>::draw(&case);
    let problem = operands.problem(&case.params);
    let cuda = hopper(1, Completion::Latest);
    let expected = forward(&cuda, None, &operands, &problem).unwrap();

    let up = |tensor| cuda.upload(tensor).unwrap();
    let (query, key, value) =
        (up(&operands.query.view()), up(&operands.key.view()), up(&operands.value.view()));
    let shape = [2, 1, 9, 20, 4, 64];
    let repeat = |tensor| view(&cuda, tensor, &shape, &[0, 0, 20 * 64, 64, 0, 1], 0);
    let queries = view(&cuda, &query, &shape, &[0, 0, 20 * 256, 256, 64, 1], 0);
    let inputs = Inputs::new(queries, repeat(&key), repeat(&value));
    let layouts = inputs.map(|view| *view.layout());
    let problem =
        natten_core::Problem::new(&case.params.to_dyn(), &layouts, natten_core::ElementType::Bf16).unwrap();
    let out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let lse = cuda.allocate::<f32>(&problem.lse_shape()).unwrap();
    run(&cuda, None, &problem, &inputs, &out, &lse).unwrap();
    for found in cuda.download(&out).unwrap().as_slice().chunks(expected.0.as_slice().len()) {
        assert_eq!(found, expected.0.as_slice());
    }
    for found in cuda.download(&lse).unwrap().as_slice().chunks(expected.1.as_slice().len()) {
        assert_eq!(found, expected.1.as_slice());
    }
}

/// A window large enough for this family to be chosen, its keys stored from the last to the first.
#[test]
fn reversed_axes_go_to_another_family() {
    let case = Case::new([1, 1, 400], Params::new([1, 1, 300])).dims(128, 128).heads(1, 1);
    let mut operands = Operands::<bf16>::draw(&case);
    let problem = operands.problem(&case.params);
    let cuda = hopper(1, Completion::Latest);
    let kernel = cuda.kernel(&problem, Operation::Forward, LayoutSummary { is_aligned: true }).unwrap();
    assert!(kernel.entry.starts_with("natten_forward_sm90_bf16_d128"), "{}", kernel.entry);

    let query = cuda.upload(&operands.query.view()).unwrap();
    let keys = cuda.upload(&operands.key.view()).unwrap();
    let value = cuda.upload(&operands.value.view()).unwrap();
    let reversed = view(&cuda, &keys, &[1, 1, 1, 400, 1, 128], &[0, 0, 0, -128, 0, 1], 399 * 128);
    let inputs = Inputs::new(query.view(), reversed, value.view());
    let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let mut lse = cuda.allocate::<f32>(&problem.lse_shape()).unwrap();
    cuda.device().take_counters();
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    cuda.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap();
    let ran: Vec<&str> = cuda.device().take_counters().into_keys().collect();
    assert!(ran.iter().all(|entry| !entry.contains("sm90")), "{ran:?}");
    let rows: Vec<bf16> = operands.key.as_slice().rchunks(128).flatten().copied().collect();
    operands.key.as_mut_slice().copy_from_slice(&rows);
    let found = (cuda.download(&out).unwrap(), cuda.download(&lse).unwrap());
    compare(&operands, &problem, &found).unwrap();

    // Asked for by name, the family says why it cannot.
    let asked = cuda.clone().with_request(Request { entry: Some(kernel.entry), tiling: None });
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let refused = asked.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap_err().to_string();
    assert!(
        refused.contains("cannot map a tensor: the copy engine takes no stride of -128 elements"),
        "{refused}"
    );
}

/// A call of the backend launches once for each length of residues, nothing else; nobody asks for the log-sum-exp.
#[test]
fn each_length_of_residues_is_a_launch_of_one_call() {
    let case = Case::new([1, 11, 25], Params::new([1, 2, 2]).dilation([1, 4, 9])).dims(64, 64);
    let operands = Operands::<bf16>::draw(&case);
    let problem = operands.problem(&case.params);
    let entry = "natten_forward_sm90_bf16_d64";
    let cuda = hopper(1, Completion::Random).with_request(Request { entry: Some(entry), tiling: None });
    let device = OnDevice::upload(&cuda, &operands);
    let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
    let output = Output { out: out.view_mut(), lse: None };
    let decision = cuda.explain(&problem, &device.inputs(), &output).unwrap();
    let planned = TileCounts::of(&problem, &decision.tiling.unwrap()).issued_over_useful();
    assert!((decision.issued_over_useful - planned).abs() < 1e-9 * planned);
    cuda.device().take_counters();
    cuda.forward(ForwardCall::new(&problem, device.inputs(), output).unwrap()).unwrap();
    let counters = cuda.device().take_counters();
    assert_eq!(counters.keys().copied().collect::<Vec<_>>(), [entry]);
    assert_eq!(counters[entry].ctas, 4);
    let lse = reference::forward(&problem, &operands.inputs()).lse.cast::<f32>();
    compare(&operands, &problem, &(cuda.download(&out).unwrap(), lse)).unwrap();
}

/// What warming up compiles is what a call runs: nothing is left to compile while a graph is captured.
#[test]
fn warming_up_compiles_the_kernel_that_runs() {
    let large = Case::new([1, 1, 400], Params::new([1, 1, 300])).dims(128, 128).heads(1, 1);
    let small = Case::new([1, 1, 64], Params::new([1, 1, 3])).dims(32, 32).heads(1, 1);
    for case in [large, small] {
        let cuda = hopper(1, Completion::Latest);
        let operands = Operands::<bf16>::draw(&case);
        let problem = operands.problem(&case.params);
        let layout = LayoutSummary { is_aligned: true };
        cuda.warm_up(&problem, layout, false).unwrap();
        let kernel = cuda.kernel(&problem, Operation::Forward, layout).unwrap();
        let loaded =
            cuda.device().functions().get_or_load(kernel.entry, || panic!("{} is not loaded", kernel.entry));
        assert!(loaded.is_ok());
        let mut out = cuda.allocate::<bf16>(&problem.out_shape()).unwrap();
        let device = OnDevice::upload(&cuda, &operands);
        let output = Output { out: out.view_mut(), lse: None };
        cuda.forward(ForwardCall::new(&problem, device.inputs(), output).unwrap()).unwrap();
        let ran: Vec<&str> = cuda.device().take_counters().into_keys().collect();
        assert_eq!(ran, [kernel.entry]);
    }
}
