//! Visible pairs of a residue, counted without visiting a query.

use super::u64_or_max;
use crate::window::Residue;

impl Residue {
    /// Visible pairs of a query and a key; `u64::MAX` when there are more.
    pub fn scores(&self) -> u64 {
        // Windows that are never cut all have the same length.
        if !self.is_causal && self.key_start == 0 && self.key_len == self.len {
            return (self.query_len as u64).saturating_mul(self.kernel_size.min(self.len) as u64);
        }
        let first = self.query_start as i128;
        let (held_start, held_end) = (self.key_start as i128, (self.key_start + self.key_len) as i128);
        let (w, (ahead, behind)) = (self.kernel_size as i128, self.reach());
        let last_start = self.last_start() as i128;
        // Both ends of windows are steps that rise between two bounds, and so are what the call holds of them.
        let stairs = |step: i128, shift: i128, low: i128, high: i128| {
            let held = |bound: i128| bound.clamp(held_start, held_end);
            let stairs = Stairs { step, shift, low: held(low), high: held(high) };
            stairs.sum(first + self.query_len as i128) - stairs.sum(first)
        };
        let (stride, shift) = (self.stride as i128, ahead as i128 - behind as i128);
        let starts = stairs(stride, shift, 0, last_start);
        let ends = match self.is_causal {
            true => stairs(1, 1, 0, i128::from(u64::MAX)),
            false => stairs(stride, shift + w, w, last_start + w),
        };
        u64_or_max((ends - starts).unsigned_abs())
    }
}

/// Of position `p` the number `clamp((p div step) step + shift, low, high)`.
struct Stairs {
    step: i128,
    shift: i128,
    low: i128,
    high: i128,
}

impl Stairs {
    /// The sum over the first `count` positions.
    fn sum(&self, count: i128) -> i128 {
        let &Stairs { step, shift, low, high } = self;
        // Divisions of 64 bits: those of 128 would take longer than all the rest of a plan. No number here is above twice what a
        // tensor may have of tokens.
        let steps = |number: i128| number as u64 / step as u64;
        // The first position of the first step that reaches a bound.
        let reaches = |bound: i128| i128::from(steps((bound - shift - 1).max(-1) + step)) * step;
        let (rise, top) = (reaches(low).min(count), reaches(high).min(count));
        let blocks = |count: i128| {
            let whole = i128::from(steps(count));
            step * step * ((whole * (whole - 1)) >> 1) + (count - whole * step) * whole * step
        };
        low * rise + blocks(top) - blocks(rise) + shift * (top - rise) + high * (count - top)
    }
}
