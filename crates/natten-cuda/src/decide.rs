//! What a call would run, told without running it: the kernel, its boxes, what it issues, and why not the others.

use natten_core::plan::{KeyStart, TileCounts, Tiling};
use natten_core::{Element, InputElement, Inputs, Output, Problem};

use crate::backend::Cuda;
use crate::buffer::{CudaView, CudaViewMut, Raw};
use crate::device::{Device, Properties};
use crate::error::CudaError;
use crate::launch::{Forward, summarise};
use crate::registry::{Facts, Kernel, Operation, kernels};
use crate::schedule::{Items, Work, decompose};
use crate::select::{
    ForwardKernel, LayoutSummary, Rejection, RejectionReason, Rejections, reason_against, select,
    select_forward, without_hopper,
};
use crate::sm90;

/// The kernel that a pass runs on.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Its entry.
    pub kernel: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Boxes of queries and keys, for a kernel on tiles; of a Hopper kernel, all its warpgroups' queries.
    pub tiling: Option<Tiling>,
    /// Pairs of a query and a key that are computed for each one that is wanted, as planned.
    pub issued_over_useful: f64,
    /// The reasons against the others.
    pub rejections: Rejections,
}

impl<D: Device> Cuda<D> {
    /// What [`forward`](natten_core::Backend::forward) would run on these views.
    ///
    /// # Errors
    /// As the forward itself.
    pub fn decide<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E>, CudaViewMut<'_, f32>>,
    ) -> Result<Decision, CudaError> {
        let views = Forward::of(inputs, output);
        let layout = self.summarise_forward(&views)?;
        let properties = self.device().properties();
        let request = self.request();
        let selected =
            select_forward(problem, layout, properties, request).map_err(CudaError::Unsupported)?;
        let choice = match selected {
            ForwardKernel::Registered(choice) => choice,
            ForwardKernel::Hopper(kernel) => {
                let request = request.on(kernel.entry);
                match sm90::prepare_forward(properties, problem, &views, &request)? {
                    Ok(launches) => return Ok(on_hopper(problem, layout, &launches, self)),
                    Err(reason) => without_hopper(reason, problem, layout, properties, self.request())
                        .map_err(CudaError::Unsupported)?,
                }
            }
        };
        let issued_over_useful = match &choice.counts {
            Some(counts) => counts.issued_over_useful(),
            None => walk_issues(problem, choice.kernel, Items::Queries)?,
        };
        let mut rejections = choice.rejections.0;
        self.add_others(&mut rejections, problem, Operation::Forward, layout, choice.kernel.entry);
        Ok(Decision {
            kernel: choice.kernel.entry,
            threads: choice.kernel.threads,
            tiling: choice.tiling,
            issued_over_useful,
            rejections: Rejections(rejections),
        })
    }

    /// What the two passes of [`backward`](natten_core::Backend::backward) would run: that of the queries' gradients, and
    /// that of keys and values. All other tensors lie as these do.
    ///
    /// # Errors
    /// As the backward itself.
    pub fn decide_backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
    ) -> Result<[Decision; 2], CudaError> {
        let rows = [&inputs.query, &inputs.key, &inputs.value].into_iter();
        let rows = rows.chain(inputs.additional.iter().flatten()).map(Raw::from);
        let layout = summarise(self.device(), rows, std::iter::empty())?;
        let decide = |operation, items| -> Result<Decision, CudaError> {
            let capability = self.device().properties().compute_capability;
            let kernel = select(problem, operation, layout, capability).map_err(CudaError::Unsupported)?;
            let mut rejections = Vec::new();
            self.add_others(&mut rejections, problem, operation, layout, kernel.entry);
            Ok(Decision {
                kernel: kernel.entry,
                threads: kernel.threads,
                tiling: None,
                issued_over_useful: walk_issues(problem, kernel, items)?,
                rejections: Rejections(rejections),
            })
        };
        Ok([decide(Operation::BackwardQuery, Items::Queries)?, decide(Operation::BackwardKey, Items::Keys)?])
    }

    pub(crate) fn summarise_forward(&self, views: &Forward) -> Result<LayoutSummary, CudaError> {
        let Forward { query, key, value, additional, out, lse } = views;
        let rows = [*query, *key, *value, *out].into_iter().chain(additional.iter().flatten().copied());
        summarise(self.device(), rows, lse.iter())
    }

    /// Adds the kernels of an operation that have no reason yet.
    fn add_others(
        &self,
        rejections: &mut Vec<Rejection>,
        problem: &Problem,
        operation: Operation,
        layout: LayoutSummary,
        chosen: &'static str,
    ) {
        let head_dim = problem.head_dim().max(problem.head_dim_v());
        let capability = self.device().properties().compute_capability;
        for kernel in kernels().filter(|kernel| kernel.operation == operation && kernel.entry != chosen) {
            if rejections.iter().any(|rejection| rejection.kernel == kernel.entry) {
                continue;
            }
            let reason = reason_against(kernel, problem.element_type(), head_dim, layout, capability)
                .unwrap_or(RejectionReason::Preferred { instead: chosen });
            rejections.push(Rejection { kernel: kernel.entry, reason });
        }
    }
}

/// Every kernel of the operator, with the reason why the device cannot run it, if there is one.
pub fn kernels_on(
    properties: &Properties,
) -> impl Iterator<Item = (&'static str, Option<RejectionReason>)> + use<> {
    let (found, limit) = (properties.compute_capability, properties.shared_bytes_per_block);
    let on_hopper = sm90::kernels().map(move |kernel| {
        let only = sm90::CAPABILITY;
        (kernel.entry, (found != only).then_some(RejectionReason::OnlyOn { only, found }))
    });
    let others = kernels().map(move |kernel| {
        let (needed, shared) = (kernel.min_capability(), kernel.shared_bytes as usize);
        let reason = if found < needed {
            Some(RejectionReason::ComputeCapability { needed, found })
        } else {
            (shared > limit).then_some(RejectionReason::SharedMemory { needed: shared, limit })
        };
        (kernel.entry, reason)
    });
    on_hopper.chain(others)
}

impl Forward {
    /// The views without their types.
    pub(crate) fn of<E: InputElement>(
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E::Out>, CudaViewMut<'_, f32>>,
    ) -> Self {
        Forward {
            query: (&inputs.query).into(),
            key: (&inputs.key).into(),
            value: (&inputs.value).into(),
            additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(Raw::from)),
            out: (&output.out).into(),
            lse: output.lse.as_ref().map(Raw::from),
        }
    }
}

fn on_hopper<D: Device>(
    problem: &Problem,
    layout: LayoutSummary,
    launches: &[sm90::Prepared],
    cuda: &Cuda<D>,
) -> Decision {
    let mut rejections = Vec::new();
    let Some(first) = launches.first() else {
        // No query at all: nothing runs.
        let rejections = Rejections(rejections);
        return Decision { kernel: "none", threads: 0, tiling: None, issued_over_useful: 1.0, rejections };
    };
    let kernel = first.kernel;
    for other in sm90::kernels().filter(|other| other.entry != kernel.entry) {
        let reason = if other.element_type() != problem.element_type() {
            let (kernel, problem) = (other.element_type(), problem.element_type());
            RejectionReason::ElementType { kernel, problem }
        } else if other.longest_row() < problem.head_dim().max(problem.head_dim_v()) {
            let found = problem.head_dim().max(problem.head_dim_v());
            RejectionReason::HeadDim { max: other.longest_row(), found }
        } else {
            RejectionReason::Slower { than: kernel.entry }
        };
        rejections.push(Rejection { kernel: other.entry, reason });
    }
    cuda.add_others(&mut rejections, problem, Operation::Forward, layout, kernel.entry);
    let issued: f64 = launches.iter().map(|launch| launch.issued as f64).sum();
    Decision {
        kernel: kernel.entry,
        threads: kernel.threads,
        tiling: Some(first.boxes.tiling(sm90::warpgroups(kernel))),
        issued_over_useful: issued / problem.scores().max(1) as f64,
        rejections: Rejections(rejections),
    }
}

/// A lane group walks the union of its items' windows.
pub(crate) fn walk_issues(problem: &Problem, kernel: &Kernel, items: Items) -> Result<f64, CudaError> {
    let of_queries = items == Items::Queries;
    let work = Work {
        items,
        axes: problem.axes(),
        heads: if of_queries { problem.heads() } else { problem.heads_kv() },
        heads_sharing: if of_queries { problem.heads_per_kv() } else { 1 },
        batch: problem.batch(),
        row_bytes: problem.head_dim() * problem.element_type().size_bytes(),
    };
    let (plan, _) = decompose(kernel, &work)?;
    // The queries that see a block of keys lie as those that a block of queries sees.
    let query_tile = plan.block_log2.map(|log2| 1 << log2);
    let tiling = Tiling { query_tile, key_tile: [1; 3], key_start: KeyStart::Dynamic };
    Ok(TileCounts::of(problem, &tiling).issued_over_useful().max(1.0))
}

/// The kernel on CUDA cores for a forward pass, if one serves it.
pub(crate) fn walking(
    problem: &Problem,
    layout: LayoutSummary,
    cuda: &Cuda<impl Device>,
) -> Option<&'static Kernel> {
    let capability = cuda.device().properties().compute_capability;
    select(problem, Operation::Forward, layout, capability).ok()
}
