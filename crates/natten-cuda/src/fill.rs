//! What kernels of several families are told of a forward alike: how its tensors lie, its masks, and the parts of its values.

use natten_core::window::Axis;
use natten_core::{PackedSequence, Problem};

use crate::error::CudaError;
use crate::params::{ForwardParams, Geometry};
use crate::parts::value_parts;
use crate::registry::Kernel;
use crate::views::{Slot, Views};

/// What each launch of a kernel is told, one for each sequence that has queries and each part of its values: the sequence's
/// axes, and the parameters but for how the family shares work out. Addresses are distances from where tensors begin.
pub(crate) fn forward_launches(
    kernel: &Kernel,
    views: &Views,
    problem: &Problem,
) -> impl Iterator<Item = Result<([Axis; 3], ForwardParams), CudaError>> {
    let base = ForwardParams {
        query_strides: views.strides(Slot::QUERY),
        key_strides: views.strides(Slot::KEY),
        value_strides: views.strides(Slot::VALUE),
        out_strides: views.strides(Slot::OUT),
        lse_strides: views.strides(Slot::LSE),
        additional_key_strides: views.list_strides(Slot::ADDITIONAL_KEYS),
        additional_value_strides: views.list_strides(Slot::ADDITIONAL_VALUES),
        ..ForwardParams::default()
    };
    sequences_with_queries(problem).flat_map(move |PackedSequence { query_start, key_start, axes }| {
        value_parts(kernel, problem).map(move |part| {
            let params = ForwardParams {
                query: views.at_token(Slot::QUERY, query_start),
                key: views.at_token(Slot::KEY, key_start),
                value: views.at_element(Slot::VALUE, key_start, part.start),
                additional_value: views.at_element(Slot::ADDITIONAL_VALUES, 0, part.start),
                out: views.at_element(Slot::OUT, query_start, part.start),
                lse: views.at_token(Slot::LSE, query_start),
                geometry: Geometry::new(problem, &axes)?.with_values(&part),
                ..base
            };
            Ok((axes, params))
        })
    })
}

/// The sequences that have anything to compute.
pub(crate) fn sequences_with_queries(problem: &Problem) -> impl Iterator<Item = PackedSequence> {
    let sequences = problem.sequences().filter(|_| problem.batch() > 0);
    sequences.filter(|sequence| sequence.axes.iter().all(|axis| axis.query_extent > 0))
}
