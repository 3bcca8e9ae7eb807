//! Device tensors as operands: the same functions, on whatever GPU (or emulator) the query lives.

use natten_core::{Backend, Element};
use natten_cuda::{Bound, Cuda, CudaTensor, CudaView, CudaViewMut, Device};

use crate::operand::{Operand, OperandMut};

impl<E: Element, D: Device> Operand for CudaTensor<E, D> {
    type Elem = E;
    type Device = Cuda<D>;

    fn device(&self) -> Cuda<D> {
        self.cuda().clone()
    }

    fn view(&self) -> CudaView<'_, E> {
        CudaTensor::view(self)
    }
}

impl<E: Element, D: Device> OperandMut for CudaTensor<E, D> {
    fn view_mut(&mut self) -> CudaViewMut<'_, E> {
        CudaTensor::view_mut(self)
    }
}

impl<E: Element, D: Device> Operand for Bound<'_, CudaView<'_, E>, D> {
    type Elem = E;
    type Device = Cuda<D>;

    fn device(&self) -> Cuda<D> {
        self.cuda().clone()
    }

    fn view(&self) -> <Cuda<D> as Backend>::View<'_, E> {
        *Bound::view(self)
    }
}

impl<E: Element, D: Device> Operand for Bound<'_, CudaViewMut<'_, E>, D> {
    type Elem = E;
    type Device = Cuda<D>;

    fn device(&self) -> Cuda<D> {
        self.cuda().clone()
    }

    fn view(&self) -> <Cuda<D> as Backend>::View<'_, E> {
        self.as_view()
    }
}

impl<E: Element, D: Device> OperandMut for Bound<'_, CudaViewMut<'_, E>, D> {
    fn view_mut(&mut self) -> <Cuda<D> as Backend>::ViewMut<'_, E> {
        self.reborrow()
    }
}
