//! To be filled: nothing asynchronous or tensor-like is decoded yet.
use crate::fault::WaitReason;
#[derive(Debug, Default)]
pub(crate) struct Mbarriers;
impl Mbarriers {
    pub(crate) fn clear(&mut self) {}
    pub(crate) fn fence_init(&mut self, _w: u32) {}
    pub(crate) fn wait_reason(&self, address: u32) -> WaitReason {
        WaitReason::Mbarrier { address, pending_arrivals: 0, pending_bytes: 0 }
    }
}
