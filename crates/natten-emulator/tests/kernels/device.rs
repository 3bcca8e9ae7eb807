//! What problems do not show: repetition in any order of warps, long grids, windows that agree, and what is refused.

use std::sync::Arc;

use natten_core::region::keys_needed;
use natten_core::window::Axis;
use natten_core::{
    Backend, ForwardCall, Inputs, MergeBackwardCall, Output, Params, Partials, Problem, Tensor,
};
use natten_cuda::CudaError;
use natten_cuda::device::{Device, LaunchConfig, PreparedLaunch};
use natten_cuda::params::{self, MERGE_BRANCHES, WindowDumpParams};
use natten_cuda::registry::by_name;
use natten_emulator::{Emulated, Options};

use crate::case::{Case, OnDevice, Operands, backward, emulated, forward};

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

/// The kernels' window formula is natten-core's, on every small axis, and on every small plain attention, causal from
/// either end.
#[test]
fn windows_agree() {
    let mut axes = Vec::new();
    for extent in 1..=14usize {
        for (dilation, kernel_size) in (1..=extent).flat_map(|d| (1..=extent / d).map(move |w| (d, w))) {
            for (stride, is_causal) in (1..=kernel_size).flat_map(|s| [(s, false), (s, true)]) {
                let whole = Axis::whole(extent);
                axes.push(Axis { kernel_size, stride, dilation, is_causal, ..whole });
            }
        }
    }
    for (queries, keys) in (1..=9).flat_map(|queries| (1..=9).map(move |keys| (queries, keys))) {
        let causal = [Axis::causal_from_start(queries, keys), Axis::causal_from_end(queries, keys)];
        axes.extend([Axis::attention(queries, keys), causal[0], causal[1]]);
    }
    axes.extend(parts());
    let cuda = emulated();
    axes.iter().for_each(|axis| check_windows(cuda.device(), axis));
}

/// Parts of axes: all queries of every small axis from each to each other, with the keys that they need, or with all.
fn parts() -> Vec<Axis> {
    let mut parts = Vec::new();
    for extent in [9usize, 14] {
        for (dilation, kernel_size) in [(1, 3), (1, 4), (2, 3), (2, 4), (4, 2)] {
            for (stride, is_causal) in (1..=kernel_size).flat_map(|s| [(s, false), (s, true)]) {
                let whole = Axis { kernel_size, stride, dilation, is_causal, ..Axis::whole(extent) };
                for (start, end) in
                    (0..=extent).flat_map(|start| (start..=extent).map(move |end| (start, end)))
                {
                    for keys in [keys_needed(&whole, start..end), 0..extent] {
                        let (query_extent, key_extent) = (end - start, keys.len());
                        let part = Axis { query_start: start, key_start: keys.start, ..whole };
                        parts.push(Axis { query_extent, key_extent, ..part });
                    }
                }
            }
        }
    }
    parts
}

/// As many tokens as kernels count, at both ends of the axis.
#[test]
fn windows_of_long_axes_agree() {
    let most = i32::MAX as usize;
    let cuda = emulated();
    for extent in [most, most - 1, 1_500_000_000] {
        for (kernel_size, stride, dilation) in
            [(7, 1, 1), (6, 5, 1), (9, 4, 3), (extent, 1, 1), (extent - 1, 2, 1), (extent / 3, 1, 2)]
        {
            for is_causal in [false, true] {
                let axis = Axis { kernel_size, stride, dilation, is_causal, ..Axis::whole(extent) };
                check_windows_at(cuda.device(), &axis, &[0, extent.div_ceil(32) as u32 - 1]);
            }
        }
        check_windows_at(
            cuda.device(),
            &Axis::causal_from_end(extent, extent),
            &[extent.div_ceil(32) as u32 - 1],
        );
    }
}

/// One axis as the kernel that writes its windows out sees it.
fn check_windows(device: &Emulated, axis: &Axis) {
    let axis = axis.shortened();
    let ends = [axis.query_start + axis.query_extent, axis.key_start + axis.key_extent];
    let blocks = axis.extent.max(ends[0]).max(ends[1]).div_ceil(32) as u32;
    check_windows_at(device, &axis, &(0..blocks).collect::<Vec<_>>());
}

/// The same for these 32 tokens each.
fn check_windows_at(device: &Emulated, axis: &Axis, blocks: &[u32]) {
    let kernel = by_name("natten_window_dump").unwrap();
    let function = device.load(&kernel.ptx(), kernel.entry, 0).unwrap();
    // Kernels are told of the shortest whole.
    let axis = &axis.shortened();
    let ends = [axis.query_start + axis.query_extent, axis.key_start + axis.key_extent];
    let extent = axis.extent.max(ends[0]).max(ends[1]);
    let memory = device.allocate(16 * extent).unwrap();
    let address = Emulated::address(&memory);
    let params =
        WindowDumpParams { ranges: address, axis: params::Axis::new(axis).unwrap(), extent: extent as i32 };
    let bytes = [bytemuck::bytes_of(&params)];
    let grid = [extent.div_ceil(32) as u32, 1, 1];
    let chosen = blocks.to_vec();
    device.run_only(Some(Arc::new(move |_, _| chosen.clone())));
    // SAFETY: the one parameter is the kernel's, and the memory holds four numbers a token.
    let launch = unsafe { PreparedLaunch::new(&function, LaunchConfig::new(grid, 32), &bytes) };
    device.launch(&launch).unwrap();
    device.run_only(None);
    for first in blocks.iter().map(|&block| block as usize * 32) {
        let mut ranges = vec![0i32; 4 * 32.min(extent - first)];
        let at = address + 16 * first as u64;
        device.memory().read(at, bytemuck::cast_slice_mut(&mut ranges)).unwrap();
        for (token, found) in (first..).zip(ranges.chunks(4)) {
            let (residue, position) = (axis.residue(token % axis.dilation), token / axis.dilation);
            let place = |start: usize, len: usize| position.checked_sub(start).filter(|&at| at < len);
            let sees = place(residue.query_start, residue.query_len).map_or(0..0, |at| residue.window(at));
            let seen_by =
                place(residue.key_start, residue.key_len).map_or(0..0, |at| residue.inverse_window(at));
            let expected = [sees.start, sees.end, seen_by.start, seen_by.end].map(|x| x as i32);
            assert_eq!(found, expected, "{axis:?} token {token}");
        }
    }
}

/// More thread blocks than a grid has along y or z; those on either side of that number run, and the last ones.
#[test]
fn many_blocks() {
    let cuda = emulated();
    let ran = [0, 1, 65_534, 65_535, 65_536, 65_537, 65_598, 65_599];
    cuda.device().run_only(Some(Arc::new(move |_, grid| {
        assert_eq!(grid, [65_600, 1, 1]);
        ran.to_vec()
    })));
    let query = Tensor::<f32>::from_fn(&[65_600, 1, 1, 1], |i| (i % 7) as f32).unwrap();
    let params = Params::new([1]).to_dyn();
    let inputs = Inputs::new(query.view(), query.view(), query.view()).map(|view| *view.layout());
    let problem = Problem::new(&params, &inputs, natten_core::ElementType::F32).unwrap();
    let on_device = cuda.upload(&query.view()).unwrap();
    let mut out = cuda.allocate::<f32>(&problem.out_shape()).unwrap();
    let inputs = Inputs::new(on_device.view(), on_device.view(), on_device.view());
    cuda.forward(ForwardCall::new(&problem, inputs, Output { out: out.view_mut(), lse: None }).unwrap())
        .unwrap();
    let found = cuda.download(&out).unwrap();
    for block in ran {
        assert_eq!(found.as_slice()[block as usize], query.as_slice()[block as usize], "block {block}");
    }
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
    let error = here
        .forward(ForwardCall::new(&problem, inputs, Output { out: out.view_mut(), lse: None }).unwrap())
        .unwrap_err();
    assert!(matches!(error, CudaError::WrongDevice { .. }), "{error}");

    let wide = Tensor::<f64>::zeros(&[1, 4, 1, 8]).unwrap();
    let wide = here.upload(&wide.view()).unwrap();
    let problem = Problem::new(&Params::new([3]).to_dyn(), &layouts, natten_core::ElementType::F64).unwrap();
    let mut out = here.allocate::<f64>(&problem.out_shape()).unwrap();
    let inputs = Inputs::new(wide.view(), wide.view(), wide.view());
    let error = here
        .forward(ForwardCall::new(&problem, inputs, Output { out: out.view_mut(), lse: None }).unwrap())
        .unwrap_err();
    assert!(
        error.to_string().contains("the tensors are f64; tensors of f16 or bf16 or f32 would serve"),
        "{error}"
    );
}

/// Gradients of one partial result more than a launch takes are refused.
#[test]
fn merge_backward_of_too_many() {
    let cuda = emulated();
    let zeros = |shape: &[usize]| cuda.upload(&Tensor::<f32>::zeros(shape).unwrap().view()).unwrap();
    let (out, lse) = (zeros(&[1, 2, 1, 4]), zeros(&[1, 2, 1]));
    let count = MERGE_BRANCHES + 1;
    let partials = Partials { outs: vec![out.view(); count], lses: vec![lse.view(); count] };
    let mut written = Partials {
        outs: (0..count).map(|_| zeros(&[1, 2, 1, 4])).collect(),
        lses: (0..count).map(|_| zeros(&[1, 2, 1])).collect(),
    };
    let gradients = written.map_mut(|out| out.view_mut(), |lse| lse.view_mut());
    let merged = Output { out: out.view(), lse: None };
    let call = MergeBackwardCall::new(partials, merged, gradients).unwrap();
    let error = cuda.merge_backward(call).unwrap_err();
    assert!(matches!(error, CudaError::MergeCount { found, .. } if found == count), "{error}");
}
