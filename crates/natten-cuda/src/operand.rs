//! Device tensors as operands, whatever backend runs the host's.

use natten_core::{InputElement, Operand, OperandMut};

use crate::buffer::{Bound, CudaTensor, CudaView, CudaViewMut};
use crate::cuda::Cuda;
use crate::device::Device;

impl<E: InputElement, D: Device, Host> Operand<Host> for CudaTensor<E, D> {
    type Elem = E;
    type Device = Cuda<D>;

    fn device(&self) -> Cuda<D> {
        self.cuda().clone()
    }

    fn view(&self) -> CudaView<'_, E> {
        CudaTensor::view(self)
    }
}

impl<E: InputElement, D: Device, Host> OperandMut<Host> for CudaTensor<E, D> {
    fn view_mut(&mut self) -> CudaViewMut<'_, E> {
        CudaTensor::view_mut(self)
    }
}

impl<E: InputElement, D: Device, Host> Operand<Host> for Bound<'_, CudaView<'_, E>, D> {
    type Elem = E;
    type Device = Cuda<D>;

    fn device(&self) -> Cuda<D> {
        self.cuda().clone()
    }

    fn view(&self) -> CudaView<'_, E> {
        *Bound::view(self)
    }
}

impl<E: InputElement, D: Device, Host> Operand<Host> for Bound<'_, CudaViewMut<'_, E>, D> {
    type Elem = E;
    type Device = Cuda<D>;

    fn device(&self) -> Cuda<D> {
        self.cuda().clone()
    }

    fn view(&self) -> CudaView<'_, E> {
        self.as_view()
    }
}

impl<E: InputElement, D: Device, Host> OperandMut<Host> for Bound<'_, CudaViewMut<'_, E>, D> {
    fn view_mut(&mut self) -> CudaViewMut<'_, E> {
        self.reborrow()
    }
}
