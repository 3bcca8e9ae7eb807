//! The boxes of queries and keys that a kernel on tiles works with: the best ones, quickly.

use natten_core::Problem;
use natten_core::plan::{KeyStart, TileCounts, Tiling, box_log2};

use crate::family::Query;
use crate::registry::{Facts, Kernel};

/// The `most` best boxes for a kernel with what they cost, best first; those asked for, if they are of the kernel's size.
pub(super) fn best(
    kernel: &Kernel,
    query: &Query<'_>,
    problem: &Problem,
    most: usize,
) -> Vec<(Tiling, TileCounts)> {
    let Some(tile) = kernel.tile() else { return Vec::new() };
    let tables = query.tables(problem);
    if let Some(asked) = &query.request.tiling {
        let fits = box_log2(&asked.query_tile, tile.queries).is_some()
            && box_log2(&asked.key_tile, tile.keys).is_some();
        return if fits { vec![(*asked, tables.counts(asked))] } else { Vec::new() };
    }
    if most > 1 {
        let mut ranked = tables.ranked(tile.queries, tile.keys, KeyStart::Dynamic);
        ranked.truncate(most);
        return ranked;
    }
    tables.best(tile.queries, tile.keys, KeyStart::Dynamic).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use natten_core::plan::rank_tilings;
    use natten_core::{ElementType, Inputs, Layout, Params};

    use crate::capability::ComputeCapability;
    use crate::device::Properties;
    use crate::family::{Pass, Request};
    use crate::registry::{Operation, kernels_of};
    use crate::views::Views;

    fn problem(tokens: [usize; 3], params: Params<3>) -> Problem {
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([1, 64]).collect();
        let layout = Layout::contiguous(&shape).unwrap();
        Problem::new(&params.to_dyn(), &Inputs::new(layout, layout, layout), ElementType::Bf16).unwrap()
    }

    fn best_of(kernel: &Kernel, problem: &Problem) -> (Tiling, TileCounts) {
        let properties = Properties {
            name: String::new(),
            compute_capability: ComputeCapability { major: 8, minor: 0 },
            multiprocessors: 1,
            shared_bytes_per_block: 163 << 10,
            memory_bytes: 0,
        };
        let (views, request) = (Views::dense(problem), Request::default());
        let query = Query::new(Pass::Forward(problem), &views, &properties, &request);
        best(kernel, &query, problem, 1)[0]
    }

    #[test]
    fn the_best_is_the_planners_best() {
        for (tokens, params) in [
            ([16, 44, 80], Params::new([16, 24, 16])),
            ([30, 48, 80], Params::new([18, 24, 24]).stride([16, 8, 8])),
            ([1, 64, 64], Params::new([1, 16, 16])),
            ([1, 1, 3000], Params::new([1, 1, 200]).is_causal([false, false, true])),
            ([11, 19, 30], Params::new([5, 9, 7]).stride([2, 3, 1]).dilation([1, 2, 3])),
            ([1, 1, 1], Params::new([1, 1, 1])),
        ] {
            let problem = problem(tokens, params);
            for kernel in kernels_of("sm80", Operation::Forward) {
                let tile = kernel.tile().unwrap();
                let ranked = rank_tilings(&problem, tile.queries, tile.keys, KeyStart::Dynamic);
                assert_eq!(best_of(kernel, &problem), ranked[0], "{tokens:?}");
            }
        }
    }

    /// Choosing must not take longer than the kernel, however long the axis.
    #[test]
    fn long_axes_are_cut_as_short_ones_are() {
        let kernel = kernels_of("sm80", Operation::Forward).next().unwrap();
        let best = |tokens: usize| best_of(kernel, &problem([1, 4, tokens], Params::new([1, 2, 99])));
        let ((short, of_short), (long, of_long)) = (best(1 << 12), best(1 << 24));
        assert_eq!(short, long);
        let ratio = of_long.issued as f64 / of_short.issued as f64 / 4096.0;
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }
}
