//! What a call on a GPU costs the host: validation, choosing a kernel, laying out its launches. The device here takes
//! every launch and does nothing, so no GPU is needed: `cargo bench -p natten-benches --bench plan_call`.
//!
//! *Seen* repeats one problem, as a model does with each layer; *unseen* brings another problem each time, more of them
//! than anything remembers.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use natten::cuda::device::{FunctionCache, PreparedLaunch, Properties, TensorMap, TensorMapSpec};
use natten::cuda::{ComputeCapability, Cuda, CudaTensor, Device, DeviceError};
use natten::{Call, Element, Gradients, Params, Saved, bf16};

/// A device that only counts.
#[derive(Clone)]
struct Counting(Arc<State>);

struct State {
    properties: Properties,
    functions: FunctionCache<()>,
    launches: AtomicU64,
    allocated: AtomicU64,
}

/// An address range that nothing lies behind.
struct Range(u64);

impl Counting {
    fn new(major: u32, minor: u32) -> Self {
        let properties = Properties {
            name: format!("counting sm_{major}{minor}"),
            compute_capability: ComputeCapability { major, minor },
            multiprocessors: if major == 9 { 132 } else { 108 },
            shared_bytes_per_block: 163 << 10,
            memory_bytes: 1 << 40,
        };
        let properties = match major {
            5 => Properties { shared_bytes_per_block: 48 << 10, ..properties },
            9 => Properties { shared_bytes_per_block: 227 << 10, ..properties },
            _ => properties,
        };
        Counting(Arc::new(State {
            properties,
            functions: FunctionCache::default(),
            launches: AtomicU64::new(0),
            allocated: AtomicU64::new(1 << 30),
        }))
    }
}

impl Device for Counting {
    type Memory = Range;
    type Function = ();

    fn id(&self) -> u64 {
        1
    }

    fn properties(&self) -> &Properties {
        &self.0.properties
    }

    fn functions(&self) -> &FunctionCache<()> {
        &self.0.functions
    }

    fn allocate(&self, bytes: usize) -> Result<Range, DeviceError> {
        let bytes = (bytes as u64).next_multiple_of(256);
        Ok(Range(self.0.allocated.fetch_add(bytes, Relaxed)))
    }

    fn address(memory: &Range) -> u64 {
        memory.0
    }

    fn write(&self, _memory: &Range, _from: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&self, _memory: &Range, _to: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn load(&self, _ptx: &str, _entry: &'static str, _shared_bytes: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DeviceError> {
        Ok(TensorMap([spec.address; 16]))
    }

    fn launch(&self, launch: &PreparedLaunch<'_, ()>) -> Result<(), DeviceError> {
        black_box(launch.params());
        self.0.launches.fetch_add(1, Relaxed);
        Ok(())
    }
}

type Tensors<E> = CudaTensor<E, Counting>;

/// The tensors of one problem; none of them holds anything.
struct Case<const RANK: usize, E: Element> {
    params: Params<RANK>,
    operands: [Tensors<E>; 5],
    lse: Tensors<f32>,
    gradients: [Tensors<E>; 3],
}

impl<const RANK: usize, E: Element> Case<RANK, E> {
    fn new(cuda: &Cuda<Counting>, tokens: [usize; RANK], params: Params<RANK>) -> Self {
        const HEADS: usize = 8;
        const HEAD_DIM: usize = 64;
        let shape: Vec<usize> = [1].into_iter().chain(tokens).chain([HEADS, HEAD_DIM]).collect();
        let tensor = || natten::Backend::allocate::<E>(cuda, &shape).expect("an address is free");
        Case {
            params,
            operands: std::array::from_fn(|_| tensor()),
            lse: natten::Backend::allocate(cuda, &shape[..shape.len() - 1]).expect("an address is free"),
            gradients: std::array::from_fn(|_| tensor()),
        }
    }

    fn forward(&mut self) {
        let [query, key, value, out, _] = &mut self.operands;
        let call = Call::new(&*query, &*key, &*value).expect("one device");
        call.forward_with_lse_into(&self.params, out, &mut self.lse).expect("some kernel serves it");
    }

    fn backward(&mut self) {
        let [query, key, value, out, d_out] = &self.operands;
        let [d_query, d_key, d_value] = &mut self.gradients;
        let call = Call::new(query, key, value).expect("one device");
        let saved = Saved { out, lse: &self.lse, d_out, d_lse: None };
        let gradients = Gradients { query: d_query, key: d_key, value: d_value, additional: None };
        call.backward_into(&self.params, &saved, gradients).expect("some kernel serves it");
    }
}

/// How many problems *unseen* goes through before it comes back to the first.
const FRESH: usize = 1024;

/// The same call again and again, and one after the other of many.
fn seen_and_unseen<const RANK: usize, E: Element>(
    criterion: &mut Criterion,
    name: &str,
    cuda: &Cuda<Counting>,
    tokens: [usize; RANK],
    params: Params<RANK>,
    call: fn(&mut Case<RANK, E>),
) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(30).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut same = Case::<RANK, E>::new(cuda, tokens, params);
    group.bench_function("seen", |b| b.iter(|| call(&mut same)));
    let fresh = |i: usize| {
        let mut tokens = tokens;
        tokens[RANK - 1] += i % 32;
        tokens[RANK - 2] += i / 32;
        Case::<RANK, E>::new(cuda, tokens, params)
    };
    let mut cases: Vec<_> = (0..FRESH).map(fresh).collect();
    let mut next = 0;
    group.bench_function("unseen", |b| {
        b.iter(|| {
            call(&mut cases[next]);
            next = (next + 1) % FRESH;
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let image = ([128, 128], Params::new([13, 13]));
    let video = ([16, 32, 48], Params::new([7, 9, 11]).stride([1, 2, 2]));
    for (major, minor) in [(8, 0), (9, 0)] {
        let cuda = Cuda::new(Counting::new(major, minor));
        let name = |what: &str| format!("sm{major}{minor}/{what}");
        seen_and_unseen(criterion, &name("2d forward"), &cuda, image.0, image.1, Case::<2, bf16>::forward);
        seen_and_unseen(criterion, &name("3d forward"), &cuda, video.0, video.1, Case::<3, bf16>::forward);
        seen_and_unseen(criterion, &name("3d backward"), &cuda, video.0, video.1, Case::<3, bf16>::backward);
    }
    let cuda = Cuda::new(Counting::new(5, 0));
    seen_and_unseen(criterion, "sm50/2d forward", &cuda, image.0, image.1, Case::<2, f32>::forward);
    seen_and_unseen(criterion, "sm50/3d forward", &cuda, video.0, video.1, Case::<3, f32>::forward);
    seen_and_unseen(criterion, "sm50/3d backward", &cuda, video.0, video.1, Case::<3, f32>::backward);
}

criterion_group!(benches, all);
criterion_main!(benches);
