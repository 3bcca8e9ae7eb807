//! The boxes of queries and keys that a kernel on tiles works with: the best ones, and what they read.

use natten_core::Problem;
use natten_core::plan::{KeyStart, PlanTables, TileCounts, Tiling};

use crate::registry::Tile;

/// The boxes that issue fewest pairs; among those, with most full tiles, then longest along the last axis, which lies
/// densest in memory. A problem of single tokens has no box without waste; it gets a flat one.
pub(crate) fn best(problem: &Problem, tile: Tile) -> (Tiling, TileCounts) {
    let tables = PlanTables::of(problem);
    tables.best(tile.queries, tile.keys, KeyStart::Dynamic).expect("a kernel's tiles have tokens")
}

/// Bytes that a kernel on tiles reads from global memory in one forward pass, exactly: each query once, and for each query
/// tile the rows of its key tiles, keys and values both.
pub fn bytes_read(problem: &Problem, tiling: &Tiling) -> u64 {
    let (dim, dim_v) = (problem.head_dim() as u64, problem.head_dim_v() as u64);
    let queries = (problem.query_tokens() as u64).saturating_mul(dim);
    let keys = PlanTables::of(problem).keys_copied(tiling).saturating_mul(dim + dim_v);
    let heads = (problem.batch() * problem.heads() * problem.element_type().size_bytes()) as u64;
    queries.saturating_add(keys).saturating_mul(heads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::{ElementType, Inputs, Layout, Params};

    fn problem(tokens: [usize; 3], params: Params<3>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, 64]).collect();
        let layout = Layout::contiguous(&shape).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::Bf16).unwrap()
    }

    /// Choosing must not take longer than the kernel, however long the axis.
    #[test]
    fn long_axes_are_cut_as_short_ones_are() {
        let best = |tokens: usize| {
            best(&problem([1, 4, tokens], Params::new([1, 2, 99])), Tile { queries: 128, keys: 64 })
        };
        let ((short, of_short), (long, of_long)) = (best(1 << 12), best(1 << 24));
        assert_eq!(short, long);
        let ratio = of_long.issued as f64 / of_short.issued as f64 / 4096.0;
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }

    /// Rows read by a walk over query tiles and their key tiles.
    #[test]
    fn rows_read_match_a_walk() {
        let problem = problem([1, 14, 30], Params::new([1, 5, 11]).dilation([1, 1, 2]));
        let tiling = Tiling { query_tile: [1, 8, 4], key_tile: [1, 4, 8], key_start: KeyStart::Dynamic };
        let mut rows = 0;
        let [_, y, z] = problem.axes().map(|axis| {
            let mut found = Vec::new();
            for g in 0..axis.dilation {
                let residue = axis.residue(g);
                let side = if axis.dilation == 2 { 4 } else { 8 };
                for start in (0..residue.query_len).step_by(side) {
                    let queries = start..(start + side).min(residue.query_len);
                    let (keys, tile) = (residue.keys_of(queries).len(), if side == 4 { 8 } else { 4 });
                    found.push(keys.div_ceil(tile) * keys.min(tile));
                }
            }
            found
        });
        y.iter().for_each(|y| z.iter().for_each(|z| rows += y * z));
        assert_eq!(bytes_read(&problem, &tiling), (2 * 64 * (14 * 30 + 2 * rows)) as u64);
    }
}
