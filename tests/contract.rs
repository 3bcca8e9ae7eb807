//! What natten-core promises backends and what it lets them be: calls fit their problems, and a device that natten has
//! never heard of is served like its own.

use std::ops::Range;

use natten::cpu::Cpu;
use natten::cuda::Cuda;
use natten::dynamic::{AnyTensorOn, AnyViewOn, backward_on, forward_on};
use natten::{
    Backend, BackwardCall, Element, Error, ForwardCall, Gradients, InputElement, Inputs, Layout,
    MergeBackwardCall, MergeCall, Operand, OperandMut, Output, OwnedOf, Params, Partials, Problem,
    ProblemError, Role, Saved, Tensor, TensorAxis, TensorError, TensorView, TensorViewMut,
    merge_attentions_backward, na1d, na1d_backward, na1d_into, na1d_with_lse, reference,
};
use natten_emulator::Emulated;

fn numbers<E: Element>(shape: &[usize], seed: usize) -> Tensor<E> {
    Tensor::from_fn(shape, |i| E::from_f64(((i * 37 + seed * 101) % 19) as f64 / 8.0 - 1.0)).expect("small")
}

fn problem(query: &Tensor<f32>) -> Problem {
    let layout = *query.view().layout();
    let inputs = Inputs::new(layout, layout, layout);
    Problem::new(&Params::new([3]).to_dyn(), &inputs, natten::ElementType::F32).expect("valid")
}

fn rule<T>(made: Result<T, ProblemError>) -> ProblemError {
    made.err().expect("what does not fit is no call")
}

/// Four heads in the problem and two in a view: two threads would have written one row.
#[test]
fn views_that_do_not_fit_are_no_call() {
    let (four, two) = (numbers::<f32>(&[1, 6, 4, 8], 1), numbers::<f32>(&[1, 6, 2, 8], 2));
    let (lse, short) = (numbers::<f32>(&[1, 6, 4], 3), numbers::<f32>(&[1, 6, 2], 4));
    let problem = problem(&four);
    let inputs = Inputs::new(four.view(), four.view(), four.view());
    let heads =
        |tensor| ProblemError::ShapeMismatch { tensor, axis: TensorAxis::Heads, expected: 4, found: 2 };

    let (mut narrow, mut wide) = (two.clone(), four.clone());
    let output = Output { out: narrow.view_mut(), lse: None };
    assert_eq!(rule(ForwardCall::<Cpu, f32>::new(&problem, inputs, output)), heads(Role::Out));
    let mut few = short.clone();
    let output = Output { out: wide.view_mut(), lse: Some(few.view_mut()) };
    assert_eq!(rule(ForwardCall::<Cpu, f32>::new(&problem, inputs, output)), heads(Role::Lse));
    let output = Output { out: wide.view_mut(), lse: None };
    let other = Inputs::new(four.view(), two.view(), four.view());
    assert_eq!(rule(ForwardCall::<Cpu, f32>::new(&problem, other, output)), heads(Role::Key));

    let saved = |out, lse| Saved { out, lse, d_out: four.view(), d_lse: None };
    let good = saved(four.view(), lse.view());
    let mut grads = inputs.map(|view| view.to_tensor()).into_gradients();
    let call = BackwardCall::<Cpu, f32>::new(&problem, inputs, good, grads.map_mut(Tensor::view_mut));
    assert!(call.is_ok());
    let bad = saved(two.view(), lse.view());
    let call = BackwardCall::<Cpu, f32>::new(&problem, inputs, bad, grads.map_mut(Tensor::view_mut));
    assert_eq!(rule(call), heads(Role::Out));
    grads.value = two.clone();
    let call = BackwardCall::<Cpu, f32>::new(&problem, inputs, good, grads.map_mut(Tensor::view_mut));
    assert_eq!(rule(call), heads(Role::DValue));
}

#[test]
fn a_problem_of_another_type_or_with_more_operands_is_no_call() {
    let x = numbers::<f32>(&[1, 6, 4, 8], 1);
    let half: Tensor<natten::f16> = x.cast();
    let problem = problem(&x);
    let mut out: Tensor<natten::f16> = x.cast();
    let inputs = Inputs::new(half.view(), half.view(), half.view());
    let call = ForwardCall::<Cpu, _>::new(&problem, inputs, Output { out: out.view_mut(), lse: None });
    let (expected, found) = (natten::ElementType::F32, natten::ElementType::F16);
    assert_eq!(rule(call), ProblemError::ElementType { expected, found });

    let extra = numbers::<f32>(&[1, 2, 4, 8], 2);
    let inputs = Inputs::new(x.view(), x.view(), x.view());
    let with = inputs.with_additional(extra.view(), extra.view());
    let layouts = with.map(|view| *view.layout());
    let seeing = Problem::new(&Params::new([3]).to_dyn(), &layouts, expected).expect("valid");
    let mut out = x.clone();
    let output = Output { out: out.view_mut(), lse: None };
    let missing = rule(ForwardCall::<Cpu, f32>::new(&seeing, inputs, output));
    assert_eq!(missing, ProblemError::AdditionalMissing { additional_keys: 2 });
    let output = Output { out: out.view_mut(), lse: None };
    let unasked = rule(ForwardCall::<Cpu, f32>::new(&problem, with, output));
    let (tensor, axis) = (Role::AdditionalKeys, TensorAxis::Token(0));
    assert_eq!(unasked, ProblemError::ShapeMismatch { tensor, axis, expected: 0, found: 2 });
}

#[test]
fn merges_that_do_not_fit_are_no_call() {
    let (x, lse) = (numbers::<f32>(&[1, 6, 4, 8], 1), numbers::<f32>(&[1, 6, 4], 2));
    let partials = Partials { outs: vec![x.view(); 2], lses: vec![lse.view(); 2] };
    let mut narrow = numbers::<f32>(&[1, 6, 2, 8], 3);
    let output = Output { out: narrow.view_mut(), lse: None };
    let expected =
        ProblemError::ShapeMismatch { tensor: Role::Out, axis: TensorAxis::Heads, expected: 4, found: 2 };
    assert_eq!(rule(MergeCall::<Cpu, f32>::new(partials.clone(), output)), expected);

    let merged = Output { out: x.view(), lse: Some(lse.view()) };
    let mut gradients = Partials { outs: vec![x.clone()], lses: vec![lse.clone()] };
    let views = gradients.map_mut(Tensor::view_mut, Tensor::view_mut);
    let one = rule(MergeBackwardCall::<Cpu, f32>::new(partials.clone(), merged, views));
    assert_eq!(one, ProblemError::MergeGradientCount { expected: 2, found: 1 });
    gradients.outs.push(narrow);
    gradients.lses.push(lse.clone());
    let views = gradients.map_mut(Tensor::view_mut, Tensor::view_mut);
    let narrow = rule(MergeBackwardCall::<Cpu, f32>::new(partials, merged, views));
    assert!(matches!(narrow, ProblemError::ShapeMismatch { tensor: Role::DOut, .. }), "{narrow}");
}

/// A user's tensor, as adapters of frameworks have it.
struct Newtype(Tensor<f32>);

impl Operand for Newtype {
    type Elem = f32;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, f32> {
        self.0.view()
    }
}

impl OperandMut for Newtype {
    fn view_mut(&mut self) -> TensorViewMut<'_, f32> {
        self.0.view_mut()
    }
}

/// Generic over the element type, and expecting results of the same.
fn attend<E: Element>(x: &Tensor<E>) -> Result<Tensor<E>, Error> {
    na1d(x, &x.view(), x, &Params::new(3))
}

/// Generic over operands, with the output of their type.
fn attend_into<Q, O>(x: &Q, out: &mut O) -> Result<OwnedOf<Q>, Error>
where
    Q: Operand,
    O: OperandMut<Device = Q::Device, Elem = Q::Elem>,
{
    na1d_into(x, x, x, &Params::new(3), out)?;
    na1d(x, x, x, &Params::new(3))
}

#[test]
fn newtypes_and_host_tensors_meet_in_one_call() {
    let x = numbers::<f32>(&[1, 6, 2, 8], 1);
    let (mine, mut mine_out) = (Newtype(x.clone()), Newtype(x.clone()));
    let expected = attend(&x).expect("valid");
    let mixed = na1d(&mine, &x, &x.view(), &Params::new(3)).expect("both are the CPU's");
    assert_eq!(mixed, expected);
    let owned = attend_into(&mine, &mut mine_out).expect("valid");
    assert_eq!((&owned, &mine_out.0), (&expected, &expected));
    assert_eq!(attend_into(&x, &mut mine_out).expect("valid"), expected);
}

/// A device of another crate's: the reference on tensors of its own, which only it can read.
#[derive(Clone, Debug)]
struct Exact;

struct ExactTensor<E: InputElement>(Tensor<E>);

impl<E: InputElement, Host> natten_core::Operand<Host> for ExactTensor<E> {
    type Elem = E;
    type Device = Exact;

    fn device(&self) -> Exact {
        Exact
    }

    fn view(&self) -> TensorView<'_, E> {
        self.0.view()
    }
}

/// Writes a result into a contiguous view.
fn store<E: InputElement>(from: &Tensor<f64>, mut to: TensorViewMut<'_, E>) {
    to.write(from.as_slice().iter().map(|&value| E::narrow(value)));
}

impl Backend for Exact {
    type View<'a, E: InputElement> = TensorView<'a, E>;
    type ViewMut<'a, E: InputElement> = TensorViewMut<'a, E>;
    type Tensor<E: InputElement> = ExactTensor<E>;
    type Error = TensorError;

    fn name(&self) -> &'static str {
        "exact"
    }

    fn layout<E: InputElement>(view: &TensorView<'_, E>) -> Layout {
        *view.layout()
    }

    fn layout_mut<E: InputElement>(view: &TensorViewMut<'_, E>) -> Layout {
        *view.layout()
    }

    fn allocate<E: InputElement>(&self, shape: &[usize]) -> Result<ExactTensor<E>, TensorError> {
        Tensor::zeros(shape).map(ExactTensor)
    }

    fn copy<E: Element>(
        &self,
        from: TensorView<'_, E>,
        mut to: TensorViewMut<'_, E>,
    ) -> Result<(), TensorError> {
        to.copy_from(&from)
    }

    fn accumulate<E: Element>(
        &self,
        from: TensorView<'_, E>,
        mut to: TensorViewMut<'_, E>,
    ) -> Result<(), TensorError> {
        to.accumulate(&from)
    }

    fn reborrow<'s, E: InputElement>(view: &'s TensorView<'_, E>) -> TensorView<'s, E> {
        *view
    }

    fn reborrow_mut<'s, E: InputElement>(view: &'s mut TensorViewMut<'_, E>) -> TensorViewMut<'s, E> {
        view.reborrow()
    }

    fn narrow<'a, E: InputElement>(
        view: Self::View<'a, E>,
        axis: usize,
        range: Range<usize>,
    ) -> Result<Self::View<'a, E>, TensorError> {
        view.narrow(axis, range)
    }

    fn split_mut<'a, E: InputElement>(
        view: Self::ViewMut<'a, E>,
        axis: usize,
        index: usize,
    ) -> Result<[Self::ViewMut<'a, E>; 2], TensorError> {
        view.split_at(axis, index).map(<[_; 2]>::from)
    }

    fn view<E: InputElement>(tensor: &ExactTensor<E>) -> TensorView<'_, E> {
        tensor.0.view()
    }

    fn view_mut<E: InputElement>(tensor: &mut ExactTensor<E>) -> TensorViewMut<'_, E> {
        tensor.0.view_mut()
    }

    fn forward<E: InputElement>(&self, call: ForwardCall<'_, Self, E>) -> Result<(), TensorError> {
        let computed = reference::forward(call.problem(), call.inputs());
        let computed = Output { out: computed.out, lse: Some(computed.lse) };
        let (_, output) = call.into_views();
        computed.zip(output).into_map(|(from, to)| store(&from, to), |(from, to)| store(&from, to));
        Ok(())
    }

    fn backward<E: InputElement>(&self, call: BackwardCall<'_, Self, E>) -> Result<(), TensorError> {
        let computed = reference::backward(call.problem(), call.inputs(), call.saved());
        let (_, _, gradients) = call.into_views();
        computed.zip(gradients).into_map(|(from, to)| store(&from, to));
        Ok(())
    }

    fn merge<E: Element>(&self, call: MergeCall<'_, Self, E>) -> Result<(), TensorError> {
        let (partials, output) = call.into_views();
        let computed = reference::merge(&partials);
        let computed = Output { out: computed.out, lse: Some(computed.lse) };
        computed.zip(output).into_map(|(from, to)| store(&from, to), |(from, to)| store(&from, to));
        Ok(())
    }

    fn merge_backward<E: Element>(&self, call: MergeBackwardCall<'_, Self, E>) -> Result<(), TensorError> {
        let (partials, merged, gradients) = call.into_views();
        let computed = reference::merge_backward(&partials, &merged.out, merged.lse.as_ref());
        let (outs, lses) = computed.into_iter().unzip();
        let pairs = Partials { outs, lses }.zip(gradients);
        pairs.into_map(|(from, to)| store(&from, to), |(from, to)| store(&from, to));
        Ok(())
    }
}

#[test]
fn a_device_that_natten_does_not_know() {
    let [q, k, v, d_out] = [1, 2, 3, 4].map(|seed| numbers::<f64>(&[1, 9, 2, 8], seed));
    let params = Params::new(3);
    let (out, lse) = na1d_with_lse(&q, &k, &v, &params).expect("valid");
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let grads = na1d_backward(&q, &k, &v, &params, &saved).expect("valid");
    let merged = merge_attentions_backward(&[&out, &v], &[&lse, &lse], &d_out, Some(&lse)).expect("they fit");

    let [q, k, v, d_out] = [q, k, v, d_out].map(ExactTensor);
    let (there, there_lse) = na1d_with_lse(&q, &k, &v, &params).expect("valid");
    assert_eq!((&there.0, &there_lse.0), (&out, &lse));
    let saved = Saved { out: &there, lse: &there_lse, d_out: &d_out, d_lse: None };
    let there_grads = na1d_backward(&q, &k, &v, &params, &saved).expect("valid");
    grads.zip(there_grads).into_map(|(here, there)| assert_eq!(here, there.0));
    let there_merged =
        merge_attentions_backward(&[&there, &v], &[&there_lse, &there_lse], &d_out, Some(&there_lse));
    for (here, there) in merged.iter().zip(there_merged.expect("they fit")) {
        assert_eq!((&here.0, &here.1), (&there.0.0, &there.1.0));
    }

    // With the element type as a value.
    let any = |tensor: &'_ ExactTensor<f64>| AnyTensorOn::<Exact>::F64(ExactTensor(tensor.0.clone()));
    let inputs = Inputs::new(any(&q), any(&k), any(&v));
    let views = inputs.map(|tensor| tensor.view());
    let (dynamic, _) = forward_on(&Exact, &views, &params).expect("valid");
    assert!(matches!(&dynamic, AnyTensorOn::F64(tensor) if tensor.0 == out));
    let (saved_out, saved_d_out) = (AnyViewOn::F64(there.0.view()), AnyViewOn::F64(d_out.0.view()));
    let saved = Saved { out: saved_out, lse: there_lse.0.view(), d_out: saved_d_out, d_lse: None };
    let Gradients { query, .. } = backward_on(&Exact, &views, &params, &saved).expect("valid");
    let again = na1d_backward(
        &q,
        &k,
        &v,
        &params,
        &Saved { out: &there, lse: &there_lse, d_out: &d_out, d_lse: None },
    );
    assert!(matches!(&query, AnyTensorOn::F64(tensor) if tensor.0 == again.expect("valid").query.0));
    let narrow = AnyTensorOn::<Exact>::F32(ExactTensor(k.0.cast()));
    let mixed = Inputs::new(inputs.query.view(), narrow.view(), inputs.value.view());
    let error = forward_on(&Exact, &mixed, &params).err().expect("f32 among f64");
    assert_eq!(error.to_string(), "key holds f32, query f64");
}

/// A copy has no call that held its views against each other.
#[test]
fn copies_look_at_shapes_themselves() {
    let (from, mut to) = (numbers::<f32>(&[2, 6], 1), numbers::<f32>(&[2, 5], 2));
    let before = to.clone();
    let shape = TensorError::Shape { expected: vec![2, 5], found: vec![2, 6] };
    assert_eq!(shape.to_string(), "a tensor of shape [2, 6] where [2, 5] is written");
    let found = Cpu::new().copy(from.view(), to.view_mut()).expect_err("another shape");
    assert_eq!(found.to_string(), shape.to_string());
    assert_eq!(to, before);

    let (gpu, other) = (Cuda::new(Emulated::new(8, 0)), Cuda::new(Emulated::new(8, 0)));
    let there = gpu.upload(&from.view()).expect("memory");
    let mut narrow = gpu.upload(&to.view()).expect("memory");
    let found = gpu.copy(there.view(), narrow.view_mut()).expect_err("another shape");
    assert_eq!(found.to_string(), shape.to_string());
    assert_eq!(gpu.download(&narrow).expect("it ran"), before);
    let mut elsewhere = other.upload(&from.view()).expect("memory");
    for found in [
        gpu.copy(there.view(), elsewhere.view_mut()).expect_err("written elsewhere"),
        other.copy(there.view(), elsewhere.view_mut()).expect_err("read elsewhere"),
    ] {
        assert!(matches!(found, natten::cuda::CudaError::WrongDevice { .. }), "{found}");
    }
}

/// Rows 1 and 2 of `from` to rows 3 and 4 of `to`.
fn replace<B: Backend>(backend: &B, from: B::View<'_, f32>, to: &mut B::Tensor<f32>) {
    let from = B::narrow(from, 1, 1..3).expect("rows there are");
    let to = B::narrow_mut(B::view_mut(to), 1, 3..5).expect("rows there are");
    backend.copy(from, to).expect("one shape");
}

#[test]
fn parts_of_tensors_are_copied_on_any_backend() {
    let (from, before) = (numbers::<f32>(&[2, 4, 3], 1), numbers::<f32>(&[2, 6, 3], 2));
    let mut expected = before.clone();
    for (batch, row, i) in (0..2).flat_map(|b| (0..2).flat_map(move |r| (0..3).map(move |i| (b, r, i)))) {
        expected.as_mut_slice()[(batch * 6 + 3 + row) * 3 + i] =
            from.as_slice()[(batch * 4 + 1 + row) * 3 + i];
    }
    let mut on_host = before.clone();
    replace(&Cpu::new(), from.view(), &mut on_host);
    assert_eq!(on_host, expected);
    let gpu = Cuda::new(Emulated::new(8, 0));
    let [there, mut to] = [&from, &before].map(|tensor| gpu.upload(&tensor.view()).expect("memory"));
    replace(&gpu, there.view(), &mut to);
    assert_eq!(gpu.download(&to).expect("it ran"), expected);
    assert!(<Cuda<Emulated> as Backend>::narrow(there.view(), 1, 3..5).is_err());
}

/// What was the host's alone: the element type as a value, and the gradient of a merge.
#[test]
fn a_gpu_takes_what_the_host_takes() {
    let gpu = Cuda::new(Emulated::new(8, 0));
    let close = |there: &natten::cuda::CudaTensor<f32, Emulated>, here: &Tensor<f32>| {
        let there = gpu.download(there).expect("it ran");
        let pairs = there.as_slice().iter().zip(here.as_slice());
        assert!(
            pairs.clone().all(|(there, here)| (there - here).abs() < 2e-5),
            "{there:?}, expected {here:?}"
        );
    };
    let [q, k, v, d_out] = [1, 2, 3, 4].map(|seed| numbers::<f32>(&[1, 9, 2, 8], seed));
    let params = Params::new(3);
    let (out, lse) = na1d_with_lse(&q, &k, &v, &params).expect("valid");
    let grads =
        na1d_backward(&q, &k, &v, &params, &Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None });
    let merged = merge_attentions_backward(&[&out, &v], &[&lse, &lse], &d_out, Some(&lse)).expect("they fit");

    let [q, k, v, there_d_out, there_out] =
        [&q, &k, &v, &d_out, &out].map(|tensor| gpu.upload(&tensor.view()).expect("memory"));
    let there_lse = gpu.upload(&lse.view()).expect("memory");
    let any = Inputs::new(&q, &k, &v).into_map(|tensor| AnyViewOn::<Cuda<Emulated>>::F32(tensor.view()));
    let (AnyTensorOn::F32(found), found_lse) =
        forward_on(&gpu, &any, &params).expect("every GPU serves this")
    else {
        panic!("f32 gives f32");
    };
    close(&found, &out);
    close(&found_lse, &lse);
    let (saved_out, saved_d_out) = (AnyViewOn::F32(there_out.view()), AnyViewOn::F32(there_d_out.view()));
    let saved = Saved { out: saved_out, lse: there_lse.view(), d_out: saved_d_out, d_lse: None };
    let found = backward_on(&gpu, &any, &params, &saved).expect("every GPU serves this");
    grads.expect("valid").zip(found).into_map(|(here, there)| {
        let AnyTensorOn::F32(there) = there else { panic!("f32 gives f32") };
        close(&there, &here);
    });
    let (outs, lses) = ([&there_out, &v], [&there_lse, &there_lse]);
    let found = merge_attentions_backward(&outs, &lses, &there_d_out, Some(&there_lse)).expect("a kernel");
    for (there, here) in found.iter().zip(&merged) {
        close(&there.0, &here.0);
        close(&there.1, &here.1);
    }
}
