//! Variants of what a warp does together: exchange, barriers, matrix products.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// A named-barrier operation: slot `a` is the barrier, slot `b` the thread count or `NONE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub kind: BarKind,
    pub aligned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fence {
    /// `membar` and `fence.sc` / `fence.acq_rel`.
    Memory,
    /// `fence.proxy.async`: orders generic accesses before the asynchronous proxy.
    ProxyAsync,
    /// `fence.mbarrier_init`: makes initialised mbarriers visible to the asynchronous proxy.
    MbarrierInit,
    /// Other proxies, which need no model here.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaType {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync` m16n8kK; the list is D, A, B, C in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mma {
    pub ty: MmaType,
    pub k: u8,
    /// D and C hold f16 pairs instead of f32.
    pub half_accumulators: bool,
}

/// `wgmma.mma_async` m64nN; the list is D followed by A when that is in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wgmma {
    pub ty: MmaType,
    pub n: u16,
    pub half_accumulators: bool,
    pub a_in_registers: bool,
    pub negate_a: bool,
    pub negate_b: bool,
    pub transpose_a: bool,
    pub transpose_b: bool,
}
