//! The tasks of a pass by number: which lanes, batch item and heads each has.

use std::ops::Range;

use natten_core::{ElementType, Problem};

use crate::Cpu;
use crate::arch::{Kernel, Simd, dispatch};
use crate::blocking::{Blocking, Machine, Pass};
use crate::boxes::{Box3, Boxes, LaneBox, TaskBoxes, cut};
use crate::isa::Isa;
use crate::pack::Tokens;
use crate::parallel::{Scratch, threads};

/// The tasks of a pass.
pub(crate) struct Schedule<'a> {
    problem: &'a Problem,
    /// Its block sizes.
    pub blocking: Blocking,
    boxes: TaskBoxes,
    inverse: bool,
    /// Most rows of a line of a row block.
    longest_line: usize,
    /// Whether rows are worth a prefetch: the pass's tensors are too large to wait in a last-level cache, or rows too far
    /// apart for what a processor fetches by itself.
    pub prefetches_rows: bool,
}

/// Bytes of a pass's tensors above which they are not taken to wait in a last-level cache, which others share. Fetching
/// rows ahead is worth a tenth then, and costs a twentieth where they do.
const PREFETCH_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

/// What a task works on.
pub(crate) struct Task {
    /// Its lanes.
    pub lanes: LaneBox,
    /// Its batch item.
    pub batch: usize,
    /// Its head of keys and values.
    pub head_kv: usize,
    /// Its heads of queries.
    pub heads: Range<usize>,
}

impl<'a> Schedule<'a> {
    /// Cuts the lanes of a pass.
    pub(crate) fn new(cpu: &Cpu, vectors: &Vectors, problem: &'a Problem, pass: Pass) -> Self {
        let threads = threads(cpu.pool(), problem.useful_flops());
        let blocking = Blocking::choose(problem, pass, &vectors.machine(problem, threads));
        let inverse = pass == Pass::Keys;
        // In floating point: a view without strides may claim more than there is memory for.
        let rows = |tokens: usize, heads: usize| tokens as f64 * (problem.batch() * heads) as f64;
        let rows =
            rows(problem.query_tokens(), problem.heads()) + rows(problem.key_tokens(), problem.heads_kv());
        let row = (problem.head_dim() + problem.head_dim_v()) * problem.element_type().size_bytes();
        let bytes = rows * row as f64 * if pass == Pass::Forward { 1.0 } else { 2.0 };
        let dilated = problem.axes().iter().any(|axis| axis.dilation > 1);
        let boxes = TaskBoxes::new(problem, blocking.task, inverse);
        Schedule {
            problem,
            boxes,
            blocking,
            inverse,
            longest_line: if vectors.tiles { 1024 } else { 512 },
            prefetches_rows: bytes > PREFETCH_BYTES || dilated,
        }
    }

    /// How many tasks there are.
    pub(crate) fn len(&self) -> usize {
        self.problem.batch() * self.boxes.len() * self.problem.heads_kv() * self.head_chunks()
    }

    fn head_chunks(&self) -> usize {
        self.problem.heads_per_kv().div_ceil(self.blocking.heads)
    }

    /// Forgets what another task has packed, and reads the windows of this one.
    pub(crate) fn begin_task(&self, task: &Task, scratch: &mut Scratch) {
        scratch.windows.read_tile(&task.lanes);
        let mut capacity = [0; 2];
        if let Some(w) = self.blocking.walk() {
            let whole = scratch.windows.all();
            let most = task.tiles(&self.blocking).map(|tile| tile[w].seen().len()).max();
            capacity = [whole[0].len(), whole[1].len()];
            capacity[w] = most.unwrap_or(0);
        }
        scratch.packed.reset(capacity);
        scratch.packed_additional.reset([0; 2]);
    }

    /// Reads the windows of a tile.
    pub(crate) fn begin_tile(&self, tile: &LaneBox, scratch: &mut Scratch) {
        if let Some(w) = self.blocking.walk() {
            scratch.windows.read_axis(w, &tile[w]);
        }
    }

    /// The row blocks in which a tile that sees `all` goes through it.
    pub(crate) fn row_blocks(&self, all: &Box3) -> Boxes {
        match self.blocking.walk() {
            Some(_) => cut(all, usize::MAX, usize::MAX),
            None => cut(all, self.blocking.row_block, self.longest_line),
        }
    }

    /// Task number `index`. Heads vary fastest: neighbouring heads of a token share pages of memory.
    pub(crate) fn task(&self, index: usize) -> Task {
        let per_kv = self.problem.heads_per_kv();
        let (rest, chunk) = (index / self.head_chunks(), index % self.head_chunks());
        let (rest, head_kv) = (rest / self.problem.heads_kv(), rest % self.problem.heads_kv());
        let (batch, number) = (rest / self.boxes.len(), rest % self.boxes.len());
        let first = chunk * self.blocking.heads;
        let last = (first + self.blocking.heads).min(per_kv);
        Task {
            lanes: self.boxes.get(number, self.blocking.task, self.inverse),
            batch,
            head_kv,
            heads: head_kv * per_kv + first..head_kv * per_kv + last,
        }
    }
}

impl Task {
    /// Its tiles, in the order of the walk.
    pub(crate) fn tiles(&self, blocking: &Blocking) -> impl Iterator<Item = LaneBox> + use<> {
        let (task, tile, w) = (self.lanes.clone(), blocking.tile, blocking.walk().unwrap_or(0));
        let end = task[w].lanes.end;
        task[w].lanes.clone().step_by(tile[w]).map(move |start| {
            let mut lanes = task.clone();
            lanes[w].lanes = start..(start + tile[w]).min(end);
            lanes
        })
    }
}

/// Tokens of a box's lanes, counted from its first lane.
pub(crate) fn lane_tokens(lanes: &LaneBox, batch: usize, head: usize) -> Tokens {
    let start = std::array::from_fn(|a| lanes[a].lane_token + lanes[a].lanes.start * lanes[a].dilation);
    Tokens { start, step: std::array::from_fn(|a| lanes[a].dilation), batch, head }
}

/// Tokens of the rows that a box of lanes sees.
pub(crate) fn row_tokens(lanes: &LaneBox, batch: usize, head: usize) -> Tokens {
    let (start, step) = (lanes.each_ref().map(|a| a.row_token), lanes.each_ref().map(|a| a.dilation));
    Tokens { start, step, batch, head }
}

/// Tokens that are neither shifted nor dilated: additional keys, or all queries.
pub(crate) fn plain_tokens(batch: usize, head: usize) -> Tokens {
    Tokens { start: [0; 3], step: [1; 3], batch, head }
}

/// What tasks compute with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vectors {
    /// Lanes of a group.
    lanes: usize,
    /// Components of a vector.
    wide: usize,
    /// Bytes of a packed component.
    component_bytes: usize,
    /// Whether tiles multiply.
    pub tiles: bool,
}

impl Vectors {
    /// Tiles of bf16, and the vectors beside them.
    pub(crate) const BESIDE_TILES: Vectors = Vectors { lanes: 16, wide: 32, component_bytes: 2, tiles: true };

    /// What blocks are chosen for.
    pub(crate) fn machine(&self, problem: &Problem, threads: usize) -> Machine {
        let row = |width: usize| self.component_bytes * width.next_multiple_of(self.wide);
        let row_bytes = row(problem.head_dim()) + row(problem.head_dim_v());
        Machine { lanes: self.lanes, tiles: self.tiles, row_bytes, threads }
    }

    /// Those of a forward on tensors of an element type.
    pub(crate) fn of_forward(isa: Isa, element_type: ElementType) -> Self {
        let has_tiles = isa.has_tiles() && element_type == ElementType::Bf16;
        if has_tiles { Vectors::BESIDE_TILES } else { Vectors::of(isa) }
    }

    /// Those of an instruction set.
    pub(crate) fn of(isa: Isa) -> Self {
        dispatch(isa, VectorsOf)
    }
}

/// Asks for the lengths of an instruction set's vectors.
struct VectorsOf;

impl Kernel for VectorsOf {
    type Output = Vectors;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vectors {
        Vectors { lanes: S::LANES, wide: S::WIDE, component_bytes: size_of::<f32>(), tiles: false }
    }
}
