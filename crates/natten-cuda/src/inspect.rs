//! What a backend tells of calls without running them: kernels, launches, workspace, reasons; and compiling ahead.

use std::sync::Arc;

use natten_core::{BackwardCall, InputElement, Inputs, Output, Problem};

use crate::buffer::{CudaView, CudaViewMut};
use crate::choose::choose;
use crate::cuda::Cuda;
use crate::device::{Device, Properties};
use crate::error::CudaError;
use crate::explain::{self, Decision};
use crate::family::{Launch, MergeRows, Offer, Pass, Query, reason_on};
use crate::registry::{self, Kernel, Operation};
use crate::rejection::{RejectionReason, Rejections};
use crate::submit;
use crate::trust::FailedTrial;
use crate::tune::{self, Candidate};
use crate::views::{Addresses, Views};

/// What matters of all tensors of a call together, where there are none yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutSummary {
    /// Every base, stride and row length is a multiple of 16 bytes.
    pub is_aligned: bool,
}

impl<D: Device> Cuda<D> {
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
            let kernel = self.dense_offer(pass, layout)?.bid.kernel;
            // A kernel that fails its trial is not in the next offer.
            self.may_launch(kernel);
            for launch in &self.dense_offer(pass, layout)?.launches {
                submit::load(self.device(), launch.kernel)?;
            }
        }
        Ok(())
    }

    /// Every kernel of the operator, with the reason why calls on this device are not trusted to it, if there is one. A kernel that
    /// no chip has run yet is held to others for that, if it has not been before.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static str, Option<RejectionReason>)> {
        registry::kernels().map(|kernel| {
            let reason = reason_on(kernel, self.device().properties());
            let failed = || {
                let is_trusted = self.may_launch(kernel);
                self.device().functions().trials.failed().filter(|_| !is_trusted)
            };
            (kernel.entry, reason.or_else(|| failed().map(FailedTrial::reason)))
        })
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

    /// The kernels that a call on dense tensors launches, in order and each once: of its forward, or of its backward.
    ///
    /// # Errors
    /// When no kernel serves the problem.
    pub fn launched_kernels(
        &self,
        problem: &Problem,
        of_backward: bool,
    ) -> Result<Vec<&'static str>, CudaError> {
        let pass = if of_backward { Pass::Backward(problem) } else { Pass::Forward(problem) };
        let offer = self.dense_offer(pass, LayoutSummary { is_aligned: true })?;
        let mut kernels: Vec<&'static str> = Vec::new();
        for Launch { kernel, .. } in &offer.launches {
            if !kernels.contains(&kernel.entry) {
                kernels.push(kernel.entry);
            }
        }
        Ok(kernels)
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
    /// As [`backward`](natten_core::Backend::backward).
    pub fn backward_workspace_len_for<E: InputElement>(
        &self,
        call: &BackwardCall<'_, Self, E>,
    ) -> Result<usize, CudaError> {
        let placed = self.place_backward(call)?;
        let choice = choose(&self.query(Pass::Backward(call.problem()), &placed.views))?;
        Ok(choice.offer.workspace_bytes.div_ceil(4))
    }

    /// What [`forward`](natten_core::Backend::forward) would run on these views.
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

    /// What the passes of [`backward`](natten_core::Backend::backward) would run: that of the queries' gradients first, and if it is
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

    /// What [`forward`](natten_core::Backend::forward) would launch on these views if the device were as `properties` say, and where the
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
}
