//! Where frames are stored: each twice, a period apart, so that the newest of a period always lie together.

use std::ops::Range;

use super::Length;

/// Slots of frames. Frame `t` is in slot `t mod period`, and in the slot a period later if there is one.
///
/// A range of the newest frames that begins in slot `i` below the period is found from there on, and never goes beyond the second
/// period. A stream that is not longer than two periods has a slot for each of its frames instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    period: usize,
    slots: usize,
    /// Where the next frame goes, below the period.
    next: usize,
}

impl Ring {
    /// For so many frames before an append, and the widest append.
    pub fn new(history: usize, most: usize, length: Length) -> Self {
        let period = history.saturating_add(most).max(1);
        match length {
            Length::Tokens(frames) if frames <= period.saturating_mul(2) => {
                Ring { period: frames.max(1), slots: frames, next: 0 }
            }
            _ => Ring { period, slots: period.saturating_mul(2), next: 0 },
        }
    }

    /// Frames there is room for.
    pub fn frames(&self) -> usize {
        self.slots
    }

    /// Without a frame.
    pub fn cleared(&self) -> Self {
        Ring { next: 0, ..*self }
    }

    /// After an append of so many frames, a period at most.
    pub fn after(&self, frames: usize) -> Self {
        Ring { next: (self.next + frames) % self.period, ..*self }
    }

    /// Which of an append's frames are written from which slot on.
    pub fn writes(&self, frames: usize) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        // The first of the append that is past the period, and so has its first slot at the beginning.
        let past = frames.min(self.period - self.next);
        let again = match self.slots > self.period {
            true => [(0..past, self.next + self.period), (past..frames, 0)],
            false => [(0..0, 0), (0..0, 0)],
        };
        [(0..frames, self.next)].into_iter().chain(again).filter(|(frames, _)| !frames.is_empty())
    }

    /// Where the newest frames begin, so many of them, a period at most.
    pub fn start(&self, frames: usize) -> usize {
        (self.next + self.period - frames) % self.period
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every append of every ring, against a list of which frame was written last into each slot.
    #[test]
    fn the_newest_frames_lie_together() {
        let rings = (0..6).flat_map(|history| (1..5).map(move |most| (history, most)));
        for ((history, most), length) in rings.flat_map(|ring| (0..30).map(move |length| (ring, length))) {
            let length = if length == 0 { Length::Unbounded } else { Length::Tokens(length) };
            let mut ring = Ring::new(history, most, length);
            assert!(ring.frames() <= 2 * (history + most));
            let mut slots = vec![usize::MAX; ring.frames()];
            let (mut count, mut step) = (0, 0);
            loop {
                step += 1;
                // 0 to the most, in an order that meets each at each slot.
                let frames = (step * step + step / 3) % (most + 1);
                let end = if let Length::Tokens(length) = length { length } else { 100 };
                if count + frames > end || step > 100 {
                    break;
                }
                for (of_append, at) in ring.writes(frames) {
                    of_append.clone().zip(at..).for_each(|(frame, slot)| slots[slot] = count + frame);
                }
                (ring, count) = (ring.after(frames), count + frames);
                for newest in 0..=(history + frames).min(count) {
                    let at = ring.start(newest);
                    let expected: Vec<_> = (count - newest..count).collect();
                    assert_eq!(slots[at..at + newest], expected, "{ring:?} after {count}");
                }
            }
            assert!(count > 0 || matches!(length, Length::Tokens(_)));
        }
    }
}
