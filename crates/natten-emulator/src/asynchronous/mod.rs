//! Asynchronous copies and the mbarriers they complete on.

pub(crate) mod bulk;
pub(crate) mod cp_async;
pub(crate) mod mbarrier;
pub(crate) mod tma;

use crate::fault::Exec;
use crate::machine::cta::Cta;

#[derive(Debug)]
pub(crate) struct Pending {
    pub warp: u32,
    pub pc: u32,
}

impl Cta<'_> {
    pub(crate) fn complete(&mut self, _pending: Pending) -> Exec {
        Ok(())
    }
}
