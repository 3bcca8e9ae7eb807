//! Register files of a warp, one array of 32 lanes per register.

use std::sync::Arc;

use crate::inst::{CONST, NONE, Slot};
use crate::module::{Constants, Kernel};
use crate::mutate::Difference;
use crate::scalar::{Lanes, Wides};

#[derive(Debug, Default, Clone)]
pub(crate) struct Registers {
    words: Vec<Lanes>,
    wides: Vec<Wides>,
    preds: Vec<u32>,
    constants: Arc<Constants>,
}

impl Registers {
    /// Sizes the files for a kernel. Old contents stay: a register read before it is written holds garbage.
    pub(crate) fn reset(&mut self, kernel: &Kernel) {
        self.words.resize(kernel.words, [0xdead_beef; 32]);
        self.wides.resize(kernel.wides, [0xdead_beef_dead_beef; 32]);
        self.preds.resize(kernel.preds, 0x5555_5555);
        self.constants = Arc::clone(&kernel.constants);
    }

    #[inline(always)]
    pub(crate) fn word(&self, slot: Slot) -> &Lanes {
        if slot & CONST == 0 {
            &self.words[slot as usize]
        } else {
            &self.constants.words[(slot ^ CONST) as usize]
        }
    }

    #[inline(always)]
    pub(crate) fn wide(&self, slot: Slot) -> &Wides {
        if slot & CONST == 0 {
            &self.wides[slot as usize]
        } else {
            &self.constants.wides[(slot ^ CONST) as usize]
        }
    }

    #[inline(always)]
    pub(crate) fn pred(&self, slot: Slot) -> u32 {
        if slot & CONST == 0 {
            self.preds[slot as usize]
        } else {
            self.constants.preds[(slot ^ CONST) as usize]
        }
    }

    /// Notes where registers differ in the enabled lanes; the last of each kind are for an edit's own use.
    pub(crate) fn compare(&self, other: &Registers, mask: u32, difference: &Difference) {
        let lanes = || (0..32).filter(|lane| mask >> lane & 1 == 1);
        let (words, wides) = (self.words.len() - 1, self.wides.len() - 1);
        for (a, b) in self.words[..words].iter().zip(&other.words).filter(|(a, b)| a != b) {
            lanes().filter(|&lane| a[lane] != b[lane]).for_each(|lane| difference.of_words(a[lane], b[lane]));
        }
        let differs = |(a, b): (&Wides, &Wides)| lanes().any(|lane| a[lane] != b[lane]);
        let preds = self.preds[..self.preds.len() - 1].iter().zip(&other.preds);
        let any_pred = preds.into_iter().any(|(a, b)| (a ^ b) & mask != 0);
        if any_pred || self.wides[..wides].iter().zip(&other.wides).any(differs) {
            difference.of_others();
        }
    }

    /// Writes the enabled lanes; a sink swallows them.
    #[inline(always)]
    pub(crate) fn set_word(&mut self, slot: Slot, mask: u32, value: &Lanes) {
        if slot == NONE {
            return;
        }
        let target = &mut self.words[slot as usize];
        if mask == !0 {
            *target = *value;
        } else {
            for lane in 0..32 {
                target[lane] = if mask >> lane & 1 == 1 { value[lane] } else { target[lane] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn set_wide(&mut self, slot: Slot, mask: u32, value: &Wides) {
        if slot == NONE {
            return;
        }
        let target = &mut self.wides[slot as usize];
        if mask == !0 {
            *target = *value;
        } else {
            for lane in 0..32 {
                target[lane] = if mask >> lane & 1 == 1 { value[lane] } else { target[lane] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn set_pred(&mut self, slot: Slot, mask: u32, value: u32) {
        if slot != NONE {
            let target = &mut self.preds[slot as usize];
            *target = *target & !mask | value & mask;
        }
    }
}
