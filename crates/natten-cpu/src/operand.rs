//! Host tensors as operands, in programs that run them on this backend.

use natten_core::{InputElement, Operand, OperandMut, Tensor, TensorView, TensorViewMut};

use crate::Cpu;

impl<E: InputElement> Operand<Cpu> for Tensor<E> {
    type Elem = E;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, E> {
        Tensor::view(self)
    }
}

impl<E: InputElement> OperandMut<Cpu> for Tensor<E> {
    fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        Tensor::view_mut(self)
    }
}

impl<E: InputElement> Operand<Cpu> for TensorView<'_, E> {
    type Elem = E;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, E> {
        *self
    }
}

impl<E: InputElement> Operand<Cpu> for TensorViewMut<'_, E> {
    type Elem = E;
    type Device = Cpu;

    fn device(&self) -> Cpu {
        Cpu::default()
    }

    fn view(&self) -> TensorView<'_, E> {
        self.as_view()
    }
}

impl<E: InputElement> OperandMut<Cpu> for TensorViewMut<'_, E> {
    fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        self.reborrow()
    }
}
