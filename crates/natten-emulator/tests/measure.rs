//! The kernels that measure a GPU's limits do the arithmetic that rates are computed from, all of it; and the stopwatch
//! that runs them.

mod support;

use bytemuck::bytes_of;
use natten_core::{ElementType, bf16, f16};
use natten_cuda::measure::{Peak, PeakParams, Repeats, Stopwatch, WaitParams};
use natten_cuda::registry::measuring_kernels;
use natten_cuda::{ComputeCapability, CudaError};
use natten_emulator::{Class, Counters, Emulated, Launch};
use support::{Device, all_orders};

const ROUNDS: i32 = 3;

/// Runs a kernel on one thread block: what each thread wrote, and what was counted.
fn run(peak: &Peak, options: natten_emulator::Options) -> (Vec<f32>, Counters) {
    let kernel = peak.kernel;
    let device = Device::with(&kernel.ptx(), options);
    let sums = device.upload(&vec![f32::NAN; kernel.threads as usize]);
    let params = PeakParams { sums, rounds: ROUNDS, padding: 0 };
    let shape =
        Launch::new([1, 1, 1], [kernel.threads, 1, 1]).shared(kernel.shared_bytes).arg(bytes_of(&params));
    let counters = device.run(kernel.entry, &shape);
    (device.download(sums, kernel.threads as usize), counters)
}

fn peak(element_type: ElementType, major: u32) -> Peak {
    Peak::of(element_type, ComputeCapability { major, minor: 0 }).expect("a kernel for it")
}

#[test]
fn tensors_are_filled_with_repetitions() {
    let gpu = natten_cuda::Cuda::new(Emulated::new(8, 0));
    let numbers: Vec<f16> = (0..7).map(|i| f16::from_f64(f64::from(i))).collect();
    for shape in [vec![5], vec![7], vec![3, 5, 11], vec![0, 4]] {
        let tensor = gpu.repeated(&shape, &numbers).expect("an emulated GPU has memory");
        let filled = gpu.download(&tensor).expect("nothing failed before");
        assert_eq!(filled.shape(), shape);
        let expected: Vec<f16> = numbers.iter().copied().cycle().take(filled.as_slice().len()).collect();
        assert_eq!(filled.as_slice(), expected);
    }
}

/// What the kernels fill their operands with.
fn value(seed: u32) -> f64 {
    let mut seed = seed.wrapping_mul(0x9e37_79b1);
    seed ^= seed >> 15;
    seed = seed.wrapping_mul(0x85eb_ca77);
    seed ^= seed >> 13;
    f64::from(2 * (seed & 31) as i32 - 31) / 32.0
}

#[test]
fn values_are_exact_in_both_types() {
    for seed in 0..1000 {
        let value = value(seed);
        assert_eq!(f16::from_f64(value).to_f64(), value);
        assert_eq!(bf16::from_f64(value).to_f64(), value);
    }
}

#[test]
fn multiply_adds_all_run() {
    let peak = peak(ElementType::F32, 5);
    let (sums, counters) = run(&peak, Default::default());
    for (thread, &sum) in sums.iter().enumerate() {
        let chain =
            |i: usize| (0..ROUNDS * 8).fold(((thread + i) & 63) as f32, |x, _| x.mul_add(0.9375, 0.625));
        assert_eq!(sum, (0..16).map(chain).fold(0.0, |sum, chain| sum + chain), "thread {thread}");
    }
    // Each multiply-add is an instruction of a warp: two operations on 32 lanes.
    let flops = (64 * counters.instructions(Class::Float)) as f64;
    let stated = peak.flops * f64::from(ROUNDS);
    assert!(flops >= stated && flops < 1.1 * stated, "{flops} operations, {stated} stated");
}

/// Lane's element (row, column) of a 16 x 8 product for each of its four registers.
fn place(lane: usize, register: usize) -> (usize, usize) {
    (lane / 4 + 8 * (register / 2), 2 * (lane % 4) + register % 2)
}

#[test]
fn warp_products_are_right_and_all_run() {
    // Element (row, k) of the left matrix i, and (k, column) of the right one j, from the lane and word that hold it.
    let element = |word: usize, lane: usize, half: usize| value((2 * (32 * word + lane) + half) as u32);
    let left = |i: usize, row: usize, k: usize| {
        let (lane, register) = (row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8));
        element(4 * i + register, lane, k % 2)
    };
    let right =
        |j: usize, k: usize, column: usize| element(16 + 2 * j + k / 8, column * 4 + k % 8 / 2, k % 2);
    let product = |i, j, row, column| -> f64 { (0..16).map(|k| left(i, row, k) * right(j, k, column)).sum() };
    for element_type in [ElementType::F16, ElementType::Bf16] {
        let peak = peak(element_type, 8);
        let (sums, counters) = run(&peak, Default::default());
        assert_eq!(counters.mma_flops as f64, peak.flops * f64::from(ROUNDS));
        for (thread, &sum) in sums.iter().enumerate() {
            let lane = thread % 32;
            let mut expected = 0.0;
            for (i, j, register) in
                (0..4).flat_map(|i| (0..4).flat_map(move |j| (0..4).map(move |register| (i, j, register))))
            {
                let (row, column) = place(lane, register);
                expected += f64::from(ROUNDS) * product(i, j, row, column);
            }
            assert_eq!(f64::from(sum), expected, "{element_type} thread {thread}");
        }
    }
}

#[test]
fn warpgroup_products_are_right_and_all_run() {
    // Rows of 64 elements: 64 of each warpgroup's left matrix, then 256 columns of the right one.
    let element = |row: usize, k: usize| value((2 * (32 * row + k / 2) + k % 2) as u32);
    let dot = |row: usize, column: usize| -> f64 {
        (0..64).map(|k| element(row, k) * element(128 + column, k)).sum()
    };
    for element_type in [ElementType::F16, ElementType::Bf16] {
        let peak = peak(element_type, 9);
        let (sums, counters) = run(&peak, Default::default());
        assert_eq!(counters.mma_flops as f64, peak.flops * f64::from(ROUNDS));
        for thread in (0..256).step_by(37) {
            let (group, warp, lane) = (thread / 128, thread / 32 % 4, thread % 32);
            let mut expected = 0.0;
            for register in 0..128 {
                let row = 64 * group + 16 * warp + lane / 4 + 8 * (register / 2 % 2);
                let column = 8 * (register / 4) + 2 * (lane % 4) + register % 2;
                // Eight steps of 16 go over the 64 elements twice.
                expected += f64::from(2 * ROUNDS) * dot(row, column);
            }
            assert_eq!(f64::from(sums[thread]), expected, "{element_type} thread {thread}");
        }
    }
}

#[test]
fn warpgroup_products_wait_for_one_another() {
    let peak = peak(ElementType::Bf16, 9);
    let (expected, _) = run(&peak, Default::default());
    for options in all_orders().into_iter().step_by(4) {
        assert_eq!(run(&peak, options).0, expected, "{options:?}");
    }
}

#[test]
fn waiting_ends() {
    let kernel = measuring_kernels().find(|kernel| kernel.entry == "natten_wait").expect("it ships");
    let device = Device::new(&kernel.ptx());
    let spins = |clocks| {
        let shape = Launch::new([1, 1, 1], [1, 1, 1]).arg(bytes_of(&WaitParams { clocks }));
        device.run(kernel.entry, &shape).thread_instructions
    };
    assert!(spins(0) < spins(200) && spins(200) < spins(2000));
}

#[test]
fn a_stopwatch_measures_limits_and_counts_runs() {
    let stopwatch = Stopwatch::new(Emulated::new(8, 0));
    let rate = stopwatch.peak_flops(&peak(ElementType::F16, 8)).expect("the emulator runs it");
    assert!(rate.is_finite() && rate > 0.0);
    assert!(stopwatch.copy_rate().expect("the emulator copies") > 0.0);
    let mut calls = 0;
    let repeats = Repeats { warmup: 2, runs: 5, seconds: 60.0 };
    let seconds = stopwatch.repeat::<CudaError>(&repeats, || {
        calls += 1;
        std::thread::sleep(std::time::Duration::from_millis(2));
        Ok(())
    });
    assert_eq!((seconds.expect("nothing fails").len(), calls), (5, 1 + 2 + 5));
}
