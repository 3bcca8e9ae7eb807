//! One task of the forward: its query tiles, one after the other, each over its keys and then over the additional ones.

use natten_core::{Element, ElementType};

use super::Call;
use super::tile::TileState;
use super::tiled::TiledState;
use crate::arch::rows::Rows;
use crate::arch::{Kernel, Simd};
use crate::boxes::{Box3, LaneBox, cut};
use crate::groups::Groups;
use crate::pack::Tokens;
use crate::packed::PackedRows;
use crate::parallel::{Scratch, Tasks};
use crate::prefetch::Prefetcher;
use crate::schedule::{Task, plain_tokens, row_tokens};

/// A query tile on its way through its keys. Lanes, sums and running maxima are in the scratch buffers, all groups of
/// the first head before those of the next.
pub(super) trait QueryTile: Sized {
    /// Packs the queries and clears maxima and denominators.
    fn begin<S: Simd, E: Element>(
        simd: S,
        call: &Call<'_, E>,
        task_and_tile: (&Task, &LaneBox),
        groups: Groups,
        scratch: &mut Scratch,
    ) -> Self;

    /// Packs the keys and values that are missing.
    fn pack<S: Simd, E: Element>(
        &self,
        simd: S,
        keys_and_values: [&Rows<'_, E>; 2],
        tokens: &Tokens,
        missing: &Box3,
        packed: &mut PackedRows,
    );

    /// Takes the packed row block, of additional keys or others, into every group's softmax.
    fn attend<S: Simd>(&self, simd: S, additional: bool, scratch: &mut Scratch);

    /// Divides by the denominators and writes the tile.
    fn finish<S: Simd, E: Element>(
        &self,
        simd: S,
        call: &Call<'_, E>,
        task: &Task,
        tile: &LaneBox,
        scratch: &mut Scratch,
    );
}

impl<E: Element> Tasks for Call<'_, E> {
    fn count(&self) -> usize {
        self.schedule.len()
    }

    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, index: usize, scratch: &mut Scratch) {
        if S::TILES {
            simd.with_tiles(TiledTask { call: self, index, scratch });
        } else if S::BF16_DOT && E::TYPE == ElementType::Bf16 {
            run_task::<S, E, TileState<true>>(simd, self, index, scratch);
        } else {
            run_task::<S, E, TileState<false>>(simd, self, index, scratch);
        }
    }
}

/// A task on tiles, as a function of its own.
struct TiledTask<'a, 'c, E> {
    call: &'a Call<'c, E>,
    index: usize,
    scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for TiledTask<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        run_task::<S, E, TiledState>(simd, self.call, self.index, self.scratch);
    }
}

#[inline(always)]
fn run_task<S: Simd, E: Element, T: QueryTile>(
    simd: S,
    call: &Call<'_, E>,
    index: usize,
    scratch: &mut Scratch,
) {
    let schedule = &call.schedule;
    let task = schedule.task(index);
    let prefetcher = Prefetcher {
        schedule,
        rows: &[&call.key, &call.value],
        lanes: &[&call.query],
        written: &[&call.out],
        index,
    };
    schedule.begin_task(&task, scratch);
    let mut tiles = task.tiles(&schedule.blocking).peekable();
    while let Some(tile) = tiles.next() {
        schedule.begin_tile(&tile, scratch);
        let groups = Groups::new(schedule.blocking.group, tile.each_ref().map(|axis| axis.lanes.len()));
        let state = T::begin(simd, call, (&task, &tile), groups, scratch);
        let tokens = row_tokens(&tile, task.batch, task.head_kv);
        let mut row_blocks = schedule.row_blocks(&scratch.windows.all()).peekable();
        while let Some(row_block) = row_blocks.next() {
            let missing = scratch.packed.advance(&row_block);
            state.pack(simd, [&call.key, &call.value], &tokens, &missing, &mut scratch.packed);
            prefetcher.queue_next(&task, &tile, (row_blocks.peek(), tiles.peek()), scratch);
            state.attend(simd, false, scratch);
        }
        if let Some([keys, values]) = &call.additional {
            let all = [0..1, 0..1, 0..call.problem.additional_keys()];
            let tokens = plain_tokens(task.batch, task.head_kv);
            scratch.windows.set_all(&tile, &all);
            for row_block in cut(&all, schedule.blocking.row_block, 512) {
                let missing = scratch.packed_additional.advance(&row_block);
                state.pack(simd, [keys, values], &tokens, &missing, &mut scratch.packed_additional);
                state.attend(simd, true, scratch);
            }
            scratch.windows.read_tile(&tile);
        }
        state.finish(simd, call, &task, &tile, scratch);
    }
}
