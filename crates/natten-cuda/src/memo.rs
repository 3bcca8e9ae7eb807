//! Results worth keeping: a model calls with the same few problems again and again, and planning one may take a
//! millisecond.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Results by what they depend on, for a static.
pub(crate) struct Memo<K, V>(LazyLock<Mutex<Map<K, V>>>);

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Past so many all are forgotten.
const LIMIT: usize = 256;

impl<K: Eq + Hash, V: Clone> Memo<K, V> {
    pub const fn new() -> Self {
        Memo(LazyLock::new(Mutex::default))
    }

    /// What is kept for `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        // A panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Keeps a result, instead of what was kept before.
    pub fn keep(&self, key: K, value: V) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropped when the lock is free again: others may ask for something that is there.
        let _old = if kept.len() >= LIMIT { std::mem::take(&mut *kept) } else { Map::default() };
        kept.insert(key, value);
        drop(kept);
    }
}

/// A multiplication for each word of a key, which is some hundred words of extents and strides: the default hasher would
/// take longer than planning some calls. Keys are the program's own, so nobody makes them collide on purpose, and past
/// [`LIMIT`] of them the map is emptied.
#[derive(Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        // The table takes its place from the low bits and a tag from the high ones.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_i64(&mut self, word: i64) {
        self.write_u64(word as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_apart_and_forgotten() {
        static MEMO: Memo<[usize; 3], usize> = Memo::new();
        for i in 0..LIMIT {
            MEMO.keep([i, i * i, 7], i);
        }
        assert!((0..LIMIT).all(|i| MEMO.get(&[i, i * i, 7]) == Some(i)));
        assert_eq!(MEMO.get(&[3, 9, 8]), None);
        MEMO.keep([1, 2, 3], 5);
        assert_eq!((MEMO.get(&[1, 2, 3]), MEMO.get(&[3, 9, 7])), (Some(5), None));
    }

    /// Extents that differ by little and strides that are powers of two fall into different places.
    #[test]
    fn keys_spread() {
        let place = |key: &[usize]| {
            let mut mixer = Mixer::default();
            key.hash(&mut mixer);
            (mixer.finish() & 0xfff, mixer.finish() >> 57)
        };
        let mut places: Vec<_> =
            (0..64).flat_map(|x| (0..64).map(move |y| place(&[x << 12, y << 20, 1]))).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 4000, "{}", places.len());
    }
}
