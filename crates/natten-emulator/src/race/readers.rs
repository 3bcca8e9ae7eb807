//! Who read four bytes since they were last written. Whole regions have the same readers, so a set of readers is kept
//! once, under a number, and cells hold the number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::clocks::{Clocks, Epoch};

/// Nobody.
pub(super) const NOBODY: u32 = 0;

/// Sets are swept when there are more than this many.
const CROWDED: usize = 1 << 16;

/// Readers of which none knows of another of the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Set {
    pub readers: Vec<Reader>,
    /// Of the four bytes those that were read.
    pub bytes: u32,
}

/// Who read, and which of the four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    pub epoch: Epoch,
    pub bytes: u32,
}

#[derive(Debug)]
pub(super) struct Readers {
    sets: Vec<Set>,
    numbers: HashMap<Set, u32, Quick>,
    /// The set that a reader's access makes of another.
    joined: HashMap<(u32, Epoch, u32), u32, Quick>,
}

impl Default for Readers {
    fn default() -> Self {
        let numbers = HashMap::from_iter([(Set::default(), NOBODY)]);
        Self { sets: vec![Set::default()], numbers, joined: HashMap::default() }
    }
}

impl Readers {
    pub(super) fn set(&self, number: u32) -> &Set {
        &self.sets[number as usize]
    }

    /// `set` and a reader of `bytes` who knows `known`: of those bytes earlier readers that he knows of need not be kept.
    pub(super) fn join(&mut self, set: u32, epoch: Epoch, bytes: u32, known: &Clocks) -> u32 {
        if let Some(&number) = self.joined.get(&(set, epoch, bytes)) {
            return number;
        }
        let before = &self.sets[set as usize];
        let is_known = |e: Epoch| e.actor == epoch.actor || known.get(e.actor) >= e.clock;
        let left = |reader: &Reader| {
            let bytes = if is_known(reader.epoch) { reader.bytes & !bytes } else { reader.bytes };
            (bytes != 0).then_some(Reader { bytes, ..*reader })
        };
        let mut readers: Vec<Reader> = before.readers.iter().filter_map(left).collect();
        readers.push(Reader { epoch, bytes });
        readers.sort_unstable_by_key(|reader| (reader.epoch.actor, reader.epoch.clock));
        let joined = Set { readers, bytes: before.bytes | bytes };
        let number = self.number(joined);
        self.joined.insert((set, epoch, bytes), number);
        number
    }

    fn number(&mut self, set: Set) -> u32 {
        if let Some(&number) = self.numbers.get(&set) {
            return number;
        }
        let number = self.sets.len() as u32;
        self.sets.push(set.clone());
        self.numbers.insert(set, number);
        number
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.sets.len() > CROWDED
    }

    /// Forgets the sets that none of `used` names, and renumbers the rest.
    pub(super) fn sweep<'a>(&mut self, used: impl Iterator<Item = &'a mut u32>) {
        let old = std::mem::take(self);
        for number in used {
            *number = self.number(old.sets[*number as usize].clone());
        }
    }
}

/// Mixes whole words by a multiplication: keys here are small and not adversarial.
#[derive(Debug, Default, Clone)]
pub(super) struct QuickHasher(u64);

type Quick = BuildHasherDefault<QuickHasher>;

impl Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
