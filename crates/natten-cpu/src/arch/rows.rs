//! Disjoint writes from several threads into one tensor of any strides.
//!
//! Tiles of a strided tensor are no contiguous chunks, so `chunks_mut` cannot hand them out. The contract instead:
//! *each row is written by one thread, once in a call*. The backend keeps it by construction, since every tile is
//! one task's and tiles partition the tokens; debug builds mark each row and panic at the second write.

use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Range;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicBool, Ordering};

use natten_core::layout::RowLayout;
use natten_core::{Element, TensorViewMut};

use super::prefetch::PrefetchLine;
use crate::pack::Tokens;

/// A tensor to write, shared by the tasks of a call.
pub(crate) struct SharedRows<'a, E> {
    start: *mut E,
    len: usize,
    layout: RowLayout,
    width: usize,
    #[cfg(debug_assertions)]
    written: Vec<AtomicBool>,
    borrow: PhantomData<&'a mut [E]>,
}

// SAFETY: the pointer stands for an exclusive borrow, and rows are written by one thread each (module contract).
unsafe impl<E: Element> Sync for SharedRows<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Send for SharedRows<'_, E> {}

impl<'a, E: Element> SharedRows<'a, E> {
    /// Rows of `[batch, tokens.., heads, head_dim]`.
    pub(crate) fn of_rows(view: TensorViewMut<'a, E>) -> Self {
        let shape = view.shape();
        let (width, layout) = (shape[shape.len() - 1], view.rows());
        Self::new(view, layout, width)
    }

    /// Numbers of `[batch, tokens.., heads]`: rows of one.
    pub(crate) fn of_scalars(view: TensorViewMut<'a, E>) -> Self {
        let layout = view.scalars();
        Self::new(view, layout, 1)
    }

    fn new(view: TensorViewMut<'a, E>, layout: RowLayout, width: usize) -> Self {
        let data = view.into_data();
        debug_assert!(size_of::<E>() > 0);
        SharedRows {
            start: data.as_mut_ptr(),
            len: data.len(),
            layout,
            width,
            #[cfg(debug_assertions)]
            written: (0..data.len()).map(|_| AtomicBool::new(false)).collect(),
            borrow: PhantomData,
        }
    }

    /// The rows `positions` of the line through `[x, y]`.
    #[inline(always)]
    pub(crate) fn line(
        &self,
        tokens: &Tokens,
        [x, y]: [usize; 2],
        positions: &Range<usize>,
    ) -> SharedLine<'_, E> {
        let first = self.layout.row(tokens.batch, tokens.at([x, y, positions.start]), tokens.head);
        let step = self.layout.token_strides[2] * tokens.step[2] as isize;
        SharedLine { rows: self, first, step, len: positions.len() }
    }

    /// Fills one row through `fill`. Each row may be filled once, by one thread.
    #[inline(always)]
    pub(crate) fn fill(&self, batch: usize, token: [usize; 3], head: usize, fill: impl FnOnce(&mut [E])) {
        self.fill_at(self.layout.row(batch, token, head), fill);
    }

    #[inline(always)]
    fn fill_at(&self, start: usize, fill: impl FnOnce(&mut [E])) {
        assert!(start <= self.len && self.width <= self.len - start, "a row outside the tensor");
        #[cfg(debug_assertions)]
        assert!(!self.written[start].swap(true, Ordering::Relaxed), "a row is written twice");
        // SAFETY: the row is inside the buffer, whose exclusive borrow this type holds; views to write name each
        // element once, so rows are disjoint, and the module's contract gives each to one thread.
        fill(unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.width) });
    }
}

/// Rows along the last axis.
pub(crate) struct SharedLine<'a, E> {
    rows: &'a SharedRows<'a, E>,
    first: usize,
    step: isize,
    len: usize,
}

impl<E: Element> SharedLine<'_, E> {
    /// Fills row number `i`, as [`SharedRows::fill`].
    #[inline(always)]
    pub(crate) fn fill(&self, i: usize, fill: impl FnOnce(&mut [E])) {
        self.rows.fill_at(self.first.wrapping_add_signed(i as isize * self.step), fill);
    }

    /// All rows, to be fetched before they are written.
    #[inline(always)]
    pub(crate) fn prefetch_line(&self) -> PrefetchLine {
        let size = size_of::<E>();
        let address = self.rows.start.addr() + self.first * size;
        PrefetchLine {
            address,
            bytes: self.rows.width * size,
            step: self.step * size as isize,
            rows: self.len,
        }
    }
}
