//! Tensors too large for any memory, on a device whose memory exists where it is written: rows further apart than 32 bits can
//! count, and problems of which only both ends are there.

use std::sync::Arc;

use natten::{AxisParams, DynParams, Element, Inputs, KernelSizePolicy, Layout, Problem};

/// What an emulated device can and a real one cannot.
pub trait Vast<D>: Send + Sync {
    /// Address space in which nothing exists yet.
    fn reserve(&self, bytes: u64) -> u64;

    /// Gives it back.
    fn release(&self, address: u64);

    /// Writes there.
    fn write(&self, address: u64, bytes: &[u8]);

    /// Reads what was written; false, and `bytes` as it was, where nobody wrote.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;

    /// From now on only these ctas of a launch run, or all again.
    fn run_only(&self, ctas: Option<Ctas>);

    /// The device, passing for one of so many multiprocessors that each has at most one tile of work.
    fn of_many_multiprocessors(&self) -> D;
}

/// Of an entry and its grid: numbers of ctas, x fastest.
pub type Ctas = Arc<dyn Fn(&str, [u32; 3]) -> Vec<u32> + Send + Sync>;

/// An axis of the operator; heads are those of keys, each with the query heads that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// Batch items.
    Batch,
    /// The third token axis from the end, where there are three.
    X,
    /// The second from the end.
    Y,
    /// The last token axis.
    Z,
    /// Heads.
    Heads,
}

/// How tensors lie in vast memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// A step along either of these axes is beyond 32 bits, along the first the longest.
    Apart([Along; 2]),
    /// Between the first and the second half of this axis there are so many more, which nobody reads or writes.
    Longer(Along, usize),
}

/// Ctas at either end of a grid that run where a token axis is longer: enough for a whole tile of rows.
const CTAS: u32 = 2;

/// Tokens at either end of a longer axis: what those ctas have, of so many rows each, and what these see beyond them.
pub fn end(rows: usize, beyond: usize) -> usize {
    CTAS as usize * rows + beyond
}

/// Rows that a cta of a kernel on rows takes.
const ROWS_OF_CTA: usize = 4;

/// Bytes of a step beyond 32 bits, counted in elements of four bytes, too: more than signed words hold, with a carry out of the low
/// word every other time.
const STEP: usize = (1 << 33) + (1 << 31) + (3 << 16);

/// What a tensor is to a problem.
#[derive(Clone, Copy, Debug)]
pub struct Of {
    /// `[batch, n, heads, ..]` of additional keys, whose tokens are no place in the mask.
    pub is_list: bool,
    /// Whether the last axis is a row's.
    pub has_dim: bool,
    /// Heads that share one of the keys'.
    pub sharing: usize,
}

/// Where the elements of a host tensor are in vast memory.
#[derive(Clone, Debug)]
pub struct Lay {
    /// Of the tensor as the device is told.
    pub layout: Layout,
    /// Its first element, in bytes after the beginning.
    pub first: u64,
    /// Of all of it, in bytes.
    pub bytes: u64,
    /// An axis, from where on its tokens are later, and how much.
    gap: Option<(usize, usize, usize)>,
    has_dim: bool,
}

impl Along {
    /// Its number among the axes of a tensor with so many before the row's.
    pub fn of(self, axes: usize) -> Option<usize> {
        let tokens = |from_heads: usize| (axes - 1).checked_sub(from_heads).filter(|&axis| axis > 0);
        match self {
            Along::Batch => Some(0),
            Along::X => tokens(3),
            Along::Y => tokens(2),
            Along::Z => tokens(1),
            Along::Heads => Some(axes - 1),
        }
    }
}

impl Spread {
    /// Where a tensor that lies so on the host, its first element so many bytes beyond an aligned address, is.
    pub fn lay<E: Element>(self, host: &Layout, offset: usize, of: Of) -> Lay {
        let (shape, bytes) = (host.shape(), size_of::<E>());
        let axes = shape.len() - usize::from(of.has_dim);
        let row = if of.has_dim { shape[axes] } else { 1 };
        let is_aligned = (offset * bytes).is_multiple_of(16)
            && host.strides()[..axes].iter().all(|stride| (stride.unsigned_abs() * bytes).is_multiple_of(16));
        let row = if is_aligned && of.has_dim { row.next_multiple_of(256 / bytes) } else { row };
        let first = offset * bytes % 16;
        match self {
            Spread::Apart(far) => {
                let mut far = far.map(|along| along.of(axes).or(Along::Z.of(axes)));
                if far[0] == far[1] {
                    far[1] = None;
                }
                apart::<E>(host, far, (row, first), of.has_dim)
            }
            Spread::Longer(along, by) => {
                let is_token = !matches!(along, Along::Batch | Along::Heads);
                let axis = along.of(axes).filter(|_| !(is_token && of.is_list));
                let by = if along == Along::Heads { by * of.sharing } else { by };
                longer::<E>(shape, axis.map(|axis| (axis, by)), (row, first), of.has_dim)
            }
        }
    }

    /// The problem that the device is given.
    pub fn problem(self, problem: &Problem, inputs: &Inputs<Layout>) -> Problem {
        let Spread::Longer(..) = self else { return problem.clone() };
        assert!(!problem.is_packed(), "sequences have no ends");
        let axes = problem.axes()[3 - problem.rank()..].iter();
        let axes: Vec<AxisParams> = axes
            .map(|axis| AxisParams {
                stride: axis.stride,
                dilation: axis.dilation,
                is_causal: axis.is_causal,
                ..AxisParams::new(axis.kernel_size)
            })
            .collect();
        let params = DynParams::new(&axes, Some(problem.scale() as f32), KernelSizePolicy::Exact);
        Problem::new(&params, inputs, problem.element_type()).unwrap_or_else(|e| panic!("{problem:?}: {e}"))
    }

    /// The ctas at both ends of the grid; of kernels that take a row a warp those of all rows that there are, which lie as a
    /// tensor `[batch, tokens.., heads]` does, or for sums as additional keys. None where every cta runs.
    pub fn ctas(self, rows: &Ends, lists: Option<&Ends>) -> Option<Ctas> {
        let Spread::Longer(along, _) = self else { return None };
        let (rows, lists) = (rows.clone(), lists.cloned().unwrap_or_default());
        Some(Arc::new(move |entry, [x, y, z]| {
            if entry.starts_with("natten_sum_partials") {
                return lists.ctas_of_rows.clone();
            }
            if entry.starts_with("natten_delta") || entry.starts_with("natten_merge") {
                return rows.ctas_of_rows.clone();
            }
            // Where rows are long, items of their own work out either gradient of a pass over keys: within a head, the tiles of
            // one and then those of the other.
            let has_turns = entry.starts_with("natten_backward_key_sm90") && entry.ends_with("_d256");
            let (count, turns) = match along {
                // All of what there is: every head and every item has as many.
                Along::Batch | Along::Heads => ((u64::from(x) * rows.half / rows.extent.max(1)) as u32, 1),
                Along::X | Along::Y | Along::Z => (CTAS, if has_turns { 2 } else { 1 }),
            };
            let (turn, lines) = (x / turns, y * z * turns);
            let count = count.clamp(1, turn.div_ceil(2));
            let ends = || (0..count).chain((turn - count).max(count)..turn);
            (0..lines).flat_map(|line| ends().map(move |cta| line * turn + cta)).collect()
        }))
    }
}

/// What of a longer tensor there is.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// The ctas that have its rows, where a warp takes one and a cta four.
    ctas_of_rows: Vec<u32>,
    /// Of the longer axis at either end, and in all.
    half: u64,
    extent: u64,
}

fn apart<E: Element>(
    host: &Layout,
    far: [Option<usize>; 2],
    (row, first): (usize, usize),
    has_dim: bool,
) -> Lay {
    let (shape, bytes) = (host.shape(), size_of::<E>());
    let axes = shape.len() - usize::from(has_dim);
    let mut strides = vec![1isize; shape.len()];
    let mut step = row;
    let near = (0..axes).rev().filter(|axis| !far.contains(&Some(*axis)));
    for axis in near {
        strides[axis] = step as isize;
        step *= shape[axis].max(1);
    }
    assert!(step * bytes < STEP, "too large to lie apart");
    let mut step = STEP / bytes;
    for axis in far.into_iter().rev().flatten() {
        strides[axis] = step as isize;
        step = step * shape[axis].max(1) + (5 << 20) / bytes;
    }
    let mut begin = 0;
    for axis in 0..axes {
        if host.strides()[axis] < 0 {
            begin += (shape[axis].max(1) - 1) * strides[axis].unsigned_abs();
            strides[axis] = -strides[axis];
        }
    }
    let layout = Layout::strided(shape, &strides).expect("as many axes");
    Lay {
        layout,
        first: (begin * bytes + first) as u64,
        bytes: (step * bytes + 16) as u64,
        gap: None,
        has_dim,
    }
}

fn longer<E: Element>(
    shape: &[usize],
    by: Option<(usize, usize)>,
    (row, first): (usize, usize),
    has_dim: bool,
) -> Lay {
    let mut long = shape.to_vec();
    let gap = by.map(|(axis, by)| {
        long[axis] += by;
        (axis, shape[axis] / 2, by)
    });
    let axes = shape.len() - usize::from(has_dim);
    let mut strides = vec![1isize; shape.len()];
    let mut step = row;
    for axis in (0..axes).rev() {
        strides[axis] = step as isize;
        step *= long[axis].max(1);
    }
    let layout = Layout::strided(&long, &strides).expect("as many axes");
    Lay { layout, first: first as u64, bytes: (step * size_of::<E>() + 16) as u64, gap, has_dim }
}

impl Lay {
    /// For each row of the host's tensor, or each element where there are no rows: its place in the host's buffer after the
    /// view's first element, and its address after the beginning, in elements and in bytes.
    pub fn rows<E: Element>(&self, host: &Layout) -> Vec<(isize, u64)> {
        let axes = host.rank() - usize::from(self.has_dim);
        let mut rows = vec![(0isize, self.first as i64)];
        for axis in 0..axes {
            let (on_host, there) = (host.strides()[axis], self.layout.strides()[axis] as i64);
            let place = |n| self.place(axis, n);
            let step = |(a, b): (isize, i64), n: usize| {
                (a + n as isize * on_host, b + place(n) as i64 * there * size_of::<E>() as i64)
            };
            let extent = host.shape()[axis];
            rows = rows
                .into_iter()
                .flat_map(|row| (0..extent).map(|n| step(row, n)).collect::<Vec<_>>())
                .collect();
        }
        if self.has_dim && host.shape()[axes] == 0 {
            return Vec::new();
        }
        rows.into_iter().map(|(on_host, there)| (on_host, there as u64)).collect()
    }

    /// What of it there is.
    pub fn ends(&self, host: &Layout) -> Ends {
        let axes = host.rank() - usize::from(self.has_dim);
        let mut rows = vec![0];
        for axis in 0..axes {
            let extent = self.layout.shape()[axis];
            let place = |n| self.place(axis, n);
            let kept = host.shape()[axis];
            rows = rows
                .iter()
                .flat_map(|row| (0..kept).map(|n| row * extent + place(n)).collect::<Vec<_>>())
                .collect();
        }
        let mut ctas_of_rows: Vec<u32> = rows.into_iter().map(|row| (row / ROWS_OF_CTA) as u32).collect();
        ctas_of_rows.sort_unstable();
        ctas_of_rows.dedup();
        let (axis, half, _) = self.gap.unwrap_or((0, 0, 0));
        Ends { ctas_of_rows, half: half as u64, extent: self.layout.shape()[axis] as u64 }
    }

    /// Where token `n` of the host's is along an axis.
    fn place(&self, axis: usize, n: usize) -> usize {
        match self.gap {
            Some((gap, half, by)) if gap == axis && n >= half => n + by,
            _ => n,
        }
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        if self.has_dim { self.layout.shape()[self.layout.rank() - 1] } else { 1 }
    }
}
