//! Merging partial results over disjoint sets of keys into one softmax.

use natten_core::call::{MergedGradientViews, OutputViews, PartialGradientViews, PartialViews};
use natten_core::{Backend, Element, Error, Layout, MergeBackwardCall, MergeCall, Output, Partials, Role};

use crate::OwnedOf;
use crate::call::{OutAndLse, backend_error};
use crate::operand::{Operand, OperandMut};

/// Merges two or more `(out, lse)` pairs, each over its own keys, into what attention over all of them gives:
/// `lse = log sum exp lse_b`, `out = sum exp(lse_b - lse) out_b`.
///
/// For gradients, hand the merged `out` and `lse` to each branch's backward: its result is then exact, and the
/// query's gradient is the sum over branches. [`merge_attentions_backward`] is for branches that are no
/// attention of this crate.
///
/// # Shapes
/// `outs[b]` `[batch, tokens.., heads, head_dim_v]`, `lses[b]` `[batch, tokens.., heads]`.
///
/// # Errors
/// [`Error::Problem`] for fewer than two pairs or shapes that differ, [`Error::DeviceMismatch`],
/// [`Error::Backend`] when the device fails.
pub fn merge_attentions<O, L>(outs: &[&O], lses: &[&L]) -> Result<(OwnedOf<O>, OwnedOf<L>), Error>
where
    O: Operand,
    L: Operand<Device = O::Device, Elem = f32>,
{
    let branches = Branches::new(outs, lses)?;
    let [out_layout, lse_layout] = [&branches.layouts.outs[0], &branches.layouts.lses[0]];
    let mut out = branches.allocate(out_layout)?;
    let mut lse = branches.allocate(lse_layout)?;
    branches
        .merge(Output { out: O::Device::view_mut(&mut out), lse: Some(O::Device::view_mut(&mut lse)) })?;
    Ok((out, lse))
}

/// [`merge_attentions`] into tensors of the caller's, every element of which is written.
///
/// # Errors
/// As [`merge_attentions`]; a wrong shape of `out` or `lse` is a broken rule too.
pub fn merge_attentions_into<O, L, P, M>(
    outs: &[&O],
    lses: &[&L],
    out: &mut P,
    lse: &mut M,
) -> Result<(), Error>
where
    O: Operand,
    L: Operand<Device = O::Device, Elem = f32>,
    P: OperandMut<Device = O::Device, Elem = O::Elem>,
    M: OperandMut<Device = O::Device, Elem = f32>,
{
    let branches = Branches::new(outs, lses)?;
    branches.expect_here(Role::Out, &out.device())?;
    branches.expect_here(Role::Lse, &lse.device())?;
    branches.merge(Output { out: out.view_mut(), lse: Some(lse.view_mut()) })
}

/// The gradients of each branch's `out` and `lse` from those of the merged ones:
/// `d_out_b = w_b d_out`, `d_lse_b = w_b (d_out . (out_b - out) + d_lse)` with `w_b = exp(lse_b - lse)`.
///
/// # Errors
/// As [`merge_attentions`].
pub fn merge_attentions_backward<E, O, L, D>(
    outs: &[&O],
    lses: &[&L],
    d_out: &D,
    d_lse: Option<&L>,
) -> Result<Vec<OutAndLse<O::Device, E>>, Error>
where
    E: Element,
    O: Operand<Elem = E>,
    L: Operand<Device = O::Device, Elem = f32>,
    D: Operand<Device = O::Device, Elem = E>,
{
    let branches = Branches::new(outs, lses)?;
    branches.expect_here(Role::DOut, &d_out.device())?;
    d_lse.map_or(Ok(()), |d_lse| branches.expect_here(Role::DLse, &d_lse.device()))?;
    let allocate_out = |layout: &Layout| branches.allocate(layout);
    let mut gradients = branches.layouts.try_map(allocate_out, |layout| branches.allocate(layout))?;
    let copy = branches.contiguous(d_out.view())?;
    let d_out = copy.as_ref().map_or_else(|| d_out.view(), |copy| O::Device::view(copy));
    let merged = Output { out: d_out, lse: d_lse.map(|d_lse| d_lse.view()) };
    let views = gradients.map_mut(|out| O::Device::view_mut(out), O::Device::view_mut);
    branches.merge_backward(merged, views)?;
    Ok(gradients.outs.into_iter().zip(gradients.lses).collect())
}

/// Partial results that were found to fit together, on one device.
struct Branches<'a, B: Backend, E: Element> {
    backend: B,
    partials: PartialViews<'a, B, E>,
    layouts: Partials<Layout, Layout>,
}

impl<'a, B: Backend, E: Element> Branches<'a, B, E> {
    fn new<O, L>(outs: &[&'a O], lses: &[&'a L]) -> Result<Self, Error>
    where
        O: Operand<Device = B, Elem = E>,
        L: Operand<Device = B, Elem = f32>,
    {
        let partials = Partials {
            outs: outs.iter().map(|out| out.view()).collect::<Vec<_>>(),
            lses: lses.iter().map(|lse| lse.view()).collect::<Vec<_>>(),
        };
        let layouts = partials.map(|out| B::layout(out), |lse| B::layout(lse));
        layouts.check()?;
        let branches = Branches { backend: outs[0].device(), partials, layouts };
        outs.iter().try_for_each(|out| branches.expect_here(Role::Out, &out.device()))?;
        lses.iter().try_for_each(|lse| branches.expect_here(Role::Lse, &lse.device()))?;
        Ok(branches)
    }

    fn expect_here(&self, tensor: Role, device: &B) -> Result<(), Error> {
        if self.backend.is_same_device(device) {
            return Ok(());
        }
        let (expected, found) = (self.backend.device_name(), device.device_name());
        Err(Error::DeviceMismatch { tensor, expected, found })
    }

    fn allocate<T: Element>(&self, like: &Layout) -> Result<B::Tensor<T>, Error> {
        self.done(self.backend.allocate(like.shape()))
    }

    /// A copy of a gradient shaped as the outputs whose rows are not contiguous, as when it was broadcast; none of others.
    fn contiguous(&self, d_out: B::View<'_, E>) -> Result<Option<B::Tensor<E>>, Error> {
        let layout = B::layout(&d_out);
        if layout.has_contiguous_rows() || layout.shape() != self.layouts.outs[0].shape() {
            return Ok(None);
        }
        self.done(self.backend.contiguous(d_out)).map(Some)
    }

    fn partials(&self) -> PartialViews<'_, B, E> {
        self.partials.map(|out| B::reborrow(out), |lse| B::reborrow(lse))
    }

    fn merge<'c>(&'c self, output: OutputViews<'c, B, E>) -> Result<(), Error> {
        self.done(self.backend.merge(MergeCall::new(self.partials(), output)?))
    }

    fn merge_backward<'c>(
        &'c self,
        merged: MergedGradientViews<'c, B, E>,
        gradients: PartialGradientViews<'c, B, E>,
    ) -> Result<(), Error> {
        let call = MergeBackwardCall::new(self.partials(), merged, gradients)?;
        self.done(self.backend.merge_backward(call))
    }

    fn done<T>(&self, outcome: Result<T, B::Error>) -> Result<T, Error> {
        outcome.map_err(|source| backend_error(&self.backend, source))
    }
}
