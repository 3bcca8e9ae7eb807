//! What anybody may pass in, at random: errors, never panics. The same bodies run under cargo-fuzz (fuzz/README.md).

#[path = "hostile/bytes.rs"]
mod bytes;
#[path = "hostile/edits.rs"]
mod edits;
#[path = "hostile/offsets.rs"]
mod offsets;
#[path = "hostile/problem.rs"]
mod problem;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn problems(data in prop::collection::vec(any::<u8>(), 0..96)) {
        problem::body(&data);
    }

    #[test]
    fn packed_offsets(data in prop::collection::vec(any::<u8>(), 0..64)) {
        offsets::body(&data);
    }
}

#[test]
fn the_corpus_holds() {
    edits::corpus("problem").iter().for_each(|data| problem::body(data));
    edits::corpus("offsets").iter().for_each(|data| offsets::body(data));
}
