//! A CUDA device, real or emulated, as a subject: host views in, host views out. Every buffer is copied with all that lies
//! around its view, so that strides stay, and begins at an aligned address, so that a view is aligned as its offset is.

use std::sync::Arc;

use natten::cuda::{Cuda, CudaView, CudaViewMut, Device};
use natten::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, Layout, MergeBackwardCall, MergeCall,
    Output, Partials, Problem, Saved, Tensor, TensorView, TensorViewMut,
};

use crate::kernels::{self, Shipped};
use crate::subject::{OutputViews, Subject, Unsupported, Weights};
use crate::vast::{Ends, Lay, Of, Spread, Vast};

/// The backend on some device.
pub struct OnDevice<D: Device> {
    name: String,
    cuda: Cuda<D>,
    /// Bytes of poison before and after each buffer; a multiple of what memory is aligned to.
    surround: usize,
    /// The kernel that it is asked for.
    kernel: Option<Shipped>,
    /// Memory for more than there is, if it has such.
    vast: Option<Arc<dyn Vast<D>>>,
    /// How tensors lie there instead of in buffers like the host's.
    spread: Option<Spread>,
}

/// All bits set: NaN in every format.
const POISON: u8 = 0xFF;

impl<D: Device> OnDevice<D> {
    /// A device with a name for messages. Around every buffer is poison, and a write there shows.
    pub fn new(name: &str, device: D) -> Self {
        // Checks are trials already, and some let few ctas of a launch run.
        let (name, cuda) = (name.to_owned(), Cuda::new(device).trusting_untried_kernels());
        OnDevice { name, cuda, surround: 256, kernel: None, vast: None, spread: None }
    }

    /// A device that refuses every access outside an allocation: buffers are allocations of their own, with nothing
    /// around them, so that reads show as well.
    pub fn guarded(name: &str, device: D) -> Self {
        OnDevice { surround: 0, ..Self::new(name, device) }
    }

    /// The same, with memory that exists where it is written.
    pub fn with_vast(self, vast: Arc<dyn Vast<D>>) -> Self {
        OnDevice { vast: Some(vast), ..self }
    }

    /// The same, asked for one kernel.
    pub fn asking_for(self, kernel: &Shipped) -> Self {
        let name = format!("{} {}", self.name, kernel.entry);
        OnDevice { name, cuda: kernels::asking_for(self.cuda, kernel), kernel: Some(*kernel), ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        self.cuda.device()
    }

    fn copy<E: Element>(&self, view: &TensorView<'_, E>, of: Of, is_read: bool) -> Copied<'_, D> {
        let (Some(vast), Some(spread)) = (&self.vast, self.spread) else { return self.copy_buffer(view) };
        let lay = spread.lay::<E>(view.layout(), view.offset(), of);
        let address = vast.reserve(lay.bytes);
        if is_read {
            for (on_host, there) in lay.rows::<E>(view.layout()) {
                let first = view.offset().wrapping_add_signed(on_host);
                vast.write(
                    address + there,
                    bytemuck::cast_slice(&view.buffer().expect(WHOLE)[first..][..lay.row_len()]),
                );
            }
        }
        Copied { subject: self, held: Held::Spread { vast: vast.clone(), address, lay: Box::new(lay) } }
    }

    fn copy_buffer<E: Element>(&self, view: &TensorView<'_, E>) -> Copied<'_, D> {
        let device = self.cuda.device();
        let content: &[u8] = bytemuck::cast_slice(view.buffer().expect(WHOLE));
        let around = vec![POISON; self.surround];
        let whole = [&around, content, &around].concat();
        let memory = device.allocate(whole.len()).unwrap_or_else(|e| panic!("allocating: {e}"));
        device.write(&memory, &whole).unwrap_or_else(|e| panic!("copying to the device: {e}"));
        Copied { subject: self, held: Held::Buffer { memory, bytes: content.len() } }
    }

    /// How the tensors of a problem are copied, or those of a merge.
    fn copier(&self, heads_kv: Option<usize>) -> Copier<'_, D> {
        Copier { subject: self, heads_kv }
    }

    /// The problem as the device gets it.
    fn problem<E: Element>(&self, problem: &Problem, inputs: &Inputs<CudaView<'_, E>>) -> Problem {
        let layouts = inputs.map(|view| *view.layout());
        self.spread.map_or_else(|| problem.clone(), |spread| spread.problem(problem, &layouts))
    }

    /// Runs a call, or those of its ctas that have tensors: rows as these scalars, sums as these lists.
    fn run<R>(
        &self,
        rows: (&Copied<'_, D>, &Layout),
        lists: Option<(&Copied<'_, D>, &Layout)>,
        call: impl FnOnce() -> R,
    ) -> R {
        let of = |(copied, host): (&Copied<'_, D>, &Layout)| copied.ends(host);
        let ctas = || self.spread?.ctas(&of(rows)?, lists.and_then(of).as_ref());
        let Some((vast, ctas)) = self.vast.as_ref().zip(ctas()) else { return call() };
        vast.run_only(Some(ctas));
        let result = call();
        vast.run_only(None);
        result
    }
}

/// What tests make views of.
const WHOLE: &str = "a view of a whole buffer";

/// Copies the tensors of a call.
struct Copier<'d, D: Device> {
    subject: &'d OnDevice<D>,
    heads_kv: Option<usize>,
}

impl<'d, D: Device> Copier<'d, D> {
    fn of(&self, layout: &Layout, has_dim: bool, is_list: bool) -> Of {
        let heads = layout.shape()[layout.rank() - 1 - usize::from(has_dim)];
        let sharing = self.heads_kv.map_or(1, |heads_kv| heads / heads_kv.max(1));
        Of { is_list, has_dim, sharing }
    }

    fn rows<E: Element>(&self, view: &TensorView<'_, E>) -> Copied<'d, D> {
        self.subject.copy(view, self.of(view.layout(), true, false), true)
    }

    fn list<E: Element>(&self, view: &TensorView<'_, E>) -> Copied<'d, D> {
        self.subject.copy(view, self.of(view.layout(), true, true), true)
    }

    fn scalars(&self, view: &TensorView<'_, f32>) -> Copied<'d, D> {
        self.subject.copy(view, self.of(view.layout(), false, false), true)
    }

    fn rows_mut<E: Element>(&self, view: &TensorViewMut<'_, E>) -> Copied<'d, D> {
        self.subject.copy(&view.as_view(), self.of(view.layout(), true, false), false)
    }

    fn list_mut<E: Element>(&self, view: &TensorViewMut<'_, E>) -> Copied<'d, D> {
        self.subject.copy(&view.as_view(), self.of(view.layout(), true, true), false)
    }

    fn scalars_mut(&self, view: &TensorViewMut<'_, f32>) -> Copied<'d, D> {
        self.subject.copy(&view.as_view(), self.of(view.layout(), false, false), false)
    }

    fn inputs<E: Element>(&self, inputs: &Inputs<TensorView<'_, E>>) -> Inputs<Copied<'d, D>> {
        Inputs {
            query: self.rows(&inputs.query),
            key: self.rows(&inputs.key),
            value: self.rows(&inputs.value),
            additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(|view| self.list(view))),
        }
    }
}

/// A host tensor's copy on the device.
struct Copied<'d, D: Device> {
    subject: &'d OnDevice<D>,
    held: Held<D>,
}

enum Held<D: Device> {
    /// All of the host's buffer.
    Buffer { memory: D::Memory, bytes: usize },
    /// The elements, elsewhere.
    Spread { vast: Arc<dyn Vast<D>>, address: u64, lay: Box<Lay> },
}

impl<D: Device> Drop for Held<D> {
    fn drop(&mut self) {
        if let Held::Spread { vast, address, .. } = self {
            vast.release(*address);
        }
    }
}

impl<D: Device> Copied<'_, D> {
    /// Where a view of the host's is, and how it lies.
    fn place<E: Element>(&self, host: &TensorView<'_, E>) -> (u64, Layout) {
        match &self.held {
            Held::Buffer { memory, .. } => {
                let bytes = self.subject.surround + host.offset() * size_of::<E>();
                (D::address(memory) + bytes as u64, *host.layout())
            }
            Held::Spread { address, lay, .. } => (address + lay.first, lay.layout),
        }
    }

    fn view<'a, E: Element>(&'a self, host: &TensorView<'_, E>) -> CudaView<'a, E> {
        let (address, layout) = self.place(host);
        // SAFETY: the memory is a copy of the whole buffer that the view's bounds were checked against, or was reserved for
        // the layout, and outlives the view; nothing writes it meanwhile.
        unsafe { self.subject.cuda.view_of_raw(address, layout) }
    }

    fn view_mut<'a, E: Element>(&'a self, host: &TensorViewMut<'_, E>) -> CudaViewMut<'a, E> {
        let (address, layout) = self.place(&host.as_view());
        // SAFETY: likewise; the view is the only one to write, and its layout was checked to be injective, or made so.
        unsafe { self.subject.cuda.view_mut_of_raw(address, layout) }
    }

    fn ends(&self, host: &Layout) -> Option<Ends> {
        match &self.held {
            Held::Buffer { .. } => None,
            Held::Spread { lay, .. } => Some(lay.ends(host)),
        }
    }

    fn read_into<E: Element>(&self, host: &mut TensorViewMut<'_, E>) {
        let (memory, bytes) = match &self.held {
            Held::Buffer { memory, bytes } => (memory, *bytes),
            Held::Spread { vast, address, lay } => {
                let offset = host.as_view().offset();
                for (on_host, there) in lay.rows::<E>(host.layout()) {
                    let row = &mut host.buffer_mut().expect(WHOLE)[offset.wrapping_add_signed(on_host)..]
                        [..lay.row_len()];
                    vast.read(address + there, bytemuck::cast_slice_mut(row));
                }
                return;
            }
        };
        let surround = self.subject.surround;
        let mut whole = vec![0; bytes + 2 * surround];
        let device = self.subject.cuda.device();
        device.read(memory, &mut whole).unwrap_or_else(|e| panic!("copying from the device: {e}"));
        let (before, rest) = whole.split_at(surround);
        let (content, after) = rest.split_at(bytes);
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

    fn spread(&self, spread: Spread) -> Option<Self> {
        let vast = self.vast.as_ref()?;
        let device = match spread {
            Spread::Apart(_) => self.cuda.device().clone(),
            Spread::Longer(..) => vast.of_many_multiprocessors(),
        };
        let cuda = self.kernel.iter().fold(Cuda::new(device), kernels::asking_for);
        let name = format!("{} {spread:?}", self.name);
        let (kernel, surround) = (self.kernel, self.surround);
        Some(OnDevice { name, cuda, surround, kernel, vast: Some(vast.clone()), spread: Some(spread) })
    }

    fn in_boxes(&self, nth: u64) -> Option<Self> {
        let cuda = kernels::in_boxes(self.cuda.clone(), self.kernel.as_ref()?, nth)?;
        let (name, vast) = (format!("{} in boxes {nth}", self.name), self.vast.clone());
        Some(OnDevice { name, cuda, surround: self.surround, kernel: self.kernel, vast, spread: self.spread })
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        mut output: OutputViews<'_, E>,
    ) -> Result<Weights, Unsupported> {
        let copier = self.copier(Some(problem.heads_kv()));
        let copies = copier.inputs(inputs);
        let views = inputs_on_device(&copies, inputs);
        let problem = &self.problem(problem, &views);
        let out = copier.rows_mut(&output.out);
        let lse = output.lse.as_ref().map(|lse| copier.scalars_mut(lse));
        let on_device = output_on_device(&out, lse.as_ref(), &output);
        let weights = kernels::weights(&self.cuda, problem, &views, &on_device);
        let call = ForwardCall::new(problem, views, on_device).expect("views of a valid call");
        kernels::served(self.run((&out, output.out.layout()), None, || self.cuda.forward(call)))?;
        out.read_into(&mut output.out);
        lse.iter().zip(&mut output.lse).for_each(|(copy, host)| copy.read_into(host));
        Ok(weights)
    }

    fn backward_weights<E: Element>(&self, problem: &Problem, inputs: &Inputs<TensorView<'_, E>>) -> Weights {
        let copies = self.copier(Some(problem.heads_kv())).inputs(inputs);
        let views = inputs_on_device(&copies, inputs);
        kernels::backward_weights(&self.cuda, &self.problem(problem, &views), &views)
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        mut gradients: Gradients<TensorViewMut<'_, E>>,
    ) -> Result<(), Unsupported> {
        let copier = self.copier(Some(problem.heads_kv()));
        let copies = copier.inputs(inputs);
        let views = inputs_on_device(&copies, inputs);
        let problem = &self.problem(problem, &views);
        let (out, lse) = (copier.rows(&saved.out), copier.scalars(&saved.lse));
        let d_out = copier.rows(&saved.d_out);
        let d_lse = saved.d_lse.as_ref().map(|view| copier.scalars(view));
        let scalars = *saved.lse.layout();
        let saved = Saved {
            out: out.view(&saved.out),
            lse: lse.view(&saved.lse),
            d_out: d_out.view(&saved.d_out),
            d_lse: d_lse.as_ref().zip(saved.d_lse.as_ref()).map(|(copy, host)| copy.view(host)),
        };
        let query = copier.rows_mut(&gradients.query);
        let key = copier.rows_mut(&gradients.key);
        let value = copier.rows_mut(&gradients.value);
        let additional =
            gradients.additional.as_ref().map(|pair| pair.each_ref().map(|view| copier.list_mut(view)));
        let lists = additional.as_ref().zip(gradients.additional.as_ref());
        let lists = lists.map(|([keys, _], [host, _])| (keys, *host.layout()));
        let pairs = additional.as_ref().zip(gradients.additional.as_ref());
        let on_device = Gradients {
            query: query.view_mut(&gradients.query),
            key: key.view_mut(&gradients.key),
            value: value.view_mut(&gradients.value),
            additional: pairs.map(|(copies, hosts)| [0, 1].map(|i| copies[i].view_mut(&hosts[i]))),
        };
        let call = BackwardCall::new(problem, views, saved, on_device).expect("views of a valid call");
        let lists = lists.as_ref().map(|(keys, host)| (*keys, host));
        kernels::served(self.run((&lse, &scalars), lists, || self.cuda.backward(call)))?;
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
        let copier = self.copier(None);
        let copies = partials.map(|out| copier.rows(out), |lse| copier.scalars(lse));
        let views = partials_on_device(&copies, partials);
        let out = copier.rows_mut(&output.out);
        let lse = output.lse.as_ref().map(|lse| copier.scalars_mut(lse));
        let on_device = output_on_device(&out, lse.as_ref(), &output);
        let call = MergeCall::new(views, on_device).expect("views of a valid call");
        kernels::served(self.run((&out, output.out.layout()), None, || self.cuda.merge(call)))?;
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
        let copier = self.copier(None);
        let copies = partials.map(|out| copier.rows(out), |lse| copier.scalars(lse));
        let views = partials_on_device(&copies, partials);
        let (d_out, d_lse) = (copier.rows(&merged.out), merged.lse.as_ref().map(|lse| copier.scalars(lse)));
        let d_lse_view = d_lse.iter().zip(&merged.lse).map(|(copy, host)| copy.view(host)).next();
        let incoming = Output { out: d_out.view(&merged.out), lse: d_lse_view };
        let written = gradients.map(|out| copier.rows_mut(out), |lse| copier.scalars_mut(lse));
        let on_device = Partials {
            outs: written.outs.iter().zip(&gradients.outs).map(|(copy, host)| copy.view_mut(host)).collect(),
            lses: written.lses.iter().zip(&gradients.lses).map(|(copy, host)| copy.view_mut(host)).collect(),
        };
        let call = MergeBackwardCall::new(views, incoming, on_device).expect("views of a valid call");
        let rows = (&d_out, merged.out.layout());
        kernels::served(self.run(rows, None, || self.cuda.merge_backward(call)))?;
        written.outs.iter().zip(&mut gradients.outs).for_each(|(copy, host)| copy.read_into(host));
        written.lses.iter().zip(&mut gradients.lses).for_each(|(copy, host)| copy.read_into(host));
        Ok(())
    }

    fn contiguous<E: Element>(&self, view: &TensorView<'_, E>) -> Result<Tensor<E>, Unsupported> {
        let copied = self.copy_buffer(view);
        let copy = kernels::served(self.cuda.contiguous(copied.view(view)))?;
        Ok(self.cuda.download(&copy).unwrap_or_else(|e| panic!("copying from the device: {e}")))
    }

    fn copy<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported> {
        let (copied, written) = (self.copy_buffer(from), self.copy_buffer(&to.as_view()));
        kernels::served(self.cuda.copy(copied.view(from), written.view_mut(to)))?;
        written.read_into(to);
        Ok(())
    }

    fn accumulate<E: Element>(
        &self,
        from: &TensorView<'_, E>,
        to: &mut TensorViewMut<'_, E>,
    ) -> Result<(), Unsupported> {
        let (added, written) = (self.copy_buffer(from), self.copy_buffer(&to.as_view()));
        kernels::served(self.cuda.accumulate(added.view(from), written.view_mut(to)))?;
        written.read_into(to);
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
