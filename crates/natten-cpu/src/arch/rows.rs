//! Rows of tensors of any strides: read, and written by several threads at once.
//!
//! Rows of a view may stand between those of another, so none of this goes through slices of whole buffers. Two contracts:
//!
//! * *Only rows of the view are named.* The backend keeps it by construction, since tokens, heads and batch items come from the
//!   problem, which the view fits. That a row lies inside the view's buffer is asserted.
//! * *Each row to write is written by one thread, once in a call.* Likewise by construction: every tile is one task's and tiles
//!   partition the tokens. Debug builds mark each row and panic at the second write.

use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Range;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicBool, Ordering};

use natten_core::layout::RowLayout;
use natten_core::{Element, TensorView, TensorViewMut};

use super::prefetch::PrefetchLine;
use crate::pack::Tokens;

/// A tensor to read rows from.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    buffer: *const [E],
    layout: RowLayout,
    /// Elements of a row.
    pub width: usize,
    borrow: PhantomData<&'a [E]>,
}

// SAFETY: it stands for a view to read, which may go to other threads.
unsafe impl<E: Element> Sync for Rows<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Element> Send for Rows<'_, E> {}

impl<'a, E: Element> Rows<'a, E> {
    /// Rows of `[batch, tokens.., heads, head_dim]`.
    pub(crate) fn of_rows(view: &TensorView<'a, E>) -> Self {
        let shape = view.shape();
        Self::new(view, view.rows(), shape[shape.len() - 1])
    }

    /// Numbers of `[batch, tokens.., heads]`, as rows of one.
    pub(crate) fn of_scalars(view: &TensorView<'a, E>) -> Self {
        Self::new(view, view.scalars(), 1)
    }

    fn new(view: &TensorView<'a, E>, layout: RowLayout, width: usize) -> Self {
        Rows { buffer: view.as_raw_buffer(), layout, width, borrow: PhantomData }
    }

    /// One row.
    #[inline(always)]
    pub(crate) fn row(&self, batch: usize, token: [usize; 3], head: usize) -> &'a [E] {
        self.row_at(self.layout.row(batch, token, head))
    }

    /// The rows `positions` of the line through `[x, y]`.
    #[inline(always)]
    pub(crate) fn line(&self, tokens: &Tokens, [x, y]: [usize; 2], positions: &Range<usize>) -> Line<'a, E> {
        let first = self.layout.row(tokens.batch, tokens.at([x, y, positions.start]), tokens.head);
        let step = self.layout.token_strides[2] * tokens.step[2] as isize;
        Line { rows: *self, first, step, len: positions.len() }
    }

    #[inline(always)]
    fn row_at(&self, start: usize) -> &'a [E] {
        let len = self.buffer.len();
        assert!(start <= len && self.width <= len - start, "a row outside the tensor");
        // SAFETY: the row is inside the buffer, and it is one of the view's (module contract), so it is initialised and nobody
        // writes it as long as the view's borrow lasts.
        unsafe { std::slice::from_raw_parts(self.buffer.cast::<E>().add(start), self.width) }
    }
}

/// Rows along the last axis.
pub(crate) struct Line<'a, E> {
    rows: Rows<'a, E>,
    first: usize,
    step: isize,
    len: usize,
}

impl<'a, E: Element> Line<'a, E> {
    /// Row number `i`.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [E] {
        self.rows.row_at(self.first.wrapping_add_signed(i as isize * self.step))
    }

    /// All rows, to be fetched before they are read.
    #[inline(always)]
    pub(crate) fn prefetch_line(&self) -> PrefetchLine {
        let size = size_of::<E>();
        let address = self.rows.buffer.addr() + self.first * size;
        PrefetchLine {
            address,
            bytes: self.rows.width * size,
            step: self.step * size as isize,
            rows: self.len,
        }
    }

    /// All rows.
    #[inline(always)]
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'a [E]> {
        (0..self.len).map(|i| self.row(i))
    }
}

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

    fn new(mut view: TensorViewMut<'a, E>, layout: RowLayout, width: usize) -> Self {
        let data = view.as_raw_buffer_mut();
        debug_assert!(size_of::<E>() > 0);
        SharedRows {
            start: data.cast(),
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
        // SAFETY: the row is inside the buffer and one of the view's, whose exclusive borrow this type holds; views to write name
        // each element once, so rows are disjoint, and the module's contract gives each to one thread.
        fill(unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.width) });
    }
}

/// Rows along the last axis, to write.
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
