//! The two passes on a problem's operands, into tensors that are kept between calls.

use natten_core::{Backend, BackwardCall, Element, ForwardCall, Gradients, Output, Saved, Tensor};
use natten_cpu::Cpu;

use crate::Operands;

/// Where results go.
#[derive(Debug)]
pub struct Results<E> {
    out: Tensor<E>,
    lse: Tensor<f32>,
    gradients: Option<[Tensor<E>; 3]>,
}

impl<E: Element> Results<E> {
    /// Room for a forward pass.
    ///
    /// # Panics
    /// If memory runs out.
    pub fn new(operands: &Operands<E>) -> Self {
        let problem = &operands.problem;
        let out = Tensor::zeros(&problem.out_shape()).expect("shapes of a valid problem");
        let lse = Tensor::zeros(&problem.lse_shape()).expect("shapes of a valid problem");
        Results { out, lse, gradients: None }
    }
}

/// One forward pass.
///
/// # Panics
/// If the backend refuses the problem.
pub fn forward<E: Element>(cpu: &Cpu, operands: &Operands<E>, results: &mut Results<E>) {
    let output = Output { out: results.out.view_mut(), lse: Some(results.lse.view_mut()) };
    let call =
        ForwardCall::new(&operands.problem, operands.inputs(), output).expect("operands of the problem");
    cpu.forward(call).expect("the problem is valid");
}

/// One backward pass, from what the last [`forward`] left in `results`.
///
/// # Panics
/// If the backend refuses the problem.
pub fn backward<E: Element>(cpu: &Cpu, operands: &Operands<E>, d_out: &Tensor<E>, results: &mut Results<E>) {
    let Results { out, lse, gradients } = results;
    let [query, key, value] =
        gradients.get_or_insert_with(|| operands.tensors.clone()).each_mut().map(Tensor::view_mut);
    let saved = Saved { out: out.view(), lse: lse.view(), d_out: d_out.view(), d_lse: None };
    let gradients = Gradients { query, key, value, additional: None };
    let call = BackwardCall::new(&operands.problem, operands.inputs(), saved, gradients);
    cpu.backward(call.expect("operands of the problem")).expect("the problem is valid");
}
