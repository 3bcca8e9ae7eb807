//! Ranks as threads of one process, a GPU each, which reach each other through NCCL.

use std::thread;

use natten::cuda::driver::Driver;
use natten::cuda::driver::nccl::{Nccl, NcclId, NcclLibrary};
use natten::cuda::{Cuda, Device};
use natten::{Call, Tensor};

use crate::ExampleError;
use crate::job::{Given, Job, Measured, OfRank, time};

pub fn measure(job: &Job, ranks: usize) -> Result<Measured, ExampleError> {
    if ranks == 0 {
        return Err(natten::region::SplitError::NoRanks.into());
    }
    // What is missing is told before any thread waits for another.
    let devices = (0..ranks).map(Driver::new).collect::<Result<Vec<_>, _>>()?;
    let library = NcclLibrary::open()?;
    let id = library.new_id()?;
    let found: Result<Vec<OfRank>, ExampleError> = thread::scope(|scope| {
        let start = |(number, device): (usize, Driver)| {
            let library = &library;
            scope.spawn(move || rank(job, (library, id), (number, ranks), device))
        };
        let threads: Vec<_> = devices.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(ExampleError::Panicked))).collect()
    });
    job.measured(&found?)
}

fn rank(
    job: &Job,
    (library, id): (&NcclLibrary, NcclId),
    place: (usize, usize),
    device: Driver,
) -> Result<OfRank, ExampleError> {
    let transfers =
        device.stream().context().new_stream().map_err(|error| ExampleError::Stream(error.to_string()))?;
    let exchange = Nccl::connect(library, transfers, place, id)?;
    let (cuda, sharded) = (Cuda::new(device), job.part(exchange)?);
    let tokens = sharded.tokens();
    let upload =
        |tensor: &Tensor<f32>| Ok::<_, ExampleError>(cuda.upload(&job.shard(tensor, &tokens)?.view())?);
    let (query, key, value) =
        (upload(&job.inputs.query)?, upload(&job.inputs.key)?, upload(&job.inputs.value)?);
    let call = Call::new(&query, &key, &value)?;
    let (seconds, given) = time(job, &sharded, &call, || {
        sharded.wait(std::time::Duration::from_secs(60))?;
        Ok(cuda.device().synchronize()?)
    })?;
    let given = given.iter().map(|tensor| cuda.download(tensor)).collect::<Result<Vec<_>, _>>()?;
    let received_bytes = sharded.halo_bytes();
    Ok(OfRank { tokens, seconds, received_bytes, given: Given(given) })
}
