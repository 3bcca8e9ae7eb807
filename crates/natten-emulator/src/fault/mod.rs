//! Errors as types: what cannot be parsed, what memory refuses, and what a kernel did wrong.

mod parse;
mod rules;
mod tensor;
mod wait;

use std::fmt;

use thiserror::Error;

pub use parse::{MemoryError, ParseError, ParseProblem, TargetError};
pub use rules::{MbarrierProblem, WgmmaProblem};
pub use tensor::{DescriptorProblem, MatrixOperand, TensorMemoryProblem, TensorOrderProblem};
use wait::Listed;
pub use wait::{Wait, WaitReason};

/// Memory a faulting access aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemorySpace {
    /// Device memory.
    Global,
    /// Shared memory of the CTA.
    Shared,
    /// Local memory of the thread.
    Local,
    /// Kernel parameters.
    Param,
}

impl fmt::Display for MemorySpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemorySpace::Global => "global",
            MemorySpace::Shared => "shared",
            MemorySpace::Local => "local",
            MemorySpace::Param => "param",
        })
    }
}

/// What a kernel, or its launch, did wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// The module has no such entry.
    #[error("no entry `{name}` in the module")]
    UnknownEntry {
        /// The name asked for.
        name: String,
    },
    /// The number or size of the arguments differs from the entry's parameters.
    #[error("parameter {index} takes {expected} bytes, got {got}")]
    ArgumentSize {
        /// Position of the parameter; the number of parameters when arguments are missing or left over.
        index: usize,
        /// Bytes declared.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Grid, block, cluster or shared memory outside the limits of the machine or of the kernel.
    #[error("launch configuration: {what} is {got}, allowed is {allowed}")]
    LaunchConfiguration {
        /// The property.
        what: &'static str,
        /// Its value.
        got: u64,
        /// The limit.
        allowed: u64,
    },
    /// An access outside every allocation.
    #[error("{bytes}-byte {space} access out of bounds at {address:#x}")]
    OutOfBounds {
        /// Memory accessed.
        space: MemorySpace,
        /// First address.
        address: u64,
        /// Length.
        bytes: u32,
    },
    /// An address that is not a multiple of what the access needs.
    #[error("{space} access at {address:#x} is not aligned to {alignment} bytes")]
    Misaligned {
        /// Memory accessed.
        space: MemorySpace,
        /// First address.
        address: u64,
        /// Alignment needed.
        alignment: u32,
    },
    /// A read of bytes that nobody wrote.
    #[error("{bytes}-byte {space} read of uninitialised memory at {address:#x}")]
    Uninitialised {
        /// Memory read.
        space: MemorySpace,
        /// First address.
        address: u64,
        /// Length.
        bytes: u32,
    },
    /// Two accesses to the same bytes, at least one a write, that no synchronisation orders.
    #[error("race on {space} memory at {address:#x}: {current} is not ordered after {previous}")]
    Race {
        /// Memory accessed.
        space: MemorySpace,
        /// First address of the conflict.
        address: u64,
        /// The access that was about to happen.
        current: Accessor,
        /// The access it conflicts with.
        previous: Accessor,
    },
    /// An asynchronous operation uses shared memory written by ordinary stores with no
    /// `fence.proxy.async` (or, for a new mbarrier, no `fence.mbarrier_init`) in between.
    #[error("shared memory at {address:#x}: {current} after {previous} without a proxy fence")]
    MissingProxyFence {
        /// First address of the conflict.
        address: u64,
        /// The asynchronous access.
        current: Accessor,
        /// The ordinary access it should see.
        previous: Accessor,
    },
    /// Lanes of one warp reached an instruction apart that they must execute together.
    #[error("lanes {required:#010x} must execute this together, only {active:#010x} did")]
    Divergence {
        /// Lanes needed.
        required: u32,
        /// Lanes here.
        active: u32,
    },
    /// No warp can go on.
    #[error("deadlock: {}", Listed(.waits))]
    Deadlock {
        /// Who waits for what.
        waits: Vec<Wait>,
    },
    /// The CTA executed more instructions than any sane kernel would.
    #[error("no end after {instructions} warp instructions in one CTA")]
    Runaway {
        /// Instructions executed.
        instructions: u64,
    },
    /// Misuse of an mbarrier.
    #[error("mbarrier at shared {address:#x}: {problem}")]
    Mbarrier {
        /// Shared address of the object.
        address: u64,
        /// What is wrong.
        problem: MbarrierProblem,
    },
    /// A register used while a `wgmma` may still read or write it, or without `wgmma.fence`.
    #[error("wgmma register rule broken: {problem}")]
    WgmmaRegister {
        /// What is wrong.
        problem: WgmmaProblem,
    },
    /// Misuse of tensor memory.
    #[error("tensor memory: {problem}")]
    TensorMemory {
        /// What is wrong.
        problem: TensorMemoryProblem,
    },
    /// Two accesses to tensor memory, at least one a write, in no order.
    #[error("tensor memory at {address:#010x}: {current} is not ordered after {previous}: {missing}")]
    TensorOrder {
        /// Address of the conflict.
        address: u32,
        /// The access that was about to happen.
        current: Accessor,
        /// The access it conflicts with.
        previous: Accessor,
        /// What would order them.
        missing: TensorOrderProblem,
    },
    /// An instruction descriptor of `tcgen05.mma` that the hardware refuses, or the emulator.
    #[error("instruction descriptor {bits:#010x}: {problem}")]
    InstructionDescriptor {
        /// The descriptor.
        bits: u32,
        /// What is wrong.
        problem: DescriptorProblem,
    },
    /// A shared-memory descriptor of `tcgen05.mma` that the hardware refuses, or the emulator.
    #[error("shared-memory descriptor {bits:#018x} of {operand}: {problem}")]
    MatrixDescriptor {
        /// The descriptor.
        bits: u64,
        /// Whose it is.
        operand: MatrixOperand,
        /// What is wrong.
        problem: DescriptorProblem,
    },
    /// A register read by a lane that never wrote it.
    #[error("a register is read that was never written")]
    UnwrittenRegister,
    /// A tensor map or bulk copy with properties the hardware refuses.
    #[error("bulk copy: {what} is {got}, needed is {needed}")]
    BulkCopy {
        /// The property.
        what: &'static str,
        /// Its value.
        got: u64,
        /// What would be right.
        needed: u64,
    },
    /// A tensor map that is none, or that the hardware would refuse.
    #[error("{error}")]
    TensorMap {
        /// What is wrong with it.
        error: crate::TensorMapError,
    },
    /// A tensor map that begins where nothing is allocated. An H100 answers some of those with an illegal address, even if
    /// all boxes that are copied lie in memory that is.
    #[error("the tensor map begins at {base:#x}, where nothing is allocated")]
    TensorMapBase {
        /// Address of its first element.
        base: u64,
    },
    /// `setmaxnreg` with a count the hardware refuses.
    #[error("setmaxnreg {count}: {what}")]
    RegisterCount {
        /// The count asked for.
        count: u32,
        /// Why it is refused.
        what: &'static str,
    },
    /// An operand value outside what the instruction allows.
    #[error("{what} is {got}")]
    InvalidOperand {
        /// The operand.
        what: &'static str,
        /// Its value.
        got: u64,
    },
    /// The kernel executed `trap`, or ran past its end.
    #[error("trap")]
    Trap,
}

/// One side of a race.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accessor {
    /// Who did it.
    pub actor: Actor,
    /// A write, or only a read.
    pub is_write: bool,
}

impl fmt::Display for Accessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} by {}", if self.is_write { "write" } else { "read" }, self.actor)
    }
}

/// Who accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Actor {
    /// Ordinary instructions of a warp.
    Warp(u32),
    /// One lane of a warp, in a race with another lane of that warp.
    Lane {
        /// The warp.
        warp: u32,
        /// Its lane.
        lane: u32,
    },
    /// `cp.async` issued by a warp.
    CpAsync(u32),
    /// Bulk stores issued by a warp.
    BulkStore(u32),
    /// `wgmma` issued by a warp.
    Wgmma(u32),
    /// A bulk load that completes on the mbarrier at this shared address.
    BulkLoad(u32),
    /// Another CTA of the grid, by linear index.
    Cta(u32),
    /// `tcgen05.ld` of a warp.
    TensorLoad(u32),
    /// `tcgen05.st` of a warp.
    TensorStore(u32),
    /// `tcgen05.mma` issued by one thread.
    TensorMma {
        /// Its warp.
        warp: u32,
        /// Its lane.
        lane: u32,
    },
    /// `tcgen05.dealloc` of a warp.
    TensorDealloc(u32),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Warp(w) => write!(f, "warp {w}"),
            Actor::Lane { warp, lane } => write!(f, "lane {lane} of warp {warp}"),
            Actor::CpAsync(w) => write!(f, "cp.async of warp {w}"),
            Actor::BulkStore(w) => write!(f, "a bulk store of warp {w}"),
            Actor::Wgmma(w) => write!(f, "wgmma of warp {w}"),
            Actor::BulkLoad(b) => write!(f, "a bulk load completing on mbarrier {b:#x}"),
            Actor::Cta(c) => write!(f, "CTA {c}"),
            Actor::TensorLoad(w) => write!(f, "tcgen05.ld of warp {w}"),
            Actor::TensorStore(w) => write!(f, "tcgen05.st of warp {w}"),
            Actor::TensorMma { warp, lane } => write!(f, "tcgen05.mma of lane {lane} of warp {warp}"),
            Actor::TensorDealloc(w) => write!(f, "tcgen05.dealloc of warp {w}"),
        }
    }
}

/// Where a kernel stood when it faulted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Site {
    /// Entry that ran.
    pub entry: String,
    /// The instruction as written in the PTX.
    pub instruction: String,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// File and line of the source, where the PTX carries `.loc`.
    pub source: Option<(String, u32)>,
    /// Index of the CTA in the grid.
    pub cta: [u32; 3],
    /// Warp of the CTA.
    pub warp: u32,
    /// Lane that faulted, where one can be named.
    pub lane: Option<u32>,
}

/// A launch that went wrong: what, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// Where, unless the launch itself was refused.
    pub site: Option<Box<Site>>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        let Some(site) = &self.site else { return Ok(()) };
        write!(f, " at `{}`, PTX line {}", site.instruction, site.line)?;
        if let Some((file, line)) = &site.source {
            write!(f, " ({file}:{line})")?;
        }
        write!(f, ", entry {}, CTA {:?}, warp {}", site.entry, site.cta, site.warp)?;
        if let Some(lane) = site.lane {
            write!(f, ", lane {lane}")?;
        }
        Ok(())
    }
}

impl From<FaultKind> for Fault {
    fn from(kind: FaultKind) -> Self {
        Self { kind, site: None }
    }
}

/// A fault on its way up to where the instruction is known.
#[derive(Debug)]
pub(crate) struct Trap {
    pub kind: FaultKind,
    pub lane: Option<u32>,
}

/// Result of executing one instruction; boxed so that the good case stays one word.
pub(crate) type Exec<T = ()> = Result<T, Box<Trap>>;

impl From<FaultKind> for Box<Trap> {
    #[cold]
    fn from(kind: FaultKind) -> Self {
        Box::new(Trap { kind, lane: None })
    }
}

impl FaultKind {
    /// Names the lane that did it.
    #[cold]
    pub(crate) fn lane(self, lane: usize) -> Box<Trap> {
        Box::new(Trap { kind: self, lane: Some(lane as u32) })
    }
}
