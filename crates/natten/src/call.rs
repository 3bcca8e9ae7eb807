//! One call spelled out: operands, then what to do with them. Validates once and hands over to the backend.

use natten_core::call::{GradientViews, InputViews, OutputViews, SavedViews};
use natten_core::{
    Backend, BackwardCall, Error, ForwardCall, Gradients, InputElement, Inputs, Output, Problem, Role, Saved,
};

use crate::mask::Mask;
use crate::operand::{Operand, OperandMut};

/// An output and its log-sum-exp, owned by the device.
pub type OutAndLse<B, E> = (<B as Backend>::Tensor<<E as InputElement>::Out>, <B as Backend>::Tensor<f32>);

/// The operands of one call, for what the plain functions do not cover: additional keys and values, a backend
/// with settings of one's own, outputs in place together with the log-sum-exp.
///
/// # Examples
/// ```
/// use natten::{Call, Params, Tensor};
/// # fn main() -> Result<(), natten::Error> {
/// let x = Tensor::from_fn(&[1, 8, 8, 2, 16], |i| (i % 7) as f32)?;
/// let registers = Tensor::from_fn(&[1, 4, 2, 16], |i| (i % 5) as f32)?;
/// let call = Call::new(&x, &x, &x)?.additional(&registers, &registers)?;
/// let (out, lse) = call.forward_with_lse(&Params::new([3, 3]))?;
/// assert_eq!((out.shape(), lse.shape()), (&[1, 8, 8, 2, 16][..], &[1, 8, 8, 2][..]));
/// # Ok(())
/// # }
/// ```
pub struct Call<'a, B: Backend, E: InputElement> {
    backend: B,
    inputs: InputViews<'a, B, E>,
}

impl<'a, B: Backend, E: InputElement> Call<'a, B, E> {
    /// A call on views of the backend's.
    pub(crate) fn of_views(backend: B, inputs: InputViews<'a, B, E>) -> Self {
        Call { backend, inputs }
    }

    /// A call on the device where the operands live.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] when they do not live together.
    pub fn new<Q, K, V>(query: &'a Q, key: &'a K, value: &'a V) -> Result<Self, Error>
    where
        Q: Operand<Device = B, Elem = E>,
        K: Operand<Device = B, Elem = E>,
        V: Operand<Device = B, Elem = E>,
    {
        let call =
            Call { backend: query.device(), inputs: Inputs::new(query.view(), key.view(), value.view()) };
        call.expect_here(Role::Key, key)?;
        call.expect_here(Role::Value, value)?;
        Ok(call)
    }

    /// Adds keys `[batch, n, heads_kv, head_dim]` and values `[batch, n, heads_kv, head_dim_v]` that every query
    /// sees besides its window, in the same softmax.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] when they live elsewhere.
    pub fn additional<K, V>(self, keys: &'a K, values: &'a V) -> Result<Self, Error>
    where
        K: Operand<Device = B, Elem = E>,
        V: Operand<Device = B, Elem = E>,
    {
        self.expect_here(Role::AdditionalKeys, keys)?;
        self.expect_here(Role::AdditionalValues, values)?;
        Ok(Call { inputs: self.inputs.with_additional(keys.view(), values.view()), ..self })
    }

    /// Runs with this backend's settings (threads, instruction set, stream) instead of the query's.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] when it is not where the operands live.
    pub fn on(self, backend: B) -> Result<Self, Error> {
        self.expect_device(Role::Query, &backend)?;
        Ok(Call { backend, ..self })
    }

    fn expect_here<T: Operand<Device = B>>(&self, tensor: Role, operand: &T) -> Result<(), Error> {
        self.expect_device(tensor, &operand.device())
    }

    fn expect_device(&self, tensor: Role, device: &B) -> Result<(), Error> {
        if self.backend.is_same_device(device) {
            return Ok(());
        }
        let (expected, found) = (self.backend.device_name(), device.device_name());
        Err(Error::DeviceMismatch { tensor, expected, found })
    }

    /// The problem that these operands pose, for shapes of results ([`Problem::out_shape`], [`Problem::lse_shape`]), for plans, and to
    /// warm a device up.
    ///
    /// # Errors
    /// [`Error::Problem`] for a broken rule.
    pub fn problem(&self, mask: &impl Mask) -> Result<Problem, Error> {
        Ok(mask.problem(&self.inputs.map(|view| B::layout(view)), E::ELEMENT_TYPE)?)
    }

    /// Attends, and returns the output.
    ///
    /// # Errors
    /// [`Error::Problem`] for a broken rule, [`Error::Backend`] when the device fails.
    pub fn forward(&self, mask: &impl Mask) -> Result<B::Tensor<E::Out>, Error> {
        let problem = self.problem(mask)?;
        let mut out = self.allocate(&problem.out_shape())?;
        self.run_forward(&problem, Output { out: B::view_mut(&mut out), lse: None })?;
        Ok(out)
    }

    /// Attends, and returns the output and the log-sum-exp.
    ///
    /// # Errors
    /// As [`Call::forward`].
    pub fn forward_with_lse(&self, mask: &impl Mask) -> Result<OutAndLse<B, E>, Error> {
        let problem = self.problem(mask)?;
        let mut out = self.allocate(&problem.out_shape())?;
        let mut lse = self.allocate(&problem.lse_shape())?;
        let output = Output { out: B::view_mut(&mut out), lse: Some(B::view_mut(&mut lse)) };
        self.run_forward(&problem, output)?;
        Ok((out, lse))
    }

    /// Attends into a tensor of the caller's.
    ///
    /// # Errors
    /// As [`Call::forward`]; a wrong shape of `out` is a broken rule too.
    pub fn forward_into<O>(&self, mask: &impl Mask, out: &mut O) -> Result<(), Error>
    where
        O: OperandMut<Device = B, Elem = E::Out>,
    {
        self.expect_here(Role::Out, out)?;
        self.run_forward(&self.problem(mask)?, Output { out: out.view_mut(), lse: None })
    }

    /// Attends into tensors of the caller's, log-sum-exp included.
    ///
    /// # Errors
    /// As [`Call::forward`]; a wrong shape of `out` or `lse` is a broken rule too.
    pub fn forward_with_lse_into<O, L>(&self, mask: &impl Mask, out: &mut O, lse: &mut L) -> Result<(), Error>
    where
        O: OperandMut<Device = B, Elem = E::Out>,
        L: OperandMut<Device = B, Elem = f32>,
    {
        self.expect_here(Role::Out, out)?;
        self.expect_here(Role::Lse, lse)?;
        let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
        self.run_forward(&self.problem(mask)?, output)
    }

    /// The gradients of all operands, from those of the output and, if given, of the log-sum-exp.
    ///
    /// # Errors
    /// As [`Call::forward`].
    pub fn backward<O, L, D>(
        &self,
        mask: &impl Mask,
        saved: &Saved<&O, &L, &D>,
    ) -> Result<Gradients<B::Tensor<E::Out>>, Error>
    where
        O: Operand<Device = B, Elem = E::Out>,
        L: Operand<Device = B, Elem = f32>,
        D: Operand<Device = B, Elem = E::Out>,
    {
        self.backward_of_views(mask, &self.saved_here(saved)?)
    }

    /// The gradients of all operands into tensors of the caller's.
    ///
    /// # Errors
    /// As [`Call::forward`]; a wrong shape of a gradient, or none for additional keys, is a broken rule too.
    pub fn backward_into<O, L, D, G>(
        &self,
        mask: &impl Mask,
        saved: &Saved<&O, &L, &D>,
        gradients: Gradients<&mut G>,
    ) -> Result<(), Error>
    where
        O: Operand<Device = B, Elem = E::Out>,
        L: Operand<Device = B, Elem = f32>,
        D: Operand<Device = B, Elem = E::Out>,
        G: OperandMut<Device = B, Elem = E::Out>,
    {
        gradients.roles().try_for_each(|(role, gradient)| self.expect_here(role, &**gradient))?;
        let saved = self.saved_here(saved)?;
        self.backward_into_views(mask, &saved, gradients.into_map(|gradient| gradient.view_mut()))
    }

    /// [`Call::backward`] from views of the backend's.
    pub(crate) fn backward_of_views(
        &self,
        mask: &impl Mask,
        saved: &SavedViews<'_, B, E::Out>,
    ) -> Result<Gradients<B::Tensor<E::Out>>, Error> {
        let problem = self.problem(mask)?;
        let copy = self.contiguous_d_out(&problem, saved)?;
        let saved = Self::with_d_out(saved, copy.as_ref());
        // Before gradients of any size are allocated.
        problem.check_saved(&saved.map(|out| B::layout(out), |lse| B::layout(lse)))?;
        let like = |_, view| self.allocate(B::layout::<E>(view).shape());
        let mut gradients = self.inputs.try_map(like)?.into_gradients();
        let saved = Self::with_d_out(&saved, None);
        self.run_backward(&problem, saved, gradients.map_mut(|tensor| B::view_mut(tensor)))?;
        Ok(gradients)
    }

    /// [`Call::forward_with_lse_into`] of views of the backend's; the log-sum-exp only if there is a view for it.
    pub(crate) fn forward_into_views(
        &self,
        mask: &impl Mask,
        mut output: OutputViews<'_, B, E::Out>,
    ) -> Result<(), Error> {
        let output = output.map_mut(|out| B::reborrow_mut(out), |lse| B::reborrow_mut(lse));
        self.run_forward(&self.problem(mask)?, output)
    }

    /// [`Call::backward_into`] of views of the backend's.
    pub(crate) fn backward_into_views(
        &self,
        mask: &impl Mask,
        saved: &SavedViews<'_, B, E::Out>,
        mut gradients: GradientViews<'_, B, E::Out>,
    ) -> Result<(), Error> {
        let problem = self.problem(mask)?;
        let copy = self.contiguous_d_out(&problem, saved)?;
        let saved = Self::with_d_out(saved, copy.as_ref());
        self.run_backward(&problem, saved, gradients.map_mut(|view| B::reborrow_mut(view)))
    }

    /// A copy of the output's gradient where its rows are not contiguous: that of a sum arrives as one number, broadcast. None
    /// where they are, or where it has another shape, which is for the call's rules to tell.
    fn contiguous_d_out(
        &self,
        problem: &Problem,
        saved: &SavedViews<'_, B, E::Out>,
    ) -> Result<Option<B::Tensor<E::Out>>, Error> {
        let layout = B::layout(&saved.d_out);
        if layout.has_contiguous_rows() || layout.shape() != &problem.out_shape()[..] {
            return Ok(None);
        }
        let copy = self.backend.contiguous(B::reborrow(&saved.d_out));
        copy.map(Some).map_err(|source| backend_error(&self.backend, source))
    }

    /// The same with this gradient of the output, if there is one.
    fn with_d_out<'s>(
        saved: &'s SavedViews<'_, B, E::Out>,
        d_out: Option<&'s B::Tensor<E::Out>>,
    ) -> SavedViews<'s, B, E::Out> {
        let saved = saved.map(|out| B::reborrow(out), |lse| B::reborrow(lse));
        match d_out {
            Some(d_out) => Saved { d_out: B::view(d_out), ..saved },
            None => saved,
        }
    }

    /// Views of what was saved, if all of it lives here.
    pub(crate) fn saved_here<'s, O, L, D>(
        &self,
        saved: &Saved<&'s O, &'s L, &'s D>,
    ) -> Result<SavedViews<'s, B, E::Out>, Error>
    where
        O: Operand<Device = B, Elem = E::Out>,
        L: Operand<Device = B, Elem = f32>,
        D: Operand<Device = B, Elem = E::Out>,
    {
        let Saved { out, lse, d_out, d_lse } = *saved;
        self.expect_here(Role::Out, out)?;
        self.expect_here(Role::Lse, lse)?;
        self.expect_here(Role::DOut, d_out)?;
        d_lse.map_or(Ok(()), |d_lse| self.expect_here(Role::DLse, d_lse))?;
        let d_lse = d_lse.map(|d_lse| d_lse.view());
        Ok(Saved { out: out.view(), lse: lse.view(), d_out: d_out.view(), d_lse })
    }

    fn allocate<T: InputElement>(&self, shape: &[usize]) -> Result<B::Tensor<T>, Error> {
        self.backend.allocate(shape).map_err(|source| backend_error(&self.backend, source))
    }

    /// What runs it.
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// Its operands.
    pub(crate) fn inputs(&self) -> InputViews<'_, B, E> {
        self.inputs.map(|view| B::reborrow(view))
    }

    fn run_forward<'c>(
        &'c self,
        problem: &'c Problem,
        output: OutputViews<'c, B, E::Out>,
    ) -> Result<(), Error> {
        let done = self.backend.forward(ForwardCall::new(problem, self.inputs(), output)?);
        done.map_err(|source| backend_error(&self.backend, source))
    }

    fn run_backward<'c>(
        &'c self,
        problem: &'c Problem,
        saved: SavedViews<'c, B, E::Out>,
        gradients: GradientViews<'c, B, E::Out>,
    ) -> Result<(), Error> {
        let done = self.backend.backward(BackwardCall::new(problem, self.inputs(), saved, gradients)?);
        done.map_err(|source| backend_error(&self.backend, source))
    }
}

pub(crate) fn backend_error<B: Backend>(backend: &B, source: B::Error) -> Error {
    Error::Backend { backend: backend.name(), source: Box::new(source) }
}
