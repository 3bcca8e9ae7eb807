//! What the families' models of cost share. Times are microseconds, fitted to an H100 (docs/performance.md, section 6): of
//! other devices only their order means something.

use natten_core::Problem;
use natten_core::plan::{PlanTables, Tiling};

use crate::family::Pass;

/// Starting a kernel.
pub(crate) const LAUNCH: f64 = 4.0;
/// Bytes that memory moves in a microsecond.
pub(crate) const BYTES: f64 = 2.8e6;
/// Below so many waves of ctas the last one counts whole.
const FEW_WAVES: f64 = 6.0;

/// Rounds of items that as many slots take.
pub(crate) fn waves(items: f64, slots: f64) -> f64 {
    let waves = items / slots;
    if waves < FEW_WAVES { waves.ceil() } else { waves }
}

/// The least time that reading and writing every tensor once takes: no kernel is faster.
pub(crate) fn traffic(pass: &Pass<'_>) -> f64 {
    let elements = match pass {
        Pass::Forward(problem) | Pass::Backward(problem) => {
            let rows = |tokens: usize, heads: usize| (problem.batch() * tokens * heads) as f64;
            let both = (problem.head_dim() + problem.head_dim_v()) as f64;
            let keys = problem.key_tokens() + problem.additional_keys();
            both * (rows(problem.query_tokens(), problem.heads()) + rows(keys, problem.heads_kv()))
        }
        Pass::Merge(rows) => rows.elements() * (rows.branches + 1) as f64,
        Pass::MergeBackward(rows) => rows.elements() * (2 * rows.branches + 1) as f64,
    };
    LAUNCH + elements * pass.element_type().size_bytes() as f64 / BYTES
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
    use natten_core::plan::KeyStart;
    use natten_core::{ElementType, Inputs, Layout, Params};

    /// Rows read by a walk over query tiles and their key tiles.
    #[test]
    fn rows_read_match_a_walk() {
        let params = Params::new([1, 5, 11]).dilation([1, 1, 2]);
        let layout = Layout::contiguous(&[1, 1, 14, 30, 1, 64]).unwrap();
        let inputs = Inputs::new(layout, layout, layout);
        let problem = Problem::new(&params.to_dyn(), &inputs, ElementType::Bf16).unwrap();
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
