//! A sample of edits that has rare kinds of mistakes as often as common ones.

use std::collections::BTreeMap;

use super::Edit;
use crate::machine::rng::Rng;

/// `count` of the edits, or all: the operators in turn, each giving one of its own drawn by `seed`, at most one for an
/// instruction while there are others.
pub fn sample(edits: Vec<Edit>, count: usize, seed: u64) -> Vec<Edit> {
    let mut rng = Rng::new(seed);
    let mut kinds: BTreeMap<&str, Vec<Edit>> = BTreeMap::new();
    for edit in edits {
        kinds.entry(edit.operator).or_default().push(edit);
    }
    let mut kinds: Vec<Vec<Edit>> = kinds.into_values().collect();
    kinds.iter_mut().for_each(|edits| shuffle(edits, &mut rng));
    shuffle(&mut kinds, &mut rng);
    let mut chosen: Vec<Edit> = Vec::with_capacity(count);
    while chosen.len() < count && kinds.iter().any(|edits| !edits.is_empty()) {
        for edits in &mut kinds {
            let is_new = |edit: &Edit| chosen.iter().all(|other| other.instruction != edit.instruction);
            let at = edits.iter().rposition(is_new).or(edits.len().checked_sub(1));
            if let (Some(at), true) = (at, chosen.len() < count) {
                let edit = edits.remove(at);
                chosen.push(edit);
            }
        }
    }
    chosen
}

fn shuffle<T>(list: &mut [T], rng: &mut Rng) {
    for last in (1..list.len()).rev() {
        list.swap(last, rng.below(last + 1));
    }
}
