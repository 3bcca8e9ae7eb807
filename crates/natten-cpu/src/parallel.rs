//! Spreading tasks over threads, with scratch memory that each thread keeps.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::arch::prefetch::Ahead;
use crate::buffer::Buffer;
use crate::packed::Packed;
use crate::sighting::Sightings;
use crate::tasks::Spans;

/// Work below this many floating-point operations is done on the calling thread: waking others costs more.
const SERIAL_FLOPS: f64 = 4e6;

/// Buffers of a task, kept by the thread between tasks and calls. They grow to what a task of the largest tile
/// needs and no further.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Lanes of the tile, and a second operand of theirs in a backward.
    pub lanes: [Buffer; 2],
    /// Rows of the stream.
    pub stream: Packed,
    /// Rows of additional keys and values.
    pub additional: Packed,
    /// Numbers of the lanes: running maximum and sum, or log-sum-exp and delta.
    pub lane_scalars: [Buffer; 2],
    /// Sums of the lanes.
    pub sums: [Buffer; 2],
    /// Strips of a pair of groups.
    pub strips: [Buffer; 2],
    /// Strip of a group as words of two.
    pub words: Buffer,
    /// Rows on their way to vectors over lanes.
    pub stage: Buffer,
    /// What pairs see.
    pub sightings: Sightings,
    /// What will be read next.
    pub ahead: Ahead,
    /// What lanes see.
    pub spans: Spans,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How many threads share the tasks of a call of so many floating-point operations.
pub(crate) fn threads(pool: Option<&rayon::ThreadPool>, flops: f64) -> usize {
    match pool {
        _ if flops < SERIAL_FLOPS => 1,
        Some(pool) => pool.current_num_threads(),
        None => rayon::current_num_threads(),
    }
}

/// Runs `task` for each number below `count`, on the pool given, else the current one.
pub(crate) fn for_each_task(
    pool: Option<&rayon::ThreadPool>,
    count: usize,
    flops: f64,
    task: impl Fn(usize, &mut Scratch) + Sync,
) {
    let run = |index: usize| {
        // A thread that waits inside a task might start another one; it then gets buffers of its own.
        SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
            Ok(mut scratch) => task(index, &mut scratch),
            Err(_) => task(index, &mut Scratch::default()),
        });
    };
    if flops < SERIAL_FLOPS || count < 2 {
        return (0..count).for_each(run);
    }
    let parallel = || (0..count).into_par_iter().with_max_len(1).for_each(run);
    match pool {
        Some(pool) => pool.install(parallel),
        None => parallel(),
    }
}
