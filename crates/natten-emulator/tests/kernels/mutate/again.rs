//! Edits that an earlier run told of, judged again: what came of mending the suites, or of a reason.

use std::path::Path;

use natten_emulator::mutate::Edit;
use natten_tests::kernels::shipped;
use serde_json::Value;

use super::options::Options;
use super::{Chosen, FAMILIES, Unit};

/// An edit that nothing noticed.
pub struct Hole {
    operator: String,
    instruction: u64,
    to: String,
}

impl Hole {
    pub fn is(&self, edit: &Edit) -> bool {
        let place = edit.instruction as u64;
        edit.operator == self.operator && place == self.instruction && edit.to == self.to
    }
}

/// The kernels with holes in these lines, each with its holes.
///
/// # Panics
/// When the file cannot be read or is not one that a run wrote.
pub fn units(lines: &Path, options: &Options) -> Vec<Unit> {
    let text = std::fs::read_to_string(lines).unwrap_or_else(|e| panic!("{}: {e}", lines.display()));
    let mut units: Vec<Unit> = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let word = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}"));
        let number = |name: &str| line[name].as_u64().unwrap_or_else(|| panic!("no {name} in {line}"));
        let is_open = matches!(word("outcome"), "hole" | "unreached");
        if !is_open || !options.takes_family(word("family")) || !options.takes_kernel(word("kernel")) {
            continue;
        }
        let at = shipped().iter().position(|kernel| kernel.entry == word("kernel"));
        let family = FAMILIES.iter().find(|family| family.name == word("family"));
        let (Some(at), Some(family), seed) = (at, family, number("seed")) else { continue };
        let instruction = number("instruction");
        let hole = Hole { operator: word("operator").to_owned(), instruction, to: word("to").to_owned() };
        let same = |unit: &&mut Unit| (unit.family, unit.number, unit.seed) == (family.name, at, seed);
        match units.iter_mut().find(same) {
            Some(Unit { edits: Chosen::Again(holes), .. }) => holes.push(hole),
            _ => units.push(Unit { family: family.name, seed, number: at, edits: Chosen::Again(vec![hole]) }),
        }
    }
    units
}
