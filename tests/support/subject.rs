//! Backends under test, all mounted in one way: host views in, host views out.

use natten::cpu::{Cpu, Isa};
use natten::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, MergeBackwardCall, MergeCall, Output,
    Partials, Problem, Saved, Tensor, TensorView, TensorViewMut, reference,
};

pub use crate::dense::Weights;
use crate::vast::Spread;

/// Host views that a call writes.
pub type OutputViews<'a, E> = Output<TensorViewMut<'a, E>, TensorViewMut<'a, f32>>;

/// Why a subject does not take a problem: the reason against each kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported(pub String);

/// What [`Subject::attend`] gives.
pub struct Attended<E> {
    /// `[batch, tokens.., heads, head_dim_v]`
    pub out: Tensor<E>,
    /// `[batch, tokens.., heads]`
    pub lse: Tensor<f32>,
    /// How the call kept its weights.
    pub weights: Weights,
}

/// A backend under test. A device that does not share the host's memory copies.
pub trait Subject: Send + Sync + 'static {
    /// For messages.
    fn name(&self) -> String;

    /// The same where tensors are larger than memory, if it can have such.
    fn spread(&self, _spread: Spread) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// The same with tiles cut into the boxes of that number, if it works on tiles whose boxes can be asked for.
    fn in_boxes(&self, _nth: u64) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// For each token axis, tokens at whose multiples a whole can be cut into parts that give its bits; nothing, if it promises none.
    fn grain(&self, _problem: &Problem) -> Option<Vec<usize>> {
        None
    }

    /// Writes every element of `output`; says how it kept its weights. Only a kernel that multiplies on tensor cores may
    /// round them.
    ///
    /// # Errors
    /// When nothing that it has serves the problem; nothing is written then.
    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    ) -> Result<Weights, Unsupported>;

    /// How the backward of these operands keeps its weights, if all else lies as they do.
    fn backward_weights<E: Element>(
        &self,
        _problem: &Problem,
        _inputs: &Inputs<TensorView<'_, E>>,
    ) -> Weights {
        Weights::Unrounded
    }

    /// Writes every element of `gradients`.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    ) -> Result<(), Unsupported>;

    /// Writes every element of `output`.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    ) -> Result<(), Unsupported>;

    /// Writes every element of `gradients`, each branch's share of `merged`.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn merge_backward<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        merged: Output<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Partials<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
    ) -> Result<(), Unsupported>;

    /// A copy of a view of any strides.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn contiguous<E: Element>(&self, view: &TensorView<'_, E>) -> Result<Tensor<E>, Unsupported>;

    /// Copies a view to where another of its shape has its elements; both of any strides. `to` has its whole buffer.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn copy<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported>;

    /// Adds the elements of a view to those of another of its shape, as [`Subject::copy`].
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn accumulate<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported>;

    /// The forward on contiguous tensors.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn attend<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<Tensor<E>>,
    ) -> Result<Attended<E>, Unsupported> {
        let mut out = Tensor::zeros(&problem.out_shape()).expect("small");
        let mut lse = Tensor::zeros(&problem.lse_shape()).expect("small");
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        let weights = self.forward(problem, &inputs.map(Tensor::view), output)?;
        Ok(Attended { out, lse, weights })
    }

    /// The backward on contiguous tensors.
    ///
    /// # Errors
    /// As [`Subject::forward`].
    fn differentiate<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<Tensor<E>>,
        saved: &Saved<&Tensor<E>, &Tensor<f32>>,
    ) -> Result<Inputs<Tensor<E>>, Unsupported> {
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
        self.backward(problem, &inputs.map(Tensor::view), &saved, views)?;
        Ok(grads)
    }
}

/// The reference itself, rounded into the caller's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Reference;

fn store<E: Element>(from: &Tensor<f64>, mut to: TensorViewMut<'_, E>) {
    to.write(from.as_slice().iter().map(|&value| E::from_f64(value)));
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

    fn grain(&self, problem: &Problem) -> Option<Vec<usize>> {
        Some(vec![1; problem.rank()])
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    ) -> Result<Weights, Unsupported> {
        store_output(&reference::forward(problem, inputs), output);
        Ok(Weights::Unrounded)
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    ) -> Result<(), Unsupported> {
        let computed = reference::backward(problem, inputs, saved);
        store(&computed.query, gradients.query);
        store(&computed.key, gradients.key);
        store(&computed.value, gradients.value);
        let pairs = computed.additional.into_iter().flatten().zip(gradients.additional.into_iter().flatten());
        pairs.for_each(|(from, to)| store(&from, to));
        Ok(())
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    ) -> Result<(), Unsupported> {
        store_output(&reference::merge(partials), output);
        Ok(())
    }

    fn merge_backward<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        merged: Output<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Partials<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
    ) -> Result<(), Unsupported> {
        let computed = reference::merge_backward(partials, &merged.out, merged.lse.as_ref());
        let views = gradients.outs.into_iter().zip(gradients.lses);
        for ((d_out, d_lse), (to_out, to_lse)) in computed.iter().zip(views) {
            store(d_out, to_out);
            store(d_lse, to_lse);
        }
        Ok(())
    }

    fn contiguous<E: Element>(&self, view: &TensorView<'_, E>) -> Result<Tensor<E>, Unsupported> {
        Ok(view.to_tensor())
    }

    fn copy<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported> {
        to.write(from.to_tensor().into_vec());
        Ok(())
    }

    fn accumulate<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported> {
        let (there, more) = (to.as_view().to_tensor().into_vec(), from.to_tensor().into_vec());
        to.write(there.into_iter().zip(more).map(|(a, b)| E::from_f64(a.to_f64() + b.to_f64())));
        Ok(())
    }
}

impl Subject for Cpu {
    fn name(&self) -> String {
        format!("cpu {}", self.chosen_isa().expect("chosen when the subject was made"))
    }

    fn grain(&self, problem: &Problem) -> Option<Vec<usize>> {
        Some(Cpu::grain(self, problem).expect("chosen when the subject was made"))
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    ) -> Result<Weights, Unsupported> {
        let call = ForwardCall::new(problem, *inputs, output).expect("views of a valid call");
        Backend::forward(self, call).expect("the CPU takes every problem");
        Ok(Weights::Unrounded)
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    ) -> Result<(), Unsupported> {
        let call = BackwardCall::new(problem, *inputs, *saved, gradients).expect("views of a valid call");
        Backend::backward(self, call).expect("the CPU takes every problem");
        Ok(())
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    ) -> Result<(), Unsupported> {
        let call = MergeCall::new(partials.clone(), output).expect("views of a valid call");
        Backend::merge(self, call).expect("the CPU takes every problem");
        Ok(())
    }

    fn merge_backward<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        merged: Output<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Partials<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
    ) -> Result<(), Unsupported> {
        let call =
            MergeBackwardCall::new(partials.clone(), merged, gradients).expect("views of a valid call");
        Backend::merge_backward(self, call).expect("the CPU takes every problem");
        Ok(())
    }

    fn contiguous<E: Element>(&self, view: &TensorView<'_, E>) -> Result<Tensor<E>, Unsupported> {
        Ok(Backend::contiguous(self, *view).expect("memory"))
    }

    fn copy<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported> {
        Backend::copy(self, *from, to.reborrow()).expect("views of one shape");
        Ok(())
    }

    fn accumulate<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported> {
        Backend::accumulate(self, *from, to.reborrow()).expect("views of one shape");
        Ok(())
    }
}

/// The CPU with these instructions; none, with the reason printed, where the machine lacks them.
pub fn cpu(isa: Isa) -> Vec<Cpu> {
    match Cpu::new().isa(isa) {
        Ok(cpu) => vec![cpu],
        Err(reason) => {
            println!("SKIP cpu {isa}: {reason}");
            Vec::new()
        }
    }
}
