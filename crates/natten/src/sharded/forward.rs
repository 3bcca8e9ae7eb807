//! The forward of one rank: interior queries while halos arrive, border queries after.

use std::ops::Range;

use natten_core::call::{InputViews, OutputViews};
use natten_core::exchange::Exchange;
use natten_core::{Backend, Element, Inputs, Layout, Output, Problem, Ranks, Role};

use super::halo::Halos;
use super::views::{allocate, reshaped, within};
use super::{Sharded, ShardedError, Way};
use crate::call::{Call, OutAndLse};

/// An output with its log-sum-exp, and the halos that it was made with.
pub type Kept<B, E> = (OutAndLse<B, E>, Halos<B, E>);

impl<X: Ranks> Sharded<X> {
    /// This rank's part of the output, `[batch, tokens.., heads, head_dim_v]` with its own tokens along the split axis.
    ///
    /// The operands of the call are this rank's shards: queries, keys and values of its own tokens. Additional keys and values are
    /// the whole's, on every rank.
    ///
    /// # Errors
    /// [`ShardedError`], before anything is sent where the call does not fit.
    pub fn forward<B, E>(&self, call: &Call<'_, B, E>) -> Result<B::Tensor<E>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let problem = self.check(call)?;
        if self.way == Way::Ring {
            return Ok(self.attend_round(call, &problem)?.0);
        }
        let mut out = allocate(call.backend(), &problem.out_shape())?;
        self.attend(call, Output { out: B::view_mut(&mut out), lse: None })?;
        Ok(out)
    }

    /// As [`Sharded::forward`], with the log-sum-exp `[batch, tokens.., heads]`.
    ///
    /// # Errors
    /// As there.
    pub fn forward_with_lse<B, E>(&self, call: &Call<'_, B, E>) -> Result<OutAndLse<B, E>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        Ok(self.forward_keeping(call)?.0)
    }

    /// As [`Sharded::forward_with_lse`], with the halos, which spare a backward receiving them again. A ring keeps none.
    ///
    /// # Errors
    /// As there.
    pub fn forward_keeping<B, E>(&self, call: &Call<'_, B, E>) -> Result<Kept<B, E>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let problem = self.check(call)?;
        if self.way == Way::Ring {
            return Ok((self.attend_round(call, &problem)?, Halos::none()));
        }
        let mut out = allocate(call.backend(), &problem.out_shape())?;
        let mut lse = allocate(call.backend(), &problem.lse_shape())?;
        let output = Output { out: B::view_mut(&mut out), lse: Some(B::view_mut(&mut lse)) };
        let halos = self.attend(call, output)?;
        Ok(((out, lse), halos))
    }

    fn attend<B, E>(
        &self,
        call: &Call<'_, B, E>,
        mut output: OutputViews<'_, B, E>,
    ) -> Result<Halos<B, E>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let (shard, inputs) = (&self.shard, call.inputs());
        let interior = || {
            let keys = [&inputs.key, &inputs.value];
            self.attend_part(call, (&shard.interior, &shard.own), keys, &mut output)
        };
        let (halos, done) = self.halos(call, interior)?;
        done?;
        for (border, pair) in shard.borders.iter().zip(&halos.pairs) {
            let keys = pair.each().map(|tensor| B::view(tensor));
            self.attend_part(call, (&border.queries, &border.keys), keys.each_ref(), &mut output)?;
        }
        Ok(halos)
    }

    /// Writes the output of some of the rank's queries, of keys and values that hold all they need.
    fn attend_part<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
        (queries, held): (&Range<usize>, &Range<usize>),
        keys: [&B::View<'_, E>; 2],
        output: &mut OutputViews<'_, B, E>,
    ) -> Result<(), ShardedError> {
        if queries.is_empty() {
            return Ok(());
        }
        let (axis, part) = (self.shard.axis + 1, within(queries, self.shard.own.start));
        let inputs = self.inputs_of(call, queries, keys)?;
        let out = B::narrow_mut::<E>(B::reborrow_mut(&mut output.out), axis, part.clone())?;
        let lse = output.lse.as_mut().map(|lse| B::narrow_mut::<f32>(B::reborrow_mut(lse), axis, part));
        let params = self.shard.params(&self.whole.params, queries, held);
        let part = Call::of_views(call.backend().clone(), inputs);
        Ok(part.forward_into_views(&params, Output { out, lse: lse.transpose()? })?)
    }

    /// The operands of a call with some of the rank's queries, and these keys and values.
    pub(super) fn inputs_of<'v, B: Backend, E: Element>(
        &self,
        call: &'v Call<'_, B, E>,
        queries: &Range<usize>,
        [key, value]: [&'v B::View<'_, E>; 2],
    ) -> Result<InputViews<'v, B, E>, ShardedError> {
        let Inputs { query, additional, .. } = call.inputs();
        let query = B::narrow(query, self.shard.axis + 1, within(queries, self.shard.own.start))?;
        Ok(Inputs { query, key: B::reborrow(key), value: B::reborrow(value), additional })
    }

    /// Holds a call's operands against this rank's shard of the whole, before anything is sent. Gives the problem of the shard's
    /// own shapes.
    pub(super) fn check<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
    ) -> Result<Problem, ShardedError> {
        let (shard, whole) = (&self.shard, &self.whole.problem);
        let (expected, found) = (whole.element_type(), E::ELEMENT_TYPE);
        if expected != found {
            return Err(ShardedError::ElementType { expected, found });
        }
        let layouts = call.inputs().map(|view| B::layout(view));
        let found =
            layouts.additional.as_ref().map_or(0, |[keys, _]| keys.shape().get(1).copied().unwrap_or(0));
        let expected = whole.additional_keys();
        if expected != found {
            return Err(ShardedError::AdditionalKeys { expected, found });
        }
        let mut tokens: Vec<usize> =
            whole.axes()[3 - whole.rank()..].iter().map(|axis| axis.extent).collect();
        tokens[shard.axis] = shard.own.len();
        let shape = |heads, dim| [&[whole.batch()], &tokens[..], &[heads, dim]].concat();
        let expected = [
            (Role::Query, &layouts.query, shape(whole.heads(), whole.head_dim())),
            (Role::Key, &layouts.key, shape(whole.heads_kv(), whole.head_dim())),
            (Role::Value, &layouts.value, shape(whole.heads_kv(), whole.head_dim_v())),
        ];
        for (tensor, layout, expected) in expected {
            if layout.shape() != expected {
                let (rank, found) = (self.rank, layout.shape().to_vec());
                return Err(ShardedError::Shape { rank, tensor, expected, found });
            }
        }
        // As if it had the keys of others already, which lie somewhere else.
        let held = self.keys_needed();
        let with_halo = |layout: &Layout| {
            Layout::strided(&reshaped(layout.shape(), shard.axis + 1, held.len()), layout.strides())
        };
        let Inputs { query, key, value, additional } = layouts;
        let layouts = Inputs { query, key: with_halo(&key)?, value: with_halo(&value)?, additional };
        let params = shard.params(&self.whole.params, &shard.own, &held);
        Ok(Problem::new(&params, &layouts, E::ELEMENT_TYPE)?)
    }
}
