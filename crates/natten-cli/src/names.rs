//! Names as others wrote them: shown so that they cannot disturb a terminal, and compared with those that are known.

/// The text with every character escaped that moves a cursor, colours, rings or turns the direction of reading.
pub fn escaped(text: &str) -> String {
    let is_plain = |letter: char| {
        !letter.is_control()
            && !matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .flat_map(|letter| match is_plain(letter) {
            true => vec![letter],
            false => letter.escape_default().collect(),
        })
        .collect()
}

/// The known name that was probably meant: one that is a part of `name` or has it as a part if there is such a one, and
/// the fewest edits away.
pub fn nearest(name: &str, known: &[&'static str]) -> &'static str {
    let distance =
        |other: &&'static str| (!(name.contains(*other) || other.contains(name)), edits(name, other));
    known.iter().copied().min_by_key(distance).unwrap_or_default()
}

/// Letters to insert, remove or replace until one text is the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stay_and_controls_do_not() {
        assert_eq!(escaped("a b/ä漢\"'.x"), "a b/ä漢\"'.x");
        assert_eq!(escaped("\u{1b}[2Jx\n\u{9b}\u{202e}"), "\\u{1b}[2Jx\\n\\u{9b}\\u{202e}");
    }

    #[test]
    fn the_nearest_name_is_the_one_meant() {
        let known = ["token_shape", "kernel_size", "scale", "is_causal", "head_dim", "head_dim_v"];
        for (name, expected) in [
            ("softmax_scale", "scale"),
            ("scael", "scale"),
            ("window_size", "kernel_size"),
            ("causal", "is_causal"),
            ("head_dim_vv", "head_dim_v"),
            ("tokenshape", "token_shape"),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }
}
