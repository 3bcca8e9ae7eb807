//! The forward: each task computes some queries of a few heads, walking along an axis from query tile to query tile.
//!
//! ```text
//! for each query tile of the task:
//!     pack its queries as vectors over lanes
//!     for each block of keys that the tile sees, then for each block of additional keys:
//!         pack those keys and values that are not there from the tile before           packed.rs
//!         for each head, for each pair of groups, for each tile of their scores:       tile_mask.rs
//!             scores     = scale * queries . keys, -inf where a lane does not see the key  arch/scores.rs
//!             max', sum' = online softmax; sums *= 2^(max - max')                          softmax.rs
//!             sums      += 2^(scores - max') x values                                      arch/sums.rs
//!     out = sums / sum, lse = max + ln sum
//! ```
//!
//! With tiles (arch/tiles) and bf16 a tile of sixteen queries takes the place of a pair of groups, and tiled.rs that of tile.rs.
//!
//! While the products of a row block run, the rows of the next one are fetched into the cache (prefetch.rs).

mod task;
mod tile;
mod tiled;

use natten_core::{Element, Inputs, Output, Problem, TensorView, TensorViewMut, bf16, f16};

use crate::Cpu;
use crate::arch::rows::{Rows, SharedRows};
use crate::blocking::Pass;
use crate::isa::Isa;
use crate::parallel::{run_tasks, run_tile_tasks};
use crate::schedule::{Schedule, Vectors};

/// All that the tasks of a call share.
struct Call<'a, E> {
    problem: &'a Problem,
    schedule: Schedule<'a>,
    query: Rows<'a, E>,
    key: Rows<'a, E>,
    value: Rows<'a, E>,
    additional: Option<[Rows<'a, E>; 2]>,
    out: SharedRows<'a, E>,
    lse: Option<SharedRows<'a, f32>>,
}

/// One function for each element type, so that this crate compiles them and not each that calls them.
macro_rules! of_type {
    ($name:ident, $type:ty) => {
        /// See the module.
        pub(crate) fn $name(
            cpu: &Cpu,
            isa: Isa,
            problem: &Problem,
            inputs: &Inputs<TensorView<'_, $type>>,
            output: Output<TensorViewMut<'_, $type>, TensorViewMut<'_, f32>>,
        ) {
            forward(cpu, isa, problem, inputs, output);
        }
    };
}

of_type!(of_f32, f32);
of_type!(of_f16, f16);
of_type!(of_bf16, bf16);

/// Computes `out` and `lse`.
fn forward<E: Element>(
    cpu: &Cpu,
    isa: Isa,
    problem: &Problem,
    inputs: &Inputs<TensorView<'_, E>>,
    output: Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
) {
    let vectors = Vectors::of_forward(isa, E::TYPE);
    let call = Call {
        problem,
        schedule: Schedule::new(cpu, &vectors, problem, Pass::Forward),
        query: Rows::of_rows(&inputs.query),
        key: Rows::of_rows(&inputs.key),
        value: Rows::of_rows(&inputs.value),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(Rows::of_rows)),
        out: SharedRows::of_rows(output.out),
        lse: output.lse.map(SharedRows::of_scalars),
    };
    match vectors.tiles {
        true => run_tile_tasks(cpu, isa, problem.useful_flops(), &call),
        false => run_tasks(cpu, isa, problem.useful_flops(), &call),
    }
}
