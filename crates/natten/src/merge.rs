//! Merging partial results over disjoint sets of keys into one softmax.

use natten_core::{Backend, Element, Error, Layout, Output, Partials, Role, reference};
use natten_cpu::Cpu;

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
    let shape = branches.layouts.outs[0].shape();
    let failed = |source| backend_error(&branches.backend, source);
    let mut out = branches.backend.allocate(shape).map_err(failed)?;
    let mut lse = branches.backend.allocate(&shape[..shape.len() - 1]).map_err(failed)?;
    branches.merge(O::Device::view_mut(&mut out), O::Device::view_mut::<f32>(&mut lse))?;
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
    let (out, lse) = (out.view_mut(), lse.view_mut());
    let lse_layout = O::Device::layout_mut(&lse);
    let output = Output { out: O::Device::layout_mut(&out), lse: Some(lse_layout) };
    branches.layouts.check_output(&output)?;
    branches.merge(out, lse)
}

/// Partial results that were found to fit together, on one device.
struct Branches<'a, B: Backend, E: Element> {
    backend: B,
    partials: Partials<B::View<'a, E>, B::View<'a, f32>>,
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
        let layouts = Partials {
            outs: partials.outs.iter().map(B::layout).collect(),
            lses: partials.lses.iter().map(B::layout).collect(),
        };
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

    fn merge(&self, out: B::ViewMut<'_, E>, lse: B::ViewMut<'_, f32>) -> Result<(), Error> {
        let done = self.backend.merge(&self.partials, Output { out, lse: Some(lse) });
        done.map_err(|source| backend_error(&self.backend, source))
    }
}

/// The gradients of each branch's `out` and `lse` from those of the merged ones, on host tensors:
/// `d_out_b = w_b d_out`, `d_lse_b = w_b (d_out . (out_b - out) + d_lse)` with `w_b = exp(lse_b - lse)`.
///
/// # Errors
/// [`Error::Problem`] for fewer than two pairs or shapes that differ.
pub fn merge_attentions_backward<E, O, L>(
    outs: &[&O],
    lses: &[&L],
    d_out: &O,
    d_lse: Option<&L>,
) -> Result<Vec<OutAndLse<Cpu, E>>, Error>
where
    E: Element,
    O: Operand<Device = Cpu, Elem = E>,
    L: Operand<Device = Cpu, Elem = f32>,
{
    let partials = Partials {
        outs: outs.iter().map(|out| out.view()).collect::<Vec<_>>(),
        lses: lses.iter().map(|lse| lse.view()).collect::<Vec<_>>(),
    };
    let layouts = Partials {
        outs: partials.outs.iter().map(|view| *view.layout()).collect(),
        lses: partials.lses.iter().map(|view| *view.layout()).collect(),
    };
    layouts.check()?;
    let (d_out, d_lse) = (d_out.view(), d_lse.map(|d_lse| d_lse.view()));
    layouts.check_output(&Output { out: *d_out.layout(), lse: d_lse.as_ref().map(|view| *view.layout()) })?;
    let gradients = reference::merge_backward(&partials, &d_out, d_lse.as_ref());
    Ok(gradients.into_iter().map(|(d_out, d_lse)| (d_out.cast(), d_lse.cast())).collect())
}
