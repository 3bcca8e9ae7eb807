//! Inputs to try: bytes at random, and the corpus with some of its bytes edited.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;

/// What each input of a target's corpus holds. None outside of the repository.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file of the corpus")).collect()
}

/// A change of a few bytes.
#[derive(Clone, Debug)]
pub enum Edit {
    Set(usize, u8),
    Flip(usize, u8),
    Remove(usize, usize),
    /// A range again, behind itself.
    Repeat(usize, usize),
    /// Bytes that mean something, from a list.
    Insert(usize, usize),
    Cut(usize),
}

/// An edit at any place of a longer text.
pub fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (any::<usize>(), 1..24usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        (any::<usize>(), 1..24usize).prop_map(|(at, len)| Edit::Repeat(at, len)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, which)| Edit::Insert(at, which)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, which)| Edit::Insert(at, which)),
        any::<usize>().prop_map(Edit::Cut),
    ]
}

impl Edit {
    /// Makes the change; numbers wrap around the bytes and the words that there are.
    pub fn apply(&self, data: &mut Vec<u8>, words: &[&str]) {
        if data.is_empty() {
            return;
        }
        let len = data.len();
        let range = |at: usize, count: usize| -> Range<usize> { at % len..(at % len + count).min(len) };
        match *self {
            Edit::Set(at, byte) => data[at % len] = byte,
            Edit::Flip(at, bit) => data[at % len] ^= 1 << bit,
            Edit::Remove(at, count) => drop(data.drain(range(at, count))),
            Edit::Repeat(at, count) => {
                let again = data[range(at, count)].to_vec();
                let end = range(at, count).end;
                data.splice(end..end, again);
            }
            Edit::Insert(at, which) => {
                let word = words[which % words.len()].bytes();
                data.splice(at % len..at % len, word);
            }
            Edit::Cut(at) => data.truncate(at % len),
        }
    }
}
