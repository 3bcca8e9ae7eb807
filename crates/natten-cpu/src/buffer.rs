//! Scratch memory for numbers that starts at a cache line: a vector that straddles two lines costs two loads.

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Grows to what is asked for and is never cleared: who reserves it writes it.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    numbers: Vec<f32>,
    start: usize,
}

impl Buffer {
    /// The first `len` numbers, whatever they are. Growing loses what was there.
    pub(crate) fn reserve(&mut self, len: usize) -> &mut [f32] {
        if self.numbers.len() < self.start + len {
            self.numbers = vec![0.0; len + LINE_BYTES / size_of::<f32>()];
            let start = self.numbers.as_ptr().align_offset(LINE_BYTES);
            // Under an interpreter alignment may be unknowable; it only ever matters for speed.
            self.start = if start < LINE_BYTES { start } else { 0 };
        }
        &mut self.numbers[self.start..][..len]
    }

    /// What has been reserved, at least.
    #[inline(always)]
    pub(crate) fn get(&self) -> &[f32] {
        &self.numbers[self.start..]
    }

    /// What has been reserved, at least.
    #[inline(always)]
    pub(crate) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_a_line() {
        let mut buffer = Buffer::default();
        for len in [1, 100, 5000] {
            let numbers = buffer.reserve(len);
            assert_eq!(numbers.len(), len);
            if !cfg!(miri) {
                assert_eq!(numbers.as_ptr().addr() % LINE_BYTES, 0);
            }
        }
    }
}
