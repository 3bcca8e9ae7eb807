//! The bytes of an allocation and which of them were written: atomic words, so that racing CTAs are
//! a finding of the race checker and never undefined behaviour of the emulator.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

/// Bytes of a sparse page: small, since what lies far apart touches a page a row.
const PAGE: u64 = 1 << 12;

#[derive(Debug)]
pub(crate) enum Storage {
    Dense(Dense),
    Sparse(Sparse),
}

/// Contiguous bytes. Ranges of up to 16 bytes aligned to their length never cross an init word.
#[derive(Debug)]
pub(crate) struct Dense {
    words: Box<[AtomicU32]>,
    /// One bit per byte.
    init: Box<[AtomicU32]>,
}

/// Pages created on first write.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pages: RwLock<HashMap<u64, Arc<Dense>>>,
}

fn zeros(count: usize) -> Box<[AtomicU32]> {
    (0..count).map(|_| AtomicU32::new(0)).collect()
}

impl Dense {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { words: zeros(bytes.div_ceil(4)), init: zeros(bytes.div_ceil(32)) }
    }

    fn init_mask(offset: u64, bytes: u32) -> u32 {
        (((1u64 << bytes) - 1) as u32) << (offset % 32)
    }

    fn mark(&self, offset: u64, bytes: u32) {
        let mask = Self::init_mask(offset, bytes);
        let word = &self.init[(offset / 32) as usize];
        if word.load(Relaxed) & mask != mask {
            word.fetch_or(mask, Relaxed);
        }
    }
}

/// Lane-sized accesses: 1, 2 or 4 bytes aligned to their length, inside the allocation.
impl Storage {
    fn page<R>(&self, offset: u64, create: bool, f: impl FnOnce(&Dense, u64) -> R) -> Option<R> {
        match self {
            Storage::Dense(dense) => Some(f(dense, offset)),
            Storage::Sparse(sparse) => {
                let key = offset / PAGE;
                let found = sparse.pages.read().expect("no holder of this lock panics").get(&key).cloned();
                let page = match found {
                    Some(page) => page,
                    None if create => {
                        let mut pages = sparse.pages.write().expect("no holder of this lock panics");
                        Arc::clone(pages.entry(key).or_insert_with(|| Arc::new(Dense::new(PAGE as usize))))
                    }
                    None => return None,
                };
                Some(f(&page, offset % PAGE))
            }
        }
    }

    /// The word at a multiple of four.
    #[inline]
    pub(crate) fn word(&self, offset: u64) -> u32 {
        if let Storage::Dense(dense) = self {
            return dense.words[(offset / 4) as usize].load(Relaxed);
        }
        self.page(offset, false, |d, o| d.words[(o / 4) as usize].load(Relaxed)).unwrap_or(0)
    }

    #[inline]
    pub(crate) fn set_word(&self, offset: u64, value: u32) {
        if let Storage::Dense(dense) = self {
            dense.words[(offset / 4) as usize].store(value, Relaxed);
            dense.mark(offset, 4);
            return;
        }
        self.page(offset, true, |d, o| {
            d.words[(o / 4) as usize].store(value, Relaxed);
            d.mark(o, 4);
        });
    }

    /// One or two bytes.
    pub(crate) fn part(&self, offset: u64, bytes: u32) -> u32 {
        let word = self.word(offset & !3);
        word >> (8 * (offset % 4)) & if bytes == 1 { 0xff } else { 0xffff }
    }

    pub(crate) fn set_part(&self, offset: u64, bytes: u32, value: u32) {
        let shift = 8 * (offset % 4);
        let mask = if bytes == 1 { 0xff } else { 0xffffu32 } << shift;
        self.page(offset, true, |d, o| {
            // Neighbouring bytes may belong to another CTA: only ours may change.
            let word = &d.words[(o / 4) as usize];
            let _ = word.fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | (value << shift) & mask));
            d.mark(o, bytes);
        });
    }

    /// Replaces a word by `f` of it in one step; returns the old one.
    pub(crate) fn update_word(&self, offset: u64, mut f: impl FnMut(u32) -> u32) -> u32 {
        let old = self.page(offset, true, |d, o| {
            let word = &d.words[(o / 4) as usize];
            let old = word.fetch_update(Relaxed, Relaxed, |old| Some(f(old))).unwrap_or(0);
            d.mark(o, 4);
            old
        });
        old.unwrap_or(0)
    }

    /// Whether up to 16 bytes, aligned to their length, were written.
    #[inline]
    pub(crate) fn initialised(&self, offset: u64, bytes: u32) -> bool {
        let test = |d: &Dense, o: u64| {
            let mask = Dense::init_mask(o, bytes);
            d.init[(o / 32) as usize].load(Relaxed) & mask == mask
        };
        if let Storage::Dense(dense) = self {
            return test(dense, offset);
        }
        self.page(offset, false, test).unwrap_or(false)
    }

    /// Host copy in, any length and alignment.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let o = offset + at as u64;
            if o.is_multiple_of(4) && bytes.len() - at >= 4 {
                let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
                self.set_word(o, u32::from_le_bytes(word));
                at += 4;
            } else {
                self.set_part(o, 1, u32::from(bytes[at]));
                at += 1;
            }
        }
    }

    /// Up to 16 bytes, whole words where they are aligned.
    pub(crate) fn read_words(&self, offset: u64, bytes: &mut [u8]) {
        if !offset.is_multiple_of(4) || !bytes.len().is_multiple_of(4) {
            return self.read(offset, bytes);
        }
        for (i, word) in bytes.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&self.word(offset + 4 * i as u64).to_le_bytes());
        }
    }

    /// Host copy out.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = self.part(offset + i as u64, 1) as u8;
        }
    }
}
