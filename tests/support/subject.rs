//! Backends under test, all mounted in one way: host views in, host views out.

use natten::cpu::{Cpu, Isa};
use natten::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, Layout, MergeCall, Output, Partials,
    Problem, Saved, Tensor, TensorView, TensorViewMut, reference,
};

pub use crate::dense::Weights;

/// Host views that a call writes.
pub type OutputViews<'a, E> = Output<TensorViewMut<'a, E>, TensorViewMut<'a, f32>>;

/// A backend under test. A device that does not share the host's memory copies.
pub trait Subject: Sync {
    /// For messages.
    fn name(&self) -> String;

    /// How the forward of this problem, on rows in these places, keeps its weights. Only a kernel that multiplies on tensor
    /// cores may round them.
    fn weights<E: Element>(&self, _problem: &Problem, _rows: &[Layout]) -> Weights {
        Weights::Unrounded
    }

    /// Writes every element of `output`.
    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    );

    /// Writes every element of `gradients`.
    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    );

    /// Writes every element of `output`.
    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    );

    /// The forward on contiguous tensors.
    fn attend<E: Element>(&self, problem: &Problem, inputs: &Inputs<Tensor<E>>) -> (Tensor<E>, Tensor<f32>) {
        let mut out = Tensor::zeros(&problem.out_shape()).expect("small");
        let mut lse = Tensor::zeros(&problem.lse_shape()).expect("small");
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        self.forward(problem, &inputs.map(Tensor::view), output);
        (out, lse)
    }

    /// The backward on contiguous tensors.
    fn differentiate<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<Tensor<E>>,
        saved: &Saved<&Tensor<E>, &Tensor<f32>>,
    ) -> Inputs<Tensor<E>> {
        let mut grads = inputs.map(|tensor| Tensor::zeros(tensor.shape()).expect("small"));
        let saved = Saved {
            out: saved.out.view(),
            lse: saved.lse.view(),
            d_out: saved.d_out.view(),
            d_lse: saved.d_lse.map(|d_lse| d_lse.view()),
        };
        let views = Gradients {
            query: grads.query.view_mut(),
            key: grads.key.view_mut(),
            value: grads.value.view_mut(),
            additional: grads.additional.as_mut().map(|pair| pair.each_mut().map(Tensor::view_mut)),
        };
        self.backward(problem, &inputs.map(Tensor::view), &saved, views);
        grads
    }
}

/// The reference itself, rounded into the caller's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Reference;

fn store<E: Element>(from: &Tensor<f64>, mut to: TensorViewMut<'_, E>) {
    let layout = *to.layout();
    let offset = to.as_view().offset() as isize;
    for (n, value) in from.as_slice().iter().enumerate() {
        let (mut rest, mut index) = (n, offset);
        for (extent, stride) in layout.shape().iter().zip(layout.strides()).rev() {
            index += (rest % extent) as isize * stride;
            rest /= extent;
        }
        to.data_mut()[index as usize] = E::from_f64(*value);
    }
}

fn store_output<E: Element>(from: &reference::Forward, to: OutputViews<'_, E>) {
    store(&from.out, to.out);
    if let Some(lse) = to.lse {
        store(&from.lse, lse);
    }
}

impl Subject for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    ) {
        store_output(&reference::forward(problem, inputs), output);
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    ) {
        let computed = reference::backward(problem, inputs, saved);
        store(&computed.query, gradients.query);
        store(&computed.key, gradients.key);
        store(&computed.value, gradients.value);
        let pairs = computed.additional.into_iter().flatten().zip(gradients.additional.into_iter().flatten());
        pairs.for_each(|(from, to)| store(&from, to));
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    ) {
        store_output(&reference::merge(partials), output);
    }
}

impl Subject for Cpu {
    fn name(&self) -> String {
        format!("cpu {}", self.chosen_isa().expect("chosen when the subject was made"))
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    ) {
        let call = ForwardCall::new(problem, *inputs, output).expect("the suites' views fit");
        Backend::forward(self, call).expect("the CPU takes every problem");
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    ) {
        let call = BackwardCall::new(problem, *inputs, *saved, gradients).expect("the suites' views fit");
        Backend::backward(self, call).expect("the CPU takes every problem");
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    ) {
        let call = MergeCall::new(partials.clone(), output).expect("the suites' views fit");
        Backend::merge(self, call).expect("the CPU takes every problem");
    }
}

/// The CPU with these instructions, or why not.
pub fn cpu(isa: Isa) -> Option<Cpu> {
    match Cpu::new().isa(isa) {
        Ok(cpu) => Some(cpu),
        Err(reason) => {
            println!("SKIP cpu {isa}: {reason}");
            None
        }
    }
}

/// Mounts a suite, a generic function over one [`Subject`], on the reference and on every instruction set of the
/// CPU backend: one test each, in a module of the suite's name.
#[macro_export]
macro_rules! for_each_subject {
    ($($suite:ident),* $(,)?) => {$(
        mod $suite {
            use natten::cpu::Isa;

            #[test]
            fn reference() {
                super::$suite(&$crate::Reference);
            }

            $crate::for_each_subject!(@cpu $suite, scalar Scalar, avx2 Avx2, avx512 Avx512,
                avx512_bf16 Avx512Bf16, neon Neon);
        }
    )*};
    (@cpu $suite:ident, $($name:ident $isa:ident),*) => {$(
        #[test]
        fn $name() {
            if let Some(cpu) = $crate::subject::cpu(Isa::$isa) {
                super::$suite(&cpu);
            }
        }
    )*};
}
