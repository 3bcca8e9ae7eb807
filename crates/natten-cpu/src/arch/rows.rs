//! Disjoint writes from several threads into one tensor of any strides.
//!
//! Tiles of a strided tensor are no contiguous chunks, so `chunks_mut` cannot hand them out. The contract instead:
//! *each row is written by one thread, once in a call*. The backend keeps it by construction, since every tile is
//! one task's and tiles partition the tokens; debug builds mark each row and panic at the second write.

use std::marker::PhantomData;
use std::mem::size_of;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicBool, Ordering};

use natten_core::layout::RowLayout;
use natten_core::{Element, TensorViewMut};

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

    /// Address of a row, and its bytes: to be fetched before it is written.
    #[inline(always)]
    pub(crate) fn place(&self, batch: usize, token: [usize; 3], head: usize) -> (usize, usize) {
        let start = self.layout.row(batch, token, head);
        (self.start.addr() + start * size_of::<E>(), self.width * size_of::<E>())
    }

    /// Fills one row through `fill`. Each row may be filled once, by one thread.
    #[inline(always)]
    pub(crate) fn fill(&self, batch: usize, token: [usize; 3], head: usize, fill: impl FnOnce(&mut [E])) {
        let start = self.layout.row(batch, token, head);
        assert!(start <= self.len && self.width <= self.len - start, "a row outside the tensor");
        #[cfg(debug_assertions)]
        assert!(!self.written[start].swap(true, Ordering::Relaxed), "a row is written twice");
        // SAFETY: the row is inside the buffer, whose exclusive borrow this type holds; views to write name each
        // element once, so rows are disjoint, and the module's contract gives each to one thread.
        fill(unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.width) });
    }
}
