//! The ways to run a forward pass that are worth timing: kernels with their cheapest boxes, as the planner ranks them.

use natten_core::plan::{KeyStart, rank_tilings};
use natten_core::{Element, Inputs, Output, Problem};

use crate::backend::Cuda;
use crate::buffer::{CudaView, CudaViewMut};
use crate::decide::{walk_issues, walking};
use crate::device::Device;
use crate::error::CudaError;
use crate::launch::Forward;
use crate::registry::{Facts, Kernel, Operation, kernels};
use crate::schedule::Items;
use crate::select::reason_against;
use crate::sm90;
use crate::tiles::Request;

/// Tiles that issue no more than so many times what is wanted leave CUDA cores far behind: timing them would take long and
/// tell nothing.
const WORTH_WALKING: f64 = 3.0;

/// One way to run a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// For [`Cuda::with_request`]: a kernel, and boxes if it works on tiles.
    pub request: Request,
    /// Threads of a block.
    pub threads: u32,
    /// Pairs of a query and a key that are computed for each one that is wanted, as planned.
    pub issued_over_useful: f64,
}

impl<D: Device> Cuda<D> {
    /// At most `most` ways to run the forward pass, the one that a call takes first, then each kernel's cheapest boxes in
    /// turn. A kernel may still refuse one for how the tensors lie.
    ///
    /// # Errors
    /// When no kernel serves the problem.
    pub fn candidates<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<CudaView<'_, E>>,
        output: &Output<CudaViewMut<'_, E>, CudaViewMut<'_, f32>>,
        most: usize,
    ) -> Result<Vec<Candidate>, CudaError> {
        let chosen = self.decide(problem, inputs, output)?;
        let mut found = vec![Candidate {
            request: Request { entry: Some(chosen.kernel), tiling: chosen.tiling },
            threads: chosen.threads,
            issued_over_useful: chosen.issued_over_useful,
        }];
        let lists = self.by_kernel(problem, &Forward::of(inputs, output), most)?;
        for rank in 0..lists.iter().map(Vec::len).max().unwrap_or(0) {
            for candidate in lists.iter().filter_map(|list| list.get(rank)) {
                if found.iter().all(|other| other.request != candidate.request) {
                    found.push(*candidate);
                }
            }
        }
        found.truncate(most.max(1));
        Ok(found)
    }

    /// For each kernel that can serve the problem, its boxes from cheap to dear.
    fn by_kernel(
        &self,
        problem: &Problem,
        views: &Forward,
        most: usize,
    ) -> Result<Vec<Vec<Candidate>>, CudaError> {
        let layout = self.summarise_forward(views)?;
        let properties = self.device().properties();
        let head_dim = problem.head_dim().max(problem.head_dim_v());
        let mut lists: Vec<Vec<Candidate>> = Vec::new();
        if properties.compute_capability == sm90::CAPABILITY
            && let Ok(ranked) = sm90::ranked(problem, most, properties.multiprocessors)
        {
            let pairs = problem.scores().max(1) as f64 / (problem.batch() * problem.heads()) as f64;
            let candidate = |(kernel, boxes): (&'static Kernel, sm90::Boxes)| Candidate {
                request: Request {
                    entry: Some(kernel.entry),
                    tiling: Some(boxes.tiling(sm90::warpgroups(kernel))),
                },
                threads: kernel.threads,
                issued_over_useful: boxes.issued as f64 / pairs,
            };
            lists.push(ranked.into_iter().map(candidate).collect());
        }
        let on_tiles = || {
            kernels().filter(|kernel| {
                let type_and_place = reason_against(
                    kernel,
                    problem.element_type(),
                    head_dim,
                    layout,
                    properties.compute_capability,
                );
                kernel.operation == Operation::Forward
                    && type_and_place.is_none()
                    && kernel.shared_bytes as usize <= properties.shared_bytes_per_block
            })
        };
        let shortest =
            on_tiles().filter(|kernel| kernel.tile().is_some()).map(|kernel| kernel.max_head_dim).min();
        for kernel in on_tiles().filter(|kernel| Some(kernel.max_head_dim) == shortest) {
            let Some(tile) = kernel.tile() else { continue };
            let ranked = rank_tilings(problem, tile.queries, tile.keys, KeyStart::Dynamic);
            let candidate = |(tiling, counts): (_, natten_core::plan::TileCounts)| Candidate {
                request: Request { entry: Some(kernel.entry), tiling: Some(tiling) },
                threads: kernel.threads,
                issued_over_useful: counts.issued_over_useful(),
            };
            lists.push(ranked.into_iter().take(most).map(candidate).collect());
        }
        let least = lists.iter().filter_map(|list| Some(list.first()?.issued_over_useful)).reduce(f64::min);
        if least.is_none_or(|least| least > WORTH_WALKING)
            && let Some(kernel) = walking(problem, layout, self)
        {
            lists.push(vec![Candidate {
                request: Request { entry: Some(kernel.entry), tiling: None },
                threads: kernel.threads,
                issued_over_useful: walk_issues(problem, kernel, Items::Queries)?,
            }]);
        }
        Ok(lists)
    }
}
