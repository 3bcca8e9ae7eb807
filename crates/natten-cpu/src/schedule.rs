//! The tasks of a pass by number: which tile, batch item and heads each has.

use std::ops::Range;

use natten_core::Problem;

use crate::Cpu;
use crate::arch::{Kernel, Simd, dispatch};
use crate::blocking::{Blocking, Machine, Pass};
use crate::isa::Isa;
use crate::pack::Tokens;
use crate::parallel::{Scratch, threads};
use crate::tasks::{Box3, Boxes, TileBox, Tiles, cut};

/// The tasks of a pass.
pub(crate) struct Schedule<'a> {
    problem: &'a Problem,
    /// The blocks that tasks work in.
    pub blocking: Blocking,
    tiles: Tiles,
    inverse: bool,
    /// Whether rows are worth a prefetch: the pass's tensors are too large to wait in a last-level cache, or rows too far
    /// apart for what a processor fetches by itself.
    pub prefetches_rows: bool,
}

/// Bytes of a pass's tensors above which they are not taken to wait in a last-level cache, which others share. Fetching
/// rows of the stream ahead is worth a tenth then, and costs a twentieth where they do.
const PREFETCH_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

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
    /// Cuts the lanes of a pass.
    pub(crate) fn new(cpu: &Cpu, isa: Isa, problem: &'a Problem, pass: Pass) -> Self {
        let vectors = dispatch(isa, VectorShape);
        let row = |width: usize| 4 * width.next_multiple_of(vectors.wide);
        let row_bytes = row(problem.head_dim()) + row(problem.head_dim_v());
        let threads = threads(cpu.pool(), problem.useful_flops());
        let blocking = Blocking::choose(problem, pass, &Machine { lanes: vectors.lanes, row_bytes, threads });
        let inverse = pass == Pass::Keys;
        // In floating point: a view without strides may claim more than there is memory for.
        let rows = |tokens: usize, heads: usize| tokens as f64 * (problem.batch() * heads) as f64;
        let rows =
            rows(problem.query_tokens(), problem.heads()) + rows(problem.key_tokens(), problem.heads_kv());
        let row = (problem.head_dim() + problem.head_dim_v()) * problem.element_type().size_bytes();
        let bytes = rows * row as f64 * if pass == Pass::Forward { 1.0 } else { 2.0 };
        let dilated = problem.axes().iter().any(|axis| axis.dilation > 1);
        let tiles = Tiles::new(problem, blocking.tile, inverse);
        Schedule { problem, tiles, blocking, inverse, prefetches_rows: bytes > PREFETCH_BYTES || dilated }
    }

    /// How many tasks there are.
    pub(crate) fn len(&self) -> usize {
        self.problem.batch() * self.tiles.len() * self.problem.heads_kv() * self.chunks()
    }

    fn chunks(&self) -> usize {
        self.problem.heads_per_kv().div_ceil(self.blocking.heads)
    }

    /// Forgets what another task has packed, and looks at what this one will see.
    pub(crate) fn begin(&self, place: &Place, scratch: &mut Scratch) {
        scratch.spans.of_tile(&place.tile);
        let mut room = [0; 2];
        if let Some(w) = self.blocking.walk() {
            let whole = scratch.spans.all();
            let most = place.chunks(&self.blocking).map(|tile| tile[w].seen().len()).max();
            room = [whole[0].len(), whole[1].len()];
            room[w] = most.unwrap_or(0);
        }
        scratch.stream.begin(room);
        scratch.additional.begin([0; 2]);
    }

    /// Looks at what a chunk sees.
    pub(crate) fn look(&self, tile: &TileBox, scratch: &mut Scratch) {
        if let Some(w) = self.blocking.walk() {
            scratch.spans.of_axis(w, &tile[w]);
        }
    }

    /// The boxes of the stream in which a chunk that sees `all` takes it.
    pub(crate) fn boxes(&self, all: &Box3) -> Boxes {
        match self.blocking.walk() {
            Some(_) => cut(all, usize::MAX, usize::MAX),
            None => cut(all, self.blocking.stream, 512),
        }
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

impl Place {
    /// The parts of the tile, in the order of the walk.
    pub(crate) fn chunks(&self, blocking: &Blocking) -> impl Iterator<Item = TileBox> + use<> {
        let (tile, step, w) = (self.tile.clone(), blocking.step, blocking.walk().unwrap_or(0));
        let end = tile[w].lanes.end;
        tile[w].lanes.clone().step_by(step[w]).map(move |start| {
            let mut chunk = tile.clone();
            chunk[w].lanes = start..(start + step[w]).min(end);
            chunk
        })
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
