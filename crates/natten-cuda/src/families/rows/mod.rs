//! Kernels that take a row a warp: merging partial results, and what the backward passes of all families need besides
//! their own kernels.

use std::mem::offset_of;

use natten_core::{ElementType, Problem};

use crate::cost::traffic;
use crate::family::{Bid, Family, Launch, MergeRows, Offer, Pass, Patch, Query, Refused, patches};
use crate::params::{
    Branch, DeltaParams, GradientBranch, MergeBackwardParams, MergeParams, RowCount, Strides, SumParams,
};
use crate::registry::{Facts, Kernel, Operation, kernels_of};
use crate::rejection::RejectionReason;
use crate::views::Slot;

pub(crate) mod copy;

/// The family.
pub(crate) struct Rows;

impl Family for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn reason_against(&self, _kernel: &'static Kernel, _query: &Query<'_>) -> Option<RejectionReason> {
        None
    }

    fn bids(
        &self,
        kernel: &'static Kernel,
        query: &Query<'_>,
        _most: usize,
    ) -> Result<Vec<Bid>, RejectionReason> {
        Ok(vec![Bid { kernel, tiling: None, side: 0, microseconds: traffic(&query.pass) }])
    }

    fn lay_out(&self, bid: &Bid, query: &Query<'_>) -> Result<Offer, Refused> {
        let launch = match query.pass {
            Pass::Merge(rows) => merge(bid.kernel, query, rows)?,
            Pass::MergeBackward(rows) => merge_backward(bid.kernel, query, rows)?,
            Pass::Forward(_) | Pass::Backward(_) => return Err(Refused::By(RejectionReason::NotAskedFor)),
        };
        Ok(Offer { bid: *bid, launches: vec![launch], workspace_bytes: 0 })
    }

    #[cfg(test)]
    fn parameter_bytes(&self, operation: crate::registry::Operation) -> usize {
        match operation {
            Operation::Delta => size_of::<DeltaParams>(),
            Operation::SumPartials => size_of::<SumParams>(),
            Operation::MergeBackward => size_of::<MergeBackwardParams>(),
            Operation::CopyRows | Operation::AddRows => size_of::<crate::params::CopyParams>(),
            _ => size_of::<MergeParams>(),
        }
    }

    fn issued_over_useful(&self, bid: &Bid, _query: &Query<'_>) -> Vec<(&'static Kernel, f64)> {
        vec![(bid.kernel, 1.0)]
    }
}

/// One result of several.
fn merge(kernel: &'static Kernel, query: &Query<'_>, rows: &MergeRows) -> Result<Launch, Refused> {
    let views = query.views;
    let count = RowCount::new(rows.batch, rows.tokens, rows.heads, rows.head_dim)?;
    let mut params = MergeParams {
        out_strides: views.strides(Slot::OUT),
        lse_strides: views.strides(Slot::LSE),
        count,
        branches: rows.branches as i32,
        ..MergeParams::default()
    };
    let mut addresses = patches!(MergeParams, out: OUT, lse: LSE).to_vec();
    for (i, branch) in params.branch.iter_mut().enumerate().take(rows.branches) {
        let [out, lse] = [Slot::partial_out(i), Slot::partial_lse(i)];
        *branch =
            Branch { out_strides: views.strides(out), lse_strides: views.strides(lse), ..Branch::default() };
        let at = offset_of!(MergeParams, branch) + i * size_of::<Branch>();
        addresses.push(Patch { at: at + offset_of!(Branch, out), slot: out });
        addresses.push(Patch { at: at + offset_of!(Branch, lse), slot: lse });
    }
    Ok(Launch::new(query, kernel, ctas(&count, kernel), bytemuck::bytes_of(&params), &addresses))
}

/// The gradients of several results from that of what they merge into.
fn merge_backward(kernel: &'static Kernel, query: &Query<'_>, rows: &MergeRows) -> Result<Launch, Refused> {
    let views = query.views;
    let count = RowCount::new(rows.batch, rows.tokens, rows.heads, rows.head_dim)?;
    let mut params = MergeBackwardParams {
        d_out_strides: views.strides(Slot::D_OUT),
        d_lse_strides: views.strides(Slot::D_LSE),
        count,
        branches: rows.branches as i32,
        ..MergeBackwardParams::default()
    };
    let mut addresses = patches!(MergeBackwardParams, d_out: D_OUT, d_lse: D_LSE).to_vec();
    for (i, branch) in params.branch.iter_mut().enumerate().take(rows.branches) {
        let (out, lse) = (Slot::partial_out(i), Slot::partial_lse(i));
        let (d_out, d_lse) = (Slot::d_partial_out(i), Slot::d_partial_lse(i));
        *branch = GradientBranch {
            out_strides: views.strides(out),
            lse_strides: views.strides(lse),
            d_out_strides: views.strides(d_out),
            d_lse_strides: views.strides(d_lse),
            ..GradientBranch::default()
        };
        let at = offset_of!(MergeBackwardParams, branch) + i * size_of::<GradientBranch>();
        for (field, slot) in [
            (offset_of!(GradientBranch, out), out),
            (offset_of!(GradientBranch, lse), lse),
            (offset_of!(GradientBranch, d_out), d_out),
            (offset_of!(GradientBranch, d_lse), d_lse),
        ] {
            addresses.push(Patch { at: at + field, slot });
        }
    }
    Ok(Launch::new(query, kernel, ctas(&count, kernel), bytemuck::bytes_of(&params), &addresses))
}

/// Ctas that take a row a warp.
fn ctas(count: &RowCount, kernel: &Kernel) -> u32 {
    (count.rows as u32).div_ceil(kernel.threads / 32)
}

/// The kernel of an operation; it takes rows of any length that lie in any way.
fn kernel(operation: Operation, element_type: ElementType) -> Result<&'static Kernel, Refused> {
    let of_type = |kernel: &&Kernel| kernel.element_type() == element_type;
    kernels_of(Rows.name(), operation).find(of_type).ok_or({
        Refused::By(RejectionReason::ElementType { kernel: ElementType::F32, problem: element_type })
    })
}

/// The statistics of every row of queries that the backward kernels read: 8 bytes a row, at the workspace's beginning.
pub(crate) fn delta(
    query: &Query<'_>,
    problem: &Problem,
    statistics_strides: Strides,
) -> Result<Launch, Refused> {
    let kernel = kernel(Operation::Delta, problem.element_type())?;
    let tokens = problem.axes().map(|axis| axis.query_extent);
    let count = RowCount::new(problem.batch(), tokens, problem.heads(), problem.head_dim_v())?;
    let params = DeltaParams {
        out_strides: query.views.strides(Slot::OUT),
        d_out_strides: query.views.strides(Slot::D_OUT),
        lse_strides: query.views.strides(Slot::LSE),
        d_lse_strides: query.views.strides(Slot::D_LSE),
        statistics_strides,
        count,
        ..DeltaParams::default()
    };
    let addresses =
        patches!(DeltaParams, out: OUT, d_out: D_OUT, lse: LSE, d_lse: D_LSE, statistics: WORKSPACE);
    Ok(Launch::new(query, kernel, ctas(&count, kernel), bytemuck::bytes_of(&params), &addresses))
}

/// Partial gradients of keys or values, or of additional ones, in the workspace.
pub(crate) struct Partials {
    /// Where they begin there, in bytes.
    pub begin: usize,
    /// Of one split.
    pub strides: Strides,
    /// From one split to the next, in elements.
    pub split_stride: i64,
    /// Splits.
    pub splits: i32,
    /// Rows of one split.
    pub rows: RowCount,
    /// Where their sum goes, from which token along the last axis on.
    pub sum: Slot,
    pub start: usize,
}

/// Sums partial gradients up.
pub(crate) fn sum(query: &Query<'_>, problem: &Problem, partials: &Partials) -> Result<Launch, Refused> {
    let kernel = kernel(Operation::SumPartials, problem.element_type())?;
    let count = partials.rows;
    let params = SumParams {
        sum: query.views.at_token(partials.sum, partials.start),
        partial: partials.begin as u64,
        split_stride: partials.split_stride,
        partial_strides: partials.strides,
        sum_strides: query.views.strides(partials.sum),
        count,
        splits: partials.splits,
        ..SumParams::default()
    };
    let addresses = [
        Patch { at: offset_of!(SumParams, partial), slot: Slot::WORKSPACE },
        Patch { at: offset_of!(SumParams, sum), slot: partials.sum },
    ];
    Ok(Launch::new(query, kernel, ctas(&count, kernel), bytemuck::bytes_of(&params), &addresses))
}
