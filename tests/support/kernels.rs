//! What the suites ask of natten-cuda beyond the operator: which kernels ship, which of them a call runs, and that a call
//! run a certain one. Nothing else here or in the tests looks inside.

use std::sync::LazyLock;

use natten::cuda::registry::{self, Facts, Operation as Registered, kernels};
use natten::cuda::{ComputeCapability, Cuda, CudaError, CudaView, CudaViewMut, Device, Request};
use natten::plan::{KeyStart, Tiling};
use natten::{Element, ElementType, Inputs, Output, Problem};

use crate::rng::Rng;
use crate::subject::{Unsupported, Weights};

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Output and log-sum-exp.
    Forward,
    /// Gradient of the queries.
    BackwardQuery,
    /// Gradients of keys and values.
    BackwardKey,
    /// Row statistics that the backward reads.
    Delta,
    /// Sums of partial gradients.
    SumPartials,
    /// Merge of partial results.
    Merge,
    /// Gradient of that.
    MergeBackward,
    /// Copies of rows that are not contiguous.
    CopyRows,
    /// Rows added to others.
    AddRows,
}

/// A kernel that ships.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// Its name.
    pub entry: &'static str,
    /// What it computes.
    pub operation: Operation,
    /// Of all tensors but statistics.
    pub element_type: ElementType,
    /// Its longest row, or 0 where any goes.
    pub head_dim: usize,
    /// The longest row of the next smaller kernel for the same work, 0 if there is none: longer ones are this kernel's.
    pub shorter: usize,
    /// Whether all rows must begin at multiples of 16 bytes.
    pub needs_alignment: bool,
    /// Whether it multiplies on tensor cores, and so rounds the softmax's weights to the element type.
    pub on_tensor_cores: bool,
    /// An architecture that runs it.
    pub capability: ComputeCapability,
}

/// Every kernel of the operator; what dumps windows or measures a device is no part of it.
pub fn shipped() -> &'static [Shipped] {
    static SHIPPED: LazyLock<Vec<Shipped>> = LazyLock::new(collect);
    &SHIPPED
}

fn collect() -> Vec<Shipped> {
    let mut all: Vec<Shipped> = kernels().filter_map(of_registry).collect();
    let family = |kernel: &Shipped| {
        let Shipped { operation, element_type, needs_alignment, on_tensor_cores, capability, .. } = *kernel;
        (operation, element_type, needs_alignment, on_tensor_cores, capability)
    };
    let others = all.clone();
    for kernel in &mut all {
        let shorter =
            others.iter().filter(|other| family(other) == family(kernel)).map(|other| other.head_dim);
        kernel.shorter = shorter.filter(|&head_dim| head_dim < kernel.head_dim).max().unwrap_or(0);
    }
    all
}

fn of_registry(kernel: &'static registry::Kernel) -> Option<Shipped> {
    let operation = match kernel.operation {
        Registered::Forward => Operation::Forward,
        Registered::BackwardQuery => Operation::BackwardQuery,
        Registered::BackwardKey => Operation::BackwardKey,
        Registered::Delta => Operation::Delta,
        Registered::SumPartials => Operation::SumPartials,
        Registered::Merge => Operation::Merge,
        Registered::MergeBackward => Operation::MergeBackward,
        Registered::CopyRows => Operation::CopyRows,
        Registered::AddRows => Operation::AddRows,
        _ => return None,
    };
    Some(Shipped {
        entry: kernel.entry,
        operation,
        element_type: kernel.element_type(),
        head_dim: kernel.longest_row(),
        shorter: 0,
        needs_alignment: kernel.needs_alignment,
        on_tensor_cores: kernel.tile().is_some(),
        capability: kernel.min_capability(),
    })
}

/// A backend whose forward or backward passes run this kernel or are refused. Other operations have one choice each, which the rows
/// decide.
pub fn asking_for<D: Device>(cuda: Cuda<D>, kernel: &Shipped) -> Cuda<D> {
    match asked(kernel) {
        Some(entry) => cuda.with_request(Request { entry: Some(entry), ..Request::default() }),
        None => cuda,
    }
}

/// A backend whose forward or backward passes run this kernel on boxes drawn by a number, for each kernel others; none if it works on no
/// tiles, or on boxes that cannot be asked for.
pub fn in_boxes<D: Device>(cuda: Cuda<D>, kernel: &Shipped, nth: u64) -> Option<Cuda<D>> {
    let takes_boxes = match kernel.operation {
        Operation::Forward => true,
        Operation::BackwardQuery | Operation::BackwardKey => kernel.capability.major == 8,
        _ => false,
    };
    let tile = registry::by_name(kernel.entry).filter(|_| takes_boxes)?.tile()?;
    let place = shipped().iter().position(|shipped| shipped.entry == kernel.entry)?;
    let mut rng = Rng::new(nth << 32 | place as u64);
    // Sides are powers of two, but for one where warpgroups are three. Any axis may have the longest.
    let mut sides = |tokens: usize| {
        let bits = tokens.trailing_zeros() as usize;
        let x = rng.range(0, bits.min(4));
        let y = rng.range(0, (bits - x).min(4));
        let mut sides = [1 << x, 1 << y, 1 << (bits - x - y)];
        sides[rng.range(0, 2)] *= tokens >> bits;
        sides.rotate_left(rng.range(0, 2));
        sides
    };
    let (query_tile, key_tile) = (sides(tile.queries), sides(tile.keys));
    let tiling = Some(Tiling { query_tile, key_tile, key_start: KeyStart::Dynamic });
    let entry = asked(kernel);
    Some(cuda.with_request(match kernel.operation {
        Operation::BackwardKey => Request { entry, tiling_of_keys: tiling, ..Request::default() },
        _ => Request { entry, tiling, ..Request::default() },
    }))
}

/// By what name to ask for it. Of a backward the kernel of the queries' gradient is asked for; that of the keys' belongs to
/// it.
fn asked(kernel: &Shipped) -> Option<&'static str> {
    match kernel.operation {
        Operation::Forward | Operation::BackwardQuery => Some(kernel.entry),
        Operation::BackwardKey => of_queries(kernel),
        _ => None,
    }
}

/// The kernel of the pass over queries for the same rows as one over keys.
fn of_queries(of_keys: &Shipped) -> Option<&'static str> {
    let other = shipped().iter().find(|other| {
        other.operation == Operation::BackwardQuery
            && other.element_type == of_keys.element_type
            && other.head_dim == of_keys.head_dim
            && other.needs_alignment == of_keys.needs_alignment
            && other.on_tensor_cores == of_keys.on_tensor_cores
            && other.capability == of_keys.capability
    });
    other.map(|other| other.entry)
}

/// How the forward of these views keeps its weights.
pub fn weights<D: Device, E: Element>(
    cuda: &Cuda<D>,
    problem: &Problem,
    inputs: &Inputs<CudaView<'_, E>>,
    output: &Output<CudaViewMut<'_, E>, CudaViewMut<'_, f32>>,
) -> Weights {
    match cuda.explain(problem, inputs, output) {
        Ok(decision) if is_on_tensor_cores(decision.kernel) => Weights::InElementType,
        // A refusal is the call's own to give.
        _ => Weights::Unrounded,
    }
}

/// How the backward of these views keeps its weights.
pub fn backward_weights<D: Device, E: Element>(
    cuda: &Cuda<D>,
    problem: &Problem,
    inputs: &Inputs<CudaView<'_, E>>,
) -> Weights {
    let decisions = cuda.explain_backward(problem, inputs).unwrap_or_default();
    let rounds = decisions.iter().any(|decision| is_on_tensor_cores(decision.kernel));
    if rounds { Weights::InElementType } else { Weights::Unrounded }
}

fn is_on_tensor_cores(entry: &str) -> bool {
    shipped().iter().any(|kernel| kernel.entry == entry && kernel.on_tensor_cores)
}

/// Whether the call went well, or is one that no kernel, or not the one asked for, can serve.
///
/// # Panics
/// When the device fails.
pub fn served<T>(outcome: Result<T, CudaError>) -> Result<T, Unsupported> {
    match outcome {
        Ok(done) => Ok(done),
        Err(CudaError::Unsupported(rejections)) => Err(Unsupported(rejections.to_string())),
        Err(error) => panic!("device: {error}"),
    }
}

/// Whether a refusal gives a reason against this kernel: by the name that it is asked for, or by its family's where that holds
/// for all of it.
pub fn is_against(reasons: &str, kernel: &Shipped) -> bool {
    let own = asked(kernel).unwrap_or(kernel.entry);
    let named = reasons.lines().filter_map(|line| line.split_whitespace().next());
    let is_family = |name: &str| !shipped().iter().any(|other| other.entry == name);
    named.into_iter().any(|name| name == own || is_family(name) && own.starts_with(name))
}
