//! Register files of a warp, one array of 32 lanes per register.

use std::sync::Arc;

use crate::inst::{CONST, NONE, Slot};
use crate::module::{Constants, Kernel};
use crate::scalar::{Lanes, Wides};

#[derive(Debug, Default)]
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
