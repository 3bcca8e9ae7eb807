//! Times on a device, and the limits that they are read against: what arithmetic and a copy reach there.

use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use natten_core::{Backend, ElementType, InputElement};

use crate::buffer::CudaTensor;
use crate::capability::ComputeCapability;
use crate::cuda::Cuda;
use crate::device::Device;
use crate::error::{CudaError, DeviceError};
use crate::registry::{Facts, Kernel, Operation, by_name, measuring_kernels};
use crate::submit::run_alone;

/// A device that tells when its work was done.
pub trait Timed: Device {
    /// A point in the stream.
    type Event: Send + Sync;

    /// Whether launches return before they have run.
    fn is_asynchronous(&self) -> bool;

    /// Marks the point after all work queued so far.
    ///
    /// # Errors
    /// When the device fails.
    fn record(&self) -> Result<Self::Event, DeviceError>;

    /// Waits for the later event.
    ///
    /// # Errors
    /// When this or the work before failed.
    fn seconds_between(&self, start: &Self::Event, end: &Self::Event) -> Result<f64, DeviceError>;

    /// Queues a copy from one memory to another.
    ///
    /// # Errors
    /// When the device fails.
    fn copy(&self, to: &Self::Memory, from: &Self::Memory) -> Result<(), DeviceError>;

    /// Queues copies within a memory, until the first `period` bytes have been repeated to its end.
    ///
    /// # Errors
    /// When the device fails or cannot copy within a memory.
    fn repeat(&self, _memory: &Self::Memory, _period: usize) -> Result<(), DeviceError> {
        Err(DeviceError::MissingFeature { feature: "copies within a memory" })
    }

    /// Size of the cache before the device's memory.
    ///
    /// # Errors
    /// When the device fails.
    fn cache_bytes(&self) -> Result<usize, DeviceError>;

    /// Memory that can still be allocated.
    ///
    /// # Errors
    /// When the device fails.
    fn free_bytes(&self) -> Result<u64, DeviceError>;
}

impl<D: Timed> Cuda<D> {
    /// A tensor of these numbers, again and again where it is longer than they are: filled on the device, so that a large one
    /// takes no longer than a copy of it.
    ///
    /// # Errors
    /// When memory or the device fails.
    pub fn repeated<E: InputElement>(
        &self,
        shape: &[usize],
        numbers: &[E],
    ) -> Result<CudaTensor<E, D>, CudaError> {
        let tensor = self.allocate::<E>(shape)?;
        let numbers = &numbers[..numbers.len().min(tensor.layout.len())];
        self.device().write(&tensor.memory, bytemuck::cast_slice(numbers))?;
        if numbers.len() < tensor.layout.len() {
            self.device().repeat(&tensor.memory, size_of_val(numbers))?;
        }
        Ok(tensor)
    }
}

/// How often to run.
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    /// Most runs before the timed ones.
    pub warmup: usize,
    /// Most timed runs; at least one is made.
    pub runs: usize,
    /// Seconds for each of the two.
    pub seconds: f64,
}

/// The parameters of a kernel that does nothing but arithmetic.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PeakParams {
    /// Address of one f32 a thread.
    pub sums: u64,
    /// Turns of the loop.
    pub rounds: i32,
    /// Zero.
    pub padding: i32,
}

/// The parameters of the kernel that waits.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct WaitParams {
    /// Clocks of a multiprocessor.
    pub clocks: i64,
}

/// Runs shorter than this are timed many at once: gaps between launches and the events' own cost stay out of it.
const SHORT: f64 = 1e-3;
const LARGEST_BATCH: f64 = 256.0;
/// The device is not kept waiting for the host longer than this.
const LONGEST_WAIT: Duration = Duration::from_millis(150);

/// Times what is queued on a device's stream.
#[derive(Clone, Debug)]
pub struct Stopwatch<D> {
    device: D,
}

impl<D: Timed> Stopwatch<D> {
    /// A stopwatch on the device's stream.
    pub fn new(device: D) -> Self {
        Stopwatch { device }
    }

    /// Seconds that the work queued by `work` takes on the device. The device is kept busy for `ahead` before, so that
    /// what the host needs to queue the work does not count.
    ///
    /// # Errors
    /// Those of the work, too.
    pub fn time<E: From<CudaError>>(
        &self,
        ahead: Duration,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<f64, E> {
        if !ahead.is_zero() && self.device.is_asynchronous() {
            self.wait(ahead)?;
        }
        let start = self.device.record().map_err(CudaError::from)?;
        work()?;
        let end = self.device.record().map_err(CudaError::from)?;
        Ok(self.device.seconds_between(&start, &end).map_err(CudaError::from)?)
    }

    /// Seconds of repeated calls. Short calls are timed in batches, a batch counting as one run.
    ///
    /// # Errors
    /// Those of the calls, too.
    pub fn repeat<E: From<CudaError>>(
        &self,
        repeats: &Repeats,
        mut call: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<f64>, E> {
        let settle = || self.device.synchronize().map_err(CudaError::from);
        let begin = Instant::now();
        let mut host = Duration::ZERO;
        if self.device.is_asynchronous() {
            // The first call compiles; the second tells how long the host needs to queue one.
            call()?;
            settle()?;
            let queueing = Instant::now();
            call()?;
            host = queueing.elapsed();
            settle()?;
        }
        // A bit more than the host needs for so many calls.
        let ahead =
            |calls: usize| (host * calls as u32 * 3 / 2 + Duration::from_micros(30)).min(LONGEST_WAIT);
        let mut once = self.time(ahead(1), &mut call)?;
        for _ in 0..repeats.warmup {
            if begin.elapsed().as_secs_f64() > repeats.seconds {
                break;
            }
            once = once.min(self.time(ahead(1), &mut call)?);
        }
        let batch =
            if once < SHORT { (SHORT / once.max(1e-9)).min(LARGEST_BATCH).ceil() as usize } else { 1 };
        let begin = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < repeats.runs.max(1) {
            let together = self.time(ahead(batch), || (0..batch).try_for_each(|_| call()))?;
            seconds.push(together / batch as f64);
            if begin.elapsed().as_secs_f64() > repeats.seconds {
                break;
            }
        }
        Ok(seconds)
    }

    /// Queues nothing for at least this long.
    fn wait(&self, time: Duration) -> Result<(), CudaError> {
        /// No GPU runs faster than this; slower ones wait longer.
        const CLOCKS_PER_NANOSECOND: i64 = 3;
        let clocks = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).saturating_mul(CLOCKS_PER_NANOSECOND);
        let kernel = measuring_kernels().find(|kernel| kernel.operation == Operation::Wait);
        kernel.map_or(Ok(()), |kernel| {
            Ok(run_alone(&self.device, kernel, 1, bytemuck::bytes_of(&WaitParams { clocks }))?)
        })
    }

    /// FLOP/s of a kernel that does nothing but arithmetic, on all multiprocessors: the median of short runs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn peak_flops(&self, peak: &Peak) -> Result<f64, CudaError> {
        const RUNS: usize = 15;
        const LONG: f64 = 2e-3;
        let ctas = self.device.properties().multiprocessors * peak.blocks;
        let kernel = peak.kernel;
        let sums = self.device.allocate(4 * (ctas * kernel.threads) as usize)?;
        let run = |rounds: i32| {
            let params = PeakParams { sums: D::address(&sums), rounds, padding: 0 };
            let work =
                || Ok::<_, CudaError>(run_alone(&self.device, kernel, ctas, bytemuck::bytes_of(&params))?);
            self.time(Duration::from_micros(50), work)
        };
        let (mut rounds, mut seconds) = (1, run(1)?);
        while seconds < LONG && rounds < 1 << 24 {
            rounds *= 2;
            seconds = run(rounds)?;
        }
        let runs = if seconds > 10.0 * LONG { 1 } else { RUNS };
        let seconds = median((0..runs).map(|_| run(rounds)).collect::<Result<_, _>>()?);
        Ok(f64::from(ctas) * f64::from(rounds) * peak.flops / seconds)
    }

    /// Bytes a second, read and written, of a copy far larger than the cache.
    ///
    /// # Errors
    /// When the device fails, or has too little memory left.
    pub fn copy_rate(&self) -> Result<f64, CudaError> {
        const RUNS: usize = 9;
        let device = &self.device;
        let most = usize::try_from(device.free_bytes()? / 4).unwrap_or(usize::MAX);
        let bytes = (16 * device.cache_bytes()?).clamp(1 << 20, 1 << 30).min(most.max(1));
        let (to, from) = (device.allocate(bytes)?, device.allocate(bytes)?);
        let copy = || Ok::<_, CudaError>(device.copy(&to, &from)?);
        self.time(Duration::ZERO, copy)?;
        let seconds = (0..RUNS).map(|_| self.time(Duration::from_micros(50), copy));
        Ok(2.0 * bytes as f64 / median(seconds.collect::<Result<_, _>>()?))
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The limit of a device's arithmetic: a kernel that does nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// What it does, for a person.
    pub what: &'static str,
    /// Ctas that fill a multiprocessor.
    pub blocks: u32,
    /// Floating-point operations of a cta in one round.
    pub flops: f64,
}

/// A kind of arithmetic, and how the kernels do it that do nothing else.
struct Arithmetic {
    what: &'static str,
    /// Ctas that fill a multiprocessor.
    ctas: u32,
    /// Floating-point operations of a cta in one round, as the kernels' sources say.
    flops: u32,
}

/// Two warpgroups.
const WARPGROUP_PRODUCTS: Arithmetic =
    Arithmetic { what: "products of matrices (wgmma)", ctas: 1, flops: 2 * 8 * (2 * 64 * 256 * 16) };
/// Eight warps.
const WARP_PRODUCTS: Arithmetic =
    Arithmetic { what: "products of matrices (mma)", ctas: 2, flops: 8 * 16 * (2 * 16 * 8 * 16) };
/// 256 threads.
const MULTIPLY_ADDS: Arithmetic =
    Arithmetic { what: "f32 multiply-adds on CUDA cores", ctas: 2, flops: 256 * 2 * 16 * 8 };

/// The kernels and their arithmetic, fastest first; the last runs everywhere.
const PEAKS: [(&str, Arithmetic); 5] = [
    ("natten_peak_wgmma_f16", WARPGROUP_PRODUCTS),
    ("natten_peak_wgmma_bf16", WARPGROUP_PRODUCTS),
    ("natten_peak_mma_f16", WARP_PRODUCTS),
    ("natten_peak_mma_bf16", WARP_PRODUCTS),
    ("natten_peak_fma_f32", MULTIPLY_ADDS),
];

impl Peak {
    /// The fastest arithmetic that our kernels can use for the element type: tensor cores for 16-bit ones.
    pub fn of(element_type: ElementType, capability: ComputeCapability) -> Option<Self> {
        let is_half = matches!(element_type, ElementType::F16 | ElementType::Bf16);
        let runs = |kernel: &Kernel| match kernel.capability.only {
            true => capability == kernel.min_capability(),
            false => capability >= kernel.min_capability(),
        };
        Self::all().find(|peak| {
            // Without tensor cores 16-bit rows are widened to f32.
            let serves = match peak.kernel.element_type() {
                ElementType::F32 => is_half || element_type == ElementType::F32,
                ty => ty == element_type,
            };
            serves && runs(peak.kernel)
        })
    }

    /// The CUDA cores' limit.
    pub fn of_cuda_cores() -> Option<Self> {
        Self::all().last()
    }

    fn all() -> impl Iterator<Item = Self> {
        PEAKS.iter().filter_map(|(entry, Arithmetic { what, ctas, flops })| {
            let flops = f64::from(*flops);
            Some(Peak { kernel: by_name(entry)?, what, blocks: *ctas, flops })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_arithmetic_has_its_kind() {
        let peaks: Vec<_> =
            measuring_kernels().filter(|kernel| kernel.operation == Operation::Peak).collect();
        assert_eq!(Peak::all().count(), peaks.len());
        assert!(peaks.iter().all(|kernel| PEAKS.iter().any(|(entry, _)| *entry == kernel.entry)));
    }

    #[test]
    fn limits_are_those_of_the_architecture() {
        let peak =
            |ty, major| Peak::of(ty, ComputeCapability { major, minor: 0 }).map(|peak| peak.kernel.entry);
        assert_eq!(peak(ElementType::Bf16, 9), Some("natten_peak_wgmma_bf16"));
        assert_eq!(peak(ElementType::F16, 12), Some("natten_peak_mma_f16"));
        assert_eq!(peak(ElementType::F16, 7), Some("natten_peak_fma_f32"));
        assert_eq!(peak(ElementType::F32, 9), Some("natten_peak_fma_f32"));
        assert_eq!(peak(ElementType::F64, 9), None);
    }
}
