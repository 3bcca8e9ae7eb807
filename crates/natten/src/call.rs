//! One call spelled out: operands, then what to do with them. Validates once and hands over to the backend.

use natten_core::{
    AttentionParams, Backend, DynParams, Element, ElementType, Error, Gradients, Inputs, Layout, Output,
    Params, Problem, ProblemError, Role, Saved, Sequences,
};

use crate::operand::{Operand, OperandMut};

/// Which keys each query sees: turns operands into a validated [`Problem`].
pub trait Mask {
    /// The problem that these operands pose.
    ///
    /// # Errors
    /// The rule that is broken.
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError>;
}

impl<const RANK: usize> Mask for Params<RANK> {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::new(&self.to_dyn(), inputs, element_type)
    }
}

impl Mask for DynParams {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::new(self, inputs, element_type)
    }
}

impl Mask for AttentionParams {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::attention(self, inputs, element_type)
    }
}

/// Plain attention inside each sequence of a packed batch.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// Causality and scale.
    pub params: AttentionParams,
    /// Where each sequence begins.
    pub sequences: &'a Sequences,
}

impl Mask for Packed<'_> {
    fn problem(&self, inputs: &Inputs<Layout>, element_type: ElementType) -> Result<Problem, ProblemError> {
        Problem::packed_attention(&self.params, self.sequences, inputs, element_type)
    }
}

/// An output and its log-sum-exp, owned by the device.
pub type OutAndLse<B, E> = (<B as Backend>::Tensor<E>, <B as Backend>::Tensor<f32>);

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
pub struct Call<'a, B: Backend, E: Element> {
    backend: B,
    inputs: Inputs<B::View<'a, E>>,
}

impl<'a, B: Backend, E: Element> Call<'a, B, E> {
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

    fn problem(&self, mask: &impl Mask) -> Result<Problem, Error> {
        Ok(mask.problem(&self.inputs.map(|view| B::layout(view)), E::TYPE)?)
    }

    /// Attends, and returns the output.
    ///
    /// # Errors
    /// [`Error::Problem`] for a broken rule, [`Error::Backend`] when the device fails.
    pub fn forward(&self, mask: &impl Mask) -> Result<B::Tensor<E>, Error> {
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
        O: OperandMut<Device = B, Elem = E>,
    {
        self.expect_here(Role::Out, out)?;
        let problem = self.problem(mask)?;
        let out = out.view_mut();
        problem.check_output(&Output { out: B::layout_mut(&out), lse: None })?;
        self.run_forward(&problem, Output { out, lse: None })
    }

    /// Attends into tensors of the caller's, log-sum-exp included.
    ///
    /// # Errors
    /// As [`Call::forward`]; a wrong shape of `out` or `lse` is a broken rule too.
    pub fn forward_with_lse_into<O, L>(&self, mask: &impl Mask, out: &mut O, lse: &mut L) -> Result<(), Error>
    where
        O: OperandMut<Device = B, Elem = E>,
        L: OperandMut<Device = B, Elem = f32>,
    {
        self.expect_here(Role::Out, out)?;
        self.expect_here(Role::Lse, lse)?;
        let problem = self.problem(mask)?;
        let (out, lse) = (out.view_mut(), lse.view_mut());
        problem.check_output(&Output { out: B::layout_mut(&out), lse: Some(B::layout_mut(&lse)) })?;
        self.run_forward(&problem, Output { out, lse: Some(lse) })
    }

    /// The gradients of all operands, from those of the output and, if given, of the log-sum-exp.
    ///
    /// # Errors
    /// As [`Call::forward`].
    pub fn backward<O, L>(
        &self,
        mask: &impl Mask,
        saved: &Saved<&O, &L>,
    ) -> Result<Gradients<B::Tensor<E>>, Error>
    where
        O: Operand<Device = B, Elem = E>,
        L: Operand<Device = B, Elem = f32>,
    {
        let shape = |view: &B::View<'a, E>| B::layout(view).shape().to_vec();
        let shapes = self.inputs.map(shape);
        let additional = match &shapes.additional {
            Some([keys, values]) => Some([self.allocate(keys)?, self.allocate(values)?]),
            None => None,
        };
        let mut gradients = Gradients {
            query: self.allocate(&shapes.query)?,
            key: self.allocate(&shapes.key)?,
            value: self.allocate(&shapes.value)?,
            additional,
        };
        self.run_backward(
            mask,
            saved,
            Gradients {
                query: B::view_mut(&mut gradients.query),
                key: B::view_mut(&mut gradients.key),
                value: B::view_mut(&mut gradients.value),
                additional: gradients.additional.as_mut().map(|pair| pair.each_mut().map(|t| B::view_mut(t))),
            },
        )?;
        Ok(gradients)
    }

    /// The gradients of all operands into tensors of the caller's.
    ///
    /// # Errors
    /// As [`Call::forward`]; a wrong shape of a gradient, or none for additional keys, is a broken rule too.
    pub fn backward_into<O, L, G>(
        &self,
        mask: &impl Mask,
        saved: &Saved<&O, &L>,
        gradients: Gradients<&mut G>,
    ) -> Result<(), Error>
    where
        O: Operand<Device = B, Elem = E>,
        L: Operand<Device = B, Elem = f32>,
        G: OperandMut<Device = B, Elem = E>,
    {
        let Gradients { query, key, value, additional } = gradients;
        for (role, gradient) in [(Role::DQuery, &*query), (Role::DKey, &*key), (Role::DValue, &*value)] {
            self.expect_here(role, gradient)?;
        }
        if let Some([keys, values]) = &additional {
            self.expect_here(Role::DAdditionalKeys, &**keys)?;
            self.expect_here(Role::DAdditionalValues, &**values)?;
        }
        let views = Gradients {
            query: query.view_mut(),
            key: key.view_mut(),
            value: value.view_mut(),
            additional: additional.map(|pair| pair.map(|gradient| gradient.view_mut())),
        };
        self.run_backward(mask, saved, views)
    }

    fn allocate<T: Element>(&self, shape: &[usize]) -> Result<B::Tensor<T>, Error> {
        self.backend.allocate(shape).map_err(|source| backend_error(&self.backend, source))
    }

    fn run_forward(
        &self,
        problem: &Problem,
        output: Output<B::ViewMut<'_, E>, B::ViewMut<'_, f32>>,
    ) -> Result<(), Error> {
        let done = self.backend.forward(problem, &self.inputs, output);
        done.map_err(|source| backend_error(&self.backend, source))
    }

    fn run_backward<O, L>(
        &self,
        mask: &impl Mask,
        saved: &Saved<&O, &L>,
        gradients: Gradients<B::ViewMut<'_, E>>,
    ) -> Result<(), Error>
    where
        O: Operand<Device = B, Elem = E>,
        L: Operand<Device = B, Elem = f32>,
    {
        self.expect_here(Role::Out, saved.out)?;
        self.expect_here(Role::Lse, saved.lse)?;
        self.expect_here(Role::DOut, saved.d_out)?;
        saved.d_lse.map_or(Ok(()), |d_lse| self.expect_here(Role::DLse, d_lse))?;
        let problem = self.problem(mask)?;
        let views = Saved {
            out: saved.out.view(),
            lse: saved.lse.view(),
            d_out: saved.d_out.view(),
            d_lse: saved.d_lse.map(|d_lse| d_lse.view()),
        };
        problem.check_saved(&Saved {
            out: B::layout(&views.out),
            lse: B::layout(&views.lse),
            d_out: B::layout(&views.d_out),
            d_lse: views.d_lse.as_ref().map(|d_lse| B::layout(d_lse)),
        })?;
        let layout = |view: &B::ViewMut<'_, E>| B::layout_mut(view);
        problem.check_gradients(&Gradients {
            query: layout(&gradients.query),
            key: layout(&gradients.key),
            value: layout(&gradients.value),
            additional: gradients.additional.as_ref().map(|pair| pair.each_ref().map(layout)),
        })?;
        let done = self.backend.backward(&problem, &self.inputs, &views, gradients);
        done.map_err(|source| backend_error(&self.backend, source))
    }
}

pub(crate) fn backend_error<B: Backend>(backend: &B, source: B::Error) -> Error {
    Error::Backend { backend: backend.name(), source: Box::new(source) }
}
