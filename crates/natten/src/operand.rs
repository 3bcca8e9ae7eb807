//! What can be an operand: anything that lives on a device and lends a view.

use natten_core::{Backend, Element, Tensor, TensorView, TensorViewMut};
use natten_cpu::Cpu;

/// A tensor that a call can read. Owned, borrowed and strided ones may mix in one call, if they share the
/// device and the element type. Public, so that other frameworks' tensors can take part through a newtype.
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

impl<E: Element> Operand for Tensor<E> {
    type Elem = E;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, E> {
        Tensor::view(self)
    }
}

impl<E: Element> OperandMut for Tensor<E> {
    fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        Tensor::view_mut(self)
    }
}

impl<E: Element> Operand for TensorView<'_, E> {
    type Elem = E;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, E> {
        *self
    }
}

impl<E: Element> Operand for TensorViewMut<'_, E> {
    type Elem = E;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, E> {
        self.as_view()
    }
}

impl<E: Element> OperandMut for TensorViewMut<'_, E> {
    fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        self.reborrow()
    }
}
