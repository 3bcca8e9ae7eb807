//! An emulated GPU whose work is on several streams, and happens at any time that these allow.
//!
//! Launches and copies are queued. Each stream keeps its order, and a stream that follows a point of another waits there; beside that
//! work happens by chance, some of it as soon as it is queued and some not before somebody waits for it. So a copy that nobody
//! waits for comes too late, and one that waits for nobody too early, for one seed or another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use natten_cuda::device::{Device, FunctionCache, PreparedLaunch, Properties, TensorMap, TensorMapSpec};
use natten_cuda::transfer::{InFlight, Transfer};
use natten_cuda::{Cuda, DeviceError};

use crate::device::{Emulated, Function, GlobalMemory};

/// An emulated GPU and one of its streams. Clones share both.
#[derive(Clone)]
pub struct Streamed {
    gpu: Emulated,
    shared: Arc<Shared>,
    stream: usize,
}

struct Shared {
    functions: FunctionCache<Arc<Function>>,
    queues: Mutex<Queues>,
}

/// What is queued.
struct Queues {
    streams: Vec<VecDeque<Step>>,
    /// Whether each point is behind its stream.
    reached: Vec<bool>,
    chance: u64,
    temper: Temper,
    failed: bool,
    /// So many pieces of work more that go well.
    good: usize,
}

/// What is likely, by seed: so that a copy is late everywhere in one run, and early in another.
struct Temper {
    /// Steps that happen when one is queued, at most.
    eagerness: usize,
    /// The stream that mostly goes first where several may, and whether those after it or before it come next.
    first: usize,
    is_rising: bool,
}

enum Step {
    Work(Box<dyn FnOnce() -> Result<(), DeviceError> + Send>),
    Reach(usize),
    Follow(usize),
}

/// Memory of the GPU, freed in the order of the stream that it was allocated on.
pub struct StreamedMemory {
    memory: Arc<GlobalMemory>,
    shared: Arc<Shared>,
    stream: usize,
}

impl Drop for StreamedMemory {
    fn drop(&mut self) {
        let memory = self.memory.clone();
        let free = move || {
            drop(memory);
            Ok(())
        };
        self.shared.lock().streams[self.stream].push_back(Step::Work(Box::new(free)));
    }
}

/// Host memory that copies land in, in words for their alignment.
#[derive(Default)]
pub struct StreamedHost {
    words: Vec<u64>,
    /// What a copy from the device has brought, once it has.
    brought: Arc<OnceLock<Vec<u64>>>,
}

impl AsRef<[u8]> for StreamedHost {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.brought.get().unwrap_or(&self.words))
    }
}

impl AsMut<[u8]> for StreamedHost {
    fn as_mut(&mut self) -> &mut [u8] {
        self.brought = Arc::default();
        bytemuck::cast_slice_mut(&mut self.words)
    }
}

impl Shared {
    /// A panic elsewhere leaves queues as they are.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn draw(&mut self, below: usize) -> usize {
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) as usize % below
    }

    /// Streams whose next step may happen.
    fn ready(&self) -> Vec<usize> {
        let may = |step: &Step| !matches!(step, Step::Follow(point) if !self.reached[*point]);
        let streams = self.streams.iter().enumerate();
        streams.filter(|(_, steps)| steps.front().is_some_and(may)).map(|(stream, _)| stream).collect()
    }

    /// One step of any stream that may go on; false where none may.
    fn step(&mut self) -> Result<bool, DeviceError> {
        let ready = self.ready();
        if ready.is_empty() {
            return Ok(false);
        }
        let Temper { first, is_rising, .. } = self.temper;
        let count = self.streams.len();
        let place = |stream: &usize| {
            let after = (stream + count - first % count) % count;
            if is_rising { after } else { (count - after) % count }
        };
        let stream = match self.draw(4) {
            0 => ready[self.draw(ready.len())],
            _ => ready.into_iter().min_by_key(place).unwrap_or(0),
        };
        match self.streams[stream].pop_front() {
            Some(Step::Reach(point)) => self.reached[point] = true,
            Some(Step::Work(work)) => {
                let done = match self.good.checked_sub(1) {
                    Some(good) => {
                        self.good = good;
                        work()
                    }
                    None => Err(DeviceError::MissingFeature { feature: "more work than was to go well" }),
                };
                done.inspect_err(|_| self.failed = true)?
            }
            Some(Step::Follow(_)) | None => {}
        }
        Ok(true)
    }

    fn queue(&mut self, stream: usize, step: Step) -> Result<(), DeviceError> {
        if self.failed {
            return Err(DeviceError::MissingFeature { feature: "work after a failure" });
        }
        self.streams[stream].push_back(step);
        for _ in 0..self.draw(self.temper.eagerness + 1) {
            self.step()?;
        }
        Ok(())
    }

    fn until(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), DeviceError> {
        while !is_done(self) {
            if self.failed {
                return Err(DeviceError::MissingFeature { feature: "work after a failure" });
            }
            if !self.step()? {
                return Err(DeviceError::MissingFeature { feature: "streams that wait for each other" });
            }
        }
        Ok(())
    }
}

impl Streamed {
    /// An emulated GPU, with what happens by chance drawn from a seed.
    pub fn new(gpu: Emulated, seed: u64) -> Self {
        let temper = Temper {
            eagerness: seed as usize % 3,
            first: seed as usize / 3 % 3,
            is_rising: (seed / 9).is_multiple_of(2),
        };
        let (streams, reached) = (vec![VecDeque::new()], Vec::new());
        let queues = Queues { streams, reached, chance: seed, temper, failed: false, good: usize::MAX };
        let shared = Shared { functions: FunctionCache::default(), queues: Mutex::new(queues) };
        Streamed { gpu, shared: Arc::new(shared), stream: 0 }
    }

    /// Lets so many pieces of work go well, launches and copies, and then no more.
    pub fn fail_after(&self, good: usize) {
        self.shared.lock().good = good;
    }

    /// A backend on it. Kernels that no chip has run are taken as they are.
    pub fn cuda(&self) -> Cuda<Self> {
        Cuda::new(self.clone()).trusting_untried_kernels()
    }

    fn queue(
        &self,
        work: impl FnOnce() -> Result<(), DeviceError> + Send + 'static,
    ) -> Result<(), DeviceError> {
        self.shared.lock().queue(self.stream, Step::Work(Box::new(work)))
    }
}

fn expect_room(at: usize, bytes: usize, length: usize) -> Result<(), DeviceError> {
    match at.checked_add(bytes) {
        Some(end) if end <= length => Ok(()),
        _ => Err(DeviceError::Bounds { at, bytes, length }),
    }
}

impl Device for Streamed {
    type Memory = StreamedMemory;
    type Function = Arc<Function>;

    fn id(&self) -> u64 {
        self.gpu.id()
    }

    fn properties(&self) -> &Properties {
        self.gpu.properties()
    }

    fn functions(&self) -> &FunctionCache<Arc<Function>> {
        &self.shared.functions
    }

    fn allocate(&self, bytes: usize) -> Result<StreamedMemory, DeviceError> {
        let memory = Arc::new(self.gpu.allocate(bytes)?);
        Ok(StreamedMemory { memory, shared: self.shared.clone(), stream: self.stream })
    }

    fn address(memory: &StreamedMemory) -> u64 {
        Emulated::address(&memory.memory)
    }

    fn write(&self, memory: &StreamedMemory, from: &[u8]) -> Result<(), DeviceError> {
        let (gpu, memory, from) = (self.gpu.clone(), memory.memory.clone(), from.to_vec());
        self.queue(move || gpu.write(&memory, &from))?;
        self.synchronize()
    }

    fn read(&self, memory: &StreamedMemory, to: &mut [u8]) -> Result<(), DeviceError> {
        self.synchronize()?;
        self.gpu.read(&memory.memory, to)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.shared.lock().until(|queues| queues.streams[self.stream].is_empty())
    }

    fn load(&self, ptx: &str, entry: &'static str, shared_bytes: u32) -> Result<Arc<Function>, DeviceError> {
        self.gpu.load(ptx, entry, shared_bytes).map(Arc::new)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap, DeviceError> {
        self.gpu.tensor_map(spec)
    }

    fn launch(&self, launch: &PreparedLaunch<'_, Arc<Function>>) -> Result<(), DeviceError> {
        let (gpu, function, config) = (self.gpu.clone(), launch.function().clone(), *launch.config());
        let args: Vec<Vec<u8>> = launch.params().iter().map(|bytes| bytes.to_vec()).collect();
        self.queue(move || gpu.run(&function, &config, args))
    }
}

impl Transfer for Streamed {
    type Pinned = StreamedHost;
    type Point = usize;

    fn beside(&self) -> Result<Self, DeviceError> {
        let mut queues = self.shared.lock();
        queues.streams.push(VecDeque::new());
        Ok(Streamed { stream: queues.streams.len() - 1, ..self.clone() })
    }

    fn pinned(&self, bytes: usize) -> Result<StreamedHost, DeviceError> {
        Ok(StreamedHost { words: vec![0; bytes.div_ceil(8)], ..StreamedHost::default() })
    }

    fn point(&self) -> Result<usize, DeviceError> {
        let mut queues = self.shared.lock();
        let point = queues.reached.len();
        queues.reached.push(false);
        queues.queue(self.stream, Step::Reach(point))?;
        Ok(point)
    }

    fn follow(&self, point: &usize) -> Result<(), DeviceError> {
        self.shared.lock().queue(self.stream, Step::Follow(*point))
    }

    fn await_point(&self, point: &usize) -> Result<(), DeviceError> {
        self.shared.lock().until(|queues| queues.reached[*point])
    }

    fn copy_on(
        &self,
        (from, from_at): (&StreamedMemory, usize),
        (to, to_at): (&StreamedMemory, usize),
        bytes: usize,
    ) -> Result<(), DeviceError> {
        expect_room(from_at, bytes, from.memory.bytes())?;
        expect_room(to_at, bytes, to.memory.bytes())?;
        let (gpu, from, to) = (self.gpu.clone(), from.memory.clone(), to.memory.clone());
        self.queue(move || {
            let mut read = vec![0; bytes];
            gpu.read_at(&from, from_at, &mut read)?;
            gpu.write_at(&to, to_at, &read)
        })
    }

    fn upload(
        &self,
        from: StreamedHost,
        bytes: usize,
        to: &Arc<StreamedMemory>,
        at: usize,
    ) -> Result<InFlight<Self>, DeviceError> {
        expect_room(0, bytes, from.as_ref().len())?;
        expect_room(at, bytes, to.memory.bytes())?;
        // Its owner cannot write it before it has landed, so that it may be read now.
        let (gpu, memory, sent) = (self.gpu.clone(), to.memory.clone(), from.as_ref()[..bytes].to_vec());
        self.queue(move || gpu.write_at(&memory, at, &sent))?;
        InFlight::new(self, from, to)
    }

    fn download(
        &self,
        from: &Arc<StreamedMemory>,
        at: usize,
        bytes: usize,
        mut to: StreamedHost,
    ) -> Result<InFlight<Self>, DeviceError> {
        expect_room(0, bytes, to.as_mut().len())?;
        expect_room(at, bytes, from.memory.bytes())?;
        let (gpu, memory, brought) = (self.gpu.clone(), from.memory.clone(), to.brought.clone());
        self.queue(move || {
            let mut read = vec![0u64; bytes.div_ceil(8)];
            gpu.read_at(&memory, at, &mut bytemuck::cast_slice_mut(&mut read)[..bytes])?;
            brought
                .set(read)
                .map_err(|_| DeviceError::MissingFeature { feature: "one memory for two copies" })
        })?;
        InFlight::new(self, to, from)
    }
}
