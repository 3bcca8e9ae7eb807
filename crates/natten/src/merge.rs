//! Merging partial results over disjoint sets of keys into one softmax.

use natten_core::{Backend, Element, Error, Output, Partials, Role, reference};
use natten_cpu::Cpu;

use crate::OwnedOf;
use crate::call::{OutAndLse, backend_error};
use crate::operand::Operand;

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
    let partials = Partials {
        outs: outs.iter().map(|out| out.view()).collect::<Vec<_>>(),
        lses: lses.iter().map(|lse| lse.view()).collect::<Vec<_>>(),
    };
    let layouts = Partials {
        outs: partials.outs.iter().map(O::Device::layout).collect(),
        lses: partials.lses.iter().map(O::Device::layout).collect(),
    };
    layouts.check()?;
    let backend = outs[0].device();
    let outs_at = outs.iter().map(|out| (Role::Out, out.device()));
    for (tensor, device) in outs_at.chain(lses.iter().map(|lse| (Role::Lse, lse.device()))) {
        if !backend.is_same_device(&device) {
            let (expected, found) = (backend.device_name(), device.device_name());
            return Err(Error::DeviceMismatch { tensor, expected, found });
        }
    }
    let shape = layouts.outs[0].shape();
    let failed = |source| backend_error(&backend, source);
    let mut out = backend.allocate(shape).map_err(failed)?;
    let mut lse = backend.allocate(&shape[..shape.len() - 1]).map_err(failed)?;
    let output =
        Output { out: O::Device::view_mut(&mut out), lse: Some(O::Device::view_mut::<f32>(&mut lse)) };
    backend.merge(&partials, output).map_err(failed)?;
    Ok((out, lse))
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
