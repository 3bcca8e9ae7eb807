//! A CUDA device, real or emulated, under the suite that every backend passes: host views in, host views out, every
//! buffer copied with all that lies around the view, so that strides stay and stray writes show.

use natten_core::{
    Backend, BackwardCall, Element, ForwardCall, Gradients, Inputs, Layout, MergeCall, Output, Partials,
    Problem, Saved, TensorView, TensorViewMut,
};
use natten_cuda::LayoutSummary;
use natten_cuda::Request;
use natten_cuda::registry::{Facts, Operation};
use natten_cuda::{Cuda, CudaError, CudaView, CudaViewMut, Device};
use natten_tests::Subject;
use natten_tests::subject::{OutputViews, Weights};

/// The backend on some device.
pub struct OnDevice<D: Device> {
    name: String,
    cuda: Cuda<D>,
}

/// Kernels on tensor cores take tensors that start at a multiple of 16 bytes; host buffers of the suite start anywhere.
const ALIGNMENT: usize = 256;

/// A host buffer's copy on the device, behind so many bytes that the view's first element is aligned.
struct Copied<'d, D: Device> {
    device: &'d D,
    memory: D::Memory,
    lead: usize,
    bytes: usize,
    cuda: &'d Cuda<D>,
}

impl<D: Device> OnDevice<D> {
    /// With a name for messages.
    pub fn new(name: &str, device: D) -> Self {
        OnDevice { name: name.to_owned(), cuda: Cuda::new(device) }
    }

    /// The same device, asked for one kernel.
    pub fn asking_for(&self, entry: &'static str) -> Self {
        let request = Request { entry: Some(entry), tiling: None };
        let cuda = self.cuda.clone().with_request(request);
        OnDevice { name: format!("{} {entry}", self.name), cuda }
    }

    fn copy<E: Element>(&self, content: &[E], offset: usize) -> Copied<'_, D> {
        let device = self.cuda.device();
        let content: &[u8] = bytemuck::cast_slice(content);
        let lead = (offset * size_of::<E>()).next_multiple_of(ALIGNMENT) - offset * size_of::<E>();
        let padded = [&vec![0xee; lead], content, &[0xee; 16]].concat();
        let memory = device.allocate(padded.len()).unwrap_or_else(|e| panic!("allocating: {e}"));
        device.write(&memory, &padded).unwrap_or_else(|e| panic!("copying to the device: {e}"));
        Copied { device, memory, lead, bytes: content.len(), cuda: &self.cuda }
    }

    fn copy_view<E: Element>(&self, view: &TensorView<'_, E>) -> Copied<'_, D> {
        self.copy(view.data(), view.offset())
    }

    fn copy_out<E: Element>(&self, view: &mut TensorViewMut<'_, E>) -> Copied<'_, D> {
        let offset = view.as_view().offset();
        self.copy(view.data_mut(), offset)
    }
}

impl<D: Device> Copied<'_, D> {
    fn view<'a, E: Element>(&'a self, host: &TensorView<'_, E>) -> CudaView<'a, E> {
        let address = D::address(&self.memory) + (self.lead + host.offset() * size_of::<E>()) as u64;
        // SAFETY: the memory is a copy of the whole buffer that the view's bounds were checked against, and outlives
        // the view; nothing writes it meanwhile.
        unsafe { self.cuda.view_of_raw(address, *host.layout()) }
    }

    fn view_mut<'a, E: Element>(&'a self, host: &TensorViewMut<'_, E>) -> CudaViewMut<'a, E> {
        let address =
            D::address(&self.memory) + (self.lead + host.as_view().offset() * size_of::<E>()) as u64;
        // SAFETY: likewise; the view is the only one to write, and its layout was checked to be injective.
        unsafe { self.cuda.view_mut_of_raw(address, *host.layout()) }
    }

    fn read_into<E: Element>(&self, host: &mut TensorViewMut<'_, E>) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(host.data_mut());
        let mut padded = vec![0; self.lead + self.bytes];
        self.device
            .read(&self.memory, &mut padded)
            .unwrap_or_else(|e| panic!("copying from the device: {e}"));
        bytes.copy_from_slice(&padded[self.lead..]);
        assert!(padded[..self.lead].iter().all(|&byte| byte == 0xee), "written before the buffer");
    }
}

/// Panics as the suite's other subjects do; the runner counts.
fn done(outcome: Result<(), CudaError>) {
    match outcome {
        Ok(()) => {}
        Err(CudaError::Unsupported(reasons)) => panic!("unsupported:\n{reasons}"),
        Err(error) => panic!("device: {error}"),
    }
}

impl<D: Device> Subject for OnDevice<D> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn weights<E: Element>(&self, problem: &Problem, rows: &[Layout]) -> Weights {
        // A row and all steps between rows are whole chunks of 16 bytes; `copy` sees to where the first begins.
        let chunk = (16 / size_of::<E>()) as isize;
        let is_aligned = rows.iter().all(|row| {
            let (length, steps) = (row.shape().last(), row.strides().split_last());
            length.is_some_and(|&length| length as isize % chunk == 0)
                && steps.is_some_and(|(_, steps)| steps.iter().all(|step| step % chunk == 0))
        });
        let chosen = self.cuda.kernel(problem, Operation::Forward, LayoutSummary { is_aligned });
        if chosen.is_ok_and(|kernel| kernel.tile().is_some()) {
            Weights::InElementType
        } else {
            Weights::Unrounded
        }
    }

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        mut output: OutputViews<'_, E>,
    ) {
        let copies = inputs.map(|view| self.copy_view(view));
        let views = pair_up(&copies, inputs);
        let out = self.copy_out(&mut output.out);
        let lse = output.lse.as_mut().map(|lse| self.copy_out(lse));
        let device_output = Output {
            out: out.view_mut(&output.out),
            lse: lse.as_ref().zip(output.lse.as_ref()).map(|(copy, host)| copy.view_mut(host)),
        };
        let call = ForwardCall::new(problem, views, device_output).expect("the suite's views fit");
        done(self.cuda.forward(call));
        out.read_into(&mut output.out);
        if let (Some(copy), Some(host)) = (&lse, &mut output.lse) {
            copy.read_into(host);
        }
    }

    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        saved: &Saved<TensorView<'_, E>, TensorView<'_, f32>>,
        mut gradients: Gradients<TensorViewMut<'_, E>>,
    ) {
        let copies = inputs.map(|view| self.copy_view(view));
        let views = pair_up(&copies, inputs);
        let (out, lse) = (self.copy_view(&saved.out), self.copy_view(&saved.lse));
        let d_out = self.copy_view(&saved.d_out);
        let d_lse = saved.d_lse.as_ref().map(|view| self.copy_view(view));
        let device_saved = Saved {
            out: out.view(&saved.out),
            lse: lse.view(&saved.lse),
            d_out: d_out.view(&saved.d_out),
            d_lse: d_lse.as_ref().zip(saved.d_lse.as_ref()).map(|(copy, host)| copy.view(host)),
        };
        let query = self.copy_out(&mut gradients.query);
        let key = self.copy_out(&mut gradients.key);
        let value = self.copy_out(&mut gradients.value);
        let additional =
            gradients.additional.as_mut().map(|pair| pair.each_mut().map(|view| self.copy_out(view)));
        let device_gradients = Gradients {
            query: query.view_mut(&gradients.query),
            key: key.view_mut(&gradients.key),
            value: value.view_mut(&gradients.value),
            additional: additional
                .as_ref()
                .zip(gradients.additional.as_ref())
                .map(|(copies, hosts)| [copies[0].view_mut(&hosts[0]), copies[1].view_mut(&hosts[1])]),
        };
        let call = BackwardCall::new(problem, views, device_saved, device_gradients);
        done(self.cuda.backward(call.expect("the suite's views fit")));
        query.read_into(&mut gradients.query);
        key.read_into(&mut gradients.key);
        value.read_into(&mut gradients.value);
        for (copy, host) in additional.iter().flatten().zip(gradients.additional.iter_mut().flatten()) {
            copy.read_into(host);
        }
    }

    fn merge<E: Element>(
        &self,
        partials: &Partials<TensorView<'_, E>, TensorView<'_, f32>>,
        mut output: OutputViews<'_, E>,
    ) {
        let outs: Vec<_> = partials.outs.iter().map(|view| self.copy_view(view)).collect();
        let lses: Vec<_> = partials.lses.iter().map(|view| self.copy_view(view)).collect();
        let views = Partials {
            outs: outs.iter().zip(&partials.outs).map(|(copy, host)| copy.view(host)).collect(),
            lses: lses.iter().zip(&partials.lses).map(|(copy, host)| copy.view(host)).collect(),
        };
        let out = self.copy_out(&mut output.out);
        let lse = output.lse.as_mut().map(|lse| self.copy_out(lse));
        let device_output = Output {
            out: out.view_mut(&output.out),
            lse: lse.as_ref().zip(output.lse.as_ref()).map(|(copy, host)| copy.view_mut(host)),
        };
        let call = MergeCall::new(views, device_output).expect("the suite's views fit");
        done(self.cuda.merge(call));
        out.read_into(&mut output.out);
        if let (Some(copy), Some(host)) = (&lse, &mut output.lse) {
            copy.read_into(host);
        }
    }
}

fn pair_up<'a, E: Element, D: Device>(
    copies: &'a Inputs<Copied<'_, D>>,
    hosts: &Inputs<TensorView<'_, E>>,
) -> Inputs<CudaView<'a, E>> {
    Inputs {
        query: copies.query.view(&hosts.query),
        key: copies.key.view(&hosts.key),
        value: copies.value.view(&hosts.value),
        additional: copies
            .additional
            .as_ref()
            .zip(hosts.additional.as_ref())
            .map(|(copies, hosts)| [copies[0].view(&hosts[0]), copies[1].view(&hosts[1])]),
    }
}
