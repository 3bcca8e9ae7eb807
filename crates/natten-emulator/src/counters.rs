//! What a launch did, counted: the numbers that performance tests assert on without a GPU.

use std::ops::AddAssign;

/// Kind of a warp instruction, by the unit that would execute it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Integer, logic, moves, selects and compares.
    Integer,
    /// Floating-point add, multiply, fused multiply-add, min and max.
    Float,
    /// The special function unit: reciprocal, square root, exponential, logarithm, sine.
    Special,
    /// Conversions between types.
    Convert,
    /// Loads from global memory.
    LoadGlobal,
    /// Stores to global memory.
    StoreGlobal,
    /// Loads from shared memory, `ldmatrix` included.
    LoadShared,
    /// Stores to shared memory, `stmatrix` included.
    StoreShared,
    /// Local, parameter and constant memory.
    OtherMemory,
    /// Atomics and reductions in memory.
    Atomic,
    /// Tensor-core instructions.
    Mma,
    /// Asynchronous copies, their commits and waits.
    AsyncCopy,
    /// Shuffles, votes and other exchange between lanes.
    Collective,
    /// Barriers, fences and mbarriers.
    Sync,
    /// Branches and exits.
    Control,
}

/// All classes in the order they are printed.
pub const CLASSES: [Class; 15] = [
    Class::Integer,
    Class::Float,
    Class::Special,
    Class::Convert,
    Class::LoadGlobal,
    Class::StoreGlobal,
    Class::LoadShared,
    Class::StoreShared,
    Class::OtherMemory,
    Class::Atomic,
    Class::Mma,
    Class::AsyncCopy,
    Class::Collective,
    Class::Sync,
    Class::Control,
];

/// Sums over a launch. The same launch with the same seed gives the same counters, except that a
/// spinning wait may be tried a different number of times under another seed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    by_class: [u64; 15],
    /// CTAs run.
    pub ctas: u64,
    /// Instructions times enabled lanes.
    pub thread_instructions: u64,
    /// Floating-point operations of tensor-core instructions, two per multiply-add.
    pub mma_flops: u64,
    /// Bytes read from global memory by lanes and by asynchronous copies.
    pub global_load_bytes: u64,
    /// Bytes written to global memory, atomics included.
    pub global_store_bytes: u64,
    /// 32-byte sectors touched by loads, counted once per warp request.
    pub global_load_sectors: u64,
    /// 32-byte sectors touched by stores, counted once per warp request.
    pub global_store_sectors: u64,
    /// Bytes read from shared memory by lanes.
    pub shared_load_bytes: u64,
    /// Bytes written to shared memory by lanes.
    pub shared_store_bytes: u64,
    /// Passes over the 32 shared-memory banks that conflicts add to the least possible number.
    pub shared_bank_conflicts: u64,
    /// Which instructions ran, where that was asked for.
    pub coverage: Coverage,
}

/// Which instructions of a kernel ran, by their numbers in its text. Empty unless recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Bit 0: reached by some lane; bit 1: by one that its guard lets through.
    flags: Vec<u8>,
}

impl Coverage {
    pub(crate) fn of(instructions: usize) -> Self {
        Coverage { flags: vec![0; instructions] }
    }

    #[inline(always)]
    pub(crate) fn note(&mut self, instruction: u32, lanes: u32) {
        if let Some(flags) = self.flags.get_mut(instruction as usize) {
            *flags |= 1 | u8::from(lanes != 0) << 1;
        }
    }

    /// Whether a lane came to this instruction, its guard aside.
    pub fn reached(&self, instruction: usize) -> bool {
        self.flags.get(instruction).is_some_and(|flags| flags & 1 != 0)
    }

    /// Whether a lane executed this instruction.
    pub fn executed(&self, instruction: usize) -> bool {
        self.flags.get(instruction).is_some_and(|flags| flags & 2 != 0)
    }
}

impl AddAssign<&Coverage> for Coverage {
    fn add_assign(&mut self, other: &Coverage) {
        self.flags.resize(self.flags.len().max(other.flags.len()), 0);
        self.flags.iter_mut().zip(&other.flags).for_each(|(flags, others)| *flags |= others);
    }
}

impl Counters {
    /// Warp instructions of one class.
    pub fn instructions(&self, class: Class) -> u64 {
        self.by_class[class as usize]
    }

    /// Warp instructions of all classes.
    pub fn warp_instructions(&self) -> u64 {
        self.by_class.iter().sum()
    }

    pub(crate) fn count(&mut self, class: Class, lanes: u32) {
        self.by_class[class as usize] += 1;
        self.thread_instructions += u64::from(lanes);
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        for (sum, count) in self.by_class.iter_mut().zip(other.by_class) {
            *sum += count;
        }
        self.ctas += other.ctas;
        self.thread_instructions += other.thread_instructions;
        self.mma_flops += other.mma_flops;
        self.global_load_bytes += other.global_load_bytes;
        self.global_store_bytes += other.global_store_bytes;
        self.global_load_sectors += other.global_load_sectors;
        self.global_store_sectors += other.global_store_sectors;
        self.shared_load_bytes += other.shared_load_bytes;
        self.shared_store_bytes += other.shared_store_bytes;
        self.shared_bank_conflicts += other.shared_bank_conflicts;
        self.coverage += &other.coverage;
    }
}
