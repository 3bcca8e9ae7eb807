//! Host tensors by way of page-locked memory: pieces that it has room for, copied by several threads on the host's side and by
//! the device on the other.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use natten_core::{InputElement, TensorError, TensorView, TensorViewMut};

use super::OutOfCoreError;
use crate::error::DeviceError;
use crate::transfer::{InFlight, Transfer};

/// How the host copies one way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copying {
    /// Page-locked buffers: while the device copies from or to some, the host does from or to others.
    pub buffers: usize,
    /// Bytes of each.
    pub bytes: usize,
    /// Threads that copy to or from one.
    pub threads: usize,
}

impl Copying {
    /// The same for tensors of which so many bytes go at a time: no larger than they are.
    pub fn up_to(self, bytes: usize) -> Self {
        Copying { bytes: self.bytes.min(bytes).max(8), ..self }
    }

    fn elements<E>(&self) -> usize {
        (self.bytes / size_of::<E>()).max(1)
    }

    fn pinned<T: Transfer>(&self, device: &T) -> Result<Vec<T::Pinned>, DeviceError> {
        (0..self.buffers).map(|_| device.pinned(self.bytes)).collect()
    }
}

/// Host tensors on their way to the device, on a stream of its own.
pub(super) struct Uploads<T: Transfer> {
    pub device: T,
    copying: Copying,
    under_way: VecDeque<InFlight<T>>,
    free: Vec<T::Pinned>,
    bytes: u64,
}

impl<T: Transfer> Uploads<T> {
    pub fn new(device: T, copying: Copying) -> Result<Self, DeviceError> {
        let free = copying.pinned(&device)?;
        Ok(Uploads { device, copying, under_way: VecDeque::new(), free, bytes: 0 })
    }

    /// Queues copies of a tensor's elements, in order, to memory from element `at` on.
    pub fn queue<E: InputElement>(
        &mut self,
        from: &TensorView<'_, E>,
        to: &Arc<T::Memory>,
        at: usize,
    ) -> Result<(), OutOfCoreError> {
        let mut next = at * size_of::<E>();
        for ranges in pieces(from.shape(), self.copying.elements::<E>()) {
            let mut each = ranges.into_iter().enumerate();
            let piece = each.try_fold(*from, |view, (a, range)| view.narrow(a, range))?;
            let landed = || self.under_way.pop_front().map(InFlight::landed);
            // All buffers that are not free are under way.
            let Some(mut pinned) = self.free.pop().map(Ok).or_else(landed).transpose()? else {
                return Ok(());
            };
            let bytes = piece.layout().len() * size_of::<E>();
            gather(&piece, bytemuck::cast_slice_mut(&mut pinned.as_mut()[..bytes]), self.copying.threads)?;
            self.under_way.push_back(self.device.upload(pinned, bytes, to, next)?);
            next += bytes;
            self.bytes += bytes as u64;
        }
        Ok(())
    }

    /// Waits for all of them. How many bytes went.
    pub fn finish(self) -> Result<u64, OutOfCoreError> {
        for copy in self.under_way {
            copy.landed()?;
        }
        Ok(self.bytes)
    }
}

/// A host tensor that arrives from the device, on a stream of its own.
pub(super) struct Downloads<'a, E, T: Transfer> {
    pub device: T,
    copying: Copying,
    to: TensorViewMut<'a, E>,
    /// Copies with the box of the tensor that each is for.
    under_way: VecDeque<(InFlight<T>, Vec<Range<usize>>)>,
    free: Vec<T::Pinned>,
    bytes: u64,
}

impl<'a, E: InputElement, T: Transfer> Downloads<'a, E, T> {
    pub fn new(device: T, copying: Copying, to: TensorViewMut<'a, E>) -> Result<Self, DeviceError> {
        let free = copying.pinned(&device)?;
        Ok(Downloads { device, copying, to, under_way: VecDeque::new(), free, bytes: 0 })
    }

    /// Queues copies of memory, from its beginning on, to some of the tensor's first axis.
    pub fn queue(&mut self, from: &Arc<T::Memory>, rows: Range<usize>) -> Result<(), OutOfCoreError> {
        let mut shape = self.to.shape().to_vec();
        shape[0] = rows.len();
        let mut at = 0;
        for mut ranges in pieces(&shape, self.copying.elements::<E>()) {
            if self.free.is_empty() {
                self.land()?;
            }
            // All buffers that are not free are under way.
            let Some(pinned) = self.free.pop() else { return Ok(()) };
            let bytes = ranges.iter().map(|range| range.len()).product::<usize>() * size_of::<E>();
            let copy = self.device.download(from, at, bytes, pinned)?;
            ranges[0] = ranges[0].start + rows.start..ranges[0].end + rows.start;
            self.under_way.push_back((copy, ranges));
            at += bytes;
            self.bytes += bytes as u64;
        }
        Ok(())
    }

    /// Waits for the oldest copy, and puts what it brought in its place.
    fn land(&mut self) -> Result<(), OutOfCoreError> {
        let Some((copy, ranges)) = self.under_way.pop_front() else { return Ok(()) };
        let pinned = copy.landed()?;
        let mut each = ranges.into_iter().enumerate();
        let place = each.try_fold(self.to.reborrow(), |view, (a, range)| view.narrow(a, range))?;
        let bytes = place.layout().len() * size_of::<E>();
        scatter(bytemuck::cast_slice(&pinned.as_ref()[..bytes]), place, self.copying.threads)?;
        self.free.push(pinned);
        Ok(())
    }

    /// Waits for all of them. How many bytes came.
    pub fn finish(mut self) -> Result<u64, OutOfCoreError> {
        while !self.under_way.is_empty() {
            self.land()?;
        }
        Ok(self.bytes)
    }
}

/// A shape in boxes of at most so many elements, which come one after the other in the order of elements.
fn pieces(shape: &[usize], most: usize) -> Vec<Vec<Range<usize>>> {
    if shape.contains(&0) {
        return Vec::new();
    }
    // Boxes have one place along axes before this one, some along it, and all behind.
    let behind = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let axis = (0..shape.len()).find(|&axis| behind(axis) <= most).unwrap_or(0);
    let rows = (most / behind(axis)).clamp(1, shape[axis]);
    let outer: usize = shape[..axis].iter().product();
    let mut boxes = Vec::new();
    for place in 0..outer {
        for start in (0..shape[axis]).step_by(rows) {
            let mut rest = place;
            let mut ranges: Vec<Range<usize>> = shape.iter().map(|&extent| 0..extent).collect();
            for before in (0..axis).rev() {
                let at = rest % shape[before];
                (ranges[before], rest) = (at..at + 1, rest / shape[before]);
            }
            ranges[axis] = start..shape[axis].min(start + rows);
            boxes.push(ranges);
        }
    }
    boxes
}

/// Elements below which a thread of its own takes longer to start than to copy.
const LEAST_OF_THREAD: usize = 1 << 16;

/// An axis, and its places dealt to so many threads: the first that has enough for all of them, or the longest. The last axis stays whole.
fn shares(shape: &[usize], threads: usize) -> (usize, Vec<Range<usize>>) {
    let before_last = &shape[..shape.len() - 1];
    let enough = before_last.iter().position(|&extent| extent >= 4 * threads);
    let longest = || (0..before_last.len()).rev().max_by_key(|&axis| shape[axis]);
    let axis = enough.or_else(longest).unwrap_or(0);
    let elements: usize = shape.iter().product();
    let extent = shape[axis];
    let count = threads.min(elements / LEAST_OF_THREAD).clamp(1, extent.max(1));
    let at = |share: usize| extent * share / count;
    (axis, (0..count).map(|share| at(share)..at(share + 1)).collect())
}

/// Copies a view's elements, in order.
fn gather<E: InputElement>(
    from: &TensorView<'_, E>,
    to: &mut [E],
    threads: usize,
) -> Result<(), TensorError> {
    side_by_side(from, TensorViewMut::from_slice(from.shape(), to)?, threads)
}

/// Copies elements to a view, in its order.
fn scatter<E: InputElement>(from: &[E], to: TensorViewMut<'_, E>, threads: usize) -> Result<(), TensorError> {
    let from = TensorView::from_slice(to.shape(), from)?;
    side_by_side(&from, to, threads)
}

/// Copies a view to another of the same shape, on so many threads, this one among them.
fn side_by_side<E: InputElement>(
    from: &TensorView<'_, E>,
    to: TensorViewMut<'_, E>,
    threads: usize,
) -> Result<(), TensorError> {
    let (axis, shares) = shares(to.shape(), threads);
    let mut tasks = Vec::with_capacity(shares.len());
    let mut rest = to;
    for share in shares {
        let (mine, others) = rest.split_at(axis, share.len())?;
        tasks.push((mine, from.narrow(axis, share)?));
        rest = others;
    }
    let last = tasks.pop();
    std::thread::scope(|scope| {
        let others: Vec<_> =
            tasks.into_iter().map(|(mut to, from)| scope.spawn(move || to.copy_from(&from))).collect();
        let own = last.map_or(Ok(()), |(mut to, from)| to.copy_from(&from));
        // A thread that panicked takes this one with it, as the scope would.
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(copied) => copied,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        others.into_iter().map(join).fold(own, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::Tensor;

    /// Pieces are all elements in order.
    #[test]
    fn pieces_follow_each_other() {
        for shape in [&[7][..], &[3, 5], &[1, 4, 6], &[2, 3, 4, 5], &[5, 1, 1, 2]] {
            let numbers = Tensor::<f32>::from_fn(shape, |i| i as f32).unwrap();
            for most in [1, 2, 5, 7, 24, 1000] {
                let mut found = Vec::new();
                for ranges in pieces(shape, most) {
                    let each = ranges.iter().enumerate();
                    let piece =
                        each.fold(numbers.view(), |view, (a, range)| view.narrow(a, range.clone()).unwrap());
                    assert!((1..=most).contains(&piece.layout().len()), "{shape:?} {most}");
                    found.extend_from_slice(piece.to_tensor().as_slice());
                }
                assert!(found == numbers.as_slice(), "{shape:?} {most}: {found:?}");
            }
        }
        assert!(pieces(&[3, 0, 2], 4).is_empty());
    }

    /// Threads copy what one would, from and to any strides.
    #[test]
    fn threads_share_a_copy() {
        let shape = [3, 2, 500, 70];
        let numbers = Tensor::<f32>::from_fn(&shape, |i| i as f32).unwrap();
        let turned = numbers.view().permute(&[2, 0, 3, 1]).unwrap();
        let dense = turned.to_tensor();
        let mut found = vec![0.0; dense.as_slice().len()];
        gather(&turned, &mut found, 3).unwrap();
        assert!(found == dense.as_slice());
        let mut back = Tensor::<f32>::zeros(&shape).unwrap();
        scatter(&found, back.view_mut().permute(&[2, 0, 3, 1]).unwrap(), 3).unwrap();
        assert!(back.as_slice() == numbers.as_slice());
    }
}
