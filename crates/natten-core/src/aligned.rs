//! Owned numbers that start at a cache line: a vector that straddles two lines costs two loads.

use crate::element::InputElement;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// A buffer of its own starts at a line; one that was the caller's starts where it starts.
#[derive(Debug)]
pub(crate) struct Aligned<E> {
    numbers: Vec<E>,
    start: usize,
}

impl<E> Aligned<E> {
    /// Numbers that are skipped at most.
    const ROOM: usize = LINE_BYTES / size_of::<E>();

    /// Takes over a buffer.
    pub(crate) fn from_vec(numbers: Vec<E>) -> Self {
        Aligned { numbers, start: 0 }
    }

    /// The numbers of an iterator that knows how many there are; `filler` is what is skipped.
    pub(crate) fn collect(filler: E, numbers: impl ExactSizeIterator<Item = E>) -> Self
    where
        E: Clone,
    {
        let mut room = Vec::with_capacity(numbers.len() + Self::ROOM);
        let start = offset(&room);
        room.resize(start, filler);
        room.extend(numbers);
        Aligned { numbers: room, start }
    }

    pub(crate) fn as_slice(&self) -> &[E] {
        &self.numbers[self.start..]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [E] {
        &mut self.numbers[self.start..]
    }

    /// The numbers without what was skipped.
    pub(crate) fn into_vec(mut self) -> Vec<E> {
        self.numbers.drain(..self.start);
        self.numbers
    }
}

impl<E: InputElement> Aligned<E> {
    /// Zeros, of which the system may give the memory only when they are written; `None` when it has none.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        let mut numbers = bytemuck::allocation::try_zeroed_vec(len.checked_add(Self::ROOM)?).ok()?;
        let start = offset(&numbers);
        numbers.truncate(start + len);
        Some(Aligned { numbers, start })
    }
}

impl<E: Clone> Clone for Aligned<E> {
    fn clone(&self) -> Self {
        match self.as_slice() {
            [] => Self::from_vec(Vec::new()),
            numbers @ [first, ..] => Self::collect(first.clone(), numbers.iter().cloned()),
        }
    }
}

impl<E: PartialEq> PartialEq for Aligned<E> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

/// Numbers up to the next line, where there is room for them.
#[allow(clippy::ptr_arg, reason = "the address is that of a vector's room, whatever is in it yet")]
fn offset<E>(numbers: &Vec<E>) -> usize {
    let offset = numbers.as_ptr().align_offset(LINE_BYTES);
    // Under an interpreter alignment may be unknowable; it only ever matters for speed.
    if offset < Aligned::<E>::ROOM { offset } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts_at_a_line<E>(aligned: &Aligned<E>) -> bool {
        cfg!(miri)
            || aligned.as_slice().is_empty()
            || aligned.as_slice().as_ptr().addr().is_multiple_of(LINE_BYTES)
    }

    #[test]
    fn own_buffers_start_at_a_line() {
        for len in [0, 1, 15, 16, 1000] {
            let zeros = Aligned::<f32>::zeroed(len).unwrap();
            assert!(starts_at_a_line(&zeros) && zeros.as_slice() == vec![0.0; len]);
            let counted = Aligned::collect(half::f16::ZERO, (0..len).map(|i| half::f16::from_f32(i as f32)));
            assert!(starts_at_a_line(&counted) && starts_at_a_line(&counted.clone()));
            assert_eq!(counted.clone(), counted);
            assert_eq!(counted.as_slice().len(), len);
            let expected: Vec<_> = (0..len).map(|i| half::f16::from_f32(i as f32)).collect();
            assert_eq!(counted.into_vec(), expected);
        }
    }

    #[test]
    fn a_callers_buffer_stays_where_it_is() {
        let numbers = vec![1.0f64, 2.0, 3.0];
        let address = numbers.as_ptr().addr();
        let aligned = Aligned::from_vec(numbers);
        assert_eq!(aligned.as_slice().as_ptr().addr(), address);
        let numbers = aligned.into_vec();
        assert_eq!(numbers.as_ptr().addr(), address);
    }

    #[test]
    fn no_memory_is_no_panic() {
        assert!(Aligned::<f64>::zeroed(usize::MAX / 16).is_none());
        assert!(Aligned::<f64>::zeroed(usize::MAX).is_none());
    }
}
