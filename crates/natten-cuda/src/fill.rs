//! What kernels of several families are told of a forward alike: how its tensors lie, and its masks.

use natten_core::window::Axis;
use natten_core::{PackedSequence, Problem};

use crate::error::CudaError;
use crate::params::{ForwardParams, Geometry};
use crate::views::{Slot, Views};

/// The axes of each sequence that has queries, and its parameters but for how the family shares work out. Addresses are
/// distances from where tensors begin.
pub(crate) fn forward_sequences(
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
    sequences_with_queries(problem).map(move |PackedSequence { query_start, key_start, axes }| {
        let params = ForwardParams {
            query: views.at_token(Slot::QUERY, query_start),
            key: views.at_token(Slot::KEY, key_start),
            value: views.at_token(Slot::VALUE, key_start),
            out: views.at_token(Slot::OUT, query_start),
            lse: views.at_token(Slot::LSE, query_start),
            geometry: Geometry::new(problem, &axes)?,
            ..base
        };
        Ok((axes, params))
    })
}

/// The sequences that have anything to compute.
pub(crate) fn sequences_with_queries(problem: &Problem) -> impl Iterator<Item = PackedSequence> {
    let sequences = problem.sequences().filter(|_| problem.batch() > 0);
    sequences.filter(|sequence| sequence.axes.iter().all(|axis| axis.query_extent > 0))
}
