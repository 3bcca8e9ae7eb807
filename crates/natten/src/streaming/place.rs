//! Where in its stream a cache is, and the region of the first axis that its call holds.

use std::ops::Range;

use natten_core::region::keys_needed;
use natten_core::window::Axis;
use natten_core::{DynParams, Region};

use super::{Length, StreamError};

/// Longest whole there can be.
const LONGEST: usize = isize::MAX as usize;

/// Frames of a stream in numbers that stay small: after each append they count from a frame of the stream that no window of the
/// append reaches before, and that is a multiple of `s d`, with the stride `s` and the dilation `d`. Moved by that much, residues
/// and the blocks of a stride are the same. So a stream may go on for ever, and its calls, far from both ends, are the same few
/// again and again, which what plans calls can rely on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Window, stride and dilation.
    axis: Axis,
    length: Length,
    /// The frame of the stream that numbers count from.
    origin: u64,
    /// The frames of the last append: where they begin, and where they end.
    newest: [usize; 2],
}

impl Place {
    /// Before the first frame.
    pub fn new(params: &DynParams, length: Length) -> Result<Self, StreamError> {
        let extent = match length {
            Length::Tokens(frames) => frames,
            Length::Unbounded => LONGEST,
        };
        let axis = params.axis(0, extent)?;
        if !axis.is_causal {
            return Err(StreamError::NotCausal);
        }
        if length == Length::Unbounded && axis.kernel_size >= LONGEST / axis.dilation {
            return Err(StreamError::EndlessWindow);
        }
        Ok(Place { axis, length, origin: 0, newest: [0; 2] })
    }

    /// Most frames before its own that a query sees the first of: `(w - 1) d`.
    pub fn history(&self) -> usize {
        (self.axis.kernel_size - 1) * self.axis.dilation
    }

    /// Before the first frame of another stream.
    pub fn cleared(&self) -> Self {
        Place { origin: 0, newest: [0; 2], ..*self }
    }

    /// Frames so far.
    pub fn frames(&self) -> u64 {
        self.origin.saturating_add(self.newest[1] as u64)
    }

    /// The frames of the last append, in numbers of the region.
    pub fn newest(&self) -> Range<usize> {
        self.newest[0]..self.newest[1]
    }

    /// After an append of so many frames.
    pub fn after(&self, found: usize) -> Result<Self, StreamError> {
        if let Length::Tokens(length) = self.length {
            let frames = self.frames();
            if found as u64 > (length as u64).saturating_sub(frames) {
                return Err(StreamError::PastTheEnd { found, frames, length });
            }
        }
        let Axis { kernel_size, stride, dilation, .. } = self.axis;
        let block = stride.saturating_mul(dilation);
        // A frame more than windows reach back, so that a whole that counts from here on still has room for a window.
        let unseen = self.newest[1].saturating_sub(kernel_size.saturating_mul(dilation));
        let skipped = unseen / block * block;
        let start = self.newest[1] - skipped;
        let newest = [start, start.saturating_add(found)];
        Ok(Place { origin: self.origin.saturating_add(skipped as u64), newest, ..*self })
    }

    /// The part of the first axis that a call from the last append's frames holds: these, and the keys that they need.
    pub fn region(&self) -> Region {
        let extent = self.extent();
        let whole = Axis { extent, query_extent: extent, key_extent: extent, ..self.axis };
        Region::of(extent).queries(self.newest()).keys(keys_needed(&whole, self.newest()))
    }

    /// Frames of a whole that has the stream's windows at the last append: so many that its end is ahead of every leader, unless
    /// the stream's own end is nearer.
    fn extent(&self) -> usize {
        // A leader is less than a stride ahead of its query, and a stride is no longer than the window.
        let reach = self.axis.kernel_size.saturating_mul(self.axis.dilation);
        let far = self.newest[1].saturating_add(reach).min(LONGEST);
        match self.length {
            // What the stream has left fits, since its length does.
            Length::Tokens(length) => far.min(length - self.origin as usize),
            Length::Unbounded => far,
        }
    }
}

#[cfg(test)]
mod tests;
