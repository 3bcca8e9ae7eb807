//! What shapes do not show: what stays out of a result, what repeats, where memory ends, and plain attention.

use natten_core::{
    AttentionParams, Backend, Element, ForwardCall, Inputs, MergeBackwardCall, MergeCall, Output, Params,
    Partials, Problem, Sequences, Tensor, bf16, f16, reference,
};
use natten_cuda::device::{Device, LaunchConfig, PreparedLaunch};
use natten_cuda::params::{Axis, MERGE_BRANCHES, WindowDumpParams};
use natten_cuda::registry::by_name;
use natten_cuda::{Cuda, CudaError};
use natten_emulator::{Emulated, Options};

use crate::case::{Case, Numbers, OnDevice, Operands, backward, compare, emulated, forward, strided};

/// NaN in a key or value reaches the queries whose window holds it, in its own head, and no other.
#[test]
fn invisible_tokens_do_not_matter() {
    let cuda = emulated();
    for head_dim in [40, 72, 80, 96] {
        let params = Params::new([1, 3, 3]).dilation([1, 1, 2]);
        let case = Case::new([1, 6, 8], params).dims(head_dim, head_dim).heads(4, 2);
        let mut operands = Operands::<f32>::draw(&case);
        let (token, head) = (2 * 8 + 5, 1);
        for (tensor, poison) in [(&mut operands.key, f32::NAN), (&mut operands.value, f32::INFINITY)] {
            let row = (token * 2 + head) * head_dim;
            tensor.as_mut_slice()[row..row + head_dim].fill(poison);
        }
        let problem = operands.problem(&case.params);
        let device = OnDevice::upload(&cuda, &operands);
        let (out, lse) = forward(&cuda, &problem, &device).unwrap();
        let expected = reference::forward(&problem, &operands.inputs());
        compare("out", &out, &expected.out).unwrap();
        compare("lse", &lse, &expected.lse).unwrap();
        assert!(lse.as_slice().iter().any(|x| x.is_nan()) && lse.as_slice().iter().any(|x| x.is_finite()));

        let (clean, clean_lse) = (expected.out.cast(), expected.lse.cast());
        let gradients = backward(&cuda, &problem, &operands, &device, (&clean, &clean_lse, false)).unwrap();
        let poisoned = gradients.query.as_slice().chunks(head_dim).filter(|row| row[0].is_nan()).count();
        let seeing = lse.as_slice().iter().filter(|x| x.is_nan()).count();
        assert_eq!(poisoned, seeing, "rows of d_query");
    }
}

/// The same call gives the same bits, whatever the order of warps.
#[test]
fn results_repeat() {
    let mut case = Case::new([2, 5, 9], Params::new([1, 3, 5])).dims(64, 64).heads(4, 2);
    case.additional = 70;
    let operands = Operands::<f32>::draw(&case);
    let problem = operands.problem(&case.params);
    let mut runs = Vec::new();
    for seed in [0, 99] {
        let cuda = emulated();
        cuda.device().set_options(Options { seed, ..Options::default() });
        let device = OnDevice::upload(&cuda, &operands);
        let (out, lse) = forward(&cuda, &problem, &device).unwrap();
        let gradients = backward(&cuda, &problem, &operands, &device, (&out, &lse, true)).unwrap();
        let [keys, values] = gradients.additional.unwrap();
        runs.push(
            [out, lse, gradients.query, gradients.key, gradients.value, keys, values].map(Tensor::into_vec),
        );
    }
    assert!(runs[0] == runs[1]);
}

/// Plain attention: more queries than keys and the reverse, causal, no keys at all, packed sequences.
#[test]
fn plain_attention() {
    let cuda = emulated();
    let mut numbers = Numbers::new(3);
    for (queries, keys) in [(5, 9), (9, 5), (1, 1), (7, 0), (33, 40)] {
        for is_causal in [false, true] {
            let host =
                [[1, queries, 4, 16], [1, keys, 2, 16], [1, keys, 2, 24]].map(|s| numbers.tensor::<f32>(&s));
            let [query, key, value] = &host;
            let inputs = Inputs::new(query.view(), key.view(), value.view());
            let params = AttentionParams::new().is_causal(is_causal);
            let layouts = inputs.map(|view| *view.layout());
            let problem = Problem::attention(&params, &layouts, natten_core::ElementType::F32).unwrap();
            attend(&cuda, &problem, &host);
        }
    }
    let host = [[1, 20, 4, 16], [1, 23, 2, 16], [1, 23, 2, 24]].map(|shape| numbers.tensor::<f32>(&shape));
    let layouts = Inputs::new(host[0].view(), host[1].view(), host[2].view()).map(|view| *view.layout());
    let sequences = Sequences::from_lengths(&[3, 0, 10, 7], &[5, 4, 14, 0]).unwrap();
    let params = AttentionParams::new().is_causal(true);
    let problem =
        Problem::packed_attention(&params, &sequences, &layouts, natten_core::ElementType::F32).unwrap();
    attend(&cuda, &problem, &host);
}

fn attend(cuda: &Cuda<Emulated>, problem: &Problem, [query, key, value]: &[Tensor<f32>; 3]) {
    let expected = reference::forward(problem, &Inputs::new(query.view(), key.view(), value.view()));
    let [query, key, value] = [query, key, value].map(|tensor| cuda.upload(&tensor.view()).unwrap());
    let mut out = cuda.allocate::<f32>(&problem.out_shape()).unwrap();
    let mut lse = cuda.allocate::<f32>(&problem.lse_shape()).unwrap();
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    let inputs = Inputs::new(query.view(), key.view(), value.view());
    cuda.forward(ForwardCall::new(problem, inputs, output).unwrap()).unwrap();
    compare("out", &cuda.download(&out).unwrap(), &expected.out).unwrap();
    compare("lse", &cuda.download(&lse).unwrap(), &expected.lse).unwrap();
}

/// Merging halves of the additional keys, and branches that saw nothing.
#[test]
fn merge() {
    let cuda = emulated();
    let mut numbers = Numbers::new(5);
    let (outs, mut lses): (Vec<_>, Vec<_>) =
        (0..3).map(|_| (numbers.tensor::<f32>(&[2, 3, 2, 40]), numbers.tensor::<f32>(&[2, 3, 2]))).unzip();
    for lse in &mut lses {
        lse.as_mut_slice()[4] = f32::NEG_INFINITY;
    }
    lses[1].as_mut_slice()[0] = f32::NEG_INFINITY;
    let host = Partials {
        outs: outs.iter().map(|t| t.view()).collect(),
        lses: lses.iter().map(|t| t.view()).collect(),
    };
    let expected = reference::merge(&host);
    let outs: Vec<_> = outs.iter().map(|t| cuda.upload(&t.view()).unwrap()).collect();
    let lses: Vec<_> = lses.iter().map(|t| cuda.upload(&t.view()).unwrap()).collect();
    let mut out = cuda.allocate::<f32>(&[2, 3, 2, 40]).unwrap();
    let mut lse = cuda.allocate::<f32>(&[2, 3, 2]).unwrap();
    let partials = Partials {
        outs: outs.iter().map(|t| t.view()).collect(),
        lses: lses.iter().map(|t| t.view()).collect(),
    };
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    cuda.merge(MergeCall::new(partials, output).unwrap()).unwrap();
    compare("out", &cuda.download(&out).unwrap(), &expected.out).unwrap();
    compare("lse", &cuda.download(&lse).unwrap(), &expected.lse).unwrap();
}

/// The gradient of each partial result, of as many as one launch takes, with branches and rows that saw nothing and hold NaN,
/// with and without a gradient of the log-sum-exp, in every element type.
#[test]
fn merge_backward() {
    merge_backward_of::<f32>(2, 40);
    merge_backward_of::<f16>(3, 33);
    merge_backward_of::<bf16>(MERGE_BRANCHES, 7);
}

fn merge_backward_of<E: Element>(branches: usize, head_dim: usize) {
    let cuda = emulated();
    let mut numbers = Numbers::new(17);
    let (rows, scalars) = ([2, 3, 2, head_dim], [2, 3, 2]);
    let (mut outs, mut lses): (Vec<_>, Vec<_>) =
        (0..branches).map(|_| (numbers.tensor::<E>(&rows), numbers.tensor::<f32>(&scalars))).unzip();
    lses.iter_mut().for_each(|lse| lse.as_mut_slice()[4] = f32::NEG_INFINITY);
    lses[1].as_mut_slice()[0] = f32::NEG_INFINITY;
    outs[1].as_mut_slice()[3] = E::from_f32(f32::NAN);
    let (d_out, d_lse) = (numbers.tensor::<E>(&rows), numbers.tensor::<f32>(&scalars));
    let host = Partials { outs, lses };
    let views = host.map(Tensor::view, Tensor::view);
    let there = host.try_map(|t| cuda.upload(&t.view()), |t| cuda.upload(&t.view())).unwrap();
    let (there_out, there_lse) = (cuda.upload(&d_out.view()).unwrap(), cuda.upload(&d_lse.view()).unwrap());
    for with_lse in [true, false] {
        let expected =
            reference::merge_backward(&views, &d_out.view(), with_lse.then(|| d_lse.view()).as_ref());
        let mut found =
            host.try_map(|t| cuda.allocate::<E>(t.shape()), |t| cuda.allocate::<f32>(t.shape())).unwrap();
        let merged = Output { out: there_out.view(), lse: with_lse.then(|| there_lse.view()) };
        let gradients = found.map_mut(|t| t.view_mut(), |t| t.view_mut());
        let partials = there.map(|t| t.view(), |t| t.view());
        cuda.merge_backward(MergeBackwardCall::new(partials, merged, gradients).unwrap()).unwrap();
        for (branch, (d_out, d_lse)) in expected.iter().enumerate() {
            compare("d_out", &cuda.download(&found.outs[branch]).unwrap(), d_out).unwrap();
            compare("d_lse", &cuda.download(&found.lses[branch]).unwrap(), d_lse).unwrap();
        }
    }
}

/// One partial result more than a launch takes is refused.
#[test]
fn merge_backward_of_too_many() {
    let cuda = emulated();
    let (out, lse) =
        (Tensor::<f32>::zeros(&[1, 2, 1, 4]).unwrap(), Tensor::<f32>::zeros(&[1, 2, 1]).unwrap());
    let (out, lse) = (cuda.upload(&out.view()).unwrap(), cuda.upload(&lse.view()).unwrap());
    let count = MERGE_BRANCHES + 1;
    let partials = Partials { outs: vec![out.view(); count], lses: vec![lse.view(); count] };
    let mut found = partials
        .try_map(|t| cuda.allocate::<f32>(t.layout().shape()), |t| cuda.allocate::<f32>(t.layout().shape()))
        .unwrap();
    let gradients = found.map_mut(|t| t.view_mut(), |t| t.view_mut());
    let merged = Output { out: out.view(), lse: None };
    let call = MergeBackwardCall::new(partials, merged, gradients).unwrap();
    let error = cuda.merge_backward(call).unwrap_err();
    assert!(matches!(error, CudaError::MergeCount { found, .. } if found == count), "{error}");
}

/// The kernels' window formula is natten-core's, on every small axis.
#[test]
fn windows_agree() {
    let cuda = emulated();
    let kernel = by_name("natten_window_dump").unwrap();
    let device = cuda.device();
    let function = device.load(&kernel.ptx(), kernel.entry, 0).unwrap();
    for extent in 1..=14usize {
        for (dilation, kernel_size) in (1..=extent).flat_map(|d| (1..=extent / d).map(move |w| (d, w))) {
            for (stride, is_causal) in (1..=kernel_size).flat_map(|s| [(s, false), (s, true)]) {
                let axis = natten_core::window::Axis {
                    query_extent: extent,
                    key_extent: extent,
                    kernel_size,
                    stride,
                    dilation,
                    is_causal,
                };
                let memory = device.allocate(16 * extent).unwrap();
                let params = WindowDumpParams {
                    ranges: Emulated::address(&memory),
                    axis: Axis::new(&axis).unwrap(),
                    extent: extent as i32,
                    padding: 0,
                };
                let bytes = [bytemuck::bytes_of(&params)];
                // SAFETY: the one parameter is the kernel's, and the memory holds four numbers a token.
                let launch =
                    unsafe { PreparedLaunch::new(&function, LaunchConfig::new([1, 1, 1], 32), &bytes) };
                device.launch(&launch).unwrap();
                let mut ranges = vec![0i32; 4 * extent];
                device.read(&memory, bytemuck::cast_slice_mut(&mut ranges)).unwrap();
                for (token, found) in ranges.chunks(4).enumerate() {
                    let residue = axis.residue(token % dilation);
                    let (sees, seen_by) =
                        (residue.window(token / dilation), residue.inverse_window(token / dilation));
                    let expected = [sees.start, sees.end, seen_by.start, seen_by.end].map(|x| x as i32);
                    assert_eq!(found, expected, "{axis:?} token {token}");
                }
            }
        }
    }
}

/// More thread blocks than a grid has along y or z.
#[test]
fn many_blocks() {
    let cuda = emulated();
    cuda.device().set_options(Options { check_races: false, check_initialised: false, ..Options::default() });
    let batch = 65_600;
    let query = Tensor::<f32>::from_fn(&[batch, 1, 1, 1], |i| (i % 7) as f32).unwrap();
    let params = Params::new([1]).to_dyn();
    let inputs = Inputs::new(query.view(), query.view(), query.view()).map(|view| *view.layout());
    let problem = Problem::new(&params, &inputs, natten_core::ElementType::F32).unwrap();
    let on_device = cuda.upload(&query.view()).unwrap();
    let mut out = cuda.allocate::<f32>(&problem.out_shape()).unwrap();
    let inputs = Inputs::new(on_device.view(), on_device.view(), on_device.view());
    let output = Output { out: out.view_mut(), lse: None };
    cuda.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap();
    assert_eq!(cuda.download(&out).unwrap().as_slice(), query.as_slice());
}

/// Rows further apart than 32 bits can count, in memory that is mostly not there.
#[test]
fn beyond_32_bits() {
    let cuda = emulated();
    let device = cuda.device();
    let (tokens, heads, head_dim) = (3usize, 1usize, 8usize);
    let step = 3usize << 30;
    let layout = strided(&[1, tokens, heads, head_dim], &[0, step as isize, head_dim as isize, 1]);
    let mut numbers = Numbers::new(11);
    let bytes = (tokens * step * 4) as u64;
    let bases: [u64; 4] = std::array::from_fn(|_| device.memory().alloc_sparse(bytes));
    let host: [Tensor<f32>; 3] = std::array::from_fn(|_| numbers.tensor(&[1, tokens, heads, head_dim]));
    for (base, tensor) in bases.iter().zip(&host) {
        for (token, row) in tensor.as_slice().chunks(head_dim).enumerate() {
            device.memory().write(base + (token * step * 4) as u64, bytemuck::cast_slice(row)).unwrap();
        }
    }
    let params = Params::new([3]).to_dyn();
    let layouts = Inputs::new(layout, layout, layout);
    let problem = Problem::new(&params, &layouts, natten_core::ElementType::F32).unwrap();
    // SAFETY: the four allocations above cover every row and live until the end.
    let (inputs, out) = unsafe {
        let [query, key, value] = [0, 1, 2].map(|i: usize| cuda.view_of_raw::<f32>(bases[i], layout));
        (Inputs::new(query, key, value), cuda.view_mut_of_raw::<f32>(bases[3], layout))
    };
    cuda.forward(ForwardCall::new(&problem, inputs, Output { out, lse: None }).unwrap()).unwrap();
    let expected = reference::forward(&problem, &Inputs::new(host[0].view(), host[1].view(), host[2].view()));
    let mut found = Tensor::<f32>::zeros(&[1, tokens, heads, head_dim]).unwrap();
    for (token, row) in found.as_mut_slice().chunks_mut(head_dim).enumerate() {
        let address = bases[3] + (token * step * 4) as u64;
        device.memory().read(address, bytemuck::cast_slice_mut(row)).unwrap();
    }
    compare("out", &found, &expected.out).unwrap();
}

/// Tensors of different devices do not mix, and a problem beyond every kernel says why.
#[test]
fn refusals() {
    let (here, elsewhere) = (emulated(), emulated());
    let tensor = Tensor::<f32>::zeros(&[1, 4, 1, 8]).unwrap();
    let [mine, foreign] = [&here, &elsewhere].map(|cuda| cuda.upload(&tensor.view()).unwrap());
    let layouts = Inputs::new(*mine.view().layout(), *mine.view().layout(), *mine.view().layout());
    let problem = Problem::new(&Params::new([3]).to_dyn(), &layouts, natten_core::ElementType::F32).unwrap();
    let mut out = here.allocate::<f32>(&problem.out_shape()).unwrap();
    let inputs = Inputs::new(mine.view(), foreign.view(), mine.view());
    let output = Output { out: out.view_mut(), lse: None };
    let error = here.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap_err();
    assert!(matches!(error, CudaError::WrongDevice { .. }), "{error}");

    let wide = Tensor::<f64>::zeros(&[1, 4, 1, 8]).unwrap();
    let wide = here.upload(&wide.view()).unwrap();
    let problem = Problem::new(&Params::new([3]).to_dyn(), &layouts, natten_core::ElementType::F64).unwrap();
    let mut out = here.allocate::<f64>(&problem.out_shape()).unwrap();
    let inputs = Inputs::new(wide.view(), wide.view(), wide.view());
    let output = Output { out: out.view_mut(), lse: None };
    let error = here.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap_err();
    assert!(error.to_string().contains("is for f32, the tensors are f64"), "{error}");
}
