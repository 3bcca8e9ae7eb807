//! A CUDA device, real or emulated, as a subject: host views in, host views out. Every buffer is copied with all that lies
//! around its view, so that strides stay, and begins at an aligned address, so that a view is aligned as its offset is.

use natten::cuda::{Cuda, CudaView, CudaViewMut, Device};
use natten::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, MergeBackwardCall, MergeCall, Output,
    Partials, Problem, Saved, TensorView, TensorViewMut,
};

use crate::kernels::{self, Shipped};
use crate::subject::{OutputViews, Subject, Unsupported, Weights};

/// The backend on some device.
pub struct OnDevice<D: Device> {
    name: String,
    cuda: Cuda<D>,
    /// Bytes of poison before and after each buffer; a multiple of what memory is aligned to.
    surround: usize,
}

/// All bits set: NaN in every format.
const POISON: u8 = 0xFF;

impl<D: Device> OnDevice<D> {
    /// A device with a name for messages. Around every buffer is poison, and a write there shows.
    pub fn new(name: &str, device: D) -> Self {
        OnDevice { name: name.to_owned(), cuda: Cuda::new(device), surround: 256 }
    }

    /// A device that refuses every access outside an allocation: buffers are allocations of their own, with nothing
    /// around them, so that reads show as well.
    pub fn guarded(name: &str, device: D) -> Self {
        OnDevice { surround: 0, ..Self::new(name, device) }
    }

    /// The same, asked for one kernel.
    pub fn asking_for(self, kernel: &Shipped) -> Self {
        let name = format!("{} {}", self.name, kernel.entry);
        OnDevice { name, cuda: kernels::asking_for(self.cuda, kernel), ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        self.cuda.device()
    }

    fn copy<E: Element>(&self, content: &[E]) -> Copied<'_, D> {
        let device = self.cuda.device();
        let content: &[u8] = bytemuck::cast_slice(content);
        let around = vec![POISON; self.surround];
        let whole = [&around, content, &around].concat();
        let memory = device.allocate(whole.len()).unwrap_or_else(|e| panic!("allocating: {e}"));
        device.write(&memory, &whole).unwrap_or_else(|e| panic!("copying to the device: {e}"));
        Copied { subject: self, memory, bytes: content.len() }
    }

    fn copy_view<E: Element>(&self, view: &TensorView<'_, E>) -> Copied<'_, D> {
        self.copy(view.buffer().expect(WHOLE))
    }

    fn copy_mut<E: Element>(&self, view: &TensorViewMut<'_, E>) -> Copied<'_, D> {
        self.copy(view.as_view().buffer().expect(WHOLE))
    }
}

/// Of tensors of tests.
const WHOLE: &str = "a view of a whole buffer";

/// A host buffer's copy on the device.
struct Copied<'d, D: Device> {
    subject: &'d OnDevice<D>,
    memory: D::Memory,
    bytes: usize,
}

impl<D: Device> Copied<'_, D> {
    fn address(&self, bytes: usize) -> u64 {
        D::address(&self.memory) + (self.subject.surround + bytes) as u64
    }

    fn view<'a, E: Element>(&'a self, host: &TensorView<'_, E>) -> CudaView<'a, E> {
        let address = self.address(host.offset() * size_of::<E>());
        // SAFETY: the memory is a copy of the whole buffer that the view's bounds were checked against, and outlives
        // the view; nothing writes it meanwhile.
        unsafe { self.subject.cuda.view_of_raw(address, *host.layout()) }
    }

    fn view_mut<'a, E: Element>(&'a self, host: &TensorViewMut<'_, E>) -> CudaViewMut<'a, E> {
        let address = self.address(host.as_view().offset() * size_of::<E>());
        // SAFETY: likewise; the view is the only one to write, and its layout was checked to be injective.
        unsafe { self.subject.cuda.view_mut_of_raw(address, *host.layout()) }
    }

    fn read_into<E: Element>(&self, host: &mut TensorViewMut<'_, E>) {
        let surround = self.subject.surround;
        let mut whole = vec![0; self.bytes + 2 * surround];
        let device = self.subject.cuda.device();
        device.read(&self.memory, &mut whole).unwrap_or_else(|e| panic!("copying from the device: {e}"));
        let (before, rest) = whole.split_at(surround);
        let (content, after) = rest.split_at(self.bytes);
        let is_poison = |bytes: &[u8]| bytes.iter().all(|&byte| byte == POISON);
        assert!(is_poison(before), "{}: written before the buffer", self.subject.name);
        assert!(is_poison(after), "{}: written after the buffer", self.subject.name);
        bytemuck::cast_slice_mut::<E, u8>(host.buffer_mut().expect(WHOLE)).copy_from_slice(content);
    }
}

impl<D: Device> Subject for OnDevice<D> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        mut output: OutputViews<'_, E>,
    ) -> Result<Weights, Unsupported> {
        let copies = inputs.map(|view| self.copy_view(view));
        let views = inputs_on_device(&copies, inputs);
        let out = self.copy_mut(&output.out);
        let lse = output.lse.as_ref().map(|lse| self.copy_mut(lse));
        let on_device = output_on_device(&out, lse.as_ref(), &output);
        let weights = kernels::weights(&self.cuda, problem, &views, &on_device);
        let call = ForwardCall::new(problem, views, on_device).expect("views of a valid call");
        kernels::served(self.cuda.forward(call))?;
        out.read_into(&mut output.out);
        lse.iter().zip(&mut output.lse).for_each(|(copy, host)| copy.read_into(host));
        Ok(weights)
    }

    fn backward_weights<E: Element>(&self, problem: &Problem, inputs: &Inputs<TensorView<'_, E>>) -> Weights {
        let copies = inputs.map(|view| self.copy_view(view));
        kernels::backward_weights(&self.cuda, problem, &inputs_on_device(&copies, inputs))
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        mut gradients: Gradients<TensorViewMut<'_, E>>,
    ) -> Result<(), Unsupported> {
        let copies = inputs.map(|view| self.copy_view(view));
        let views = inputs_on_device(&copies, inputs);
        let (out, lse) = (self.copy_view(&saved.out), self.copy_view(&saved.lse));
        let d_out = self.copy_view(&saved.d_out);
        let d_lse = saved.d_lse.as_ref().map(|view| self.copy_view(view));
        let saved = Saved {
            out: out.view(&saved.out),
            lse: lse.view(&saved.lse),
            d_out: d_out.view(&saved.d_out),
            d_lse: d_lse.as_ref().zip(saved.d_lse.as_ref()).map(|(copy, host)| copy.view(host)),
        };
        let query = self.copy_mut(&gradients.query);
        let key = self.copy_mut(&gradients.key);
        let value = self.copy_mut(&gradients.value);
        let additional =
            gradients.additional.as_ref().map(|pair| pair.each_ref().map(|view| self.copy_mut(view)));
        let pairs = additional.as_ref().zip(gradients.additional.as_ref());
        let on_device = Gradients {
            query: query.view_mut(&gradients.query),
            key: key.view_mut(&gradients.key),
            value: value.view_mut(&gradients.value),
            additional: pairs.map(|(copies, hosts)| [0, 1].map(|i| copies[i].view_mut(&hosts[i]))),
        };
        let call = BackwardCall::new(problem, views, saved, on_device).expect("views of a valid call");
        kernels::served(self.cuda.backward(call))?;
        query.read_into(&mut gradients.query);
        key.read_into(&mut gradients.key);
        value.read_into(&mut gradients.value);
        let additional = additional.iter().flatten().zip(gradients.additional.iter_mut().flatten());
        additional.for_each(|(copy, host)| copy.read_into(host));
        Ok(())
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        mut output: OutputViews<'_, E>,
    ) -> Result<(), Unsupported> {
        let copies = partials.map(|out| self.copy_view(out), |lse| self.copy_view(lse));
        let views = partials_on_device(&copies, partials);
        let out = self.copy_mut(&output.out);
        let lse = output.lse.as_ref().map(|lse| self.copy_mut(lse));
        let on_device = output_on_device(&out, lse.as_ref(), &output);
        let call = MergeCall::new(views, on_device).expect("views of a valid call");
        kernels::served(self.cuda.merge(call))?;
        out.read_into(&mut output.out);
        lse.iter().zip(&mut output.lse).for_each(|(copy, host)| copy.read_into(host));
        Ok(())
    }

    fn merge_backward<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        merged: Output<TensorView<'_, E>, TensorView<'_, f32>>,
        mut gradients: Partials<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
    ) -> Result<(), Unsupported> {
        let copies = partials.map(|out| self.copy_view(out), |lse| self.copy_view(lse));
        let views = partials_on_device(&copies, partials);
        let (d_out, d_lse) =
            (self.copy_view(&merged.out), merged.lse.as_ref().map(|lse| self.copy_view(lse)));
        let d_lse_view = d_lse.iter().zip(&merged.lse).map(|(copy, host)| copy.view(host)).next();
        let incoming = Output { out: d_out.view(&merged.out), lse: d_lse_view };
        let written = gradients.map(|out| self.copy_mut(out), |lse| self.copy_mut(lse));
        let on_device = Partials {
            outs: written.outs.iter().zip(&gradients.outs).map(|(copy, host)| copy.view_mut(host)).collect(),
            lses: written.lses.iter().zip(&gradients.lses).map(|(copy, host)| copy.view_mut(host)).collect(),
        };
        let call = MergeBackwardCall::new(views, incoming, on_device).expect("views of a valid call");
        kernels::served(self.cuda.merge_backward(call))?;
        written.outs.iter().zip(&mut gradients.outs).for_each(|(copy, host)| copy.read_into(host));
        written.lses.iter().zip(&mut gradients.lses).for_each(|(copy, host)| copy.read_into(host));
        Ok(())
    }
}

fn inputs_on_device<'a, E: Element, D: Device>(
    copies: &'a Inputs<Copied<'_, D>>,
    hosts: &Inputs<TensorView<'_, E>>,
) -> Inputs<CudaView<'a, E>> {
    let pairs = copies.additional.as_ref().zip(hosts.additional.as_ref());
    Inputs {
        query: copies.query.view(&hosts.query),
        key: copies.key.view(&hosts.key),
        value: copies.value.view(&hosts.value),
        additional: pairs.map(|(copies, hosts)| [0, 1].map(|i| copies[i].view(&hosts[i]))),
    }
}

fn partials_on_device<'a, E: Element, D: Device>(
    copies: &'a Partials<Copied<'_, D>, Copied<'_, D>>,
    hosts: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
) -> Partials<CudaView<'a, E>, CudaView<'a, f32>> {
    Partials {
        outs: copies.outs.iter().zip(&hosts.outs).map(|(copy, host)| copy.view(host)).collect(),
        lses: copies.lses.iter().zip(&hosts.lses).map(|(copy, host)| copy.view(host)).collect(),
    }
}

fn output_on_device<'a, E: Element, D: Device>(
    out: &'a Copied<'_, D>,
    lse: Option<&'a Copied<'_, D>>,
    host: &OutputViews<'_, E>,
) -> Output<CudaViewMut<'a, E>, CudaViewMut<'a, f32>> {
    let lse = lse.zip(host.lse.as_ref()).map(|(copy, host)| copy.view_mut(host));
    Output { out: out.view_mut(&host.out), lse }
}
