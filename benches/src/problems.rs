//! The bench set: what each problem is, and operands for it.

use natten_core::{AxisParams, DynParams, Element, Inputs, KernelSizePolicy, Layout, Problem, Tensor};

/// One problem of the set.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Short name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Token extents, one to three.
    pub tokens: &'static [usize],
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
}

/// C1 to C5 for the CPU, L0 and L1 after LTX-2.5's video decoder.
pub fn problems() -> Vec<Bench> {
    let base = Bench {
        name: "C1",
        what: "2-D 56x56, 4 heads of 32, window 7x7",
        tokens: &[56, 56],
        heads: 4,
        head_dim: 32,
        kernel_size: &[7, 7],
        dilation: 1,
        scale: None,
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
            ..base
        },
        Bench {
            name: "C4",
            what: "3-D 16x32x32, 4 heads of 64, window 7x11x11",
            tokens: &[16, 32, 32],
            head_dim: 64,
            kernel_size: &[7, 11, 11],
            ..base
        },
        Bench {
            name: "C5",
            what: "1-D 8192, 4 heads of 64, window 257",
            tokens: &[8192],
            head_dim: 64,
            kernel_size: &[257],
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
    ]
}

/// Operands of a problem, and a gradient of the output.
#[derive(Debug)]
pub struct Operands<E> {
    /// Query, key, value and the output's gradient.
    pub tensors: [Tensor<E>; 4],
    /// The problem they make.
    pub problem: Problem,
}

impl Bench {
    /// Random operands.
    ///
    /// # Panics
    /// If the bench set is wrong.
    pub fn operands<E: Element>(&self) -> Operands<E> {
        let mut shape = vec![1];
        shape.extend(self.tokens);
        shape.extend([self.heads, self.head_dim]);
        let tensors = [1, 2, 3, 4].map(|seed| random(&shape, seed));
        let layout = Layout::contiguous(&shape).expect("a small shape");
        let inputs = Inputs::new(layout, layout, layout);
        let problem = Problem::new(&self.params(), &inputs, E::TYPE).expect("a valid problem");
        Operands { tensors, problem }
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
