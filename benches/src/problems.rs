//! The bench set: what each problem is, and operands for it.

use natten_core::{AxisParams, DynParams, Element, Inputs, KernelSizePolicy, Layout, Problem, Tensor};

/// One problem of the set.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    /// Short name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Token extents, one to three.
    pub tokens: &'a [usize],
    /// Heads.
    pub heads: usize,
    /// Components of a head.
    pub head_dim: usize,
    /// Window along each axis.
    pub kernel_size: &'static [usize],
    /// Dilation of every axis.
    pub dilation: usize,
    /// Factor on the scores.
    pub scale: Option<f32>,
    /// Share of the f32 peak that a forward in f32 should reach.
    pub target: Option<f64>,
}

/// C1 to C5 for the CPU, L0, L1 and L5s after LTX-2.5's video decoder, and two calls so small that what surrounds the
/// arithmetic shows: T0 runs on the calling thread alone, T1 is about the smallest that the pool gets.
pub fn problems() -> Vec<Bench<'static>> {
    let base = Bench {
        name: "C1",
        what: "2-D 56x56, 4 heads of 32, window 7x7",
        tokens: &[56, 56],
        heads: 4,
        head_dim: 32,
        kernel_size: &[7, 7],
        dilation: 1,
        scale: None,
        target: Some(0.35),
    };
    vec![
        base,
        Bench { name: "C2", what: "C1 with dilation 8x8", dilation: 8, ..base },
        Bench {
            name: "C3",
            what: "2-D 64x64, 8 heads of 64, window 13x13",
            tokens: &[64, 64],
            heads: 8,
            head_dim: 64,
            kernel_size: &[13, 13],
            target: Some(0.60),
            ..base
        },
        Bench {
            name: "C4",
            what: "3-D 16x32x32, 4 heads of 64, window 7x11x11",
            tokens: &[16, 32, 32],
            head_dim: 64,
            kernel_size: &[7, 11, 11],
            target: Some(0.60),
            ..base
        },
        Bench {
            name: "C5",
            what: "1-D 8192, 4 heads of 64, window 257",
            tokens: &[8192],
            head_dim: 64,
            kernel_size: &[257],
            target: Some(0.60),
            ..base
        },
        Bench {
            name: "L0",
            what: "3-D 16x32x48, 16 heads of 64, window 3x7x7, scale 1",
            tokens: &[16, 32, 48],
            heads: 16,
            head_dim: 64,
            kernel_size: &[3, 7, 7],
            scale: Some(1.0),
            ..base
        },
        Bench {
            name: "L1",
            what: "3-D 16x64x96, 8 heads of 64, window 3x7x7, scale 1",
            tokens: &[16, 64, 96],
            heads: 8,
            head_dim: 64,
            kernel_size: &[3, 7, 7],
            scale: Some(1.0),
            ..base
        },
        Bench {
            name: "L5s",
            what: "3-D 17x56x56, 4 heads of 64, window 11x11x11, scale 1",
            tokens: &[17, 56, 56],
            head_dim: 64,
            kernel_size: &[11, 11, 11],
            scale: Some(1.0),
            target: None,
            ..base
        },
        Bench {
            name: "T0",
            what: "1-D 64, 1 head of 32, window 7",
            tokens: &[64],
            heads: 1,
            kernel_size: &[7],
            target: None,
            ..base
        },
        Bench {
            name: "T1",
            what: "2-D 24x24, 2 heads of 32, window 7x7",
            tokens: &[24, 24],
            heads: 2,
            target: None,
            ..base
        },
    ]
}

/// Operands of a problem.
#[derive(Clone, Debug)]
pub struct Operands<E> {
    /// Query, key and value.
    pub tensors: [Tensor<E>; 3],
    /// The problem they make.
    pub problem: Problem,
}

impl Bench<'_> {
    /// Floating-point operations of a forward on the visible pairs: every query sees a whole window.
    pub fn useful_flops(&self) -> f64 {
        let product = |extents: &[usize]| extents.iter().product::<usize>() as f64;
        4.0 * product(self.tokens) * product(self.kernel_size) * (self.heads * self.head_dim) as f64
    }

    /// Random operands.
    ///
    /// # Panics
    /// If the bench set is wrong.
    pub fn operands<E: Element>(&self) -> Operands<E> {
        let shape = self.shape();
        let tensors = [1, 2, 3].map(|seed| random(&shape, seed));
        let layout = Layout::contiguous(&shape).expect("a small shape");
        let inputs = Inputs::new(layout, layout, layout);
        let problem = Problem::new(&self.params(), &inputs, E::TYPE).expect("a valid problem");
        Operands { tensors, problem }
    }

    /// A random gradient of the output.
    pub fn d_out<E: Element>(&self) -> Tensor<E> {
        random(&self.shape(), 4)
    }

    fn shape(&self) -> Vec<usize> {
        let heads = [self.heads, self.head_dim];
        [1].iter().chain(self.tokens).chain(&heads).copied().collect()
    }

    fn params(&self) -> DynParams {
        let axis = |&window: &usize| AxisParams { dilation: self.dilation, ..AxisParams::new(window) };
        let axes: Vec<AxisParams> = self.kernel_size.iter().map(axis).collect();
        DynParams::new(&axes, self.scale, KernelSizePolicy::Exact)
    }
}

/// Numbers between -1 and 1; scale 1 on 64 components still gives sane scores.
fn random<E: Element>(shape: &[usize], seed: u64) -> Tensor<E> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        E::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    Tensor::from_fn(shape, next).expect("a small shape")
}

impl<E: Element> Operands<E> {
    /// Query, key and value.
    pub fn inputs(&self) -> Inputs<natten_core::TensorView<'_, E>> {
        Inputs::new(self.tensors[0].view(), self.tensors[1].view(), self.tensors[2].view())
    }
}
