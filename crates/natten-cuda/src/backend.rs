//! The CUDA backend: natten-core's `Backend` on any [`Device`].
//!
//! Every call takes the same way: its tensors, how they lie apart from where; a query; the choice; the launches.

use std::marker::PhantomData;
use std::sync::Arc;

use natten_core::{
    Backend, BackwardCall, Element, ForwardCall, InputElement, Inputs, Layout, MergeBackwardCall, MergeCall,
    Output, Partials, Problem, Tensor, TensorView,
};

use crate::buffer::{Bound, CudaTensor, CudaView, CudaViewMut, Placed};
use crate::choose::{choose, choose_another};
use crate::cuda::Cuda;
use crate::device::{Device, Properties};
use crate::error::CudaError;
use crate::explain::{self, Decision};
use crate::family::{MergeRows, Offer, Pass, Query};
use crate::params::MERGE_BRANCHES;
use crate::registry::{Kernel, Operation};
use crate::rejection::Rejections;
use crate::submit::{self, SubmitError};
use crate::tune::{self, Candidate};
use crate::views::{Addresses, Slot, Views};

/// What matters of all tensors of a call together, where there are none yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutSummary {
    /// Every base, stride and row length is a multiple of 16 bytes.
    pub is_aligned: bool,
}

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

    /// Plans a problem on dense tensors and compiles the kernels that it needs, so that later calls neither compile nor wait.
    ///
    /// # Errors
    /// When no kernel serves the problem, or the driver cannot compile it.
    pub fn warm_up(
        &self,
        problem: &Problem,
        layout: LayoutSummary,
        with_backward: bool,
    ) -> Result<(), CudaError> {
        let passes =
            [Pass::Forward(problem)].into_iter().chain(with_backward.then_some(Pass::Backward(problem)));
        for pass in passes {
            for launch in &self.dense_offer(pass, layout)?.launches {
                submit::load(self.device(), launch.kernel)?;
            }
        }
        Ok(())
    }

    /// The kernel that would run on dense tensors, or why none can.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] with the reasons.
    pub fn kernel(
        &self,
        problem: &Problem,
        operation: Operation,
        layout: LayoutSummary,
    ) -> Result<&'static Kernel, CudaError> {
        let rows = MergeRows {
            element_type: problem.element_type(),
            batch: problem.batch(),
            tokens: problem.axes().map(|axis| axis.query_extent),
            heads: problem.heads(),
            head_dim: problem.head_dim_v(),
            branches: 2,
        };
        let pass = match operation {
            Operation::Forward => Pass::Forward(problem),
            Operation::Merge => Pass::Merge(&rows),
            Operation::MergeBackward => Pass::MergeBackward(&rows),
            _ => Pass::Backward(problem),
        };
        let offer = self.dense_offer(pass, layout)?;
        let does_it = |kernel: &&'static Kernel| kernel.operation == operation;
        let mut kernels =
            [offer.bid.kernel].into_iter().chain(offer.launches.iter().map(|launch| launch.kernel));
        kernels.find(does_it).ok_or(CudaError::Unsupported(Rejections(Vec::new())))
    }

    fn dense_offer(&self, pass: Pass<'_>, layout: LayoutSummary) -> Result<Arc<Offer>, CudaError> {
        let mut views = match pass {
            Pass::Forward(problem) => Views::dense(problem),
            Pass::Backward(problem) => Views::dense(problem).with_dense_backward(),
            Pass::Merge(_) | Pass::MergeBackward(_) => Views::default(),
        };
        views.is_aligned &= layout.is_aligned;
        Ok(choose(&self.query(pass, &views))?.offer)
    }

    fn query<'a>(&'a self, pass: Pass<'a>, views: &'a Views) -> Query<'a> {
        Query::new(pass, views, self.device().properties(), self.request())
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

    /// Elements (f32) of the workspace that [`Cuda::backward_with`] needs for tensors that lie densely, or as badly as they
    /// may. [`Cuda::backward_workspace_len_for`] knows how they lie.
    pub fn backward_workspace_len(&self, problem: &Problem) -> usize {
        let bytes = |is_aligned| {
            let offer = self.dense_offer(Pass::Backward(problem), LayoutSummary { is_aligned });
            offer.map_or(0, |offer| offer.workspace_bytes)
        };
        bytes(true).max(bytes(false)).div_ceil(4)
    }

    /// Elements (f32) of the workspace that [`Cuda::backward_with`] needs for these tensors.
    ///
    /// # Errors
    /// As [`Backend::backward`].
    pub fn backward_workspace_len_for<E: InputElement>(
        &self,
        call: &BackwardCall<'_, Self, E>,
    ) -> Result<usize, CudaError> {
        let placed = self.place_backward(call)?;
        let choice = choose(&self.query(Pass::Backward(call.problem()), &placed.views))?;
        Ok(choice.offer.workspace_bytes.div_ceil(4))
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

    /// What [`forward`](Backend::forward) would run on these views.
    ///
    /// # Errors
    /// As the forward itself.
    pub fn explain<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
    ) -> Result<Decision, CudaError> {
        let placed = self.place_forward(inputs, output)?;
        let decisions = explain::explain(&self.query(Pass::Forward(problem), &placed.views))?;
        decisions.into_iter().next().ok_or(CudaError::Unsupported(Rejections(Vec::new())))
    }

    /// What the passes of [`backward`](Backend::backward) would run: that of the queries' gradients first, and if it is
    /// another kernel that of keys and values. All other tensors lie as these do.
    ///
    /// # Errors
    /// As the backward itself.
    pub fn explain_backward<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
    ) -> Result<Vec<Decision>, CudaError> {
        let placed = self.place_inputs(inputs)?;
        let mut views = Views::dense(problem).with_dense_backward();
        views.is_aligned &= placed.views.is_aligned;
        explain::explain(&self.query(Pass::Backward(problem), &views))
    }

    /// At most `most` ways to run the forward pass, the one that a call takes first, then each kernel's best boxes in
    /// turn. A kernel may still refuse one for how the tensors lie.
    ///
    /// # Errors
    /// When no kernel serves the problem.
    pub fn tune<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
        most: usize,
    ) -> Result<Vec<Candidate>, CudaError> {
        let placed = self.place_forward(inputs, output)?;
        tune::tune(&self.query(Pass::Forward(problem), &placed.views), most)
    }

    /// What [`forward`](Backend::forward) would launch on these views if the device were as `properties` say, and where the
    /// views begin: for [`submit`](crate::submit()), which may be handed an offer that was changed.
    ///
    /// # Errors
    /// As the forward itself.
    pub fn offer<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
        properties: &Properties,
    ) -> Result<(Arc<Offer>, Addresses), CudaError> {
        let placed = self.place_forward(inputs, output)?;
        let query = Query::new(Pass::Forward(problem), &placed.views, properties, self.request());
        Ok((choose(&query)?.offer, placed.addresses))
    }

    /// [`Cuda::explain`].
    ///
    /// # Errors
    /// As the forward itself.
    #[deprecated(note = "renamed to `explain`")]
    pub fn decide<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
    ) -> Result<Decision, CudaError> {
        self.explain(problem, inputs, output)
    }

    /// [`Cuda::explain_backward`], of two passes.
    ///
    /// # Errors
    /// As the backward itself.
    #[deprecated(note = "use `explain_backward`, which tells how many kernels there are")]
    pub fn decide_backward<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
    ) -> Result<[Decision; 2], CudaError> {
        let mut decisions = self.explain_backward(problem, inputs)?.into_iter();
        let none = || CudaError::Unsupported(Rejections(Vec::new()));
        let of_queries = decisions.next().ok_or_else(none)?;
        let of_keys = decisions.next().unwrap_or_else(|| of_queries.clone());
        Ok([of_queries, of_keys])
    }

    /// [`Cuda::tune`].
    ///
    /// # Errors
    /// When no kernel serves the problem.
    #[deprecated(note = "renamed to `tune`")]
    pub fn candidates<E: InputElement>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
        most: usize,
    ) -> Result<Vec<Candidate>, CudaError> {
        self.tune(problem, inputs, output, most)
    }

    fn place_inputs<E: InputElement>(&self, inputs: &Inputs<CudaView<'_, E>>) -> Result<Placed, CudaError> {
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

    fn place_forward<E: InputElement>(
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

    fn place_backward<E: InputElement>(&self, call: &BackwardCall<'_, Self, E>) -> Result<Placed, CudaError> {
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

    /// A kernel's parameter has room for so many partial results.
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

    /// Runs a pass on the best offer whose tensor maps the driver takes. `workspace` gives scratch memory of so many bytes, or
    /// nothing where `placed` has some that is large enough.
    fn run(
        &self,
        pass: Pass<'_>,
        mut placed: Placed,
        workspace: impl Fn(usize, &Self) -> Result<Option<CudaTensor<f32, D>>, CudaError>,
    ) -> Result<(), CudaError> {
        let Placed { views, addresses, .. } = &mut placed;
        let query = self.query(pass, views);
        let mut choice = choose(&query)?;
        loop {
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
        match MergeRows::of(&output.out.layout, E::ELEMENT_TYPE, partials.outs.len()) {
            Some(rows) => self.run(Pass::Merge(&rows), placed, |_, _| Ok(None)),
            None => Ok(()),
        }
    }

    fn merge_backward<E: Element>(&self, call: MergeBackwardCall<'_, Self, E>) -> Result<(), CudaError> {
        let (partials, merged, gradients) = (call.partials(), call.merged(), call.gradients());
        let mut placed = self.place_partials(partials)?;
        placed.rows(Slot::D_OUT, &merged.out)?;
        if let Some(d_lse) = &merged.lse {
            placed.scalars(Slot::D_LSE, d_lse)?;
        }
        for (i, (d_out, d_lse)) in gradients.outs.iter().zip(&gradients.lses).enumerate() {
            placed.rows(Slot::d_partial_out(i), d_out)?;
            placed.scalars(Slot::d_partial_lse(i), d_lse)?;
        }
        match MergeRows::of(&merged.out.layout, E::ELEMENT_TYPE, partials.outs.len()) {
            Some(rows) => self.run(Pass::MergeBackward(&rows), placed, |_, _| Ok(None)),
            None => Ok(()),
        }
    }
}
