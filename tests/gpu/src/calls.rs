//! Calls of the operator on device buffers of random values: what is timed and profiled.

use natten_core::{
    Backend, BackwardCall, Element, ElementType, ForwardCall, Gradients, Inputs, Layout, Output, Problem,
    Saved,
};
use natten_cuda::driver::Driver;
use natten_cuda::{Candidate, Cuda, CudaError, CudaView, CudaViewMut};

use crate::driver::{Buffer, Checked, Gpu, Module, Parameter};
use crate::truth::kernel::{ENTRY, Kernel};
use natten_tests::Watched;

/// Operands of one call: query, key, value, output, its gradient and theirs; log-sum-exp.
pub struct Set {
    /// In that order.
    pub tensors: Vec<Buffer>,
    /// One a row.
    pub lse: Buffer,
}

/// How large the operands of one call are.
pub struct Operands {
    /// Of a tensor.
    pub bytes: usize,
    /// Tensors.
    pub tensors: usize,
    /// Rows of a tensor.
    pub rows: usize,
    /// Of all tensors.
    pub element_type: ElementType,
}

impl Operands {
    /// Random values; another `index` gives others.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn filled(&self, gpu: &Gpu, fill: &Module, index: usize) -> Checked<Set> {
        let mut set = Set { tensors: Vec::new(), lse: gpu.alloc(4 * self.rows)? };
        let kind = match self.element_type {
            ElementType::F32 => 0,
            ElementType::F16 => 1,
            _ => 2,
        };
        for tensor in 0..self.tensors {
            let words = self.bytes.div_ceil(1024) * 256;
            let buffer = gpu.alloc(4 * words)?;
            let (seed, address) = ((index * 16 + tensor + 1) as u64, buffer.address);
            let mut parameters = [address, address, address, seed, kind].map(Parameter::value);
            gpu.launch(fill.function(ENTRY)?, (words / 256) as u32, 256, &mut parameters)?;
            set.tensors.push(buffer);
        }
        gpu.synchronize()?;
        Ok(set)
    }
}

fn view<'a, E: Element>(cuda: &Cuda<Watched<Driver>>, buffer: &'a Buffer, layout: Layout) -> CudaView<'a, E> {
    // SAFETY: the buffer is as long as the layout says and outlives the view; the launches of one call are ordered on one
    // stream, and nothing else runs.
    unsafe { cuda.view_of_raw(buffer.address, layout) }
}

fn view_mut<'a, E: Element>(
    cuda: &Cuda<Watched<Driver>>,
    buffer: &'a Buffer,
    layout: Layout,
) -> CudaViewMut<'a, E> {
    // SAFETY: as above, and the layout is contiguous.
    unsafe { cuda.view_mut_of_raw(buffer.address, layout) }
}

fn inputs<'a, E: Element>(
    cuda: &Cuda<Watched<Driver>>,
    set: &'a Set,
    layout: Layout,
) -> Inputs<CudaView<'a, E>> {
    let tensor = |i: usize| view(cuda, &set.tensors[i], layout);
    Inputs::new(tensor(0), tensor(1), tensor(2))
}

/// Queues a forward pass on a set.
///
/// # Errors
/// The backend's.
pub fn forward<E: Element>(
    cuda: &Cuda<Watched<Driver>>,
    problem: &Problem,
    set: &Set,
    layout: Layout,
    lse_layout: Layout,
) -> Result<(), CudaError> {
    let output = Output {
        out: view_mut(cuda, &set.tensors[3], layout),
        lse: Some(view_mut(cuda, &set.lse, lse_layout)),
    };
    cuda.forward::<E>(ForwardCall::new(problem, inputs(cuda, set, layout), output)?)
}

/// Pairs computed for each that is wanted, as planned, of a forward or a backward. Of a backward's seven products, five of which
/// are counted as wanted, three are the pass over queries'.
///
/// # Errors
/// The backend's.
pub fn issued_over_useful<E: Element>(
    cuda: &Cuda<Watched<Driver>>,
    problem: &Problem,
    set: &Set,
    (layout, lse_layout): (Layout, Layout),
    backward: bool,
) -> Result<f64, CudaError> {
    let inputs = inputs::<E>(cuda, set, layout);
    if backward {
        let ratios: Vec<f64> =
            cuda.explain_backward(problem, &inputs)?.iter().map(|pass| pass.issued_over_useful).collect();
        return Ok(match ratios[..] {
            [of_queries, of_keys] => (3.0 * of_queries + 4.0 * of_keys) / 5.0,
            _ => ratios.iter().copied().fold(1.0, f64::max),
        });
    }
    let (out, lse) = (view_mut(cuda, &set.tensors[3], layout), view_mut(cuda, &set.lse, lse_layout));
    Ok(cuda.explain::<E>(problem, &inputs, &Output { out, lse: Some(lse) })?.issued_over_useful)
}

/// At most `most` ways to run a forward, as the tuner ranks them.
///
/// # Errors
/// The backend's.
pub fn ways<E: Element>(
    cuda: &Cuda<Watched<Driver>>,
    problem: &Problem,
    set: &Set,
    (layout, lse_layout): (Layout, Layout),
    most: usize,
) -> Result<Vec<Candidate>, CudaError> {
    let (out, lse) = (view_mut(cuda, &set.tensors[3], layout), view_mut(cuda, &set.lse, lse_layout));
    cuda.tune::<E>(problem, &inputs(cuda, set, layout), &Output { out, lse: Some(lse) }, most)
}

/// Queues a backward pass on a set of eight tensors.
///
/// # Errors
/// The backend's.
pub fn backward_pass<E: Element>(
    cuda: &Cuda<Watched<Driver>>,
    problem: &Problem,
    set: &Set,
    layout: Layout,
    lse_layout: Layout,
) -> Result<(), CudaError> {
    let saved = Saved {
        out: view(cuda, &set.tensors[3], layout),
        lse: view(cuda, &set.lse, lse_layout),
        d_out: view(cuda, &set.tensors[4], layout),
        d_lse: None,
    };
    let gradient = |i: usize| view_mut(cuda, &set.tensors[i], layout);
    let gradients = Gradients { query: gradient(5), key: gradient(6), value: gradient(7), additional: None };
    cuda.backward::<E>(BackwardCall::new(problem, inputs(cuda, set, layout), saved, gradients)?)
}

/// Fills memory with random values between -1.7 and 1.7: `%x` is the seed, `%y` the type (0 f32, 1 f16, 2 bf16). Zeros
/// would run faster than real data.
pub fn fill_kernel() -> Kernel {
    let mut body =
        String::from("cvt.u32.u64 %r0, %x;\nmul.lo.u32 %r0, %r0, 0x9e3779b9;\nxor.b32 %r1, %item, %r0;\n");
    for (shift, factor) in [(16, "0x85ebca6b"), (13, "0xc2b2ae35"), (16, "0x27d4eb2f")] {
        body +=
            &format!("shr.u32 %r2, %r1, {shift};\nxor.b32 %r1, %r1, %r2;\nmul.lo.u32 %r1, %r1, {factor};\n");
    }
    // Two 16-bit signed numbers, scaled.
    body += "shl.b32 %r2, %r1, 16;\nshr.s32 %r2, %r2, 16;\nshr.s32 %r3, %r1, 16;\n\
             cvt.rn.f32.s32 %r2, %r2;\ncvt.rn.f32.s32 %r3, %r3;\n\
             mul.f32 %r2, %r2, 0f38599999;\nmul.f32 %r3, %r3, 0f38599999;\n\
             cvt.u32.u64 %r4, %y;\nsetp.eq.u32 %p0, %r4, 0;\nsetp.eq.u32 %p1, %r4, 1;\n\
             cvt.rn.bf16x2.f32 %d0, %r3, %r2;\n@%p1 cvt.rn.f16x2.f32 %d0, %r3, %r2;\n@%p0 mov.b32 %d0, %r2;\n";
    Kernel::new("7.0", "sm_80", 0, 1, body).threads(256)
}
