//! The tile unit in software, to the bit, after the operation that Intel's manual gives for `TDPBF16PS`: products of even and of
//! odd numbers are added up apart, each fused and rounded to nearest even, then both together and then to what was there. Numbers
//! below the normal ones are 0, before and after.
//!
//! Rows are taken by loops: a closure would have the instructions of the function that it is handed to, and each fused addition
//! would be a call.

use super::{SIDE, ScoreBlock, SumBlock, TILE};

/// `x`, or a zero of its sign if it is below the normal numbers.
#[inline(always)]
pub(crate) fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// The two numbers of a word.
#[inline(always)]
fn halves(word: f32) -> [f32; 2] {
    let bits = word.to_bits();
    [bits << 16, bits & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)))
}

/// One row of `acc += left x right`, `left` being a row of sixteen words and `right` sixteen rows of them.
#[inline(always)]
fn multiply_row(acc: &mut [f32; SIDE], left: &[f32; SIDE], right: &[[f32; SIDE]; SIDE]) {
    let mut sums = [[0f32; SIDE]; 2];
    for (&left, right) in left.iter().zip(right) {
        let left = halves(left);
        for (column, &right) in right.iter().enumerate() {
            let right = halves(right);
            for half in 0..2 {
                sums[half][column] = flushed(left[half].mul_add(right[half], sums[half][column]));
            }
        }
    }
    for (column, acc) in acc.iter_mut().enumerate() {
        *acc = flushed(flushed(*acc) + flushed(sums[0][column] + sums[1][column]));
    }
}

/// # Safety
/// Sixteen rows of sixteen numbers must be readable, `stride_bytes` apart.
#[inline(always)]
unsafe fn load(from: *const f32, stride_bytes: usize) -> [[f32; SIDE]; SIDE] {
    // SAFETY: passed on.
    std::array::from_fn(|row| unsafe {
        from.byte_add(row * stride_bytes).cast::<[f32; SIDE]>().read_unaligned()
    })
}

/// # Safety
/// As [`super::Simd::multiply_scores`].
#[inline(always)]
pub(crate) unsafe fn multiply_scores(block: &ScoreBlock) {
    for (keys, scores) in block.keys.into_iter().zip(block.scores) {
        let mut acc = [[0f32; SIDE]; SIDE];
        for chunk in 0..block.chunks {
            // SAFETY: the caller vouches for sixteen rows of each chunk.
            let (keys, queries) = unsafe {
                let queries = block.queries.byte_add(chunk * SIDE * block.queries_stride_bytes);
                (
                    load(keys.add(chunk * SIDE), block.keys_stride_bytes),
                    load(queries, block.queries_stride_bytes),
                )
            };
            for (acc, key) in acc.iter_mut().zip(&keys) {
                multiply_row(acc, key, &queries);
            }
        }
        // SAFETY: the caller vouches for sixteen rows.
        unsafe { scores.cast::<[[f32; SIDE]; SIDE]>().write_unaligned(acc) };
    }
}

/// # Safety
/// As [`super::Simd::multiply_sums`].
#[inline(always)]
pub(crate) unsafe fn multiply_sums(block: &SumBlock) {
    for tile in 0..block.tiles {
        // SAFETY: the caller vouches for `tiles` tiles.
        let sums = unsafe { block.sums.add(tile * TILE) };
        // SAFETY: as above.
        let mut acc = unsafe { load(sums, SIDE * size_of::<f32>()) };
        for i in 0..block.count {
            // SAFETY: the caller vouches for `count` tiles of weights, and sixteen words of sixteen components at each start.
            let (values, weights) = unsafe {
                let values = block.values.byte_add(tile * SIDE * block.values_stride_bytes);
                let start = *block.starts.add(i) as usize;
                let weights = block.weights.add(i * TILE);
                (load(values.add(start), block.values_stride_bytes), load(weights, SIDE * size_of::<f32>()))
            };
            for (acc, value) in acc.iter_mut().zip(&values) {
                multiply_row(acc, value, &weights);
            }
        }
        // SAFETY: as where they were read.
        unsafe { sums.cast::<[[f32; SIDE]; SIDE]>().write_unaligned(acc) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn bf16(x: f32) -> u32 {
        x.to_bits() >> 16
    }

    fn word(even: f32, odd: f32) -> f32 {
        f32::from_bits(bf16(even) | bf16(odd) << 16)
    }

    #[test]
    fn numbers_below_the_normal_ones_are_zero() {
        let small = f32::MIN_POSITIVE;
        let row = |x: f32, y: f32| {
            let mut acc = [0f32; SIDE];
            let mut left = [0f32; SIDE];
            left[0] = word(x, 0.0);
            multiply_row(&mut acc, &left, &[[word(y, 0.0); SIDE]; SIDE]);
            acc[3]
        };
        assert_eq!(row(small, 1.0), small);
        assert_eq!(row(small / 2.0, 1.0), 0.0, "an operand");
        assert_eq!(row(small, 0.5), 0.0, "a result");
        let mut acc = [small / 2.0; SIDE];
        multiply_row(&mut acc, &[0f32; SIDE], &[[0f32; SIDE]; SIDE]);
        assert_eq!(acc[0], 0.0, "a sum");
    }

    #[test]
    fn even_and_odd_products_are_added_up_apart() {
        // One more than 2^24 is lost beside it; two of the other half are not lost, since they meet first.
        let mut left = [word(0.0, 1.0); SIDE];
        left[0] = word(4096.0, 1.0);
        let mut right = [[word(0.0, 1.0); SIDE]; SIDE];
        right[0] = [word(4096.0, 1.0); SIDE];
        let mut acc = [0f32; SIDE];
        multiply_row(&mut acc, &left, &right);
        assert_eq!(acc[0], 16_777_216.0 + 16.0);
    }
}
