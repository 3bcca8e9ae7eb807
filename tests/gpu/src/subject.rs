//! A CUDA device, real or emulated, under the suite that every backend passes: host views in, host views out, every
//! buffer copied with all that lies around the view, so that strides stay and stray writes show.

use natten_core::{
    Backend, Element, Gradients, Inputs, Output, Partials, Problem, Saved, TensorView, TensorViewMut,
};
use natten_cuda::{Cuda, CudaError, CudaView, CudaViewMut, Device};
use natten_tests::Subject;
use natten_tests::subject::OutputViews;

/// The backend on some device.
pub struct OnDevice<D: Device> {
    name: String,
    cuda: Cuda<D>,
}

/// A host buffer's copy on the device.
struct Copied<'d, D: Device> {
    device: &'d D,
    memory: D::Memory,
    cuda: &'d Cuda<D>,
}

impl<D: Device> OnDevice<D> {
    /// With a name for messages.
    pub fn new(name: &str, device: D) -> Self {
        OnDevice { name: name.to_owned(), cuda: Cuda::new(device) }
    }

    fn copy<E: Element>(&self, content: &[E]) -> Copied<'_, D> {
        let device = self.cuda.device();
        let bytes: &[u8] = bytemuck::cast_slice(content);
        let memory = device.allocate(bytes.len().max(16)).unwrap_or_else(|e| panic!("allocating: {e}"));
        device.write(&memory, bytes).unwrap_or_else(|e| panic!("copying to the device: {e}"));
        Copied { device, memory, cuda: &self.cuda }
    }
}

impl<D: Device> Copied<'_, D> {
    fn view<'a, E: Element>(&'a self, host: &TensorView<'_, E>) -> CudaView<'a, E> {
        let address = D::address(&self.memory) + (host.offset() * size_of::<E>()) as u64;
        // SAFETY: the memory is a copy of the whole buffer that the view's bounds were checked against, and outlives
        // the view; nothing writes it meanwhile.
        unsafe { self.cuda.view_of_raw(address, *host.layout()) }
    }

    fn view_mut<'a, E: Element>(&'a self, host: &TensorViewMut<'_, E>) -> CudaViewMut<'a, E> {
        let address = D::address(&self.memory) + (host.as_view().offset() * size_of::<E>()) as u64;
        // SAFETY: likewise; the view is the only one to write, and its layout was checked to be injective.
        unsafe { self.cuda.view_mut_of_raw(address, *host.layout()) }
    }

    fn read_into<E: Element>(&self, host: &mut TensorViewMut<'_, E>) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(host.data_mut());
        self.device.read(&self.memory, bytes).unwrap_or_else(|e| panic!("copying from the device: {e}"));
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

    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<TensorView<'_, E>>,
        mut output: OutputViews<'_, E>,
    ) {
        let copies = inputs.map(|view| self.copy(view.data()));
        let views = pair_up(&copies, inputs);
        let out = self.copy(output.out.data_mut());
        let lse = output.lse.as_mut().map(|lse| self.copy(lse.data_mut()));
        let device_output = Output {
            out: out.view_mut(&output.out),
            lse: lse.as_ref().zip(output.lse.as_ref()).map(|(copy, host)| copy.view_mut(host)),
        };
        done(self.cuda.forward(problem, &views, device_output));
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
        let copies = inputs.map(|view| self.copy(view.data()));
        let views = pair_up(&copies, inputs);
        let (out, lse) = (self.copy(saved.out.data()), self.copy(saved.lse.data()));
        let d_out = self.copy(saved.d_out.data());
        let d_lse = saved.d_lse.as_ref().map(|view| self.copy(view.data()));
        let device_saved = Saved {
            out: out.view(&saved.out),
            lse: lse.view(&saved.lse),
            d_out: d_out.view(&saved.d_out),
            d_lse: d_lse.as_ref().zip(saved.d_lse.as_ref()).map(|(copy, host)| copy.view(host)),
        };
        let query = self.copy(gradients.query.data_mut());
        let key = self.copy(gradients.key.data_mut());
        let value = self.copy(gradients.value.data_mut());
        let additional =
            gradients.additional.as_mut().map(|pair| pair.each_mut().map(|view| self.copy(view.data_mut())));
        let device_gradients = Gradients {
            query: query.view_mut(&gradients.query),
            key: key.view_mut(&gradients.key),
            value: value.view_mut(&gradients.value),
            additional: additional
                .as_ref()
                .zip(gradients.additional.as_ref())
                .map(|(copies, hosts)| [copies[0].view_mut(&hosts[0]), copies[1].view_mut(&hosts[1])]),
        };
        done(self.cuda.backward(problem, &views, &device_saved, device_gradients));
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
        let outs: Vec<_> = partials.outs.iter().map(|view| self.copy(view.data())).collect();
        let lses: Vec<_> = partials.lses.iter().map(|view| self.copy(view.data())).collect();
        let views = Partials {
            outs: outs.iter().zip(&partials.outs).map(|(copy, host)| copy.view(host)).collect(),
            lses: lses.iter().zip(&partials.lses).map(|(copy, host)| copy.view(host)).collect(),
        };
        let out = self.copy(output.out.data_mut());
        let lse = output.lse.as_mut().map(|lse| self.copy(lse.data_mut()));
        let device_output = Output {
            out: out.view_mut(&output.out),
            lse: lse.as_ref().zip(output.lse.as_ref()).map(|(copy, host)| copy.view_mut(host)),
        };
        done(self.cuda.merge(&views, device_output));
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
