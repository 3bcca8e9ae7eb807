//! The tensors of a call: how they lie, which planning sees, and where, which only the launch sees.

use natten_core::Problem;
use natten_core::layout::RowLayout;

use crate::params::{ListStrides, MERGE_BRANCHES, Strides};

/// A tensor's part in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(u8);

#[allow(missing_docs)]
impl Slot {
    pub const QUERY: Slot = Slot(0);
    pub const KEY: Slot = Slot(1);
    pub const VALUE: Slot = Slot(2);
    pub const ADDITIONAL_KEYS: Slot = Slot(3);
    pub const ADDITIONAL_VALUES: Slot = Slot(4);
    pub const OUT: Slot = Slot(5);
    pub const LSE: Slot = Slot(6);
    pub const D_OUT: Slot = Slot(7);
    pub const D_LSE: Slot = Slot(8);
    pub const D_QUERY: Slot = Slot(9);
    pub const D_KEY: Slot = Slot(10);
    pub const D_VALUE: Slot = Slot(11);
    pub const D_ADDITIONAL_KEYS: Slot = Slot(12);
    pub const D_ADDITIONAL_VALUES: Slot = Slot(13);
    /// Scratch memory of the call.
    pub const WORKSPACE: Slot = Slot(14);
    const FIRST_PARTIAL: usize = 15;
    const COUNT: usize = Self::FIRST_PARTIAL + 4 * MERGE_BRANCHES;

    /// The output of a partial result, of which there are at most [`MERGE_BRANCHES`].
    pub fn partial_out(branch: usize) -> Self {
        Slot((Self::FIRST_PARTIAL + 4 * branch.min(MERGE_BRANCHES - 1)) as u8)
    }

    /// The log-sum-exp of a partial result.
    pub fn partial_lse(branch: usize) -> Self {
        Slot(Self::partial_out(branch).0 + 1)
    }

    /// The gradient of a partial output.
    pub fn d_partial_out(branch: usize) -> Self {
        Slot(Self::partial_out(branch).0 + 2)
    }

    /// The gradient of a partial log-sum-exp.
    pub fn d_partial_lse(branch: usize) -> Self {
        Slot(Self::partial_out(branch).0 + 3)
    }
}

/// Where the tensors of a call begin.
#[derive(Clone, Copy, Debug)]
pub struct Addresses([u64; Slot::COUNT]);

impl Default for Addresses {
    fn default() -> Self {
        Addresses([0; Slot::COUNT])
    }
}

impl Addresses {
    /// Where one of them begins; 0 if the call has none such.
    pub fn get(&self, slot: Slot) -> u64 {
        self.0[usize::from(slot.0)]
    }

    /// Says where one of them begins.
    pub fn set(&mut self, slot: Slot, address: u64) {
        self.0[usize::from(slot.0)] = address;
    }
}

/// How one of them lies. Shapes are the problem's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Arrangement {
    strides: Strides,
    element_bytes: u32,
}

/// How the tensors of a call lie: all of it that matters, so that it is a key to what was planned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Views {
    /// Every base, stride and row length is a multiple of 16 bytes; log-sum-exps, read one by one, do not count.
    pub is_aligned: bool,
    list: Vec<(Slot, Arrangement)>,
}

impl Default for Views {
    fn default() -> Self {
        // As many as a backward has.
        Views { is_aligned: true, list: Vec::with_capacity(14) }
    }
}

impl Views {
    /// Adds a tensor.
    pub(crate) fn push(&mut self, slot: Slot, rows: RowLayout, element_bytes: usize) {
        let element_bytes = element_bytes as u32;
        self.list.push((slot, Arrangement { strides: rows.into(), element_bytes }));
    }

    fn get(&self, slot: Slot) -> Option<&Arrangement> {
        self.list.iter().find(|(of, _)| *of == slot).map(|(_, arrangement)| arrangement)
    }

    /// Whether the call has such a tensor.
    pub fn has(&self, slot: Slot) -> bool {
        self.get(slot).is_some()
    }

    /// Strides in elements; zeros if the call has no such tensor.
    pub fn strides(&self, slot: Slot) -> Strides {
        self.get(slot).map(|arrangement| arrangement.strides).unwrap_or_default()
    }

    /// Strides of additional keys or values, or their gradients.
    pub fn list_strides(&self, slot: Slot) -> ListStrides {
        let Strides { batch, axis, head } = self.strides(slot);
        ListStrides { batch, token: axis[2], head }
    }

    /// How many bytes after its tensor's beginning a token along the last token axis begins.
    pub fn at_token(&self, slot: Slot, token: usize) -> u64 {
        self.at(slot, [0, 0, token])
    }

    /// How many bytes after its tensor's beginning an element of a token's row lies; 0 if the call has no such tensor.
    pub(crate) fn at_element(&self, slot: Slot, token: usize, element: usize) -> u64 {
        let bytes = self.get(slot).map_or(0, |arrangement| u64::from(arrangement.element_bytes));
        self.at_token(slot, token).wrapping_add(element as u64 * bytes)
    }

    /// How many bytes after its tensor's beginning a token begins.
    pub fn at(&self, slot: Slot, token: [usize; 3]) -> u64 {
        self.get(slot).map_or(0, |Arrangement { strides, element_bytes }| {
            strides.at(0, token, u64::from(*element_bytes))
        })
    }

    /// Dense tensors of a problem, as they are before there are any: of its forward, with the log-sum-exp.
    pub fn dense(problem: &Problem) -> Self {
        let mut views = Views::default();
        let [queries, keys] = [true, false].map(|of_queries| {
            problem.axes().map(|axis| if of_queries { axis.query_extent } else { axis.key_extent })
        });
        let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
        let (heads, heads_kv) = (problem.heads(), problem.heads_kv());
        let list = [1, 1, problem.additional_keys()];
        let bytes = problem.element_type().size_bytes();
        let mut add = |slot, tokens: [usize; 3], heads: usize, row: usize, bytes: usize| {
            views.is_aligned &= slot == Slot::LSE || row.wrapping_mul(bytes).is_multiple_of(16);
            views.push(slot, dense(tokens, heads, row), bytes);
        };
        add(Slot::QUERY, queries, heads, dim, bytes);
        add(Slot::KEY, keys, heads_kv, dim, bytes);
        add(Slot::VALUE, keys, heads_kv, dim_v, bytes);
        if problem.additional_keys() > 0 {
            add(Slot::ADDITIONAL_KEYS, list, heads_kv, dim, bytes);
            add(Slot::ADDITIONAL_VALUES, list, heads_kv, dim_v, bytes);
        }
        add(Slot::OUT, queries, heads, dim_v, bytes);
        add(Slot::LSE, queries, heads, 1, 4);
        views
    }

    /// With the other tensors of a backward, dense too.
    pub fn with_dense_backward(mut self) -> Self {
        let like = |views: &Views, slot| views.get(slot).copied();
        for (slot, other) in [
            (Slot::D_OUT, Slot::OUT),
            (Slot::D_QUERY, Slot::QUERY),
            (Slot::D_KEY, Slot::KEY),
            (Slot::D_VALUE, Slot::VALUE),
            (Slot::D_ADDITIONAL_KEYS, Slot::ADDITIONAL_KEYS),
            (Slot::D_ADDITIONAL_VALUES, Slot::ADDITIONAL_VALUES),
        ] {
            self.list.extend(like(&self, other).map(|arrangement| (slot, arrangement)));
        }
        self
    }
}

/// Of a dense `[batch, X, Y, Z, heads, row]`; of one beyond memory, some numbers.
fn dense([x, y, z]: [usize; 3], heads: usize, row: usize) -> RowLayout {
    let head_stride = row as isize;
    let last = head_stride.wrapping_mul(heads as isize);
    let plane = last.wrapping_mul(z as isize);
    let token_strides = [plane.wrapping_mul(y as isize), plane, last];
    let batch_stride = token_strides[0].wrapping_mul(x as isize);
    RowLayout { offset: 0, batch_stride, token_strides, head_stride }
}
