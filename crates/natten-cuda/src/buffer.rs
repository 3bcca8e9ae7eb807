//! Tensors in device memory: owned ones and borrowed views. The kernels see addresses and strides only.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use natten_core::layout::RowLayout;
use natten_core::{InputElement, Layout, TensorError};

use crate::cuda::Cuda;
use crate::device::Device;
use crate::error::CudaError;
use crate::views::{Addresses, Slot, Views};

/// An owned, contiguous tensor on a device.
pub struct CudaTensor<E, D: Device> {
    pub(crate) memory: Arc<D::Memory>,
    pub(crate) layout: Layout,
    pub(crate) cuda: Cuda<D>,
    pub(crate) element: PhantomData<E>,
}

impl<E: InputElement, D: Device> CudaTensor<E, D> {
    /// Extent of each axis.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// The backend that made it; calls on the tensor are ordered on its stream.
    pub fn cuda(&self) -> &Cuda<D> {
        &self.cuda
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        D::address(&self.memory)
    }

    /// A view of the whole.
    pub fn view(&self) -> CudaView<'_, E> {
        let device = self.cuda.device().id();
        CudaView { address: self.address(), layout: self.layout, device, borrow: PhantomData }
    }

    /// A view of the whole, to write, where others have views too: who takes it orders the work on the device.
    pub(crate) fn view_shared(&self) -> CudaViewMut<'_, E> {
        let device = self.cuda.device().id();
        CudaViewMut { address: self.address(), layout: self.layout, device, borrow: PhantomData }
    }

    /// A view of the whole, to write.
    pub fn view_mut(&mut self) -> CudaViewMut<'_, E> {
        self.view_shared()
    }
}

impl<E, D: Device> fmt::Debug for CudaTensor<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, device) = (self.layout.shape(), self.cuda.device().id());
        f.debug_struct("CudaTensor").field("shape", &shape).field("device", &device).finish_non_exhaustive()
    }
}

/// A borrowed tensor on a device, with any strides. The last axis is contiguous where rows are meant.
#[derive(Clone, Copy, Debug)]
pub struct CudaView<'a, E> {
    pub(crate) address: u64,
    pub(crate) layout: Layout,
    pub(crate) device: u64,
    pub(crate) borrow: PhantomData<&'a E>,
}

impl<E: InputElement> CudaView<'_, E> {
    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// A borrowed tensor on a device, to write; its strides name each element once.
#[derive(Debug)]
pub struct CudaViewMut<'a, E> {
    pub(crate) address: u64,
    pub(crate) layout: Layout,
    pub(crate) device: u64,
    pub(crate) borrow: PhantomData<&'a mut E>,
}

impl<E: InputElement> CudaViewMut<'_, E> {
    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// A shorter borrow of the same view.
    pub fn reborrow(&mut self) -> CudaViewMut<'_, E> {
        CudaViewMut { borrow: PhantomData, ..*self }
    }

    /// Two views: indices below `index` along an axis, and the others. Both can be written by one call.
    ///
    /// # Errors
    /// Those of [`Layout::narrowed`].
    pub fn split_at(self, axis: usize, index: usize) -> Result<(Self, Self), TensorError> {
        let low = self.layout.narrowed(axis, 0..index)?;
        let high = self.layout.narrowed(axis, index..self.layout.shape()[axis])?;
        // The layout names each element once, so no element is in both parts.
        let part = |(layout, step)| CudaViewMut {
            address: moved::<E>(self.address, step),
            layout,
            device: self.device,
            borrow: PhantomData,
        };
        Ok((part(low), part(high)))
    }
}

/// Where the element `step` elements from the one at an address is.
fn moved<E: InputElement>(address: u64, step: isize) -> u64 {
    address.wrapping_add_signed((step as i64).wrapping_mul(E::ELEMENT_TYPE.size_bytes() as i64))
}

/// What both kinds of views do alike: fewer of their elements, or in another order.
macro_rules! common {
    ($view:ident) => {
        impl<E: InputElement> $view<'_, E> {
            /// The same elements with two axes exchanged, without moving them.
            ///
            /// # Errors
            /// Those of [`Layout::swapped`].
            pub fn swap_axes(self, a: usize, b: usize) -> Result<Self, TensorError> {
                Ok($view { layout: self.layout.swapped(a, b)?, ..self })
            }

            /// The same elements with the axes in another order, without moving them: axis `i` of the result is axis `axes[i]`.
            ///
            /// # Errors
            /// Those of [`Layout::permuted`].
            pub fn permute(self, axes: &[usize]) -> Result<Self, TensorError> {
                Ok($view { layout: self.layout.permuted(axes)?, ..self })
            }

            /// The elements of a range along one axis.
            ///
            /// # Errors
            /// Those of [`Layout::narrowed`].
            pub fn narrow(self, axis: usize, range: Range<usize>) -> Result<Self, TensorError> {
                let (layout, step) = self.layout.narrowed(axis, range)?;
                Ok($view { layout, address: moved::<E>(self.address, step), ..self })
            }

            /// The elements at one index of an axis, without that axis.
            ///
            /// # Errors
            /// Those of [`Layout::indexed`].
            pub fn index_axis(self, axis: usize, index: usize) -> Result<Self, TensorError> {
                let (layout, step) = self.layout.indexed(axis, index)?;
                Ok($view { layout, address: moved::<E>(self.address, step), ..self })
            }
        }
    };
}

common!(CudaView);
common!(CudaViewMut);

/// A view, to read or to write, together with the backend whose stream orders the calls on it: an operand on its own,
/// where no [`CudaTensor`] owns the memory. Made by [`Cuda::bind`].
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a, V, D> {
    pub(crate) cuda: &'a Cuda<D>,
    pub(crate) view: V,
}

impl<V, D> Bound<'_, V, D> {
    /// The backend.
    pub fn cuda(&self) -> &Cuda<D> {
        self.cuda
    }

    /// The view.
    pub fn view(&self) -> &V {
        &self.view
    }
}

impl<E: InputElement, D> Bound<'_, CudaViewMut<'_, E>, D> {
    /// The same elements, to read.
    pub fn as_view(&self) -> CudaView<'_, E> {
        let CudaViewMut { address, layout, device, .. } = self.view;
        CudaView { address, layout, device, borrow: PhantomData }
    }

    /// A shorter borrow of the view.
    pub fn reborrow(&mut self) -> CudaViewMut<'_, E> {
        self.view.reborrow()
    }
}

/// A view without its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub address: u64,
    pub layout: Layout,
    pub device: u64,
    pub element_bytes: usize,
}

impl<E: InputElement> From<&CudaView<'_, E>> for Raw {
    fn from(view: &CudaView<'_, E>) -> Self {
        let element_bytes = E::ELEMENT_TYPE.size_bytes();
        Raw { address: view.address, layout: view.layout, device: view.device, element_bytes }
    }
}

impl<E: InputElement> From<&CudaViewMut<'_, E>> for Raw {
    fn from(view: &CudaViewMut<'_, E>) -> Self {
        let element_bytes = E::ELEMENT_TYPE.size_bytes();
        Raw { address: view.address, layout: view.layout, device: view.device, element_bytes }
    }
}

impl Raw {
    /// Whether rows can be moved 16 bytes at a time. Strides along axes of one token are never taken.
    fn is_aligned(&self) -> bool {
        let shape = self.layout.shape();
        let last = shape.len() - 1;
        let steps = shape[..last].iter().zip(self.layout.strides()).filter(|&(&extent, _)| extent > 1);
        self.address.is_multiple_of(16)
            && (shape[last] * self.element_bytes).is_multiple_of(16)
            && steps
                .map(|(_, stride)| stride.unsigned_abs() * self.element_bytes)
                .all(|step| step.is_multiple_of(16))
    }
}

/// The tensors of a call: how they lie, and where.
pub(crate) struct Placed {
    device: u64,
    pub views: Views,
    pub addresses: Addresses,
}

impl Placed {
    /// None yet; all must live on this device.
    pub fn on(device: u64) -> Self {
        Placed { device, views: Views::default(), addresses: Addresses::default() }
    }

    /// Adds a tensor of rows.
    pub fn rows(&mut self, slot: Slot, view: impl Into<Raw>) -> Result<(), CudaError> {
        let view = view.into();
        self.views.is_aligned &= view.is_aligned();
        self.add(slot, &view, RowLayout::of_rows(&view.layout, 0))
    }

    /// Adds a tensor of one number a row.
    pub fn scalars(&mut self, slot: Slot, view: impl Into<Raw>) -> Result<(), CudaError> {
        let view = view.into();
        self.add(slot, &view, RowLayout::of_scalars(&view.layout, 0))
    }

    /// Adds the call's scratch memory, of which only the place matters.
    pub fn workspace(&mut self, view: impl Into<Raw>) -> Result<(), CudaError> {
        let view = view.into();
        self.expect_here(&view)?;
        self.addresses.set(Slot::WORKSPACE, view.address);
        Ok(())
    }

    fn expect_here(&self, view: &Raw) -> Result<(), CudaError> {
        let (expected, found) = (self.device, view.device);
        if expected == found { Ok(()) } else { Err(CudaError::WrongDevice { expected, found }) }
    }

    fn add(&mut self, slot: Slot, view: &Raw, rows: RowLayout) -> Result<(), CudaError> {
        self.expect_here(view)?;
        self.addresses.set(slot, view.address);
        self.views.push(slot, rows, view.element_bytes);
        Ok(())
    }
}
