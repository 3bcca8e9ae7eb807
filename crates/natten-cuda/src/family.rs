//! What a kernel family is asked, and what it offers: values, so that running, explaining, timing and testing a call all
//! read the same.

use std::cell::OnceCell;

use natten_core::plan::{PlanTables, Tiling};
use natten_core::window::Axis;
use natten_core::{ElementType, Problem};
use smallvec::SmallVec;

use crate::device::{Properties, TensorMapSpec};
use crate::error::CudaError;
use crate::parts;
use crate::registry::{Facts, Kernel, Operation, by_name, kernels_of};
use crate::rejection::RejectionReason;
use crate::trust::{FailedTrial, is_untried};
use crate::views::{Slot, Views};

/// What a caller asks of the choice: nothing, by default. For benchmarks and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// Only the kernel of this name, for calls of its operation and for all forward calls.
    pub entry: Option<&'static str>,
    /// These boxes, for a kernel on tiles of their size.
    pub tiling: Option<Tiling>,
    /// These, for the kernel of a backward's pass over keys, where boxes can be asked of it.
    pub tiling_of_keys: Option<Tiling>,
}

/// What is to be computed.
#[derive(Clone, Copy, Debug)]
pub enum Pass<'a> {
    /// Output, and log-sum-exp if there is a tensor for it.
    Forward(&'a Problem),
    /// All gradients.
    Backward(&'a Problem),
    /// One result of several partial ones.
    Merge(&'a MergeRows),
    /// The gradients of partial results.
    MergeBackward(&'a MergeRows),
}

/// What a merge works on: results `[batch, X, Y, Z, heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MergeRows {
    /// Of partial results and the merged one.
    pub element_type: ElementType,
    /// Batch items.
    pub batch: usize,
    /// Extents of the token axes.
    pub tokens: [usize; 3],
    /// Heads.
    pub heads: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Partial results.
    pub branches: usize,
}

impl MergeRows {
    /// Of one result.
    pub(crate) fn elements(&self) -> f64 {
        let tokens: usize = self.tokens.iter().product();
        (self.batch * tokens * self.heads * self.head_dim) as f64
    }
}

impl<'a> Pass<'a> {
    /// The problem, but for a merge.
    pub fn problem(&self) -> Option<&'a Problem> {
        match self {
            Pass::Forward(problem) | Pass::Backward(problem) => Some(problem),
            Pass::Merge(_) | Pass::MergeBackward(_) => None,
        }
    }

    /// Of all tensors but log-sum-exps.
    pub fn element_type(&self) -> ElementType {
        match self {
            Pass::Forward(problem) | Pass::Backward(problem) => problem.element_type(),
            Pass::Merge(rows) | Pass::MergeBackward(rows) => rows.element_type,
        }
    }

    /// Longest row of any tensor.
    pub fn head_dim(&self) -> usize {
        match self {
            Pass::Forward(problem) | Pass::Backward(problem) => problem.head_dim().max(problem.head_dim_v()),
            Pass::Merge(rows) | Pass::MergeBackward(rows) => rows.head_dim,
        }
    }

    /// What the kernels do that lead an offer for it.
    pub fn operation(&self) -> Operation {
        match self {
            Pass::Forward(_) => Operation::Forward,
            Pass::Backward(_) => Operation::BackwardQuery,
            Pass::Merge(_) => Operation::Merge,
            Pass::MergeBackward(_) => Operation::MergeBackward,
        }
    }
}

/// What families are asked: all that an offer may depend on, and nothing else.
#[derive(Debug)]
pub struct Query<'a> {
    /// What is to be computed.
    pub pass: Pass<'a>,
    /// How the tensors lie.
    pub views: &'a Views,
    /// The device.
    pub properties: &'a Properties,
    /// What the caller wants.
    pub request: &'a Request,
    /// What speaks against kernels that no chip has run.
    pub(crate) failed_trial: Option<FailedTrial>,
    tables: OnceCell<PlanTables>,
}

impl<'a> Query<'a> {
    /// A question.
    pub fn new(pass: Pass<'a>, views: &'a Views, properties: &'a Properties, request: &'a Request) -> Self {
        Query { pass, views, properties, request, failed_trial: None, tables: OnceCell::new() }
    }

    /// The same, after kernels that no chip has run were held to others on the device.
    pub(crate) fn after_trials(self, failed_trial: Option<FailedTrial>) -> Self {
        Query { failed_trial, ..self }
    }

    /// The kernel that the caller wants for this pass.
    pub(crate) fn asked(&self) -> Option<&'static str> {
        let of_pass = |kernel: &Kernel| kernel.operation == self.pass.operation();
        let is_forward = matches!(self.pass, Pass::Forward(_));
        self.request.entry.filter(|entry| is_forward || by_name(entry).is_some_and(of_pass))
    }

    /// What tilings of the problem cost, shared by all families.
    pub(crate) fn tables(&self, problem: &Problem) -> &PlanTables {
        self.tables.get_or_init(|| PlanTables::of(problem))
    }
}

/// A way to run a pass, and how long it would take.
#[derive(Clone, Copy, Debug)]
pub struct Bid {
    /// The kernel; of a backward, the one that computes the gradient of the queries.
    pub kernel: &'static Kernel,
    /// Boxes of queries and keys, for a kernel on tiles: of a whole cta.
    pub tiling: Option<Tiling>,
    /// For kernels whose cta has several boxes of queries: the axis along which they stand side by side.
    pub side: usize,
    /// Predicted time.
    pub microseconds: f64,
}

/// All that running a pass takes but the addresses of its tensors.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What won.
    pub bid: Bid,
    /// In this order.
    pub launches: Vec<Launch>,
    /// Scratch memory, 256-byte aligned.
    pub workspace_bytes: usize,
}

/// One launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Ctas along x, y, z.
    pub grid: [u32; 3],
    /// Ctas of a cluster; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a cta.
    pub shared_bytes: u32,
    /// Its one parameter, with distances in bytes from where tensors begin instead of addresses.
    pub params: Box<[u8]>,
    /// The places where the beginnings of tensors must be added.
    pub addresses: SmallVec<[Patch; 10]>,
    /// Tensor maps to be encoded into the parameter.
    pub maps: Vec<MapPatch>,
}

/// An address in a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Bytes from the parameter's beginning.
    pub at: usize,
    /// Whose.
    pub slot: Slot,
}

/// A tensor map in a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPatch {
    /// Bytes from the parameter's beginning.
    pub at: usize,
    /// The tensor.
    pub slot: Slot,
    /// Its address is a distance from where the tensor begins.
    pub spec: TensorMapSpec,
}

impl Launch {
    /// A launch along x without tensor maps. Addresses of tensors that the call does not have stay as they are, which is 0.
    pub(crate) fn new(
        query: &Query<'_>,
        kernel: &'static Kernel,
        ctas: u32,
        params: &[u8],
        addresses: &[Patch],
    ) -> Self {
        let is_there = |patch: &&Patch| patch.slot == Slot::WORKSPACE || query.views.has(patch.slot);
        let addresses = addresses.iter().filter(is_there).copied().collect();
        Launch { addresses, ..Self::alone(kernel, ctas, params) }
    }

    /// A launch along x with all addresses in place.
    pub(crate) fn alone(kernel: &'static Kernel, ctas: u32, params: &[u8]) -> Self {
        Launch {
            kernel,
            grid: [ctas, 1, 1],
            cluster: [1; 3],
            shared_bytes: kernel.shared_bytes,
            params: params.into(),
            addresses: SmallVec::new(),
            maps: Vec::new(),
        }
    }
}

/// The places of addresses in a parameter: `patches!(ForwardParams, query: QUERY, ..)`.
macro_rules! patches {
    ($params:ty, $($field:ident: $slot:ident),* $(,)?) => {
        [$($crate::family::Patch {
            at: std::mem::offset_of!($params, $field),
            slot: $crate::views::Slot::$slot,
        }),*]
    };
}
pub(crate) use patches;

/// Why a bid cannot be laid out.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The kernel cannot do it; another may.
    By(RejectionReason),
    /// The call cannot be made at all.
    Call(CudaError),
}

impl From<CudaError> for Refused {
    fn from(error: CudaError) -> Self {
        Refused::Call(error)
    }
}

/// Kernels of one source, and how they are planned. A family is a folder of `families` and a line in its table.
pub(crate) trait Family: Sync {
    /// As the table of kernels says it.
    fn name(&self) -> &'static str;

    /// Whether no chip has run its kernels: they are held to others before a call is trusted to them.
    fn is_untried(&self) -> bool {
        false
    }

    /// What is against a kernel besides what the table says of it.
    fn reason_against(&self, kernel: &'static Kernel, query: &Query<'_>) -> Option<RejectionReason>;

    /// The `most` best ways to run a pass on a kernel that nothing is against, best first, or why there is none.
    fn bids(
        &self,
        kernel: &'static Kernel,
        query: &Query<'_>,
        most: usize,
    ) -> Result<Vec<Bid>, RejectionReason>;

    /// Everything for a bid of this family.
    fn lay_out(&self, bid: &Bid, query: &Query<'_>) -> Result<Offer, Refused>;

    /// Size of the parameter of its kernels for an operation, which the table must agree with.
    #[cfg(test)]
    fn parameter_bytes(&self, operation: Operation) -> usize;

    /// Pairs of a query and a key that a bid computes for each one that is wanted: of each kernel that does so.
    fn issued_over_useful(&self, bid: &Bid, query: &Query<'_>) -> Vec<(&'static Kernel, f64)>;
}

/// What the table of kernels has against one.
pub(crate) fn reason_in_table(kernel: &Kernel, query: &Query<'_>) -> Option<RejectionReason> {
    let properties = query.properties;
    let of_problem = query.pass.element_type();
    let of_kernel = kernel.element_type();
    if of_kernel != of_problem {
        return Some(RejectionReason::ElementType { kernel: of_kernel, problem: of_problem });
    }
    if let Some(reason) = reason_on(kernel, properties) {
        return Some(reason);
    }
    let (max, found) = (kernel.longest_row(), row_at_once(kernel, query));
    if max > 0 && found > max {
        return Some(RejectionReason::HeadDim { max, found });
    }
    if kernel.needs_alignment && !query.views.is_aligned {
        return Some(RejectionReason::Alignment);
    }
    let failed = query.failed_trial.filter(|_| is_untried(kernel));
    failed.map(FailedTrial::reason)
}

/// What is against a kernel that counts tokens in 32 bits.
pub(crate) fn too_many_tokens(problem: &Problem) -> Option<RejectionReason> {
    let ends = problem.axes().iter().map(Axis::shortened).flat_map(|axis| {
        [axis.extent, axis.query_start + axis.query_extent, axis.key_start + axis.key_extent]
    });
    let found = ends.max().unwrap_or(0);
    (found > i32::MAX as usize).then_some(RejectionReason::TooManyTokens { found })
}

/// Why a device cannot run a kernel, whatever the call.
pub(crate) fn reason_on(kernel: &Kernel, properties: &Properties) -> Option<RejectionReason> {
    let (needed, found) = (kernel.min_capability(), properties.compute_capability);
    if kernel.capability.only && found != needed {
        return Some(RejectionReason::OnlyOn { only: needed, found });
    }
    if found < needed {
        return Some(RejectionReason::ComputeCapability { needed, found });
    }
    let (needed, limit) = (kernel.shared_bytes as usize, properties.shared_bytes_per_block);
    (needed > limit).then_some(RejectionReason::SharedMemory { needed, limit })
}

/// Longest row that a kernel has to take at once: not that of values which it takes in parts.
fn row_at_once(kernel: &Kernel, query: &Query<'_>) -> usize {
    match query.pass {
        Pass::Forward(problem) if parts::are_cut(kernel.family, query) => problem.head_dim(),
        _ => query.pass.head_dim(),
    }
}

/// How closely a kernel is made for a call that it can serve, least being best: for rows so short, and for rows that lie so
/// well. How many parts long values are best taken in is a matter of predicted time.
pub(crate) fn fit(kernel: &Kernel, query: &Query<'_>) -> (u32, bool) {
    let length = if parts::are_cut(kernel.family, query) { 0 } else { kernel.max_head_dim };
    (length, !kernel.needs_alignment)
}

/// The kernel of a family for an operation that is made most closely for a call, or the reason against the last one.
pub(crate) fn best_fit(
    family: &str,
    operation: Operation,
    query: &Query<'_>,
) -> Result<&'static Kernel, RejectionReason> {
    let mut last = RejectionReason::NotAskedFor;
    let able = kernels_of(family, operation).filter(|kernel| match reason_in_table(kernel, query) {
        Some(reason) => {
            last = reason;
            false
        }
        None => true,
    });
    let best = able.min_by_key(|kernel| fit(kernel, query));
    best.ok_or(last)
}
