//! The CUDA backend: natten-core's `Backend` on any [`Device`].
//!
//! Every call takes the same way: its tensors, how they lie apart from where; a query; the choice; the launches.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use natten_core::{
    Backend, BackwardCall, Element, ElementType, ForwardCall, InputElement, Inputs, Layout,
    MergeBackwardCall, MergeCall, Output, Partials, Tensor, TensorError, TensorView,
};

use crate::buffer::{Bound, CudaTensor, CudaView, CudaViewMut, Placed};
use crate::choose::{choose, choose_another};
use crate::cuda::Cuda;
use crate::device::Device;
use crate::error::CudaError;
use crate::families::rows::copy;
use crate::family::{MergeRows, Pass, Query};
use crate::params::MERGE_BRANCHES;
use crate::registry::{Kernel, Operation};
use crate::submit::{self, SubmitError};
use crate::trust;
use crate::views::{Slot, Views};

impl<D: Device> Cuda<D> {
    /// Copies a host tensor to the device.
    ///
    /// # Errors
    /// When memory or the device fails.
    pub fn upload<E: InputElement>(&self, tensor: &TensorView<'_, E>) -> Result<CudaTensor<E, D>, CudaError> {
        let dense = tensor.to_tensor();
        let uploaded = self.allocate::<E>(tensor.shape())?;
        self.device().write(&uploaded.memory, bytemuck::cast_slice(dense.as_slice()))?;
        Ok(uploaded)
    }

    /// Waits for the stream and copies a tensor to the host.
    ///
    /// # Errors
    /// When this or an earlier call of the stream failed.
    pub fn download<E: InputElement>(&self, tensor: &CudaTensor<E, D>) -> Result<Tensor<E>, CudaError> {
        let mut host = Tensor::zeros(tensor.shape())?;
        self.device().read(&tensor.memory, bytemuck::cast_slice_mut(host.as_mut_slice()))?;
        Ok(host)
    }

    /// Waits until all queued work is done.
    ///
    /// # Errors
    /// When some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        Ok(self.device().synchronize()?)
    }

    pub(crate) fn query<'a>(&'a self, pass: Pass<'a>, views: &'a Views) -> Query<'a> {
        let failed = self.device().functions().trials.failed().filter(|_| self.holds_trials());
        Query::new(pass, views, self.device().properties(), self.request()).after_trials(failed)
    }

    /// A view of memory that someone else owns, with strides in elements.
    ///
    /// # Safety
    /// `address` is device memory of this device's context, and every element of the layout lies inside one
    /// allocation. It stays allocated, and nobody writes it, until the work queued with the view has run: other
    /// streams must be ordered against this one by the caller.
    #[allow(unsafe_code)]
    pub unsafe fn view_of_raw<'a, E: InputElement>(&self, address: u64, layout: Layout) -> CudaView<'a, E> {
        CudaView { address, layout, device: self.device().id(), borrow: PhantomData }
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
        CudaViewMut { address, layout, device: self.device().id(), borrow: PhantomData }
    }

    /// Makes an operand of a view: calls on it run on this backend's stream.
    pub fn bind<V>(&self, view: V) -> Bound<'_, V, D> {
        Bound { cuda: self, view }
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
        let mut placed = self.place_backward(&call)?;
        placed.workspace(&*workspace)?;
        let len = workspace.layout.len();
        self.run(Pass::Backward(call.problem()), placed, |bytes, _| {
            let expected = bytes.div_ceil(4);
            if len < expected { Err(CudaError::Length { expected, found: len }) } else { Ok(None) }
        })
    }

    pub(crate) fn place_inputs<E: InputElement>(
        &self,
        inputs: &Inputs<CudaView<'_, E>>,
    ) -> Result<Placed, CudaError> {
        let mut placed = Placed::on(self.device().id());
        placed.rows(Slot::QUERY, &inputs.query)?;
        placed.rows(Slot::KEY, &inputs.key)?;
        placed.rows(Slot::VALUE, &inputs.value)?;
        if let Some([keys, values]) = &inputs.additional {
            placed.rows(Slot::ADDITIONAL_KEYS, keys)?;
            placed.rows(Slot::ADDITIONAL_VALUES, values)?;
        }
        Ok(placed)
    }

    pub(crate) fn place_forward<E: InputElement>(
        &self,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
    ) -> Result<Placed, CudaError> {
        let mut placed = self.place_inputs(inputs)?;
        placed.rows(Slot::OUT, &output.out)?;
        if let Some(lse) = &output.lse {
            placed.scalars(Slot::LSE, lse)?;
        }
        Ok(placed)
    }

    pub(crate) fn place_backward<E: InputElement>(
        &self,
        call: &BackwardCall<'_, Self, E>,
    ) -> Result<Placed, CudaError> {
        let (saved, gradients) = (call.saved(), call.gradients());
        let mut placed = self.place_inputs(call.inputs())?;
        placed.rows(Slot::OUT, &saved.out)?;
        placed.scalars(Slot::LSE, &saved.lse)?;
        placed.rows(Slot::D_OUT, &saved.d_out)?;
        if let Some(d_lse) = &saved.d_lse {
            placed.scalars(Slot::D_LSE, d_lse)?;
        }
        placed.rows(Slot::D_QUERY, &gradients.query)?;
        placed.rows(Slot::D_KEY, &gradients.key)?;
        placed.rows(Slot::D_VALUE, &gradients.value)?;
        if let Some([keys, values]) = &gradients.additional {
            placed.rows(Slot::D_ADDITIONAL_KEYS, keys)?;
            placed.rows(Slot::D_ADDITIONAL_VALUES, values)?;
        }
        Ok(placed)
    }

    fn place_partials<E: Element>(
        &self,
        partials: &Partials<CudaView<'_, E>, CudaView<'_, f32>>,
    ) -> Result<Placed, CudaError> {
        let (found, limit) = (partials.outs.len(), MERGE_BRANCHES);
        if found > limit {
            return Err(CudaError::MergeCount { found, limit });
        }
        let mut placed = Placed::on(self.device().id());
        for (i, (out, lse)) in partials.outs.iter().zip(&partials.lses).enumerate() {
            placed.rows(Slot::partial_out(i), out)?;
            placed.scalars(Slot::partial_lse(i), lse)?;
        }
        Ok(placed)
    }

    /// Whether calls are trusted to a kernel: where no chip has run it, it is held to others first.
    pub(crate) fn may_launch(&self, kernel: &'static Kernel) -> bool {
        !self.holds_trials() || !trust::is_untried(kernel) || trust::is_trusted(self.device(), kernel)
    }

    /// Copies, or adds, the elements of one view to another of its shape.
    fn move_rows<E: Element>(
        &self,
        operation: Operation,
        from: CudaView<'_, E>,
        to: CudaViewMut<'_, E>,
    ) -> Result<(), CudaError> {
        let expected = self.device().id();
        if let Some(found) = [from.device, to.device].into_iter().find(|&device| device != expected) {
            return Err(CudaError::WrongDevice { expected, found });
        }
        to.layout.expect_shape(&from.layout)?;
        let places = ((from.address, &from.layout), (to.address, &to.layout));
        for launch in copy::launches(operation, E::ELEMENT_TYPE, places.0, places.1)? {
            submit::run_alone(self.device(), launch.kernel, launch.ctas, bytemuck::bytes_of(&launch.params))?;
        }
        Ok(())
    }

    /// Runs a pass on the best offer whose tensor maps the driver takes. `workspace` gives scratch memory of so many bytes, or
    /// nothing where `placed` has some that is large enough.
    fn run(
        &self,
        pass: Pass<'_>,
        mut placed: Placed,
        workspace: impl Fn(usize, &Self) -> Result<Option<CudaTensor<f32, D>>, CudaError>,
    ) -> Result<(), CudaError> {
        let Placed { views, addresses, .. } = &mut placed;
        let mut query = self.query(pass, views);
        let mut choice = choose(&query)?;
        loop {
            if !self.may_launch(choice.offer.bid.kernel) {
                query = self.query(pass, views);
                choice = choose(&query)?;
            }
            let memory = workspace(choice.offer.workspace_bytes, self)?;
            if let Some(memory) = &memory {
                addresses.set(Slot::WORKSPACE, memory.address());
            }
            match submit::run(self.device(), &choice.offer, addresses) {
                Ok(()) => return Ok(()),
                Err(SubmitError::Device(error)) => return Err(error.into()),
                Err(SubmitError::Map(_)) => choice = choose_another(&query, &choice)?,
            }
        }
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
        format!("{} (context {:#x})", self.device().properties().name, self.device().id())
    }

    fn is_same_device(&self, other: &Self) -> bool {
        self.device().id() == other.device().id()
    }

    fn layout<E: InputElement>(view: &CudaView<'_, E>) -> Layout {
        view.layout
    }

    fn layout_mut<E: InputElement>(view: &CudaViewMut<'_, E>) -> Layout {
        view.layout
    }

    fn allocate<E: InputElement>(&self, shape: &[usize]) -> Result<CudaTensor<E, D>, CudaError> {
        let layout = Layout::contiguous(shape)?;
        let memory = self.device().allocate(layout.len() * E::ELEMENT_TYPE.size_bytes())?;
        Ok(CudaTensor { memory: Arc::new(memory), layout, cuda: self.clone(), element: PhantomData })
    }

    fn copy<E: Element>(&self, from: CudaView<'_, E>, to: CudaViewMut<'_, E>) -> Result<(), CudaError> {
        self.move_rows(Operation::CopyRows, from, to)
    }

    fn accumulate<E: Element>(&self, from: CudaView<'_, E>, to: CudaViewMut<'_, E>) -> Result<(), CudaError> {
        self.move_rows(Operation::AddRows, from, to)
    }

    fn reborrow<'s, E: InputElement>(view: &'s CudaView<'_, E>) -> CudaView<'s, E> {
        *view
    }

    fn reborrow_mut<'s, E: InputElement>(view: &'s mut CudaViewMut<'_, E>) -> CudaViewMut<'s, E> {
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

    fn view<E: InputElement>(tensor: &CudaTensor<E, D>) -> CudaView<'_, E> {
        tensor.view()
    }

    fn view_mut<E: InputElement>(tensor: &mut CudaTensor<E, D>) -> CudaViewMut<'_, E> {
        tensor.view_mut()
    }

    fn forward<E: InputElement>(&self, call: ForwardCall<'_, Self, E>) -> Result<(), CudaError> {
        let (problem, placed) = (call.problem(), self.place_forward(call.inputs(), call.output())?);
        if problem.batch() == 0 || problem.query_tokens() == 0 {
            return Ok(());
        }
        self.run(Pass::Forward(problem), placed, |_, _| Ok(None))
    }

    fn backward<E: InputElement>(&self, call: BackwardCall<'_, Self, E>) -> Result<(), CudaError> {
        let placed = self.place_backward(&call)?;
        self.run(Pass::Backward(call.problem()), placed, |bytes, cuda| {
            Ok(Some(cuda.allocate::<f32>(&[bytes.div_ceil(4).max(1)])?))
        })
    }

    fn merge<E: Element>(&self, call: MergeCall<'_, Self, E>) -> Result<(), CudaError> {
        let (partials, output) = (call.partials(), call.output());
        let mut placed = self.place_partials(partials)?;
        placed.rows(Slot::OUT, &output.out)?;
        if let Some(lse) = &output.lse {
            placed.scalars(Slot::LSE, lse)?;
        }
        match merge_rows(E::ELEMENT_TYPE, &output.out.layout, partials.outs.len()) {
            Some(rows) => self.run(Pass::Merge(&rows), placed, |_, _| Ok(None)),
            None => Ok(()),
        }
    }

    fn merge_backward<E: Element>(&self, call: MergeBackwardCall<'_, Self, E>) -> Result<(), CudaError> {
        let (partials, merged, gradients) = (call.partials(), call.merged(), call.gradients());
        let mut placed = self.place_partials(partials)?;
        for (i, (d_out, d_lse)) in gradients.outs.iter().zip(&gradients.lses).enumerate() {
            placed.rows(Slot::d_partial_out(i), d_out)?;
            placed.scalars(Slot::d_partial_lse(i), d_lse)?;
        }
        placed.rows(Slot::D_OUT, &merged.out)?;
        if let Some(d_lse) = &merged.lse {
            placed.scalars(Slot::D_LSE, d_lse)?;
        }
        match merge_rows(E::ELEMENT_TYPE, &merged.out.layout, partials.outs.len()) {
            Some(rows) => self.run(Pass::MergeBackward(&rows), placed, |_, _| Ok(None)),
            None => Ok(()),
        }
    }
}

/// What a merge into tensors of this layout works on; nothing where there are no rows.
fn merge_rows(element_type: ElementType, out: &Layout, branches: usize) -> Option<MergeRows> {
    let [batch, tokens @ .., heads, head_dim] = out.shape() else { return None };
    let (batch, heads, head_dim) = (*batch, *heads, *head_dim);
    let mut rows = MergeRows { element_type, batch, tokens: [1; 3], heads, head_dim, branches };
    rows.tokens[3 - tokens.len()..].copy_from_slice(tokens);
    (!out.is_empty()).then_some(rows)
}
