//! The tasks of a pass by number: which tile, batch item and heads each has.

use std::ops::Range;

use natten_core::Problem;

use crate::arch::{Kernel, Simd, dispatch};
use crate::blocking::Blocking;
use crate::isa::Isa;
use crate::pack::Tokens;
use crate::tasks::{TileBox, Tiles};

/// The tasks of a pass.
pub(crate) struct Schedule<'a> {
    problem: &'a Problem,
    /// The blocks that tasks work in.
    pub blocking: Blocking,
    tiles: Tiles,
    /// Lanes are keys, and a task has all heads that read them.
    inverse: bool,
}

/// What a task works on.
pub(crate) struct Place {
    /// Its lanes.
    pub tile: TileBox,
    /// Its batch item.
    pub batch: usize,
    /// Its head of keys and values.
    pub head_kv: usize,
    /// Its heads of queries.
    pub heads: Range<usize>,
}

impl<'a> Schedule<'a> {
    /// Cuts queries, or keys if `inverse`.
    pub(crate) fn new(isa: Isa, problem: &'a Problem, inverse: bool) -> Self {
        let vectors = dispatch(isa, VectorShape);
        let row = |width: usize| 4 * width.next_multiple_of(vectors.wide);
        let row_bytes = row(problem.head_dim()) + row(problem.head_dim_v());
        let mut blocking = Blocking::choose(problem, vectors.lanes, row_bytes);
        if inverse {
            blocking.heads = problem.heads_per_kv();
        }
        Schedule { problem, tiles: Tiles::new(problem, blocking.tile, inverse), blocking, inverse }
    }

    /// How many tasks there are.
    pub(crate) fn len(&self) -> usize {
        self.problem.batch() * self.tiles.len() * self.problem.heads_kv() * self.chunks()
    }

    fn chunks(&self) -> usize {
        self.problem.heads_per_kv().div_ceil(self.blocking.heads)
    }

    /// Task number `index`. Heads vary fastest: neighbouring heads of a token share pages of memory.
    pub(crate) fn place(&self, index: usize) -> Place {
        let per_kv = self.problem.heads_per_kv();
        let (rest, chunk) = (index / self.chunks(), index % self.chunks());
        let (rest, head_kv) = (rest / self.problem.heads_kv(), rest % self.problem.heads_kv());
        let (batch, tile) = (rest / self.tiles.len(), rest % self.tiles.len());
        let first = chunk * self.blocking.heads;
        let last = (first + self.blocking.heads).min(per_kv);
        Place {
            tile: self.tiles.get(tile, self.blocking.tile, self.inverse),
            batch,
            head_kv,
            heads: head_kv * per_kv + first..head_kv * per_kv + last,
        }
    }
}

/// Tokens of a tile's lanes, counted from its first lane.
pub(crate) fn lane_tokens(tile: &TileBox, batch: usize, head: usize) -> Tokens {
    let start = std::array::from_fn(|a| tile[a].lane_token + tile[a].lanes.start * tile[a].dilation);
    Tokens { start, step: std::array::from_fn(|a| tile[a].dilation), batch, head }
}

/// Tokens of the stream that a tile sees.
pub(crate) fn stream_tokens(tile: &TileBox, batch: usize, head: usize) -> Tokens {
    let (start, step) = (tile.each_ref().map(|a| a.stream_token), tile.each_ref().map(|a| a.dilation));
    Tokens { start, step, batch, head }
}

/// Tokens that are neither shifted nor dilated: additional keys, or all queries.
pub(crate) fn plain_tokens(batch: usize, head: usize) -> Tokens {
    Tokens { start: [0; 3], step: [1; 3], batch, head }
}

/// Asks for the lengths of an instruction set's vectors.
struct VectorShape;

struct VectorLengths {
    lanes: usize,
    wide: usize,
}

impl Kernel for VectorShape {
    type Output = VectorLengths;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> VectorLengths {
        VectorLengths { lanes: S::LANES, wide: S::WIDE }
    }
}

/// Additional keys in a tile of the pass over them.
pub(crate) const ADDITIONAL_TILE: usize = 32;
