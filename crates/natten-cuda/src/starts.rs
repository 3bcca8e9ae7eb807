//! Where the boxes of a long line begin, and how many boxes alike each stands for.

/// Boxes up to which all are looked at.
const MOST: usize = 1 << 13;
/// Of more: those at either end that are, since windows are cut off there, and a sample of those between.
const SHARE: usize = MOST / 4;

/// The beginning of each box of `side` tokens of a line, and for how many boxes it stands: one, but on lines of very many boxes, where
/// counts are those of a sample.
pub(crate) fn starts(len: usize, side: usize) -> impl Iterator<Item = (usize, u64)> {
    let boxes = len.div_ceil(side);
    let all = if boxes <= MOST { boxes } else { SHARE };
    let (rest, tail) = if boxes <= MOST { (0, 0) } else { (boxes - 2 * SHARE, SHARE) };
    let groups = if rest > 0 { SHARE } else { 0 };
    let between = (0..groups).map(move |group| {
        let at = |group: usize| (rest as u128 * group as u128 / SHARE as u128) as usize;
        let (begin, count) = (at(group), at(group + 1) - at(group));
        // Another place in each group, so that no period of the windows is met at one phase alone.
        (SHARE + begin + group % count, count as u64)
    });
    let alone = |at: usize| (at, 1);
    let order = (0..all).map(alone).chain(between).chain((boxes - tail..boxes).map(alone));
    order.map(move |(at, count)| (at * side, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_box_is_stood_for() {
        for (len, side) in
            [(0, 4), (1, 4), (9, 4), (4 * MOST, 4), (4 * MOST + 1, 4), (100_000_001, 3), (1 << 45, 64)]
        {
            let all: Vec<_> = starts(len, side).collect();
            assert_eq!(
                all.iter().map(|(_, count)| *count as usize).sum::<usize>(),
                len.div_ceil(side),
                "{len}"
            );
            assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "{len} {side}");
            assert!(all.iter().all(|&(start, _)| start < len && start % side == 0));
            assert!(all.len() <= MOST);
        }
    }
}
