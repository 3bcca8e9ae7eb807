//! Ranks as threads of the CPU, one core each.

use std::thread;

use natten::Call;
use natten::cpu::Cpu;
use natten::sharded::InProcess;

use crate::ExampleError;
use crate::job::{Given, Job, Measured, OfRank, time};

pub fn measure(job: &Job, ranks: usize) -> Result<Measured, ExampleError> {
    let group = InProcess::group(ranks)?;
    let found: Result<Vec<OfRank>, ExampleError> = thread::scope(|scope| {
        let start = |exchange: InProcess| scope.spawn(|| rank(job, exchange));
        let threads: Vec<_> = group.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(ExampleError::Panicked))).collect()
    });
    job.measured(&found?)
}

fn rank(job: &Job, exchange: InProcess) -> Result<OfRank, ExampleError> {
    let sharded = job.part(exchange)?;
    let tokens = sharded.tokens();
    let [query, key, value] =
        [&job.inputs.query, &job.inputs.key, &job.inputs.value].map(|tensor| job.shard(tensor, &tokens));
    let (query, key, value) = (query?, key?, value?);
    let call = Call::new(&query, &key, &value)?.on(Cpu::new().threads(1)?)?;
    let (seconds, given) = time(job, &sharded, &call, || Ok(()))?;
    // What went both ways in a backward is the halo out and home again, of all ranks together.
    let received_bytes = match job.backward {
        true => sharded.halo_bytes(),
        false => sharded.exchange().received_bytes() / job.repeat as u64,
    };
    Ok(OfRank { tokens, seconds, received_bytes, given: Given(given) })
}
