//! The operators that break kernels: each has edits in the kernels that ship, and each edit makes a kernel.

use std::collections::BTreeSet;

use natten_cuda::registry::kernels;
use natten_emulator::Module;
use natten_emulator::mutate::{OPERATORS, sample};

#[test]
fn every_operator_has_edits_and_every_edit_applies() {
    let mut found = BTreeSet::new();
    for kernel in kernels() {
        let module = Module::parse(&kernel.ptx()).expect("a kernel that parses");
        let edits = module.edits(kernel.entry);
        found.extend(edits.iter().map(|edit| edit.operator));
        for edit in sample(edits, 60, 1) {
            assert_ne!(edit.to, edit.from);
            let edited = module.edited(kernel.entry, &edit);
            assert!(edited.entry(kernel.entry).is_some(), "{}: {edit:?}", kernel.entry);
        }
    }
    let missing: Vec<_> = OPERATORS.iter().filter(|operator| !found.contains(*operator)).collect();
    let unknown: Vec<_> = found.iter().filter(|operator| !OPERATORS.contains(operator)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "without edits: {missing:?}, not listed: {unknown:?}");
}

/// The same seed draws the same edits, another one others, and no operator is left out while there is room.
#[test]
fn samples_are_drawn_by_seed_and_spread_over_operators() {
    let kernel = kernels().find(|kernel| kernel.entry == "natten_forward_sm90_f16_d64").expect("it ships");
    let module = Module::parse(&kernel.ptx()).expect("a kernel that parses");
    let drawn = |seed| -> Vec<_> {
        let edits = sample(module.edits(kernel.entry), 40, seed);
        edits.into_iter().map(|edit| (edit.operator, edit.instruction, edit.to)).collect()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let all: BTreeSet<_> = module.edits(kernel.entry).iter().map(|edit| edit.operator).collect();
    let some: BTreeSet<_> = drawn(3).into_iter().map(|(operator, ..)| operator).collect();
    assert_eq!(all, some);
}
