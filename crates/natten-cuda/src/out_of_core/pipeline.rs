//! The three streams at work: a thread of the host fills buffers of slabs, this one launches, a third takes results away.
//!
//! Who waits for whom, of slab `i` in the buffers `i mod 2`:
//!
//! * Its tensors arrive behind *shared* `i-1`: kernels of slab `i-2` have read the buffers, and so has the copy of shared keys
//!   for slab `i-1`.
//! * Its keys that slab `i-1` had are copied behind *arrived* `i`; behind that copy is *shared* `i`.
//! * Its kernels run behind that, and behind *left* `i-2`, since results are where those of slab `i-2` were.
//! * Its results leave behind *computed* `i`.

use std::sync::mpsc::{Receiver, Sender, channel};

use natten_core::{
    Backend, Element, ForwardCall, InputElement, Inputs, Output, Problem, TensorError, TensorView,
    TensorViewMut,
};

use super::OutOfCoreError;
use super::plan::{Plan, Slab};
use super::staging::{Copying, Downloads, Uploads};
use crate::buffer::{CudaTensor, CudaView, CudaViewMut};
use crate::cuda::Cuda;
use crate::transfer::Transfer;

/// The tensors of a slab on the device, the axis that is cut being their first: so that slabs and what two of them share lie densely.
struct Buffers<E: Element, D: Transfer> {
    query: CudaTensor<E, D>,
    key: CudaTensor<E, D>,
    value: CudaTensor<E, D>,
    out: CudaTensor<E, D>,
    lse: Option<CudaTensor<f32, D>>,
}

/// How the axes of a tensor are told with the cut one first.
#[derive(Clone, Copy)]
struct CutFirst {
    axis: usize,
}

impl CutFirst {
    /// The axes of `[batch, tokens.., ..]` in that order.
    fn order(self, rank: usize) -> Vec<usize> {
        let cut = self.axis + 1;
        [cut].into_iter().chain((0..rank).filter(|&axis| axis != cut)).collect()
    }

    /// The axes of a tensor in that order as `[batch, tokens.., ..]`.
    fn back(self, rank: usize) -> Vec<usize> {
        let order = self.order(rank);
        (0..rank).map(|axis| order.iter().position(|&of| of == axis).unwrap_or(axis)).collect()
    }

    /// A shape in that order, with so many places along the cut axis.
    fn shape(self, shape: &[usize], places: usize) -> Vec<usize> {
        let mut shape: Vec<usize> = self.order(shape.len()).into_iter().map(|axis| shape[axis]).collect();
        shape[0] = places;
        shape
    }

    /// The first tokens of a buffer as a call takes them.
    fn of_call<'a, E: InputElement>(
        self,
        buffer: CudaView<'a, E>,
        tokens: usize,
    ) -> Result<CudaView<'a, E>, TensorError> {
        let rank = buffer.layout().rank();
        buffer.narrow(0, 0..tokens)?.permute(&self.back(rank))
    }

    fn of_call_mut<'a, E: InputElement>(
        self,
        buffer: CudaViewMut<'a, E>,
        tokens: usize,
    ) -> Result<CudaViewMut<'a, E>, TensorError> {
        let rank = buffer.layout().rank();
        buffer.narrow(0, 0..tokens)?.permute(&self.back(rank))
    }
}

/// All of a call.
struct Run<'a, E: Element, D: Transfer> {
    cuda: &'a Cuda<D>,
    problem: &'a Problem,
    plan: &'a Plan,
    first: CutFirst,
    buffers: Vec<Buffers<E, D>>,
    additional: Option<[CudaTensor<E, D>; 2]>,
}

/// What a thread returned; one that panicked takes this one with it, as the scope would.
fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub(super) fn run<E: Element, D: Transfer>(
    cuda: &Cuda<D>,
    problem: &Problem,
    plan: &Plan,
    copying: &Copying,
    inputs: &Inputs<TensorView<'_, E>>,
    output: Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
) -> Result<[u64; 2], OutOfCoreError> {
    let run = Run::new(cuda, problem, plan, inputs, output.lse.is_some())?;
    let device = cuda.device();
    let (arriving, leaving) = (device.beside()?, device.beside()?);
    // Memory is there from this point of the stream on.
    arriving.follow(&device.point()?)?;
    let of = |tensor: &CudaTensor<E, D>| tensor.layout.len() * size_of::<E>();
    let Buffers { query, key, value, .. } = run.buffers(0);
    let uploads = Uploads::new(arriving, copying.up_to(of(query).max(of(key)).max(of(value))))?;
    let bytes = run.pipeline((uploads, inputs), (leaving, *copying, output));
    // Nothing of this call is under way when it returns: copies have landed, each with what it uses, and kernels are here.
    device.synchronize()?;
    bytes
}

impl<'a, E: Element, D: Transfer> Run<'a, E, D> {
    fn new(
        cuda: &'a Cuda<D>,
        problem: &'a Problem,
        plan: &'a Plan,
        inputs: &Inputs<TensorView<'_, E>>,
        with_lse: bool,
    ) -> Result<Self, OutOfCoreError> {
        let first = CutFirst { axis: plan.axis };
        let allocate = || {
            let shape = |of: &[usize], tokens: usize| first.shape(of, tokens);
            let lse = || cuda.allocate::<f32>(&shape(&problem.lse_shape(), plan.queries));
            Ok::<_, OutOfCoreError>(Buffers {
                query: cuda.allocate(&shape(inputs.query.shape(), plan.queries))?,
                key: cuda.allocate(&shape(inputs.key.shape(), plan.keys))?,
                value: cuda.allocate(&shape(inputs.value.shape(), plan.keys))?,
                out: cuda.allocate(&shape(&problem.out_shape(), plan.queries))?,
                lse: with_lse.then(lse).transpose()?,
            })
        };
        let buffers = (0..plan.slabs.len().min(2)).map(|_| allocate()).collect::<Result<_, _>>()?;
        let additional = match &inputs.additional {
            Some([keys, values]) => Some([cuda.upload(keys)?, cuda.upload(values)?]),
            None => None,
        };
        Ok(Run { cuda, problem, plan, first, buffers, additional })
    }

    fn buffers(&self, slab: usize) -> &Buffers<E, D> {
        &self.buffers[slab % self.buffers.len()]
    }

    fn pipeline(
        &self,
        (uploads, inputs): (Uploads<D>, &Inputs<TensorView<'_, E>>),
        (leaving, copying, output): (D, Copying, Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>),
    ) -> Result<[u64; 2], OutOfCoreError> {
        let (arrived, arrivals) = channel();
        let (shared, read) = channel();
        let (computed, results) = channel();
        let (left, departures) = channel();
        std::thread::scope(|scope| {
            let filling = scope.spawn(move || self.fill(uploads, inputs, &arrived, &read));
            let emptying = scope.spawn(move || self.empty(leaving, copying, output, &results, &left));
            let computing = self.compute((&arrivals, &shared), (&computed, &departures));
            drop((arrivals, shared, computed, departures));
            let (filled, emptied) = (join(filling), join(emptying));
            // Who was stopped was stopped by one of the others, which says why.
            match (filled?, computing?, emptied?) {
                (Some(up), Some(()), Some(down)) => Ok([up, down]),
                _ => Err(OutOfCoreError::Stopped),
            }
        })
    }

    /// Sends slabs to the device.
    fn fill(
        &self,
        mut uploads: Uploads<D>,
        inputs: &Inputs<TensorView<'_, E>>,
        arrived: &Sender<D::Point>,
        shared: &Receiver<D::Point>,
    ) -> Result<Option<u64>, OutOfCoreError> {
        let turned = inputs.query.permute(&self.first.order(inputs.query.shape().len()))?;
        let keys = [inputs.key, inputs.value].map(|view| view.permute(&self.first.order(view.shape().len())));
        let [keys, values] = keys;
        let (keys, values) = (keys?, values?);
        let axis = self.problem.axes()[3 - self.problem.rank() + self.plan.axis];
        for (i, slab) in self.plan.slabs.iter().enumerate() {
            // The first two have buffers that nobody has read.
            if i > 0 {
                let Ok(point) = shared.recv() else { return Ok(None) };
                if i > 1 {
                    uploads.device.follow(&point)?;
                }
            }
            let buffers = self.buffers(i);
            let queries = slab.queries.start - axis.query_start..slab.queries.end - axis.query_start;
            uploads.queue(&turned.narrow(0, queries)?, &buffers.query.memory, 0)?;
            let (there, start) = (self.plan.shared(i).end, slab.keys.start);
            let new = there - axis.key_start..slab.keys.end - axis.key_start;
            for (tensor, buffer) in [(&keys, &buffers.key), (&values, &buffers.value)] {
                let of_token = tensor.shape()[1..].iter().product::<usize>();
                uploads.queue(&tensor.narrow(0, new.clone())?, &buffer.memory, (there - start) * of_token)?;
            }
            if arrived.send(uploads.device.point()?).is_err() {
                return Ok(None);
            }
        }
        uploads.finish().map(Some)
    }

    /// Computes slabs as they arrive.
    fn compute(
        &self,
        (arrivals, shared): (&Receiver<D::Point>, &Sender<D::Point>),
        (computed, departures): (&Sender<D::Point>, &Receiver<D::Point>),
    ) -> Result<Option<()>, OutOfCoreError> {
        let device = self.cuda.device();
        for (i, slab) in self.plan.slabs.iter().enumerate() {
            let Ok(point) = arrivals.recv() else { return Ok(None) };
            device.follow(&point)?;
            self.copy_shared(i)?;
            // The last slab's has nobody to wait for it.
            let _ = shared.send(device.point()?);
            if i > 1 {
                let Ok(point) = departures.recv() else { return Ok(None) };
                device.follow(&point)?;
            }
            self.launch(i, slab)?;
            if computed.send(device.point()?).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// Copies the keys and values that a slab shares with the one before it.
    fn copy_shared(&self, slab: usize) -> Result<(), OutOfCoreError> {
        let shared = self.plan.shared(slab);
        if shared.is_empty() {
            return Ok(());
        }
        let start = self.plan.slabs[slab - 1].keys.start;
        let (from, to) = (self.buffers(slab - 1), self.buffers(slab));
        for (from, to) in [(&from.key, &to.key), (&from.value, &to.value)] {
            let of_token = from.layout.shape()[1..].iter().product::<usize>() * size_of::<E>();
            let (at, bytes) = ((shared.start - start) * of_token, shared.len() * of_token);
            self.cuda.device().copy_on((&from.memory, at), (&to.memory, 0), bytes)?;
        }
        Ok(())
    }

    fn launch(&self, i: usize, slab: &Slab) -> Result<(), OutOfCoreError> {
        let problem = self.problem.part(self.plan.axis, slab.queries.clone(), slab.keys.clone())?;
        let Buffers { query, key, value, out, lse } = self.buffers(i);
        let (queries, keys) = (slab.queries.len(), slab.keys.len());
        let additional = self.additional.as_ref().map(|[keys, values]| [keys.view(), values.view()]);
        let inputs = Inputs {
            query: self.first.of_call(query.view(), queries)?,
            key: self.first.of_call(key.view(), keys)?,
            value: self.first.of_call(value.view(), keys)?,
            additional,
        };
        let lse = lse.as_ref().map(|lse| self.first.of_call_mut(lse.view_shared(), queries)).transpose()?;
        let output = Output { out: self.first.of_call_mut(out.view_shared(), queries)?, lse };
        Ok(self.cuda.forward(ForwardCall::new(&problem, inputs, output)?)?)
    }

    /// Takes results away as they are computed.
    fn empty(
        &self,
        leaving: D,
        copying: Copying,
        output: Output<TensorViewMut<'_, E>, TensorViewMut<'_, f32>>,
        results: &Receiver<D::Point>,
        left: &Sender<D::Point>,
    ) -> Result<Option<u64>, OutOfCoreError> {
        let axis = self.problem.axes()[3 - self.problem.rank() + self.plan.axis];
        let order = |rank: usize| self.first.order(rank);
        let out = output.out.permute(&order(self.problem.rank() + 3))?;
        let of = |elements: usize, bytes: usize| copying.up_to(elements * bytes);
        let first = self.buffers(0);
        let mut outs = Downloads::new(leaving.clone(), of(first.out.layout.len(), size_of::<E>()), out)?;
        let lse = output.lse.map(|lse| lse.permute(&order(self.problem.rank() + 2))).transpose()?;
        let lses = lse.zip(first.lse.as_ref());
        let lses = lses.map(|(lse, buffer)| Downloads::new(leaving.clone(), of(buffer.layout.len(), 4), lse));
        let mut lses = lses.transpose()?;
        for (i, slab) in self.plan.slabs.iter().enumerate() {
            let Ok(point) = results.recv() else { return Ok(None) };
            leaving.follow(&point)?;
            let queries = slab.queries.start - axis.query_start..slab.queries.end - axis.query_start;
            let buffers = self.buffers(i);
            outs.queue(&buffers.out.memory, queries.clone())?;
            if let (Some(lses), Some(lse)) = (&mut lses, &buffers.lse) {
                lses.queue(&lse.memory, queries)?;
            }
            // Of the last two slabs nobody waits for it.
            let _ = left.send(leaving.point()?);
        }
        let of_lses = lses.map_or(Ok(0), Downloads::finish)?;
        Ok(Some(outs.finish()? + of_lses))
    }
}
