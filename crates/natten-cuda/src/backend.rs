//! The CUDA backend: natten-core's `Backend` on any [`Device`].

use std::marker::PhantomData;
use std::sync::Arc;

use natten_core::{
    Backend, BackwardCall, Element, ForwardCall, InputElement, Layout, MergeBackwardCall, MergeCall, Problem,
    Tensor, TensorView,
};

use crate::backward::{self, Backward};
use crate::buffer::{Bound, CudaTensor, CudaView, CudaViewMut, Raw};
use crate::device::Device;
use crate::error::CudaError;
use crate::launch::{self, Forward, summarise};
use crate::merge::{self, Gradient, Merge};
use crate::registry::{Operation, by_name};
use crate::select::{LayoutSummary, Text, select, select_forward};
use crate::tiles::Request;

/// Runs the operator on a device, ordered on its stream.
///
/// Calls queue work and return: an error on the device shows up at a later call, as everywhere in CUDA. Kernels are
/// compiled at their first use; a call can be captured into a graph once [`Cuda::warm_up`] or an equal call has run.
#[derive(Clone, Debug)]
pub struct Cuda<D> {
    device: D,
    request: Request,
}

impl<D: Device> Cuda<D> {
    /// A backend on a device and its stream.
    pub fn new(device: D) -> Self {
        Cuda { device, request: Request::default() }
    }

    /// The same backend with forward passes on the kernel and boxes that are asked for.
    pub fn with_request(self, request: Request) -> Self {
        Cuda { request, ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What is asked of forward passes.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Copies a host tensor to the device.
    ///
    /// # Errors
    /// When memory or the device fails.
    pub fn upload<E: InputElement>(&self, tensor: &TensorView<'_, E>) -> Result<CudaTensor<E, D>, CudaError> {
        let dense = tensor.to_tensor();
        let uploaded = self.allocate::<E>(tensor.shape())?;
        self.device.write(&uploaded.memory, bytemuck::cast_slice(dense.as_slice()))?;
        Ok(uploaded)
    }

    /// Waits for the stream and copies a tensor to the host.
    ///
    /// # Errors
    /// When this or an earlier call of the stream failed.
    pub fn download<E: InputElement>(&self, tensor: &CudaTensor<E, D>) -> Result<Tensor<E>, CudaError> {
        let mut host = Tensor::zeros(tensor.shape())?;
        self.device.read(&tensor.memory, bytemuck::cast_slice_mut(host.as_mut_slice()))?;
        Ok(host)
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// When some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        Ok(self.device.synchronize()?)
    }

    /// Compiles the kernels that a problem needs, so that later calls neither compile nor wait.
    ///
    /// # Errors
    /// When no kernel serves the problem, or the driver cannot compile it.
    pub fn warm_up(
        &self,
        problem: &Problem,
        layout: LayoutSummary,
        with_backward: bool,
    ) -> Result<(), CudaError> {
        let backward =
            [Operation::Delta, Operation::BackwardQuery, Operation::BackwardKey, Operation::SumPartials];
        let operations =
            [Operation::Forward].into_iter().chain(backward.into_iter().filter(|_| with_backward));
        for operation in operations {
            let Text { entry, shared_bytes, .. } = self.kernel(problem, operation, layout)?;
            let Some(kernel) = by_name(entry) else { continue };
            let load = || self.device.load(&kernel.ptx(), entry, shared_bytes);
            self.device.functions().get_or_load(entry, load)?;
        }
        Ok(())
    }

    /// The kernel that would run, or why none can. Views of an aligned layout are taken to have positive strides.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] with the reasons.
    pub fn kernel(
        &self,
        problem: &Problem,
        operation: Operation,
        layout: LayoutSummary,
    ) -> Result<Text, CudaError> {
        let properties = self.device.properties();
        let text = if operation == Operation::Forward {
            select_forward(problem, layout, properties, &self.request).map(|kernel| kernel.text())
        } else {
            select(problem, operation, layout, properties.compute_capability).map(Text::from)
        };
        text.map_err(CudaError::Unsupported)
    }

    /// A view of memory that someone else owns, with strides in elements.
    ///
    /// # Safety
    /// `address` is device memory of this device's context, and every element of the layout lies inside one
    /// allocation. It stays allocated, and nobody writes it, until the work queued with the view has run: other
    /// streams must be ordered against this one by the caller.
    #[allow(unsafe_code)]
    pub unsafe fn view_of_raw<'a, E: InputElement>(&self, address: u64, layout: Layout) -> CudaView<'a, E> {
        CudaView { address, layout, device: self.device.id(), borrow: PhantomData }
    }

    /// A view to write of memory that someone else owns, with strides in elements.
    ///
    /// # Safety
    /// As [`Cuda::view_of_raw`]; and the layout names each element once, and nobody else reads or writes the memory
    /// until the work queued with the view has run.
    #[allow(unsafe_code)]
    pub unsafe fn view_mut_of_raw<'a, E: InputElement>(
        &self,
        address: u64,
        layout: Layout,
    ) -> CudaViewMut<'a, E> {
        CudaViewMut { address, layout, device: self.device.id(), borrow: PhantomData }
    }

    /// Makes an operand of a view: calls on it run on this backend's stream.
    pub fn bind<V>(&self, view: V) -> Bound<'_, V, D> {
        Bound { cuda: self, view }
    }

    /// Elements (f32) of the workspace that [`Cuda::backward_with`] needs.
    pub fn backward_workspace_len(&self, problem: &Problem) -> usize {
        backward::workspace_bytes(problem) / 4
    }

    /// [`Backend::backward`] in the caller's scratch memory, so that nothing is allocated. The workspace is dense and
    /// has at least [`Cuda::backward_workspace_len`] elements; its content does not matter.
    ///
    /// # Errors
    /// As [`Backend::backward`]; [`CudaError::Length`] when the workspace is too small.
    pub fn backward_with<E: InputElement>(
        &self,
        call: BackwardCall<'_, Self, E>,
        workspace: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let (problem, inputs, saved, gradients) =
            (call.problem(), call.inputs(), call.saved(), call.gradients());
        let (expected, found) = (self.backward_workspace_len(problem), workspace.layout.len());
        if found < expected {
            return Err(CudaError::Length { expected, found });
        }
        summarise(&self.device, std::iter::empty(), [&Raw::from(&*workspace)].into_iter())?;
        let views = Backward {
            query: (&inputs.query).into(),
            key: (&inputs.key).into(),
            value: (&inputs.value).into(),
            additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(Raw::from)),
            out: (&saved.out).into(),
            lse: (&saved.lse).into(),
            grad_out: (&saved.d_out).into(),
            grad_lse: saved.d_lse.as_ref().map(Raw::from),
            grad_query: (&gradients.query).into(),
            grad_key: (&gradients.key).into(),
            grad_value: (&gradients.value).into(),
            grad_additional: gradients.additional.as_ref().map(|pair| pair.each_ref().map(Raw::from)),
        };
        backward::backward(&self.device, problem, &views, workspace.address)
    }
}

impl<D: Device> Backend for Cuda<D> {
    type View<'a, E: InputElement> = CudaView<'a, E>;
    type ViewMut<'a, E: InputElement> = CudaViewMut<'a, E>;
    type Tensor<E: InputElement> = CudaTensor<E, D>;
    type Error = CudaError;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn device_name(&self) -> String {
        format!("{} (context {:#x})", self.device.properties().name, self.device.id())
    }

    fn is_same_device(&self, other: &Self) -> bool {
        self.device.id() == other.device.id()
    }

    fn layout<E: InputElement>(view: &CudaView<'_, E>) -> Layout {
        view.layout
    }

    fn layout_mut<E: InputElement>(view: &CudaViewMut<'_, E>) -> Layout {
        view.layout
    }

    fn allocate<E: InputElement>(&self, shape: &[usize]) -> Result<CudaTensor<E, D>, CudaError> {
        let layout = Layout::contiguous(shape)?;
        let memory = self.device.allocate(layout.len() * E::ELEMENT_TYPE.size_bytes())?;
        Ok(CudaTensor { memory: Arc::new(memory), layout, cuda: self.clone(), element: PhantomData })
    }

    fn reborrow<'s, E: InputElement>(view: &'s CudaView<'_, E>) -> CudaView<'s, E> {
        *view
    }

    fn view<E: InputElement>(tensor: &CudaTensor<E, D>) -> CudaView<'_, E> {
        tensor.view()
    }

    fn view_mut<E: InputElement>(tensor: &mut CudaTensor<E, D>) -> CudaViewMut<'_, E> {
        tensor.view_mut()
    }

    fn forward<E: InputElement>(&self, call: ForwardCall<'_, Self, E>) -> Result<(), CudaError> {
        let views = Forward::of(call.inputs(), call.output());
        launch::forward(&self.device, call.problem(), &views, &self.request)
    }

    fn backward<E: InputElement>(&self, call: BackwardCall<'_, Self, E>) -> Result<(), CudaError> {
        let layout = backward::workspace_layout(call.problem())?;
        let mut workspace = self.allocate::<f32>(layout.shape())?;
        self.backward_with(call, &mut workspace.view_mut())
    }

    fn merge<E: Element>(&self, call: MergeCall<'_, Self, E>) -> Result<(), CudaError> {
        merge::forward(&self.device, E::ELEMENT_TYPE, &Merge::of(&call))
    }

    fn merge_backward<E: Element>(&self, call: MergeBackwardCall<'_, Self, E>) -> Result<(), CudaError> {
        merge::backward(&self.device, E::ELEMENT_TYPE, &Gradient::of(&call))
    }
}
