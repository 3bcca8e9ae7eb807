//! Where windows reach over all of the split axis: the keys and values of one rank after another, each attended to while the next
//! arrive.
//!
//! In step `t` a rank receives from the one `t` before it, round, and sends to the one `t` after it: its own keys straight to who
//! needs them, so that nothing waits for being passed on. That a query sees all keys of a rank, or none, is what makes the
//! steps calls of their own: of `K` keys with a window of `K`, for at most `K` queries at a time.

use std::ops::Range;

use natten_core::call::{OutputViews, SavedViews};
use natten_core::exchange::{Exchange, Message, Messages};
use natten_core::{
    AxisParams, Backend, DynParams, Element, Gradients, Inputs, KernelSize, MergeCall, Output, Partials,
    Problem, Ranks, Region,
};

use super::gradients::narrow_saved;
use super::halo::Pair;
use super::model::sees;
use super::views::{Parcel, allocate, failed, reshaped};
use super::{Sharded, ShardedError};
use crate::call::{Call, OutAndLse};

/// Some of a rank's queries, counted from its first, and the parameters with which they see all keys of a block.
struct Chunk {
    queries: Range<usize>,
    params: DynParams,
}

/// Keys and values of one rank, and the gradients of them that another's queries give.
struct Block<T> {
    rank: usize,
    pair: Pair<T>,
}

/// What a step receives, the shares that it sends home, and those that it receives.
type StepBlocks<'a, B, E> = (&'a mut BlockOn<B, E>, &'a BlockOn<B, E>, &'a mut BlockOn<B, E>);

/// A block of a backend's tensors, in the steps that have one.
type BlockOn<B, E> = Option<Block<<B as Backend>::Tensor<E>>>;

impl<X: Ranks> Sharded<X> {
    fn ranges(&self) -> Vec<Range<usize>> {
        self.split.parts().iter().map(|part| part.queries[self.shard.axis].clone()).collect()
    }

    /// The rank so many steps before this one, or after it, round.
    fn before(&self, steps: usize) -> usize {
        (self.rank + self.split.parts().len() - steps) % self.split.parts().len()
    }

    fn after(&self, steps: usize) -> usize {
        (self.rank + steps) % self.split.parts().len()
    }

    /// Whether one rank's queries see another's keys.
    fn sees(&self, rank: usize, other: usize) -> bool {
        sees(self.whole.axis(self.shard.axis).is_causal, &self.ranges(), (rank, other))
    }

    /// Calls that attend to all keys of a rank: one, or several where it has fewer tokens than this one.
    fn chunks(&self, other: usize) -> Vec<Chunk> {
        let (axis, is_own) = (self.shard.axis, other == self.rank);
        let keys = self.split.parts()[other].queries[axis].len();
        let is_causal = is_own && self.whole.axis(axis).is_causal;
        let window = AxisParams { kernel_size: KernelSize::Whole, is_causal, ..AxisParams::new(1) };
        let params = self.whole.params.with_axis(axis, window);
        let own = self.shard.own.len();
        let starts = (0..own).step_by(keys.max(1));
        let chunk = |start: usize| {
            let queries = start..own.min(start.saturating_add(keys));
            let region = Region::of(keys).queries(0..queries.len()).keys(0..keys);
            Chunk { queries, params: params.region(axis, region) }
        };
        starts.map(chunk).collect()
    }

    /// Room for the keys and values of a rank, or for gradients of them.
    fn room<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
        rank: usize,
    ) -> Result<Block<B::Tensor<E>>, ShardedError> {
        let (axis, inputs) = (self.shard.axis, call.inputs());
        let tokens = self.split.parts()[rank].queries[axis].len();
        let like = |view: &B::View<'_, E>| {
            allocate::<B, E>(call.backend(), &reshaped(B::layout(view).shape(), axis + 1, tokens))
        };
        Ok(Block { rank, pair: Pair { key: like(&inputs.key)?, value: like(&inputs.value)? } })
    }

    /// This rank's keys and values as they are sent.
    fn own_parcels<'v, B: Backend, E: Element>(
        &self,
        call: &'v Call<'_, B, E>,
    ) -> Result<[Parcel<'v, B, E>; 2], ShardedError> {
        let (axis, own) = (self.shard.axis + 1, self.shard.own.len());
        let Inputs { key, value, .. } = call.inputs();
        let key = Parcel::of(call.backend(), key, axis, 0..own)?;
        Ok([key, Parcel::of(call.backend(), value, axis, 0..own)?])
    }

    /// The forward: output and log-sum-exp over the rank's own keys, then merged with those over each other's.
    pub(super) fn attend_round<B, E>(
        &self,
        call: &Call<'_, B, E>,
        problem: &Problem,
    ) -> Result<OutAndLse<B, E>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let (backend, inputs, ranks) = (call.backend(), call.inputs(), self.split.parts().len());
        let own = self.own_parcels(call)?;
        let mut held: BlockOn<B, E> = None;
        let mut merged: Option<OutAndLse<B, E>> = None;
        for step in 1..=ranks {
            let mut next = None;
            if step < ranks && self.sees(self.rank, self.before(step)) {
                next = Some(self.room(call, self.before(step))?);
            }
            let mut arrival = None;
            let messages = self.step_messages::<B, E>(step, &own, (&mut next, &None, &mut arrival));
            let partial = self.exchange.exchange(backend, messages, || match (&held, step) {
                (_, 1) => {
                    let keys = [&inputs.key, &inputs.value];
                    self.attend_block(call, problem, (self.rank, keys)).map(Some)
                }
                (Some(block), _) => {
                    let keys = block.pair.each().map(|tensor| B::view(tensor));
                    self.attend_block(call, problem, (block.rank, keys.each_ref())).map(Some)
                }
                (None, _) => Ok(None),
            })??;
            merged = match (merged, partial) {
                (Some(merged), Some(partial)) => Some(merge::<B, E>(backend, &merged, &partial)?),
                (merged, partial) => merged.or(partial),
            };
            held = next;
        }
        Ok(merged.expect("the own block is always attended to"))
    }

    /// What goes in one step: this rank's keys and values to the one that needs them now, and another's to it; and shares of
    /// gradients home.
    fn step_messages<'a, B: Backend, E: Element>(
        &self,
        step: usize,
        own: &'a [Parcel<'_, B, E>; 2],
        (next, share, arrival): StepBlocks<'a, B, E>,
    ) -> Messages<B::View<'a, E>, B::ViewMut<'a, E>> {
        let mut messages = Messages::default();
        let to = self.after(step);
        if step < self.split.parts().len() && self.sees(to, self.rank) {
            messages.sends.extend(own.iter().map(|parcel| Message { rank: to, view: parcel.view() }));
        }
        if let Some(Block { rank, pair }) = share {
            messages.sends.extend(pair.each().map(|tensor| Message { rank: *rank, view: B::view(tensor) }));
        }
        for Block { rank, pair } in next.iter_mut().chain(arrival) {
            let rank = *rank;
            messages
                .receives
                .extend(pair.each_mut().map(|tensor| Message { rank, view: B::view_mut(tensor) }));
        }
        messages
    }

    /// Output and log-sum-exp of this rank's queries over all keys of one rank; over additional ones with the own.
    fn attend_block<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
        problem: &Problem,
        (rank, [key, value]): (usize, [&B::View<'_, E>; 2]),
    ) -> Result<OutAndLse<B, E>, ShardedError> {
        let (backend, axis) = (call.backend(), self.shard.axis + 1);
        let mut out = allocate::<B, E>(backend, &problem.out_shape())?;
        let mut lse = allocate::<B, f32>(backend, &problem.lse_shape())?;
        for Chunk { queries, params } in self.chunks(rank) {
            let inputs = self.block_inputs(call, &queries, (rank, [key, value]))?;
            let out = B::narrow_mut::<E>(B::view_mut(&mut out), axis, queries.clone())?;
            let lse = B::narrow_mut::<f32>(B::view_mut(&mut lse), axis, queries)?;
            let output: OutputViews<'_, B, E> = Output { out, lse: Some(lse) };
            Call::of_views(backend.clone(), inputs).forward_into_views(&params, output)?;
        }
        Ok((out, lse))
    }

    fn block_inputs<'v, B: Backend, E: Element>(
        &self,
        call: &'v Call<'_, B, E>,
        queries: &Range<usize>,
        (rank, keys): (usize, [&'v B::View<'_, E>; 2]),
    ) -> Result<Inputs<B::View<'v, E>>, ShardedError> {
        let origin = self.shard.own.start;
        let of_whole = queries.start + origin..queries.end + origin;
        let inputs = self.inputs_of(call, &of_whole, keys)?;
        let additional = inputs.additional.filter(|_| rank == self.rank);
        Ok(Inputs { additional, ..inputs })
    }
}

/// The backward.
impl<X: Ranks> Sharded<X> {
    /// Gradients over the rank's own keys, then over each other's, whose shares go home one step after they are computed and are
    /// added in the order of steps.
    pub(super) fn differentiate_round<B, E>(
        &self,
        call: &Call<'_, B, E>,
        saved: &SavedViews<'_, B, E>,
    ) -> Result<Gradients<B::Tensor<E>>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let (backend, inputs, ranks) = (call.backend(), call.inputs(), self.split.parts().len());
        let own = self.own_parcels(call)?;
        let mut gradients: Option<Gradients<B::Tensor<E>>> = None;
        let (mut held, mut share): (BlockOn<B, E>, BlockOn<B, E>) = (None, None);
        for step in 1..=ranks + 1 {
            let mut next = None;
            if step < ranks && self.sees(self.rank, self.before(step)) {
                next = Some(self.room(call, self.before(step))?);
            }
            let home = step.checked_sub(2).filter(|&steps| steps > 0).map(|steps| self.after(steps));
            let mut arrival = None;
            if let Some(from) = home.filter(|&from| self.sees(from, self.rank)) {
                arrival = Some(Block { rank: from, ..self.room(call, self.rank)? });
            }
            let messages = self.step_messages::<B, E>(step, &own, (&mut next, &share, &mut arrival));
            let computed = self.exchange.exchange(backend, messages, || match (&held, step) {
                (_, 1) => {
                    let keys = [&inputs.key, &inputs.value];
                    self.block_gradients(call, saved, (self.rank, keys)).map(Some)
                }
                (Some(block), _) => {
                    let keys = block.pair.each().map(|tensor| B::view(tensor));
                    self.block_gradients(call, saved, (block.rank, keys.each_ref())).map(Some)
                }
                (None, _) => Ok(None),
            })??;
            let Some(sums) = &mut gradients else {
                (gradients, held) = (computed, next);
                continue;
            };
            if let Some(Block { pair, .. }) = &arrival {
                add::<B, E>(backend, &mut sums.key, &pair.key)?;
                add::<B, E>(backend, &mut sums.value, &pair.value)?;
            }
            share = match (computed, held) {
                (Some(Gradients { query, key, value, .. }), Some(Block { rank, .. })) => {
                    add::<B, E>(backend, &mut sums.query, &query)?;
                    Some(Block { rank, pair: Pair { key, value } })
                }
                _ => None,
            };
            held = next;
        }
        let mut gradients = gradients.expect("those over the own keys are always there");
        self.add_additional(backend, &mut gradients, &[])?;
        Ok(gradients)
    }

    /// The gradients of this rank's queries over all keys of one rank, and of these keys; of additional ones with the own.
    fn block_gradients<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
        saved: &SavedViews<'_, B, E>,
        (rank, keys): (usize, [&B::View<'_, E>; 2]),
    ) -> Result<Gradients<B::Tensor<E>>, ShardedError> {
        let (backend, axis) = (call.backend(), self.shard.axis + 1);
        let inputs = self.block_inputs(call, &(0..self.shard.own.len()), (rank, keys))?;
        let new = || inputs.try_map(|_, view| allocate::<B, E>(backend, B::layout(view).shape()));
        let mut gradients = new()?.into_gradients();
        for (i, Chunk { queries, params }) in self.chunks(rank).into_iter().enumerate() {
            let saved = narrow_saved::<B, E>(saved, axis, &queries)?;
            // The first writes, others add. Of its own keys a rank has one, so additional ones are in no other.
            let mut more = if i == 0 { None } else { Some(new()?.into_gradients()) };
            let Gradients { query, key, value, additional } = &mut gradients;
            let (key, value) = match &mut more {
                Some(more) => (&mut more.key, &mut more.value),
                None => (key, value),
            };
            let additional =
                additional.as_mut().map(|pair| pair.each_mut().map(|tensor| B::view_mut(tensor)));
            let query = B::narrow_mut::<E>(B::view_mut(query), axis, queries.clone())?;
            let views = Gradients { query, key: B::view_mut(key), value: B::view_mut(value), additional };
            let part = self.block_inputs(call, &queries, (rank, keys))?;
            Call::of_views(backend.clone(), part).backward_into_views(&params, &saved, views)?;
            if let Some(Gradients { key, value, .. }) = &more {
                add::<B, E>(backend, &mut gradients.key, key)?;
                add::<B, E>(backend, &mut gradients.value, value)?;
            }
        }
        Ok(gradients)
    }
}

/// Adds one tensor to another of its shape.
fn add<B: Backend, E: Element>(
    backend: &B,
    to: &mut B::Tensor<E>,
    from: &B::Tensor<E>,
) -> Result<(), ShardedError> {
    backend.accumulate(B::view(from), B::view_mut(to)).map_err(failed(backend))
}

/// Two partial results over disjoint keys as one.
fn merge<B: Backend, E: Element>(
    backend: &B,
    a: &OutAndLse<B, E>,
    b: &OutAndLse<B, E>,
) -> Result<OutAndLse<B, E>, ShardedError> {
    let mut out = allocate::<B, E>(backend, B::layout(&B::view(&a.0)).shape())?;
    let mut lse = allocate::<B, f32>(backend, B::layout(&B::view(&a.1)).shape())?;
    let partials =
        Partials { outs: vec![B::view(&a.0), B::view(&b.0)], lses: vec![B::view(&a.1), B::view(&b.1)] };
    let output = Output { out: B::view_mut(&mut out), lse: Some(B::view_mut(&mut lse)) };
    let call = MergeCall::new(partials, output).map_err(natten_core::Error::from)?;
    backend.merge(call).map_err(failed(backend))?;
    Ok((out, lse))
}
