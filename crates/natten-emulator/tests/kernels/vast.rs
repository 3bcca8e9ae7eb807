//! The emulator's memory as tests on tensors larger than any memory use it.

use natten_emulator::Emulated;
use natten_tests::Watched;
use natten_tests::vast::{Ctas, Vast};

/// An emulated device that is watched, with its memory.
pub struct Sparse(pub Watched<Emulated>);

impl Vast<Watched<Emulated>> for Sparse {
    fn reserve(&self, bytes: u64) -> u64 {
        self.0.inner().memory().alloc_sparse(bytes)
    }

    fn release(&self, address: u64) {
        self.0.inner().memory().free(address).expect("reserved before");
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.0.inner().memory().write(address, bytes).expect("inside what was reserved");
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let memory = self.0.inner().memory();
        let is_written = memory.is_initialised(address, bytes.len()).expect("inside what was reserved");
        if is_written {
            memory.read(address, bytes).expect("inside what was reserved");
        }
        is_written
    }

    fn run_only(&self, ctas: Option<Ctas>) {
        self.0.inner().run_only(ctas);
    }

    fn of_many_multiprocessors(&self) -> Watched<Emulated> {
        self.0.clone().of_multiprocessors(1 << 30)
    }
}
