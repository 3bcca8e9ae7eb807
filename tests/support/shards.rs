//! One problem over several ranks in threads, and what it is held to: the whole on one device.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use natten::cpu::Cpu;
use natten::sharded::{InProcess, Sharded, ShardedError, Way, Whole};
use natten::{Call, Element, Inputs, Layout, Ranks, Saved, Tensor};

use crate::compare::{assert_close, same_bits};
use crate::spec::Spec;

/// What a whole or a rank gives: output and log-sum-exp, and the gradients of all operands.
pub struct Given<E> {
    /// `[batch, tokens.., heads, head_dim_v]`
    pub out: Tensor<E>,
    /// `[batch, tokens.., heads]`
    pub lse: Tensor<f32>,
    /// As the operands.
    pub gradients: Inputs<Tensor<E>>,
}

/// The operands of a whole, and the gradients of what it gives.
pub struct ShardCase<E> {
    /// The whole.
    pub spec: Spec,
    /// The operands.
    pub inputs: Inputs<Tensor<E>>,
    /// Gradient of the output.
    pub d_out: Tensor<E>,
    /// Gradient of the log-sum-exp.
    pub d_lse: Option<Tensor<f32>>,
}

/// How a whole is cut: where each rank's part ends, evenly unless said otherwise, and where interior and border queries meet.
#[derive(Clone, Debug)]
pub struct Cut {
    /// How many ranks.
    pub ranks: usize,
    /// The axis that is cut.
    pub axis: usize,
    /// Where parts end.
    pub ends: Option<Vec<usize>>,
    /// Where interior and border queries meet.
    pub grid: Option<usize>,
    /// Whether the backward gets the forward's halos.
    pub keeps_halos: bool,
    /// How keys and values go.
    pub way: Option<Way>,
}

impl Cut {
    /// Evenly, by [`Sharded::new`].
    pub fn even(ranks: usize, axis: usize) -> Self {
        Cut { ranks, axis, ends: None, grid: None, keeps_halos: ranks.is_multiple_of(2), way: None }
    }

    /// Where `ends` say.
    pub fn at(axis: usize, ends: &[usize]) -> Self {
        Cut { ends: Some(ends.to_vec()), keeps_halos: true, ..Cut::even(ends.len(), axis) }
    }

    /// A rank's part of a whole.
    ///
    /// # Panics
    /// When it cannot be cut so.
    pub fn part<X: Ranks>(&self, exchange: X, whole: &Whole) -> Sharded<X> {
        let sharded = match &self.ends {
            Some(ends) => Sharded::at(exchange, whole, self.axis, ends),
            None => Sharded::new(exchange, whole, self.axis),
        };
        let sharded = sharded.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let sharded = match self.grid {
            Some(tokens) => sharded.grid(tokens).expect("not 0"),
            None => sharded,
        };
        match self.way {
            Some(way) => sharded.by(way).unwrap_or_else(|error| panic!("{self:?}: {error}")),
            None => sharded,
        }
    }
}

/// The whole of a spec.
///
/// # Panics
/// When it is no neighborhood.
pub fn whole_of<E: Element>(spec: &Spec) -> Whole {
    let layouts = spec.shapes().map(|shape| Layout::contiguous(shape).expect("small"));
    Whole::new(spec.dyn_params().expect("a neighborhood"), &layouts, E::TYPE).expect("a valid whole")
}

/// Some tokens of a tensor.
///
/// # Panics
/// When it has them not.
pub fn narrow<E: Element>(tensor: &Tensor<E>, axis: usize, tokens: &Range<usize>) -> Tensor<E> {
    tensor.view().narrow(axis + 1, tokens.clone()).expect("tokens of the whole").to_tensor()
}

impl<E: Element> ShardCase<E> {
    /// Normal deviates, the same for the same seed.
    pub fn of(spec: &Spec, seed: u64) -> Self {
        let case = spec.draw(seed);
        let d_lse = case.d_lse.as_ref().map(Tensor::cast);
        ShardCase { spec: spec.clone(), inputs: case.rounded(), d_out: case.d_out.cast(), d_lse }
    }

    /// This rank's operands. Additional keys and values are everybody's.
    pub fn shard(&self, axis: usize, tokens: &Range<usize>) -> ShardCase<E> {
        let part = |tensor: &Tensor<E>| narrow(tensor, axis, tokens);
        let Inputs { query, key, value, additional } = &self.inputs;
        let inputs =
            Inputs { query: part(query), key: part(key), value: part(value), additional: additional.clone() };
        let d_lse = self.d_lse.as_ref().map(|d_lse| narrow(d_lse, axis, tokens));
        ShardCase { spec: self.spec.clone(), inputs, d_out: part(&self.d_out), d_lse }
    }

    /// The call on the CPU.
    ///
    /// # Panics
    /// Never: all tensors are the host's.
    pub fn call(&self) -> Call<'_, Cpu, E> {
        let Inputs { query, key, value, additional } = &self.inputs;
        let call = Call::new(query, key, value).expect("one device");
        match additional {
            Some([keys, values]) => call.additional(keys, values).expect("one device"),
            None => call,
        }
    }

    fn saved<'s>(
        &'s self,
        out: &'s Tensor<E>,
        lse: &'s Tensor<f32>,
    ) -> Saved<&'s Tensor<E>, &'s Tensor<f32>> {
        Saved { out, lse, d_out: &self.d_out, d_lse: self.d_lse.as_ref() }
    }

    /// What one device gives.
    ///
    /// # Panics
    /// When the spec is not valid.
    pub fn on_one_device(&self) -> Given<E> {
        let params = self.spec.dyn_params().expect("a neighborhood");
        let (out, lse) = self.call().forward_with_lse(&params).expect("valid");
        let gradients = self.call().backward(&params, &self.saved(&out, &lse)).expect("valid");
        Given { gradients: as_inputs(gradients), out, lse }
    }

    /// What a rank gives of its shard.
    ///
    /// # Errors
    /// Those of [`Sharded`].
    pub fn on_rank(&self, sharded: &Sharded<InProcess>, keeps_halos: bool) -> Result<Given<E>, ShardedError> {
        let ((out, lse), halos) = sharded.forward_keeping(&self.call())?;
        let halos = keeps_halos.then_some(&halos);
        let gradients = as_inputs(sharded.backward(&self.call(), &self.saved(&out, &lse), halos)?);
        Ok(Given { gradients, out, lse })
    }

    /// What each rank gives, with the tokens it has; and the same bytes have been received as the split foretold.
    ///
    /// # Panics
    /// When a rank fails, or received other bytes.
    pub fn on_ranks(&self, cut: &Cut) -> Vec<(Range<usize>, Given<E>)> {
        let whole = whole_of::<E>(&self.spec);
        in_threads(cut.ranks, |exchange| {
            let sharded = cut.part(exchange, &whole);
            let tokens = sharded.tokens();
            let shard = self.shard(cut.axis, &tokens);
            let alone = sharded.forward(&shard.call()).expect("every rank is there");
            assert_eq!(
                sharded.exchange().received_bytes(),
                sharded.halo_bytes(),
                "{cut:?} of {:?}",
                self.spec
            );
            let given = shard.on_rank(&sharded, cut.keeps_halos).expect("every rank is there");
            assert!(
                same_bits(&alone, &given.out),
                "{cut:?} of {:?}: another output without halos kept",
                self.spec
            );
            assert!(sharded.poll().expect("nothing failed"));
            sharded.wait(Duration::ZERO).expect("nothing failed");
            (tokens, given)
        })
    }
}

fn as_inputs<E: Element>(gradients: natten::Gradients<Tensor<E>>) -> Inputs<Tensor<E>> {
    let natten::Gradients { query, key, value, additional } = gradients;
    Inputs { query, key, value, additional }
}

/// What a function gives on each rank, in a thread of its own.
///
/// # Panics
/// When a rank does.
pub fn in_threads<T: Send>(ranks: usize, of: impl Fn(InProcess) -> T + Sync) -> Vec<T> {
    let group = InProcess::group(ranks).expect("a few ranks");
    thread::scope(|scope| {
        let threads: Vec<_> = group.into_iter().map(|exchange| scope.spawn(|| of(exchange))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panicked")).collect()
    })
}

/// Holds all ranks' parts to the whole: each number within what both may err.
///
/// # Panics
/// When one is not.
pub fn expect_whole<E: Element>(spec: &Spec, cut: &Cut, seed: u64, [of_out, of_gradients]: [f64; 2]) {
    let case = ShardCase::<E>::of(spec, seed);
    let (whole, parts) = (case.on_one_device(), case.on_ranks(cut));
    assert_eq!(parts.first().map(|(tokens, _)| tokens.start), Some(0));
    assert!(parts.windows(2).all(|pair| pair[0].0.end == pair[1].0.start), "{cut:?} of {spec:?}");
    for (rank, (tokens, part)) in parts.iter().enumerate() {
        let what = |of: &dyn std::fmt::Display| format!("{of} of rank {rank}, {cut:?} of {spec:?}");
        let own = |tensor: &Tensor<E>| narrow(tensor, cut.axis, tokens);
        assert_close(&what(&"out"), &part.out, &own(&whole.out), of_out);
        assert_close(&what(&"lse"), &part.lse, &narrow(&whole.lse, cut.axis, tokens), 2e-6);
        let each = part.gradients.roles().zip(whole.gradients.roles()).enumerate();
        for (i, ((role, found), (_, expected))) in each {
            // Additional ones are the whole's on every rank.
            let expected = if i < 3 { own(expected) } else { expected.clone() };
            assert_close(&what(&format!("gradient of {role}")), found, &expected, of_gradients);
        }
        let first = parts[0].1.gradients.additional.iter().flatten();
        let additional = part.gradients.additional.iter().flatten().zip(first);
        assert!(additional.clone().all(|(a, b)| same_bits(a, b)), "{}", what(&"additional"));
    }
}
