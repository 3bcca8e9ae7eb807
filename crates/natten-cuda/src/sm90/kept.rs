//! Results worth keeping: a model calls with the same few problems again and again, and a choice may take a millisecond.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Results by what they depend on, for a static.
pub(super) struct Kept<K, V>(LazyLock<Mutex<HashMap<K, V>>>);

/// Past so many all are forgotten.
const LIMIT: usize = 256;

impl<K: Eq + Hash, V: Copy> Kept<K, V> {
    pub const fn new() -> Self {
        Kept(LazyLock::new(Mutex::default))
    }

    /// What is kept for `key`, made first if there is nothing.
    pub fn get_or(&self, key: K, make: impl FnOnce() -> V) -> V {
        // A panic elsewhere leaves the map whole.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = lock().get(&key) {
            return *value;
        }
        // Not under the lock: others may ask for something that is there.
        let value = make();
        let mut kept = lock();
        if kept.len() >= LIMIT {
            kept.clear();
        }
        kept.insert(key, value);
        value
    }
}
