//! Broken rules of mbarriers and of `wgmma`.

use thiserror::Error;

/// Misuses of an mbarrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MbarrierProblem {
    /// Used before `mbarrier.init`.
    #[error("not initialised")]
    NotInitialised,
    /// Initialised twice with no `mbarrier.inval` in between.
    #[error("already initialised")]
    AlreadyInitialised,
    /// More arrivals than the phase expects.
    #[error("more arrivals than the phase expects")]
    ArrivalUnderflow,
    /// A count outside 1..=2^20-1.
    #[error("count out of range")]
    CountOutOfRange,
    /// The transaction count left its range.
    #[error("transaction count out of range")]
    TransactionOutOfRange,
    /// A wait for a phase more than one behind.
    #[error("the phase waited for is not the current or the previous one")]
    StalePhase,
}

/// Broken rules around `wgmma` registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WgmmaProblem {
    /// An accumulator read before `wgmma.wait_group`.
    #[error("accumulator read while in flight")]
    AccumulatorRead,
    /// An operand or accumulator written before `wgmma.wait_group`.
    #[error("register written while in flight")]
    OperandWritten,
    /// A register that another instruction touched after the last `wgmma.fence`, or no such fence yet.
    #[error("register used by another instruction since the last wgmma.fence, or no fence before")]
    MissingFence,
    /// `wgmma` outside a group of four aligned warps.
    #[error("the CTA has no complete warpgroup here")]
    IncompleteWarpgroup,
    /// The warps of a warpgroup issued different operations.
    #[error("the warps of the warpgroup issued different operations")]
    WarpsDisagree,
}
