//! The backward of one rank: gradients of border queries first, so that the shares of other ranks' keys and values travel home while
//! interior queries are differentiated.
//!
//! A rank's gradients of its own keys and values are sums: of its interior queries' share, of its borders', left and right, and of
//! those of other ranks, by rank. They are added in this order, whatever arrives first.

use std::ops::Range;

use natten_core::call::{GradientViews, SavedViews};
use natten_core::exchange::{Exchange, Message, Messages};
use natten_core::{Backend, Element, Gradients, Ranks, Saved};

use super::halo::{Halos, Pair};
use super::views::{Parcel, Parcels, allocate, failed, reshaped, within};
use super::{Sharded, ShardedError, Way};
use crate::call::Call;
use crate::operand::Operand;

/// What a border's queries give: gradients of the keys and values that it holds, and of additional ones.
pub(super) struct Share<T> {
    pair: Pair<T>,
    additional: Option<[T; 2]>,
}

/// What another rank's queries give: gradients of some of this rank's keys and values.
struct Arrival<T> {
    rank: usize,
    tokens: Range<usize>,
    pair: Pair<T>,
}

impl<X: Ranks> Sharded<X> {
    /// The gradients of this rank's operands, from what its forward gave and the gradients of that, all of its own tokens.
    ///
    /// Those of its keys and values are the whole's: other ranks' shares are received and added. Those of additional keys and
    /// values, which all ranks have, are the sums over ranks, the same bits on each. `halos` are those that the forward kept;
    /// without them they are received again.
    ///
    /// # Errors
    /// [`ShardedError`].
    pub fn backward<B, E, O, L, D>(
        &self,
        call: &Call<'_, B, E>,
        saved: &Saved<&O, &L, &D>,
        halos: Option<&Halos<B, E>>,
    ) -> Result<Gradients<B::Tensor<E>>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
        O: Operand<Device = B, Elem = E>,
        L: Operand<Device = B, Elem = f32>,
        D: Operand<Device = B, Elem = E>,
    {
        let problem = self.check(call)?;
        let saved = call.saved_here(saved)?;
        problem.check_saved(&saved.map(|out| B::layout(out), |lse| B::layout(lse)))?;
        if self.way == Way::Ring {
            return self.differentiate_round(call, &saved);
        }
        let received = match halos {
            Some(halos) => {
                halos.check(&self.shard)?;
                None
            }
            None => Some(self.halos(call, || ())?.0),
        };
        let halos = halos.or(received.as_ref()).map_or(&[][..], |halos| &halos.pairs);
        self.differentiate(call, &saved, halos)
    }

    fn differentiate<B, E>(
        &self,
        call: &Call<'_, B, E>,
        saved: &SavedViews<'_, B, E>,
        halos: &[Pair<B::Tensor<E>>],
    ) -> Result<Gradients<B::Tensor<E>>, ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let (shard, inputs, backend) = (&self.shard, call.inputs(), call.backend());
        let mut gradients =
            inputs.try_map(|_, view| allocate::<B, E>(backend, B::layout(view).shape()))?.into_gradients();
        let mut shares = Vec::with_capacity(halos.len());
        for (border, halo) in shard.borders.iter().zip(halos) {
            let mut share = self.share_like(call, halo)?;
            let keys = halo.each().map(|tensor| B::view(tensor));
            let views = Gradients {
                query: B::view_mut(&mut gradients.query),
                key: B::view_mut(&mut share.pair.key),
                value: B::view_mut(&mut share.pair.value),
                additional: share.additional.as_mut().map(|pair| pair.each_mut().map(|t| B::view_mut(t))),
            };
            self.differentiate_part(call, saved, (&border.queries, &border.keys), keys.each_ref(), views)?;
            shares.push(share);
        }
        let mut arrivals = self.room_for_arrivals(call)?;
        let parcels = self.parcels(backend, &shares)?;
        let sends =
            parcels.iter().map(|(rank, parcel)| Message { rank: *rank, view: parcel.view() }).collect();
        let receives = arrivals.iter_mut().flat_map(|Arrival { rank, pair, .. }| {
            pair.each_mut().map(|tensor| Message { rank: *rank, view: B::view_mut(tensor) })
        });
        let messages = Messages { sends, receives: receives.collect() };
        // Also where there are no interior queries: it is what makes gradients of keys begin at 0.
        let interior = || {
            let keys = [&inputs.key, &inputs.value];
            let views = gradients.map_mut(|tensor| B::view_mut(tensor));
            self.differentiate_part(call, saved, (&shard.interior, &shard.own), keys, views)
        };
        self.exchange.exchange(backend, messages, interior)??;
        self.add_shares(backend, &mut gradients, &shares, &arrivals)?;
        self.add_additional(backend, &mut gradients, &shares)?;
        Ok(gradients)
    }

    /// Writes the gradients of some of the rank's queries, and their shares of those of the keys and values that they hold.
    fn differentiate_part<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
        saved: &SavedViews<'_, B, E>,
        (queries, held): (&Range<usize>, &Range<usize>),
        keys: [&B::View<'_, E>; 2],
        gradients: GradientViews<'_, B, E>,
    ) -> Result<(), ShardedError> {
        let (axis, part) = (self.shard.axis + 1, within(queries, self.shard.own.start));
        let saved = narrow_saved::<B, E>(saved, axis, &part)?;
        let Gradients { query, key, value, additional } = gradients;
        let query = B::narrow_mut::<E>(query, axis, part)?;
        let params = self.shard.params(&self.whole.params, queries, held);
        let part = Call::of_views(call.backend().clone(), self.inputs_of(call, queries, keys)?);
        Ok(part.backward_into_views(&params, &saved, Gradients { query, key, value, additional })?)
    }

    /// Tensors for a border's share.
    fn share_like<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
        halo: &Pair<B::Tensor<E>>,
    ) -> Result<Share<B::Tensor<E>>, ShardedError> {
        let like = |view: &B::View<'_, E>| allocate::<B, E>(call.backend(), B::layout(view).shape());
        let pair = Pair { key: like(&B::view(&halo.key))?, value: like(&B::view(&halo.value))? };
        let additional = match &call.inputs().additional {
            Some([keys, values]) => Some([like(keys)?, like(values)?]),
            None => None,
        };
        Ok(Share { pair, additional })
    }

    /// Tensors for the shares of other ranks: of those that this rank's keys and values were sent to.
    fn room_for_arrivals<B: Backend, E: Element>(
        &self,
        call: &Call<'_, B, E>,
    ) -> Result<Vec<Arrival<B::Tensor<E>>>, ShardedError> {
        let (axis, inputs) = (self.shard.axis + 1, call.inputs());
        let like = |view: &B::View<'_, E>, tokens: &Range<usize>| {
            allocate::<B, E>(call.backend(), &reshaped(B::layout(view).shape(), axis, tokens.len()))
        };
        let room = self.shard.sends.iter().map(|(rank, tokens)| {
            let pair = Pair { key: like(&inputs.key, tokens)?, value: like(&inputs.value, tokens)? };
            Ok(Arrival { rank: *rank, tokens: tokens.clone(), pair })
        });
        room.collect()
    }

    /// What borders' shares have of other ranks' keys and values, and whose these are.
    fn parcels<'s, B: Backend, E: Element>(
        &self,
        backend: &B,
        shares: &'s [Share<B::Tensor<E>>],
    ) -> Result<Parcels<'s, B, E>, ShardedError> {
        let mut parcels = Vec::new();
        for (border, share) in self.shard.borders.iter().zip(shares) {
            for (rank, range) in &border.receives {
                for tensor in share.pair.each() {
                    let part = within(range, border.keys.start);
                    parcels.push((*rank, Parcel::of(backend, B::view(tensor), self.shard.axis + 1, part)?));
                }
            }
        }
        Ok(parcels)
    }

    /// Adds to the interior's share of this rank's own gradients those of its borders, and then those of other ranks.
    fn add_shares<B: Backend, E: Element>(
        &self,
        backend: &B,
        gradients: &mut Gradients<B::Tensor<E>>,
        shares: &[Share<B::Tensor<E>>],
        arrivals: &[Arrival<B::Tensor<E>>],
    ) -> Result<(), ShardedError> {
        let (axis, shard) = (self.shard.axis + 1, &self.shard);
        let mut add = |pair: &Pair<B::Tensor<E>>, tokens: &Range<usize>, origin: usize| {
            for (to, from) in [&mut gradients.key, &mut gradients.value].into_iter().zip(pair.each()) {
                let from = B::narrow(B::view(from), axis, within(tokens, origin))?;
                let to = B::narrow_mut::<E>(B::view_mut(to), axis, within(tokens, shard.own.start))?;
                backend.accumulate(from, to).map_err(failed(backend))?;
            }
            Ok::<(), ShardedError>(())
        };
        for (border, share) in shard.borders.iter().zip(shares) {
            add(&share.pair, &shard.own_of(border), border.keys.start)?;
        }
        arrivals.iter().try_for_each(|arrival| add(&arrival.pair, &arrival.tokens, arrival.tokens.start))
    }

    /// Adds up the gradients of additional keys and values: this rank's shares, then all ranks' in their order, so that each has the
    /// same sums to the bit.
    pub(super) fn add_additional<B, E>(
        &self,
        backend: &B,
        gradients: &mut Gradients<B::Tensor<E>>,
        shares: &[Share<B::Tensor<E>>],
    ) -> Result<(), ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let Some(own) = &mut gradients.additional else { return Ok(()) };
        let add = |to: &mut B::Tensor<E>, from: &B::Tensor<E>| {
            backend.accumulate(B::view(from), B::view_mut(to)).map_err(failed(backend))
        };
        for share in shares.iter().filter_map(|share| share.additional.as_ref()) {
            own.iter_mut().zip(share).try_for_each(|(to, from)| add(to, from))?;
        }
        let others = || (0..self.split.parts().len()).filter(|&rank| rank != self.rank);
        let mut arrived = Vec::new();
        for rank in others() {
            let [keys, values] = own.each_ref().map(|tensor| B::layout(&B::view(tensor)));
            arrived.push((rank, [allocate(backend, keys.shape())?, allocate(backend, values.shape())?]));
        }
        let sends = others().flat_map(|rank| own.each_ref().map(|own| Message { rank, view: B::view(own) }));
        let receives = arrived.iter_mut().flat_map(|(rank, pair): &mut (usize, [B::Tensor<E>; 2])| {
            pair.each_mut().map(|tensor| Message { rank: *rank, view: B::view_mut(tensor) })
        });
        let messages = Messages { sends: sends.collect(), receives: receives.collect() };
        self.exchange.exchange(backend, messages, || ())?;
        for (i, own) in own.iter_mut().enumerate() {
            let share = backend.contiguous(B::view(own)).map_err(failed(backend))?;
            let mut shares: Vec<_> = arrived.iter().map(|(rank, pair)| (*rank, &pair[i])).collect();
            shares.insert(self.rank, (self.rank, &share));
            let [(_, first), rest @ ..] = &shares[..] else { continue };
            backend.copy(B::view(first), B::view_mut(own)).map_err(failed(backend))?;
            rest.iter().try_for_each(|(_, share)| add(own, share))?;
        }
        Ok(())
    }
}

/// What was saved, of some of the queries.
pub(super) fn narrow_saved<'v, B: Backend, E: Element>(
    saved: &'v SavedViews<'_, B, E>,
    axis: usize,
    queries: &Range<usize>,
) -> Result<SavedViews<'v, B, E>, ShardedError> {
    let d_lse = saved.d_lse.as_ref().map(|d_lse| B::narrow(B::reborrow(d_lse), axis, queries.clone()));
    Ok(Saved {
        out: B::narrow(B::reborrow(&saved.out), axis, queries.clone())?,
        lse: B::narrow(B::reborrow(&saved.lse), axis, queries.clone())?,
        d_out: B::narrow(B::reborrow(&saved.d_out), axis, queries.clone())?,
        d_lse: d_lse.transpose()?,
    })
}
