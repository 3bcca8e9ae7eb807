//! What is computed, and what it is held to.

use std::ops::Range;
use std::time::Instant;

use natten::cpu::Cpu;
use natten::sharded::{Sharded, Whole};
use natten::{
    Backend, Call, DynParams, ElementType, Exchange, Gradients, Inputs, Params, Ranks, Saved, Tensor,
};

use crate::{Args, ExampleError};

/// A clip, and the result on one device.
pub struct Job {
    pub whole: Whole,
    pub inputs: Inputs<Tensor<f32>>,
    pub axis: usize,
    pub backward: bool,
    pub repeat: usize,
    grid: Option<usize>,
    window: usize,
    expected: Given,
}

/// Output and, where they are asked for, gradients of query, key and value, of some of the tokens.
pub struct Given(pub Vec<Tensor<f32>>);

/// What a number of ranks needed.
pub struct Measured {
    /// The fastest of all runs, which ends with the slowest rank.
    pub seconds: f64,
    /// Received by all ranks together in one forward.
    pub halo_bytes: u64,
    /// The largest from one device, of all that was computed.
    pub difference: f32,
}

/// What one rank found: the seconds of each run, and what it gave of which tokens.
pub struct OfRank {
    pub tokens: Range<usize>,
    pub seconds: Vec<f64>,
    pub received_bytes: u64,
    pub given: Given,
}

impl Job {
    pub fn new(args: &Args) -> Result<Self, ExampleError> {
        let ([x, y, z], params) = (args.tokens, Params::new(args.window).to_dyn());
        let shape = |heads: usize| [1, x, y, z, heads, args.head_dim];
        let numbers = |heads: usize, step: f32| Tensor::from_fn(&shape(heads), |i| (i as f32 * step).sin());
        let [query, key, value] = [(args.heads, 0.37), (args.heads_kv, 0.73), (args.heads_kv, 0.11)]
            .map(|(heads, step)| numbers(heads, step));
        let inputs = Inputs::new(query?, key?, value?);
        let layouts = inputs.map(|tensor| *tensor.view().layout());
        let whole = Whole::new(params, &layouts, ElementType::F32)?;
        let (axis, backward) = (args.axis, args.backward);
        let expected =
            Given(attend(&Call::new(&inputs.query, &inputs.key, &inputs.value)?, &params, backward)?);
        let window = args.window.get(axis).copied().unwrap_or(1);
        Ok(Job {
            whole,
            inputs,
            axis,
            backward,
            repeat: args.repeat.max(1),
            grid: args.grid,
            window,
            expected,
        })
    }

    /// A rank's part.
    pub fn part<X: Ranks>(&self, exchange: X) -> Result<Sharded<X>, ExampleError> {
        let sharded = Sharded::new(exchange, &self.whole, self.axis)?;
        match self.grid {
            Some(tokens) => Ok(sharded.grid(tokens)?),
            None => Ok(sharded),
        }
    }

    pub fn describe(&self) -> String {
        let problem = self.whole.problem();
        let axes: Vec<String> = problem
            .axes()
            .iter()
            .map(|axis| format!("{} (window {})", axis.extent, axis.kernel_size))
            .collect();
        let passes = if self.backward { "forward and backward" } else { "forward" };
        let tokens = axes.join(" x ");
        format!("{tokens} tokens, {} heads, f32, {passes}; cut along axis {}", problem.heads(), self.axis)
    }

    /// This rank's tokens of a tensor.
    pub fn shard(&self, tensor: &Tensor<f32>, tokens: &Range<usize>) -> Result<Tensor<f32>, ExampleError> {
        Ok(tensor.view().narrow(self.axis + 1, tokens.clone())?.to_tensor())
    }

    /// Bytes that all ranks receive in a forward: across each cut go `window - 1` tokens of keys and of values in all. None where a
    /// shard is shorter than the window, and so than what it has to give.
    pub fn closed_form(&self, ranks: usize) -> Option<u64> {
        let problem = self.whole.problem();
        let extents: Vec<usize> = problem.axes().iter().map(|axis| axis.extent).collect();
        let beside: usize = extents.iter().product::<usize>() / extents[self.axis];
        let row = problem.heads_kv() * (problem.head_dim() + problem.head_dim_v()) * size_of::<f32>();
        let is_long = extents[self.axis] / ranks >= self.window || ranks == 1;
        is_long.then_some(((ranks - 1) * (self.window - 1) * beside * row) as u64)
    }

    /// All ranks' findings as one.
    pub fn measured(&self, ranks: &[OfRank]) -> Result<Measured, ExampleError> {
        let of_run = |run: usize| ranks.iter().map(|rank| rank.seconds[run]).fold(0.0, f64::max);
        let seconds = (0..self.repeat).map(of_run).fold(f64::INFINITY, f64::min);
        let mut difference = 0.0_f32;
        for OfRank { tokens, given, .. } in ranks {
            for (found, expected) in given.0.iter().zip(&self.expected.0) {
                let expected = self.shard(expected, tokens)?;
                let apart = found.as_slice().iter().zip(expected.as_slice()).map(|(a, b)| (a - b).abs());
                // A difference that is no number is no small one.
                difference = apart.fold(difference, |most, apart| if apart <= most { most } else { apart });
            }
        }
        let halo_bytes = ranks.iter().map(|rank| rank.received_bytes).sum();
        Ok(Measured { seconds, halo_bytes, difference })
    }
}

/// What a call gives on one device.
fn attend(
    call: &Call<'_, Cpu, f32>,
    params: &DynParams,
    backward: bool,
) -> Result<Vec<Tensor<f32>>, ExampleError> {
    let (out, lse) = call.forward_with_lse(params)?;
    if !backward {
        return Ok(vec![out]);
    }
    // The output stands for its own gradient, as in the gradient of half its square.
    let gradients = call.backward(params, &Saved { out: &out, lse: &lse, d_out: &out, d_lse: None })?;
    let Gradients { query, key, value, .. } = gradients;
    Ok(vec![out, query, key, value])
}

/// The seconds of each run, and the last result.
pub type Timed<T> = (Vec<f64>, Vec<T>);

/// Runs a rank's part as often as the job says. Ranks that exchange halos begin each run at about the same time.
pub fn time<B, X>(
    job: &Job,
    sharded: &Sharded<X>,
    call: &Call<'_, B, f32>,
    synchronize: impl Fn() -> Result<(), ExampleError>,
) -> Result<Timed<B::Tensor<f32>>, ExampleError>
where
    B: Backend,
    X: Exchange<B>,
    B::Tensor<f32>: natten::Operand<Device = B, Elem = f32>,
{
    let (mut seconds, mut given) = (Vec::new(), Vec::new());
    for _ in 0..job.repeat {
        let began = Instant::now();
        let ((out, lse), halos) = sharded.forward_keeping(call)?;
        given = if job.backward {
            let saved = Saved { out: &out, lse: &lse, d_out: &out, d_lse: None };
            let Gradients { query, key, value, .. } = sharded.backward(call, &saved, Some(&halos))?;
            vec![out, query, key, value]
        } else {
            vec![out]
        };
        synchronize()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok((seconds, given))
}
