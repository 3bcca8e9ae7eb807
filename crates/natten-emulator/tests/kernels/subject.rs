//! The emulated device as a subject of the suites that every backend must pass: host views in, host views out.

use natten::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, Layout, MergeCall, Output, Partials,
    Problem, Saved, TensorView, TensorViewMut,
};
use natten_cuda::{Cuda, CudaTensor, CudaView, CudaViewMut};
use natten_emulator::Emulated;
use natten_tests::Subject;
use natten_tests::subject::OutputViews;

use crate::case::emulated;

/// CUDA kernels on an emulated GPU.
pub struct OnEmulator(pub Cuda<Emulated>);

impl OnEmulator {
    pub fn new() -> Self {
        OnEmulator(emulated())
    }
}

/// A whole host buffer on the device, and the view of it that the host's view is.
struct Mirror<E: Element> {
    buffer: CudaTensor<E, Emulated>,
    address: u64,
    layout: Layout,
}

impl<E: Element> Mirror<E> {
    fn of(cuda: &Cuda<Emulated>, view: &TensorView<'_, E>) -> Self {
        let data = view.data();
        let empty = [E::default()];
        let data = if data.is_empty() { &empty } else { data };
        let whole = TensorView::from_slice(&[data.len()], data).expect("its own length");
        let buffer = cuda.upload(&whole).expect("an upload");
        let address = buffer.address() + (view.offset() * E::TYPE.size_bytes()) as u64;
        Mirror { buffer, address, layout: *view.layout() }
    }

    fn view(&self, cuda: &Cuda<Emulated>) -> CudaView<'_, E> {
        // SAFETY: the host view's bounds were checked against the buffer that this one copies.
        unsafe { cuda.view_of_raw(self.address, self.layout) }
    }

    fn view_mut(&mut self, cuda: &Cuda<Emulated>) -> CudaViewMut<'_, E> {
        // SAFETY: as above; the mirror is borrowed for as long as the view.
        unsafe { cuda.view_mut_of_raw(self.address, self.layout) }
    }

    fn store(self, cuda: &Cuda<Emulated>, mut to: TensorViewMut<'_, E>) {
        let data = to.data_mut();
        let back = cuda.download(&self.buffer).expect("a download");
        let length = data.len();
        data.copy_from_slice(&back.as_slice()[..length]);
    }
}

impl Subject for OnEmulator {
    fn name(&self) -> String {
        "emulated cuda".to_owned()
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        output: OutputViews<'_, E>,
    ) {
        let cuda = &self.0;
        let inputs = inputs.map(|view| Mirror::of(cuda, view));
        let mut out = Mirror::of(cuda, &output.out.as_view());
        let mut lse = output.lse.as_ref().map(|lse| Mirror::of(cuda, &lse.as_view()));
        let views = Output { out: out.view_mut(cuda), lse: lse.as_mut().map(|lse| lse.view_mut(cuda)) };
        let call = ForwardCall::new(problem, inputs.map(|mirror| mirror.view(cuda)), views);
        cuda.forward(call.expect("the suites' views fit")).expect("the emulator takes it");
        out.store(cuda, output.out);
        lse.into_iter().zip(output.lse).for_each(|(mirror, to)| mirror.store(cuda, to));
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        gradients: Gradients<TensorViewMut<'_, E>>,
    ) {
        let cuda = &self.0;
        let inputs = inputs.map(|view| Mirror::of(cuda, view));
        let (out, d_out) = (Mirror::of(cuda, &saved.out), Mirror::of(cuda, &saved.d_out));
        let lse = Mirror::of(cuda, &saved.lse);
        let d_lse = saved.d_lse.as_ref().map(|d_lse| Mirror::of(cuda, d_lse));
        let saved = Saved {
            out: out.view(cuda),
            lse: lse.view(cuda),
            d_out: d_out.view(cuda),
            d_lse: d_lse.as_ref().map(|d_lse| d_lse.view(cuda)),
        };
        let mirror = |view: &TensorViewMut<'_, E>| Mirror::of(cuda, &view.as_view());
        let mut query = mirror(&gradients.query);
        let mut key = mirror(&gradients.key);
        let mut value = mirror(&gradients.value);
        let mut additional = gradients.additional.as_ref().map(|pair| pair.each_ref().map(mirror));
        let views = Gradients {
            query: query.view_mut(cuda),
            key: key.view_mut(cuda),
            value: value.view_mut(cuda),
            additional: additional.as_mut().map(|pair| pair.each_mut().map(|mirror| mirror.view_mut(cuda))),
        };
        let inputs = inputs.map(|mirror| mirror.view(cuda));
        let call = BackwardCall::new(problem, inputs, saved, views).expect("the suites' views fit");
        cuda.backward(call).expect("the emulator takes it");
        query.store(cuda, gradients.query);
        key.store(cuda, gradients.key);
        value.store(cuda, gradients.value);
        let pairs = additional.into_iter().flatten().zip(gradients.additional.into_iter().flatten());
        pairs.for_each(|(mirror, to)| mirror.store(cuda, to));
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        output: OutputViews<'_, E>,
    ) {
        let cuda = &self.0;
        let outs: Vec<_> = partials.outs.iter().map(|view| Mirror::of(cuda, view)).collect();
        let lses: Vec<_> = partials.lses.iter().map(|view| Mirror::of(cuda, view)).collect();
        let partials = Partials {
            outs: outs.iter().map(|mirror| mirror.view(cuda)).collect(),
            lses: lses.iter().map(|mirror| mirror.view(cuda)).collect(),
        };
        let mut out = Mirror::of(cuda, &output.out.as_view());
        let mut lse = output.lse.as_ref().map(|lse| Mirror::of(cuda, &lse.as_view()));
        let views = Output { out: out.view_mut(cuda), lse: lse.as_mut().map(|lse| lse.view_mut(cuda)) };
        let call = MergeCall::new(partials, views).expect("the suites' views fit");
        cuda.merge(call).expect("the emulator takes it");
        out.store(cuda, output.out);
        lse.into_iter().zip(output.lse).for_each(|(mirror, to)| mirror.store(cuda, to));
    }
}
