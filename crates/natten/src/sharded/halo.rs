//! Halos: the keys and values that a rank's border queries need, some received, some its own.

use std::ops::Range;

use natten_core::exchange::{Exchange, Message, Messages};
use natten_core::{Backend, Element};

use super::shard::{Border, Shard};
use super::views::{Parcel, allocate, failed, is_outermost, reshaped, within};
use super::{Sharded, ShardedError};
use crate::call::Call;

/// Keys and values of one range of border queries.
pub(super) struct Pair<T> {
    pub key: T,
    pub value: T,
}

impl<T> Pair<T> {
    pub fn each(&self) -> [&T; 2] {
        [&self.key, &self.value]
    }

    pub fn each_mut(&mut self) -> [&mut T; 2] {
        [&mut self.key, &mut self.value]
    }
}

/// The keys and values that a rank's border queries need, which a forward received and a backward needs again.
///
/// A pair of tensors for each of at most two borders: the halo of that side, and as many own tokens as the border's queries see.
pub struct Halos<B: Backend, E: Element> {
    pub(super) pairs: Vec<Pair<B::Tensor<E>>>,
    /// Which tokens of the whole each has.
    tokens: Vec<Range<usize>>,
}

impl<B: Backend, E: Element> Halos<B, E> {
    /// Of no border.
    pub(super) fn none() -> Self {
        Halos { pairs: Vec::new(), tokens: Vec::new() }
    }

    /// Checks that they are what a shard's borders need.
    pub(super) fn check(&self, shard: &Shard) -> Result<(), ShardedError> {
        let needed = shard.borders.iter().map(|border| border.keys.clone());
        if needed.clone().eq(self.tokens.iter().cloned()) {
            return Ok(());
        }
        Err(ShardedError::Halos { expected: needed.collect(), found: self.tokens.clone() })
    }
}

impl<X> Sharded<X> {
    /// Receives the halos of keys and values, sends others theirs, and does `meanwhile` while that goes on.
    pub(super) fn halos<B, E, R>(
        &self,
        call: &Call<'_, B, E>,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<(Halos<B, E>, R), ShardedError>
    where
        B: Backend,
        E: Element,
        X: Exchange<B>,
    {
        let (backend, shard, axis) = (call.backend(), &self.shard, self.shard.axis + 1);
        let inputs = call.inputs();
        let own = [&inputs.key, &inputs.value];
        let mut pairs = Vec::with_capacity(shard.borders.len());
        for border in &shard.borders {
            let [key, value] = own.map(|own| gathered_with_own(backend, own, shard, border));
            pairs.push(Pair { key: key?, value: value? });
        }
        let mut staged = staging::<B, E>(backend, &pairs, &shard.borders, axis)?;
        let mut parcels = Vec::new();
        for (rank, range) in &shard.sends {
            for own in own {
                let part = within(range, shard.own.start);
                parcels.push((*rank, Parcel::of(backend, B::reborrow(own), axis, part)?));
            }
        }
        let sends =
            parcels.iter().map(|(rank, parcel)| Message { rank: *rank, view: parcel.view() }).collect();
        let receives = receives::<B, E>(&mut pairs, &mut staged, &shard.borders, axis)?;
        let done = self.exchange.exchange(backend, Messages { sends, receives }, meanwhile)?;
        unpack::<B, E>(backend, &mut pairs, &staged, (&shard.borders, axis))?;
        let tokens = shard.borders.iter().map(|border| border.keys.clone()).collect();
        Ok((Halos { pairs, tokens }, done))
    }
}

/// A tensor for all keys (or values) that a border needs, with the rank's own in it.
fn gathered_with_own<B: Backend, E: Element>(
    backend: &B,
    own: &B::View<'_, E>,
    shard: &Shard,
    border: &Border,
) -> Result<B::Tensor<E>, ShardedError> {
    let axis = shard.axis + 1;
    let shape = reshaped(B::layout(own).shape(), axis, border.keys.len());
    let mut gathered = allocate::<B, E>(backend, &shape)?;
    let range = shard.own_of(border);
    let from = B::narrow(B::reborrow(own), axis, within(&range, shard.own.start))?;
    let to = B::narrow_mut::<E>(B::view_mut(&mut gathered), axis, within(&range, border.keys.start))?;
    backend.copy(from, to).map_err(failed(backend))?;
    Ok(gathered)
}

/// Where messages arrive that are no contiguous part of a border's tensor: keys of all ranks, then values, border by border. None
/// where all can arrive in place.
fn staging<B: Backend, E: Element>(
    backend: &B,
    pairs: &[Pair<B::Tensor<E>>],
    borders: &[Border],
    axis: usize,
) -> Result<Vec<B::Tensor<E>>, ShardedError> {
    let mut staged = Vec::new();
    for (pair, border) in pairs.iter().zip(borders) {
        for tensor in pair.each() {
            let layout = B::layout(&B::view(tensor));
            if is_outermost(layout.shape(), axis) {
                continue;
            }
            for (_, range) in &border.receives {
                staged.push(allocate(backend, &reshaped(layout.shape(), axis, range.len()))?);
            }
        }
    }
    Ok(staged)
}

/// Where messages arrive: in the borders' tensors, or in the next that is staged.
fn receives<'a, B: Backend, E: Element>(
    pairs: &'a mut [Pair<B::Tensor<E>>],
    staged: &'a mut [B::Tensor<E>],
    borders: &[Border],
    axis: usize,
) -> Result<Vec<Message<B::ViewMut<'a, E>>>, ShardedError> {
    let (mut staged, mut receives) = (staged.iter_mut(), Vec::new());
    for (pair, border) in pairs.iter_mut().zip(borders) {
        for tensor in pair.each_mut() {
            let is_outermost = is_outermost(B::layout(&B::view(tensor)).shape(), axis);
            let (mut rest, mut at) = (B::view_mut(tensor), border.keys.start);
            for (rank, range) in &border.receives {
                let [_, behind] = B::split_mut(rest, axis, range.start - at)?;
                let [part, behind] = B::split_mut(behind, axis, range.len())?;
                (rest, at) = (behind, range.end);
                let view = match is_outermost {
                    true => part,
                    false => B::view_mut(staged.next().expect("one for each message")),
                };
                receives.push(Message { rank: *rank, view });
            }
        }
    }
    Ok(receives)
}

/// Copies what was staged to where it belongs.
fn unpack<B: Backend, E: Element>(
    backend: &B,
    pairs: &mut [Pair<B::Tensor<E>>],
    staged: &[B::Tensor<E>],
    (borders, axis): (&[Border], usize),
) -> Result<(), ShardedError> {
    let mut staged = staged.iter();
    for (pair, border) in pairs.iter_mut().zip(borders) {
        for tensor in pair.each_mut() {
            if is_outermost(B::layout(&B::view(tensor)).shape(), axis) {
                continue;
            }
            for (_, range) in &border.receives {
                let from = B::view(staged.next().expect("one for each message"));
                let to = B::narrow_mut::<E>(B::view_mut(tensor), axis, within(range, border.keys.start))?;
                backend.copy(from, to).map_err(failed(backend))?;
            }
        }
    }
    Ok(())
}
