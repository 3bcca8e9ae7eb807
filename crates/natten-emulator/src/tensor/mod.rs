//! To be filled: nothing asynchronous or tensor-like is decoded yet.
pub(crate) mod wgmma;
use crate::fault::{Exec, FaultKind};
use crate::inst::Inst;
use crate::machine::{cta::Cta, execute::Flow, warp::Warp};
impl Cta<'_> {
    pub(crate) fn check_in_flight(&mut self, _w: &mut Warp, _i: &Inst) -> Exec {
        Ok(())
    }
    pub(crate) fn registers_fit(&self, _w: &Warp, _count: u32) -> bool {
        true
    }
    pub(crate) fn execute_tensor(&mut self, _w: &mut Warp, _i: &Inst, _m: u32) -> Exec<Flow> {
        Err(FaultKind::Trap.into())
    }
}
