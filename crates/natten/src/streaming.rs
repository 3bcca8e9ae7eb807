//! Attention over a stream: frames arrive a few at a time, and the device keeps the keys and values that frames to come still see.
//!
//! The first token axis is time and causal; the other axes, if there are any, hold a frame whole. A [`FrameCache`] takes the new
//! frames' keys and values ([`FrameCache::append`]) and attends from their queries ([`FrameCache::attend`]). What comes out is what
//! one call on all frames so far and to come gives there: windows, the blocks of a stride, residues and borders are those of the
//! whole stream.
//!
//! ```
//! use natten::cpu::Cpu;
//! use natten::streaming::{FrameCache, Length, StreamError};
//! use natten::{Params, Tensor};
//!
//! # fn main() -> Result<(), StreamError> {
//! // Each pixel sees 7 x 7 pixels of its own frame and of the 4 frames before. Appends have 2 frames at most:
//! // [batch, frames, height, width, heads, head_dim].
//! let params = Params::new([5, 7, 7]).is_causal([true, false, false]);
//! let widest = [1, 2, 8, 8, 2, 16];
//! let mut cache = FrameCache::new(Cpu::new(), &params, Length::Unbounded, &widest, 16)?;
//! for second in 0..10 {
//!     let frames = Tensor::from_fn(&widest, |i| (i as f32 * 0.37 + second as f32).sin())?;
//!     cache.append(&frames, &frames)?;
//!     let out = cache.attend(&frames)?;
//!     assert_eq!(out.shape(), &widest);
//! }
//! assert_eq!(cache.frames(), 20);
//! # Ok(())
//! # }
//! ```
//!
//! # What is kept
//! A query sees at most `(w - 1) d` frames back along a causal axis of window `w` and dilation `d`, whatever the stride: that far
//! back the first key of a block's last query lies, and all others see less. A cache has room for these frames and for the widest
//! append, `R` frames together, twice: each frame is written in two places, `R` frames apart, so that the newest `R` frames lie
//! together in one of them, and a call reads one box. A stream of up to `2 R` frames has its own length and each frame once.
//!
//! There is no backward: frames that have left have no gradients to receive.

mod any;
mod error;
mod place;
mod ring;

use std::ops::Range;

use natten_core::call::InputViews;
use natten_core::{Backend, DynParams, Element, Inputs, Layout, ProblemError, Role, TensorAxis};

use crate::call::{Call, OutAndLse, backend_error};
use crate::operand::Operand;

pub use any::AnyFrameCache;
pub use error::StreamError;
use place::Place;
use ring::Ring;

/// How many frames a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Length {
    /// So many, known before the first arrives. With a stride the end may cut off the last block of queries, whose leader is
    /// then the last frame, so that their windows begin earlier: the same results as one call on the whole clip.
    Tokens(usize),
    /// Nobody knows, or there is no end: every block of a stride is taken for a whole one.
    Unbounded,
}

/// Keys and values of a stream's last frames, on a device, and where in the stream they are.
///
/// Everything is allocated by [`FrameCache::new`]. Each layer of a network has its own.
pub struct FrameCache<B: Backend, E: Element> {
    backend: B,
    params: DynParams,
    /// The shape of the widest append of keys, and what the last axis of values is instead.
    widest: Layout,
    head_dim_v: usize,
    place: Place,
    ring: Ring,
    key: B::Tensor<E>,
    value: B::Tensor<E>,
}

impl<B: Backend, E: Element> FrameCache<B, E> {
    /// A cache for streams of this length, on a device.
    ///
    /// `widest` is the shape of the keys of the widest append, `[batch, frames, other token axes.., heads_kv, head_dim]`; values
    /// have `head_dim_v` for the last axis. Storage is `(w - 1) d` frames and those of the widest append, twice, or as many as
    /// the stream has if these are fewer. `params` are those of a call on the whole stream: the first axis is causal, and its
    /// [`Region`](crate::Region) is the cache's to say; other axes may have one.
    ///
    /// # Errors
    /// [`StreamError::NotCausal`], [`StreamError::EndlessWindow`]; [`StreamError::Call`] with the rule that the first axis or the
    /// shape breaks, or when memory cannot be had. Rules of other axes are reported by the first call.
    pub fn new(
        backend: B,
        params: impl Into<DynParams>,
        length: Length,
        widest: &[usize],
        head_dim_v: usize,
    ) -> Result<Self, StreamError> {
        let params = params.into();
        let widest = Layout::contiguous(widest)?;
        expect_rank(Role::Key, &params, &widest)?;
        let place = Place::new(&params, length)?;
        let ring = Ring::new(place.history(), widest.shape()[1], length);
        let mut shape = widest.shape().to_vec();
        shape[1] = ring.frames();
        let failed = |source| backend_error(&backend, source);
        let key = backend.allocate(&shape).map_err(failed)?;
        shape[widest.rank() - 1] = head_dim_v;
        let value = backend.allocate(&shape).map_err(failed)?;
        Ok(FrameCache { backend, params, widest, head_dim_v, place, ring, key, value })
    }

    /// Takes the next frames' keys and values, of any strides; they are copied. Frames that no later query sees make room.
    ///
    /// # Shapes
    /// As `widest` of [`FrameCache::new`] with as many frames as that or fewer, also none.
    ///
    /// # Errors
    /// [`StreamError::TooManyFrames`], [`StreamError::PastTheEnd`], [`StreamError::Device`] and a wrong shape
    /// ([`StreamError::Call`]) leave the cache as it was. After a failure of the device (also [`StreamError::Call`]) what it holds
    /// is uncertain: [`FrameCache::clear`] it.
    pub fn append<K, V>(&mut self, key: &K, value: &V) -> Result<(), StreamError>
    where
        K: Operand<Device = B, Elem = E>,
        V: Operand<Device = B, Elem = E>,
    {
        self.expect_here(Role::Key, &key.device())?;
        self.expect_here(Role::Value, &value.device())?;
        self.append_views(key.view(), value.view())
    }

    /// [`FrameCache::append`] for callers who number frames themselves: `frame` is the number of the first one.
    ///
    /// # Errors
    /// [`StreamError::OutOfOrder`] unless it is the stream's next, and those of [`FrameCache::append`].
    pub fn append_at<K, V>(&mut self, frame: u64, key: &K, value: &V) -> Result<(), StreamError>
    where
        K: Operand<Device = B, Elem = E>,
        V: Operand<Device = B, Elem = E>,
    {
        let expected = self.frames();
        if frame != expected {
            return Err(StreamError::OutOfOrder { expected, found: frame });
        }
        self.append(key, value)
    }

    /// Attends from the frames that were appended last.
    ///
    /// # Shapes
    /// `query` `[batch, frames of the last append, other token axes.., heads, head_dim]`, output likewise with `head_dim_v`.
    ///
    /// # Errors
    /// [`StreamError::QueryFrames`] when the query has another number of frames, before the first append too;
    /// [`StreamError::Device`]; [`StreamError::Call`] with those of [`Call::forward`].
    pub fn attend<Q>(&self, query: &Q) -> Result<B::Tensor<E>, StreamError>
    where
        Q: Operand<Device = B, Elem = E>,
    {
        let (call, params) = self.call(query)?;
        Ok(call.forward(&params)?)
    }

    /// [`FrameCache::attend`], and the log-sum-exp.
    ///
    /// # Errors
    /// As [`FrameCache::attend`].
    pub fn attend_with_lse<Q>(&self, query: &Q) -> Result<OutAndLse<B, E>, StreamError>
    where
        Q: Operand<Device = B, Elem = E>,
    {
        let (call, params) = self.call(query)?;
        Ok(call.forward_with_lse(&params)?)
    }

    /// The call that [`FrameCache::attend`] makes and its parameters, for additional keys and for outputs of the caller's.
    ///
    /// # Errors
    /// As [`FrameCache::attend`].
    ///
    /// # Examples
    /// ```
    /// use natten::cpu::Cpu;
    /// use natten::streaming::{FrameCache, Length, StreamError};
    /// use natten::{Params, Tensor};
    /// # fn main() -> Result<(), StreamError> {
    /// let mut cache = FrameCache::new(Cpu::new(), &Params::new([4]).is_causal(true), Length::Tokens(20), &[1, 1, 2, 8], 8)?;
    /// let token = Tensor::from_fn(&[1, 1, 2, 8], |i| i as f32 * 0.1)?;
    /// let prompt = Tensor::from_fn(&[1, 5, 2, 8], |i| i as f32 * 0.01)?;
    /// cache.append(&token, &token)?;
    /// let (call, params) = cache.call(&token)?;
    /// let out = call.additional(&prompt, &prompt)?.forward(&params)?;
    /// # assert_eq!(out.shape(), token.shape());
    /// # Ok(())
    /// # }
    /// ```
    pub fn call<'a, Q>(&'a self, query: &'a Q) -> Result<(Call<'a, B, E>, DynParams), StreamError>
    where
        Q: Operand<Device = B, Elem = E>,
    {
        self.expect_here(Role::Query, &query.device())?;
        self.call_on(query.view())
    }

    /// Forgets all frames, so that another stream can begin. Storage stays.
    pub fn clear(&mut self) {
        self.place = self.place.cleared();
        self.ring = self.ring.cleared();
    }

    /// How many frames were appended since the beginning.
    pub fn frames(&self) -> u64 {
        self.place.frames()
    }

    /// Frames of the widest append.
    pub fn most_frames(&self) -> usize {
        self.widest.shape()[1]
    }

    /// Frames that storage has room for, copies included.
    pub fn stored_frames(&self) -> usize {
        self.ring.frames()
    }

    pub(crate) fn append_views(
        &mut self,
        key: B::View<'_, E>,
        value: B::View<'_, E>,
    ) -> Result<(), StreamError> {
        let (of_key, of_value) = (B::layout(&key), B::layout(&value));
        self.expect_frame(Role::Key, &of_key, None)?;
        let frames = of_key.shape()[1];
        self.expect_frame(Role::Value, &of_value, Some(frames))?;
        let most = self.most_frames();
        if frames > most {
            return Err(StreamError::TooManyFrames { found: frames, most });
        }
        let place = self.place.after(frames)?;
        for (of_append, at) in self.ring.writes(frames) {
            let slots = at..at + of_append.len();
            write(&self.backend, (B::reborrow(&key), &of_append), (B::view_mut(&mut self.key), &slots))?;
            write(&self.backend, (B::reborrow(&value), &of_append), (B::view_mut(&mut self.value), &slots))?;
        }
        (self.place, self.ring) = (place, self.ring.after(frames));
        Ok(())
    }

    pub(crate) fn call_on<'a>(
        &'a self,
        query: B::View<'a, E>,
    ) -> Result<(Call<'a, B, E>, DynParams), StreamError> {
        let (layout, expected) = (B::layout(&query), self.place.newest().len());
        expect_rank(Role::Query, &self.params, &layout)?;
        let found = layout.shape()[1];
        if found != expected {
            return Err(StreamError::QueryFrames { expected, found });
        }
        let region = self.place.region();
        let keys = region.key_range();
        let at = self.ring.start(self.place.newest().end - keys.start);
        let slots = at..at + keys.len();
        let key = B::narrow(B::view(&self.key), 1, slots.clone())?;
        let value = B::narrow(B::view(&self.value), 1, slots)?;
        let inputs: InputViews<'a, B, E> = Inputs::new(query, key, value);
        Ok((Call::of_views(self.backend.clone(), inputs), self.params.region(0, region)))
    }

    fn expect_here(&self, tensor: Role, device: &B) -> Result<(), StreamError> {
        if self.backend.is_same_device(device) {
            return Ok(());
        }
        let (expected, found) = (self.backend.device_name(), device.device_name());
        Err(StreamError::Device { tensor, expected, found })
    }

    /// Whether keys or values have the shape of the widest append but for the frames, which are these if they must be.
    fn expect_frame(&self, tensor: Role, found: &Layout, frames: Option<usize>) -> Result<(), StreamError> {
        expect_rank(tensor, &self.params, found)?;
        let last = found.rank() - 1;
        for (axis, (&expected, &found)) in self.widest.shape().iter().zip(found.shape()).enumerate() {
            let (axis, expected) = match axis {
                0 => (TensorAxis::Batch, expected),
                1 => (TensorAxis::Token(0), frames.unwrap_or(found)),
                _ if axis == last && tensor == Role::Value => (TensorAxis::HeadDim, self.head_dim_v),
                _ if axis == last => (TensorAxis::HeadDim, expected),
                _ if axis == last - 1 => (TensorAxis::Heads, expected),
                _ => (TensorAxis::Token(axis - 1), expected),
            };
            if expected != found {
                return Err(ProblemError::ShapeMismatch { tensor, axis, expected, found }.into());
            }
        }
        Ok(())
    }
}

impl<B: Backend, E: Element> std::fmt::Debug for FrameCache<B, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameCache")
            .field("element_type", &E::TYPE)
            .field("device", &self.backend.device_name())
            .field("widest", &self.widest.shape())
            .field("frames", &self.frames())
            .finish_non_exhaustive()
    }
}

/// Copies frames of a view to frames of another.
fn write<B: Backend, E: Element>(
    backend: &B,
    (from, frames): (B::View<'_, E>, &Range<usize>),
    (to, slots): (B::ViewMut<'_, E>, &Range<usize>),
) -> Result<(), StreamError> {
    let from = B::narrow(from, 1, frames.clone())?;
    let to = B::narrow_mut(to, 1, slots.clone())?;
    Ok(backend.copy(from, to).map_err(|source| backend_error(backend, source))?)
}

/// `[batch, token axes.., heads, head_dim]`.
fn expect_rank(tensor: Role, params: &DynParams, found: &Layout) -> Result<(), StreamError> {
    let (expected, found) = (params.rank().saturating_add(3), found.rank());
    if expected == found { Ok(()) } else { Err(ProblemError::TensorRank { tensor, expected, found }.into()) }
}
