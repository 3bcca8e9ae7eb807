//! Spreading tasks over threads, each compiled for the instructions chosen, with scratch memory that each thread keeps.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Cpu;
use crate::arch::prefetch::PrefetchQueue;
use crate::arch::{Kernel, Simd, dispatch, dispatch_tiles};
use crate::boxes::TileWindows;
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::packed::PackedRows;
use crate::tile_in_flight::TilesInFlight;
use crate::tile_mask::TileMasks;

/// Work below this many floating-point operations is done on the calling thread: waking others costs more.
const SERIAL_FLOPS: f64 = 4e6;

/// Buffers of a task, kept by the thread between tasks and calls. They grow to what a task of the largest tile
/// needs and no further.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Lanes of the tile, and a second operand of theirs in a backward.
    pub lanes: [Buffer; 2],
    /// Packed rows.
    pub packed: PackedRows,
    /// Packed rows of additional keys and values.
    pub packed_additional: PackedRows,
    /// Numbers of the lanes: running maximum and sum, or log-sum-exp and delta.
    pub lane_scalars: [Buffer; 2],
    /// Sums of the lanes.
    pub sums: [Buffer; 2],
    /// Score tiles of a pair of groups: scores, and in a backward products with values.
    pub score_tiles: [Buffer; 2],
    /// Weights of a group as words of two.
    pub words: Buffer,
    /// Score tiles of a unit that multiplies tiles.
    pub tiles_in_flight: TilesInFlight,
    /// Rows on their way to vectors over lanes.
    pub stage: Buffer,
    /// Mask patterns.
    pub tile_masks: TileMasks,
    /// Rows to fetch while the products run.
    pub prefetch: PrefetchQueue,
    /// The windows of the lanes.
    pub windows: TileWindows,
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

/// The tasks of a pass.
pub(crate) trait Tasks: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// Runs task number `index`. Implementations are `#[inline(always)]`, as [`Kernel::run`]'s are.
    fn run<S: Simd>(&self, simd: S, index: usize, scratch: &mut Scratch);
}

/// Runs all tasks, of so many floating-point operations, with the given instructions.
pub(crate) fn run_tasks(cpu: &Cpu, isa: Isa, flops: f64, tasks: &impl Tasks) {
    for_each_task(cpu.pool(), tasks.count(), flops, |index, scratch| {
        dispatch(isa, OneTask { tasks, index, scratch });
    });
}

/// [`run_tasks`] with the tiles of such instructions.
pub(crate) fn run_tile_tasks(cpu: &Cpu, isa: Isa, flops: f64, tasks: &impl Tasks) {
    for_each_task(cpu.pool(), tasks.count(), flops, |index, scratch| {
        dispatch_tiles(isa, OneTask { tasks, index, scratch });
    });
}

/// One of them, to be compiled for each instruction set.
struct OneTask<'a, T> {
    tasks: &'a T,
    index: usize,
    scratch: &'a mut Scratch,
}

impl<T: Tasks> Kernel for OneTask<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.tasks.run(simd, self.index, self.scratch);
    }
}

/// Runs `task` for each number below `count`, on the caller's thread and the pool given, else the current one.
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
    let threads = threads(pool, flops).min(count);
    if threads < 2 {
        return (0..count).for_each(run);
    }
    let (shares, arrived) = (Shares::new(count, threads), AtomicUsize::new(0));
    let work = || shares.take_from(arrived.fetch_add(1, Ordering::Relaxed)).for_each(run);
    match pool {
        Some(pool) => pool.in_place_scope(|scope| share(scope, threads, &work)),
        None => rayon::in_place_scope(|scope| share(scope, threads, &work)),
    }
}

/// Works on this many threads, the caller's among them: it begins at once, and waits for the others only at the end.
fn share<'a>(scope: &rayon::Scope<'a>, threads: usize, work: &'a (dyn Fn() + Sync)) {
    (1..threads).for_each(|_| scope.spawn(move |_| work()));
    work();
}

/// Tasks by number, as many neighbours for each thread: one task fetches ahead for the next, and they share pages.
struct Shares {
    /// The first task of each share that nobody has taken.
    next: Vec<AtomicUsize>,
    count: usize,
}

impl Shares {
    fn new(count: usize, threads: usize) -> Self {
        let next = (0..threads).map(|thread| AtomicUsize::new(count * thread / threads)).collect();
        Shares { next, count }
    }

    /// The tasks of a thread: those of its share, then what is left of others'.
    fn take_from(&self, thread: usize) -> impl Iterator<Item = usize> {
        let threads = self.next.len();
        (0..threads).map(move |i| (thread + i) % threads).flat_map(move |share| {
            let end = self.count * (share + 1) / threads;
            let accumulate =
                move || Some(self.next[share].fetch_add(1, Ordering::Relaxed)).filter(|&task| task < end);
            std::iter::from_fn(accumulate)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_taken_once() {
        for (count, threads) in [(1, 1), (7, 3), (16, 4), (3, 5), (100, 16)] {
            let shares = Shares::new(count, threads);
            let first: Vec<_> = shares.take_from(threads - 1).take(count / 2).collect();
            let mut all: Vec<_> =
                (0..threads).flat_map(|thread| shares.take_from(thread)).chain(first).collect();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>(), "{count} boxes, {threads} threads");
        }
    }
}
