//! What can be an operand: anything that lives on a device and lends a view.

use natten_core::{Backend, Element, Operand as On, OperandMut as OnMut};

/// The backend of host tensors in this build.
#[cfg(feature = "cpu")]
pub type Host = natten_cpu::Cpu;

/// Without the feature `cpu` nothing runs host tensors, so they are no operands: a call on them does not compile, rather
/// than take the reference's time. Operands of devices stay what they are.
#[cfg(not(feature = "cpu"))]
#[derive(Clone, Copy, Debug)]
pub enum Host {}

/// A tensor that a call can read. Owned, borrowed and strided ones may mix in one call, if they share the
/// device and the element type. Public, so that other frameworks' tensors can take part through a newtype.
///
/// The crate of a device implements [`natten_core::Operand`] for its tensors, which are operands here by that.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no operand in this build of natten",
    note = "host tensors are operands with the feature `cpu`, CUDA tensors with the feature `cuda`"
)]
pub trait Operand {
    /// Its element type.
    type Elem: Element;
    /// Where it lives, which decides what runs the call.
    type Device: Backend;

    /// A handle of the device.
    fn device(&self) -> Self::Device;

    /// The tensor itself.
    fn view(&self) -> <Self::Device as Backend>::View<'_, Self::Elem>;
}

/// A tensor that a call can write.
pub trait OperandMut: Operand {
    /// The tensor itself, to write.
    fn view_mut(&mut self) -> <Self::Device as Backend>::ViewMut<'_, Self::Elem>;
}

impl<T: On<Host, Elem: Element>> Operand for T {
    type Elem = T::Elem;
    type Device = T::Device;

    fn device(&self) -> T::Device {
        On::device(self)
    }

    fn view(&self) -> <T::Device as Backend>::View<'_, T::Elem> {
        On::view(self)
    }
}

impl<T: OnMut<Host, Elem: Element>> OperandMut for T {
    fn view_mut(&mut self) -> <T::Device as Backend>::ViewMut<'_, T::Elem> {
        OnMut::view_mut(self)
    }
}
