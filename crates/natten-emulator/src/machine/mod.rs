//! The machine: warps with their registers and divergence, the CTA that schedules them, and the
//! execution of every kind of instruction.

pub(crate) mod access;
pub(crate) mod atomics;
pub(crate) mod barrier;
pub(crate) mod collective;
pub(crate) mod cta;
pub(crate) mod execute;
pub(crate) mod registers;
pub(crate) mod rng;
pub(crate) mod schedule;
pub(crate) mod shared_access;
pub(crate) mod traffic;
pub(crate) mod warp;
pub(crate) mod watch;
