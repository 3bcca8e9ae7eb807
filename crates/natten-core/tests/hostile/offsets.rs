//! Cumulative lengths of packed sequences, of any numbers: an error with its sentence, or ranges in order.

use natten_core::Sequences;

use crate::bytes::Bytes;

/// Makes two lists out of the bytes.
pub fn body(data: &[u8]) {
    let bytes = &mut Bytes::new(data);
    let lists = [list(bytes), list(bytes)];
    let rises = |list: &Vec<usize>| list.first() == Some(&0) && list.is_sorted();
    let expected = lists.iter().all(rises) && lists[0].len() == lists[1].len();
    let [queries, keys] = lists.clone();
    match Sequences::from_offsets(queries, keys) {
        Ok(sequences) => {
            assert!(expected, "{lists:?}");
            assert_eq!(sequences.len() + 1, lists[0].len());
            assert_eq!(sequences.is_empty(), sequences.iter().next().is_none());
            let mut ends = [0, 0];
            for (queries, keys) in sequences.iter() {
                assert_eq!([queries.start, keys.start], ends);
                ends = [queries.end, keys.end];
            }
            assert_eq!(Some(&ends[0]), lists[0].last());
        }
        Err(error) => assert!(!expected && !error.to_string().is_empty(), "{lists:?}: {error}"),
    }
    if let Ok(sequences) = Sequences::from_lengths(&lists[0], &lists[1]) {
        assert_eq!(sequences.len(), lists[0].len());
        assert!(
            sequences.iter().all(|(queries, keys)| queries.start <= queries.end && keys.start <= keys.end)
        );
    }
}

/// Lists that rise, and others.
fn list(bytes: &mut Bytes<'_>) -> Vec<usize> {
    let (count, rises) = (bytes.byte() % 9, !bytes.once_in(4));
    let mut last = 0usize;
    let number = |_| {
        let number = bytes.number();
        last = if rises { last.saturating_add(number) } else { number };
        last
    };
    let mut list: Vec<usize> = (0..count).map(number).collect();
    if rises && let Some(first) = list.first_mut() {
        *first = 0;
    }
    list
}
