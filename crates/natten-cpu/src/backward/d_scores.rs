//! The softmax's backward on a score tile: `weights = exp(scores - lse)`, `d_scores = scale * weights * (products - delta)`.

use crate::arch::Simd;
use crate::boxes::Box3;
use crate::score_block::ScoreBlock;
use crate::softmax::exp2;
use crate::tile_mask::ScoreTileShape;

/// Where the log-sum-exp and delta of a score come from: its lane, or its row of a score tile.
pub(super) enum RowScalars<'a, V> {
    OfLanes(V, V),
    OfRows(&'a ScoreBlock<'a>, Box3),
}

/// Turns scores of group `g` into weights, and products of output gradients and values into gradients of the scores
/// before scaling.
#[inline(always)]
pub(super) fn d_scores<S: Simd>(
    simd: S,
    (scores, products): (&mut [f32], &mut [f32]),
    (g, shape): (usize, &ScoreTileShape),
    scalars: &RowScalars<'_, S::V>,
    scale: f32,
) {
    let scale = simd.splat(scale);
    for x in 0..shape.x {
        for y in 0..shape.y {
            let start = ((x * shape.y + y) * shape.pitch + shape.first) * 2 * S::LANES;
            let range = start..start + shape.columns * 2 * S::LANES;
            let scores = scores[range.clone()].chunks_exact_mut(2 * S::LANES);
            let slots = scores.zip(products[range].chunks_exact_mut(2 * S::LANES));
            match scalars {
                RowScalars::OfLanes(lse, delta) => {
                    let row = Row { lse: *lse, delta: *delta };
                    for (score, product) in slots {
                        let (score, product) = (&mut score[g * S::LANES..], &mut product[g * S::LANES..]);
                        slot_d_scores(simd, score, product, (row, scale));
                    }
                }
                RowScalars::OfRows(block, tile) => {
                    let [lse, delta] = block.packed.scalars.each_ref().map(|scalars| scalars.get());
                    let columns = &block.packed.extents[2];
                    let line = block.line(tile[0].start + x, tile[1].start + y);
                    let at = line * columns.len() + (tile[2].start - columns.start) + shape.first;
                    let of_rows = lse[at..][..shape.columns].iter().zip(&delta[at..][..shape.columns]);
                    for ((score, product), (&lse, &delta)) in slots.zip(of_rows) {
                        let (score, product) = (&mut score[g * S::LANES..], &mut product[g * S::LANES..]);
                        let row = Row { lse: simd.splat(lse), delta: simd.splat(delta) };
                        slot_d_scores(simd, score, product, (row, scale));
                    }
                }
            }
        }
    }
}

/// What scores of a row become weights and gradients with.
#[derive(Clone, Copy)]
struct Row<V> {
    /// In powers of 2.
    lse: V,
    delta: V,
}

/// One slot of [`d_scores`]. No closure: closures do not inherit the instructions of the function around them.
#[inline(always)]
fn slot_d_scores<S: Simd>(simd: S, score: &mut [f32], product: &mut [f32], (row, scale): (Row<S::V>, S::V)) {
    let minus_lse = simd.sub(simd.splat(0.0), row.lse);
    // No weight is above 1, but for rounding; and where the log-sum-exp is coarse, rounding may be many powers of two.
    let highest = simd.splat(0.0);
    let weight = exp2(simd, simd.fma(simd.load(score), simd.splat(4.0), minus_lse), highest);
    let d_score = simd.mul(simd.mul(weight, scale), simd.sub(simd.load(product), row.delta));
    simd.store(score, weight);
    simd.store(product, d_score);
}
