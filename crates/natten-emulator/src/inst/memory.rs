//! Variants of memory operations, asynchronous ones included.

use super::Ty;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Ordering strength of a memory operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strength {
    /// An ordinary access: two of them from different warps need synchronisation between them.
    Weak,
    /// `.volatile` or `.relaxed`: may meet other strong accesses.
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

/// A load or a store; the address is slot `a` plus `imm`, the registers are the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub space: Space,
    /// The address register is 64 bits wide.
    pub wide_address: bool,
    /// Bytes per element.
    pub bytes: u8,
    /// Elements per lane: 1, 2, 4 or 8.
    pub count: u8,
    /// Sign-extend loads narrower than the register.
    pub signed: bool,
    /// Data registers are 64 bits wide.
    pub wide_data: bool,
    pub strength: Strength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Atomic {
    pub space: Space,
    pub wide_address: bool,
    pub op: AtomOp,
    pub ty: Ty,
    /// Elements per lane of a vector reduction.
    pub count: u8,
    pub strength: Strength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mbar {
    Init,
    Inval,
    /// Arrive with an optional count; `expect` first adds to the transaction count.
    Arrive {
        expect: bool,
        drop: bool,
        no_complete: bool,
    },
    ExpectTx,
    CompleteTx,
    /// Waits on a state token (`parity` false) or on a phase parity.
    Wait {
        parity: bool,
    },
    PendingCount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BulkReduce {
    None,
    Add(Ty),
    Min(Ty),
    Max(Ty),
}

/// `cp.async.bulk` and `cp.async.bulk.tensor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bulk {
    pub to_shared: bool,
    /// Source is shared memory as well (shared::cta to shared::cluster).
    pub from_shared: bool,
    pub rank: u8,
    pub reduce: BulkReduce,
    pub wide_shared: bool,
    pub wide_global: bool,
    pub wide_mbarrier: bool,
    /// Number of multicast mask operands (0 or 1).
    pub multicast: bool,
}
