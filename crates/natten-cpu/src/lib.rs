//! Neighborhood attention on the CPU.
//!
//! [`Cpu`] implements [`Backend`] on host tensors. Instructions are chosen at run time ([`Isa`]); work is spread
//! over the caller's rayon pool, or one of its own. Results do not depend on the number of threads, bit for bit.
//!
//! f64 tensors, and the gradient of a merge in every type, are handed to the reference of `natten-core`: exact, single-threaded
//! and slow.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "all of it, each block with its reason")]
mod arch;
mod backward;
mod blocking;
mod boxes;
mod buffer;
mod error;
mod forward;
mod groups;
mod isa;
mod merge;
mod operand;
mod pack;
mod packed;
mod parallel;
pub mod peak;
mod prefetch;
mod recast;
mod schedule;
mod score_block;
mod score_tile;
mod softmax;
mod through_f64;
mod tile_in_flight;
mod tile_mask;
mod tile_weights;

use std::ops::Range;
use std::sync::Arc;

use natten_core::{
    Backend, BackwardCall, Element, ElementType, ForwardCall, InputElement, Layout, MergeBackwardCall,
    MergeCall, Problem, Tensor, TensorError, TensorView, TensorViewMut,
};

use natten_core::plan::common_multiple;

use blocking::{Blocking, Pass};
use schedule::Vectors;

pub use error::CpuError;
pub use isa::{ISA_VARIABLE, Isa, Lack};

/// Most threads that [`Cpu::threads`] starts: more than any machine has cores for, few enough that asking for them by
/// mistake returns.
pub const MAX_THREADS: usize = 1024;

/// The CPU. Cheap to clone; clones share the thread pool.
///
/// ```
/// use natten_cpu::{Cpu, Isa};
///
/// let cpu = Cpu::new().isa(Isa::Scalar)?.threads(2)?;
/// assert_eq!(cpu.chosen_isa()?, Isa::Scalar);
/// # Ok::<(), natten_cpu::CpuError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    isa: Option<Isa>,
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Cpu {
    /// The best instructions this machine has, unless [`ISA_VARIABLE`] says otherwise, on the caller's thread and the rayon
    /// pool that the call is made from: the global one, or the one whose `install` the caller is in.
    pub fn new() -> Self {
        Cpu::default()
    }

    /// With these instructions, whatever the environment says.
    ///
    /// # Errors
    /// [`CpuError::IsaUnavailable`] when the machine lacks them, [`CpuError::IsaLacks`] where it can say which part.
    pub fn isa(self, isa: Isa) -> Result<Self, CpuError> {
        Ok(Cpu { isa: Some(isa.require()?), ..self })
    }

    /// On this many threads, at most [`MAX_THREADS`], 0 meaning one for each core: the caller's, and those of a pool of
    /// its own.
    ///
    /// # Errors
    /// [`CpuError::TooManyThreads`] above the limit, before any is started; [`CpuError::Threads`] when the system
    /// refuses them.
    pub fn threads(self, threads: usize) -> Result<Self, CpuError> {
        if threads > MAX_THREADS {
            return Err(CpuError::TooManyThreads { threads, max: MAX_THREADS });
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|_| CpuError::Threads { threads })?;
        Ok(Cpu { pool: Some(Arc::new(pool)), ..self })
    }

    /// The instructions that calls use.
    ///
    /// # Errors
    /// [`CpuError::UnknownIsa`], [`CpuError::IsaUnavailable`] or [`CpuError::IsaLacks`] when [`ISA_VARIABLE`] asks for what
    /// there is not.
    pub fn chosen_isa(&self) -> Result<Isa, CpuError> {
        self.isa.map_or_else(Isa::preferred, Ok)
    }

    /// For each token axis, tokens at whose multiples a whole can be cut into parts ([`natten_core::region`]) that give its
    /// output, its log-sum-exp and its gradient of the queries bit by bit: those of a tile of queries, in a forward and in a
    /// backward. Where that is the whole axis or more, no cut does. Parts that are cut elsewhere give the same to rounding, and
    /// so do sums of parts' gradients of keys and values, wherever the cuts are.
    ///
    /// The problem may be the whole or a part of it. The numbers are at least 1; they depend on the problem, its batch and heads
    /// among the rest, and on the instructions, and on nothing else of the machine. A part of few grains has few tasks to share
    /// between threads: what is to be fast rather than the same bits is cut as suits it.
    ///
    /// # Errors
    /// As [`Cpu::chosen_isa`].
    pub fn grain(&self, problem: &Problem) -> Result<Vec<usize>, CpuError> {
        let isa = self.chosen_isa()?;
        if problem.element_type() == ElementType::F64 {
            // The reference computes query by query.
            return Ok(vec![1; problem.rank()]);
        }
        let grain = |vectors: Vectors, pass| Blocking::grain(problem, pass, &vectors.machine(problem, 1));
        let forward = grain(Vectors::of_forward(isa, problem.element_type()), Pass::Forward);
        let backward = grain(Vectors::of(isa), Pass::Queries);
        let axes = 3 - problem.rank()..3;
        Ok(axes.map(|a| common_multiple(forward[a], backward[a])).collect())
    }

    /// The pool of its own, if it has one.
    pub(crate) fn pool(&self) -> Option<&rayon::ThreadPool> {
        self.pool.as_deref()
    }
}

impl Backend for Cpu {
    type View<'a, E: InputElement> = TensorView<'a, E>;
    type ViewMut<'a, E: InputElement> = TensorViewMut<'a, E>;
    type Tensor<E: InputElement> = Tensor<E>;
    type Error = CpuError;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn layout<E: InputElement>(view: &TensorView<'_, E>) -> Layout {
        *view.layout()
    }

    fn layout_mut<E: InputElement>(view: &TensorViewMut<'_, E>) -> Layout {
        *view.layout()
    }

    fn allocate<E: InputElement>(&self, shape: &[usize]) -> Result<Tensor<E>, CpuError> {
        Ok(Tensor::zeros(shape)?)
    }

    fn copy<E: Element>(
        &self,
        from: TensorView<'_, E>,
        mut to: TensorViewMut<'_, E>,
    ) -> Result<(), CpuError> {
        Ok(to.copy_from(&from)?)
    }

    fn accumulate<E: Element>(
        &self,
        from: TensorView<'_, E>,
        mut to: TensorViewMut<'_, E>,
    ) -> Result<(), CpuError> {
        Ok(to.accumulate(&from)?)
    }

    fn reborrow<'s, E: InputElement>(view: &'s TensorView<'_, E>) -> TensorView<'s, E> {
        *view
    }

    fn reborrow_mut<'s, E: InputElement>(view: &'s mut TensorViewMut<'_, E>) -> TensorViewMut<'s, E> {
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

    fn view<E: InputElement>(tensor: &Tensor<E>) -> TensorView<'_, E> {
        tensor.view()
    }

    fn view_mut<E: InputElement>(tensor: &mut Tensor<E>) -> TensorViewMut<'_, E> {
        tensor.view_mut()
    }

    fn forward<E: InputElement>(&self, call: ForwardCall<'_, Self, E>) -> Result<(), CpuError> {
        let isa = self.chosen_isa()?;
        let problem = call.problem();
        // Nothing is written, and the tokens to be cut up may be any number.
        if problem.batch() == 0 {
            return Ok(());
        }
        let (inputs, output) = call.into_views();
        macro_rules! run {
            ($of_type:path) => {
                $of_type(self, isa, problem, &recast::inputs(&inputs), recast::output(output))
            };
        }
        match E::ELEMENT_TYPE {
            ElementType::F32 => run!(forward::of_f32),
            ElementType::F16 => run!(forward::of_f16),
            ElementType::Bf16 => run!(forward::of_bf16),
            ElementType::F64 => {
                through_f64::forward(problem, &recast::inputs(&inputs), recast::output(output));
            }
        }
        Ok(())
    }

    fn backward<E: InputElement>(&self, call: BackwardCall<'_, Self, E>) -> Result<(), CpuError> {
        let isa = self.chosen_isa()?;
        let problem = call.problem();
        // Nothing is written, and the tokens to be cut up may be any number.
        if problem.batch() == 0 {
            return Ok(());
        }
        let (inputs, saved, gradients) = call.into_views();
        macro_rules! run {
            ($of_type:path) => {{
                let (inputs, saved) = (recast::inputs(&inputs), recast::saved(&saved));
                $of_type(self, isa, problem, &inputs, &saved, recast::gradients(gradients))
            }};
        }
        match E::ELEMENT_TYPE {
            ElementType::F32 => run!(backward::of_f32),
            ElementType::F16 => run!(backward::of_f16),
            ElementType::Bf16 => run!(backward::of_bf16),
            ElementType::F64 => {
                let (inputs, saved) = (recast::inputs(&inputs), recast::saved(&saved));
                through_f64::backward(problem, &inputs, &saved, recast::gradients(gradients));
            }
        }
        Ok(())
    }

    fn merge<E: Element>(&self, call: MergeCall<'_, Self, E>) -> Result<(), CpuError> {
        self.chosen_isa()?;
        let (partials, output) = call.into_views();
        match E::ELEMENT_TYPE {
            ElementType::F32 => merge::of_f32(self, &recast::partials(&partials), recast::output(output)),
            ElementType::F16 => merge::of_f16(self, &recast::partials(&partials), recast::output(output)),
            ElementType::Bf16 => merge::of_bf16(self, &recast::partials(&partials), recast::output(output)),
            ElementType::F64 => through_f64::merge(&recast::partials(&partials), recast::output(output)),
        }
        Ok(())
    }

    fn merge_backward<E: Element>(&self, call: MergeBackwardCall<'_, Self, E>) -> Result<(), CpuError> {
        self.chosen_isa()?;
        let (partials, merged, gradients) = call.into_views();
        through_f64::merge_backward(&partials, &merged, gradients);
        Ok(())
    }
}
