//! Streams on any backend: the frames of a clip given to a cache a few at a time, held to one call on the whole clip.

use std::ops::Range;

use natten::cpu::Cpu;
use natten::cuda::{Cuda, device::Device};
use natten::streaming::{FrameCache, Length};
use natten::{Backend, Element, ElementType, Inputs, Operand, Tensor};

use crate::compare::{assert_close, same_bits};
use crate::dense::Weights;
use crate::spec::{Mask, Spec};
use crate::suites::oracle::Expected;

/// A backend whose tensors come from the host and go back there.
pub trait Lend: Backend {
    /// A copy of a host tensor.
    fn lend<E: Element>(&self, tensor: &Tensor<E>) -> Self::Tensor<E>;
    /// A copy on the host.
    fn take<E: Element>(&self, tensor: &Self::Tensor<E>) -> Tensor<E>;
}

impl Lend for Cpu {
    fn lend<E: Element>(&self, tensor: &Tensor<E>) -> Tensor<E> {
        tensor.clone()
    }

    fn take<E: Element>(&self, tensor: &Tensor<E>) -> Tensor<E> {
        tensor.clone()
    }
}

impl<D: Device> Lend for Cuda<D> {
    fn lend<E: Element>(&self, tensor: &Tensor<E>) -> Self::Tensor<E> {
        self.upload(&tensor.view()).expect("memory")
    }

    fn take<E: Element>(&self, tensor: &Self::Tensor<E>) -> Tensor<E> {
        self.download(tensor).expect("it ran")
    }
}

/// How a clip becomes a stream.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The whole clip.
    pub clip: Spec,
    /// Frames of each append, over and over until the clip ends.
    pub appends: Vec<usize>,
    /// Whether the cache is told how many frames there are. Where it is not, the clip gets a tail that no frame of the stream sees,
    /// so that its end is as far as that of a stream without one.
    pub is_length_known: bool,
}

impl Stream {
    /// A stream of a clip of known length, so many frames at a time.
    pub fn of(clip: &Spec, appends: &[usize]) -> Self {
        Stream { clip: clip.clone(), appends: appends.to_vec(), is_length_known: true }
    }

    /// The same without an end.
    pub fn endless(self) -> Self {
        Stream { is_length_known: false, ..self }
    }

    fn frames(&self) -> usize {
        self.clip.query_tokens()[0]
    }

    fn length(&self) -> Length {
        if self.is_length_known { Length::Tokens(self.frames()) } else { Length::Unbounded }
    }

    /// The whole that the stream is held to.
    fn whole(&self) -> Spec {
        let mut whole = self.clip.clone();
        if let Mask::Neighborhood { token_shape, axes } = &mut whole.mask {
            let natten::KernelSize::Tokens(window) = axes[0].kernel_size else { panic!("{self:?}") };
            if !self.is_length_known {
                token_shape[0] += 2 * window * axes[0].dilation;
            }
        }
        whole
    }

    /// Frames of one append after another.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = 0;
        self.appends.iter().cycle().map_while(move |&frames| {
            let range = next..(next + frames).min(self.frames());
            next = range.end;
            (range.start < self.frames()).then_some(range)
        })
    }

    /// Output and log-sum-exp of all frames, from a cache that gets and attends from them in turn.
    fn follow<B: Lend, E: Element>(
        &self,
        backend: &B,
        inputs: &Inputs<Tensor<E>>,
        mut cache: FrameCache<B, E>,
    ) -> (Tensor<E>, Tensor<f32>)
    where
        B::Tensor<E>: Operand<Device = B, Elem = E>,
    {
        let additional =
            inputs.additional.as_ref().map(|tensors| tensors.each_ref().map(|t| backend.lend(t)));
        let mut shape = inputs.query.shape().to_vec();
        (shape[1], *shape.last_mut().expect("some axes")) = (self.frames(), self.clip.head_dim_v);
        let mut out = Tensor::<E>::zeros(&shape).expect("small");
        let mut lse = Tensor::<f32>::zeros(&shape[..shape.len() - 1]).expect("small");
        for range in self.ranges() {
            let frames = |tensor: &Tensor<E>| {
                backend.lend(&tensor.view().narrow(1, range.clone()).expect("frames there are").to_tensor())
            };
            let [query, key, value] = [&inputs.query, &inputs.key, &inputs.value].map(frames);
            cache.append_at(range.start as u64, &key, &value).expect("the stream's next");
            let (call, params) = cache.call(&query).expect("the last append's");
            let call = match &additional {
                Some([keys, values]) => call.additional(keys, values).expect("one device"),
                None => call,
            };
            let (of_frames, lse_of_frames) = call.forward_with_lse(&params).expect("a valid call");
            let to = out.view_mut().narrow(1, range.clone());
            to.and_then(|mut to| to.copy_from(&backend.take(&of_frames).view())).expect("frames there are");
            let to = lse.view_mut().narrow(1, range.clone());
            to.and_then(|mut to| to.copy_from(&backend.take(&lse_of_frames).view()))
                .expect("frames there are");
        }
        assert_eq!(cache.frames(), self.frames() as u64);
        (out, lse)
    }

    /// A cache for it.
    pub fn cache<B: Backend, E: Element>(&self, backend: &B) -> FrameCache<B, E> {
        let mut widest = self.clip.shapes().key;
        widest[1] = *self.appends.iter().max().expect("some");
        let params = self.clip.dyn_params().expect("a neighborhood");
        FrameCache::new(backend.clone(), params, self.length(), &widest, self.clip.head_dim_v)
            .unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Holds every frame to what the whole clip gives: in f64, which the reference computes, to the bit, else by what the element
    /// type allows.
    pub fn expect_whole<B: Lend, E: Element>(&self, backend: &B, seed: u64)
    where
        B::Tensor<E>: Operand<Device = B, Elem = E>,
    {
        let case = self.whole().draw(seed);
        let inputs = case.rounded::<E>();
        let expected = Expected::<E>::of(&case);
        let [of_out, of_lse] = expected.tolerances(Weights::InElementType);
        let of_stream = |tensor: &Tensor<f64>| {
            tensor.view().narrow(1, 0..self.frames()).expect("the stream's frames").to_tensor()
        };
        let [out, lse] = [&expected.forward().out, &expected.forward().lse].map(of_stream);
        let what = format!("{self:?} on {}", backend.device_name());
        let (found, found_lse) = self.follow(backend, &inputs, self.cache::<B, E>(backend));
        if E::TYPE == ElementType::F64 {
            assert!(same_bits(&found, &out.cast()), "other bits, {what}");
            assert!(same_bits(&found_lse, &lse.cast()), "other bits of lse, {what}");
        }
        assert_close(&format!("out, {what}"), &found, &out, of_out);
        assert_close(&format!("lse, {what}"), &found_lse, &lse, of_lse);
    }
}
