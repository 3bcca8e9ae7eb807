//! Files that are no golden cases, or nearly some: errors, never panics. The same body runs under cargo-fuzz
//! (fuzz/README.md).

#[path = "../../natten-core/tests/hostile/edits.rs"]
mod edits;
#[allow(dead_code, reason = "the program uses all of it")]
#[path = "../src/golden.rs"]
mod golden;
#[path = "hostile/golden.rs"]
mod hostile_golden;
#[allow(dead_code, reason = "the program uses all of it")]
#[path = "../src/names.rs"]
mod names;
mod support;

use std::sync::LazyLock;

use proptest::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::json;
use support::{Case, arguments};

/// Small cases, one of them with an empty batch.
static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut corpus = edits::corpus("golden");
    let mut empty = arguments();
    empty["batch"] = json!(0);
    for (arguments, dtype) in [(arguments(), Dtype::F32), (arguments(), Dtype::BF16), (empty, Dtype::F16)] {
        corpus.push(Case::solved(arguments, dtype).bytes());
    }
    corpus
});

/// What means something in the header, or comes near it.
const WORDS: [&str; 24] = [
    "\"",
    "\\\"",
    "\\\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "-1",
    "0",
    "1e39",
    "1e999",
    "NaN",
    "18446744073709551615",
    "9223372036854775807",
    "4294967296",
    "\\\"scale\\\":1,",
    "\\\"additional\\\":7,",
    "\"q\":",
    "F64",
    "BOOL",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 6_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Where the header is: edits of numbers only make other numbers.
    #[test]
    fn edited_files(from in any::<usize>(), edits in prop::collection::vec(edits::edit(), 1..4)) {
        let data = &CORPUS[from % CORPUS.len()];
        let header = data.len().min(8 + usize::from(u16::from_le_bytes([data[0], data[1]])));
        let (mut edited, rest) = (data[..header].to_vec(), &data[header..]);
        edits.iter().for_each(|edit| edit.apply(&mut edited, &WORDS));
        if let Some(grown) = edited.len().checked_sub(8) {
            edited[..8].copy_from_slice(&(grown as u64).to_le_bytes());
        }
        edited.extend(rest);
        hostile_golden::body(&edited);
    }

    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
        hostile_golden::body(&data);
    }
}

#[test]
fn the_corpus_holds() {
    CORPUS.iter().for_each(|data| hostile_golden::body(data));
    let solved = CORPUS.last().expect("three cases at least");
    assert!(golden::Golden::parse(solved).is_ok_and(|golden| golden.has_gradients()));
}
