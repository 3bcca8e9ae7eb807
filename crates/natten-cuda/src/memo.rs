//! Results worth keeping: a model calls with the same few problems again and again, and planning one may take a
//! millisecond.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Results by what they depend on, for a static.
pub(crate) struct Memo<K, V>(LazyLock<Mutex<Map<K, V>>>);

/// By the keys' hashes. Of two keys with the same hash, the later one stays.
type Map<K, V> = HashMap<u64, (K, V)>;

/// Past so many all are forgotten.
const LIMIT: usize = 256;

impl<K, V: Clone> Memo<K, V> {
    pub const fn new() -> Self {
        Memo(LazyLock::new(Mutex::default))
    }

    /// What is kept for the key with this hash that `is_it` knows.
    pub fn get(&self, hash: u64, is_it: impl FnOnce(&K) -> bool) -> Option<V> {
        // A panic elsewhere leaves the map whole.
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&hash).filter(|(key, _)| is_it(key)).map(|(_, value)| value.clone())
    }

    /// Keeps a result, instead of what was kept before.
    pub fn keep(&self, hash: u64, key: K, value: V) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= LIMIT {
            kept.clear();
        }
        kept.insert(hash, (key, value));
    }
}

/// The hash of a key, for [`Memo`].
pub(crate) fn hash_of(key: &impl Hash) -> u64 {
    let mut mixer = Mixer::default();
    key.hash(&mut mixer);
    mixer.finish()
}

/// A multiplication for each word of a key, which is some hundred words of extents and strides: the default hasher would
/// take longer than planning some calls. Keys are the program's own, so nobody makes them collide on purpose, and past
/// [`LIMIT`] of them the map is emptied.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
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
        let get = |key: [usize; 3]| MEMO.get(hash_of(&key), |kept| *kept == key);
        for i in 0..LIMIT {
            let key = [i, i * i, 7];
            MEMO.keep(hash_of(&key), key, i);
        }
        assert!((0..LIMIT).all(|i| get([i, i * i, 7]) == Some(i)));
        assert_eq!(get([3, 9, 8]), None);
        // The same hash is not yet the same key.
        assert_eq!(MEMO.get(hash_of(&[3usize, 9, 7]), |kept| *kept == [3, 9, 8]), None);
        MEMO.keep(hash_of(&[1usize, 2, 3]), [1, 2, 3], 5);
        assert_eq!((get([1, 2, 3]), get([3, 9, 7])), (Some(5), None));
    }

    /// Extents that differ by little and strides that are powers of two have hashes of their own.
    #[test]
    fn keys_spread() {
        let keys = (0..64usize).flat_map(|x| (0..64usize).map(move |y| [x << 12, y << 20, 1]));
        let mut hashes: Vec<u64> = keys.map(|key| hash_of(&key)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 64 * 64);
    }
}
