//! Kernels compiled from CUDA C++ for ordinary cores, against plain Rust.

mod support;

use natten_emulator::{Class, Launch, Options};
use support::{Device, floats};

const PTX: &str = include_str!("kernels/simt.ptx");

#[test]
fn saxpy_with_a_ragged_end() {
    let device = Device::new(PTX);
    let n = 1000;
    let (x, y) = (floats(n, 1), floats(n, 2));
    let (dx, dy) = (device.upload(&x), device.upload(&y));
    let launch = Launch::new([4, 1, 1], [256, 1, 1])
        .arg(dx.to_le_bytes())
        .arg(dy.to_le_bytes())
        .arg(2.5f32.to_le_bytes())
        .arg(1000i32.to_le_bytes());
    let counters = device.run("saxpy", &launch);
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2.5f32.mul_add(*x, *y)).collect();
    assert_eq!(device.download::<f32>(dy, n), expected);
    assert_eq!(counters.global_load_sectors, 2 * 1000 / 8);
    assert_eq!(counters.global_store_sectors, 1000 / 8);
    assert_eq!(counters.instructions(Class::StoreGlobal), 32);
}

#[test]
fn tiled_matmul_with_ragged_edges() {
    let (m, n, k) = (33usize, 20usize, 50usize);
    let device = Device::new(PTX);
    let (a, b) = (floats(m * k, 1), floats(k * n, 2));
    let (da, db) = (device.upload(&a), device.upload(&b));
    let dc = device.memory.alloc(4 * m * n);
    let mut launch = Launch::new([2, 3, 1], [16, 16, 1]);
    for pointer in [da, db, dc] {
        launch = launch.arg(pointer.to_le_bytes());
    }
    for extent in [m, n, k] {
        launch = launch.arg((extent as i32).to_le_bytes());
    }
    let counters = device.run("matmul", &launch);
    let c = device.download::<f32>(dc, m * n);
    for row in 0..m {
        for col in 0..n {
            let exact: f64 = (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * n + col])).sum();
            assert!((f64::from(c[row * n + col]) - exact).abs() < 1e-5);
        }
    }
    assert_eq!(counters.ctas, 6);
}

#[test]
fn softmax_by_shuffles() {
    let (rows, cols) = (8usize, 77usize);
    let device = Device::new(PTX);
    let input = floats(rows * cols, 3);
    let di = device.upload(&input);
    let out = device.memory.alloc(4 * rows * cols);
    let launch = Launch::new([2, 1, 1], [128, 1, 1])
        .arg(di.to_le_bytes())
        .arg(out.to_le_bytes())
        .arg((cols as i32).to_le_bytes());
    device.run("softmax", &launch);
    let result = device.download::<f32>(out, rows * cols);
    for row in 0..rows {
        let line = &input[row * cols..][..cols];
        let best = line.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = line.iter().map(|x| f64::from(x - best).exp()).sum();
        for col in 0..cols {
            let expected = f64::from(line[col] - best).exp() / total;
            assert!((f64::from(result[row * cols + col]) - expected).abs() < 1e-6);
        }
    }
}

#[test]
fn divergent_loops_and_integer_division() {
    let device = Device::new(PTX);
    let n = 200;
    let (steps, digits) = (device.memory.alloc(4 * n), device.memory.alloc(4 * n));
    let launch = Launch::new([2, 1, 1], [100, 1, 1])
        .arg(steps.to_le_bytes())
        .arg(digits.to_le_bytes())
        .arg(7i32.to_le_bytes());
    device.run("collatz", &launch);
    let expected_steps = (0..n as u32).map(|i| {
        let (mut x, mut count) = (i + 1, 0);
        while x != 1 {
            x = if x % 2 == 1 { 3 * x + 1 } else { x / 2 };
            count += 1;
        }
        count
    });
    let expected_digits = (0..n as u32).map(|i| {
        let (mut v, mut sum) = (i, 0);
        while v > 0 {
            sum += v % 7;
            v /= 7;
        }
        sum
    });
    assert_eq!(device.download::<u32>(steps, n), expected_steps.collect::<Vec<_>>());
    assert_eq!(device.download::<u32>(digits, n), expected_digits.collect::<Vec<_>>());
}

#[test]
fn histogram_by_atomics() {
    let device = Device::new(PTX);
    let input: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2654435761) >> 20) as u8).collect();
    let di = device.upload(&input);
    let bins = device.upload(&[0u32; 64]);
    let launch = Launch::new([5, 1, 1], [128, 1, 1])
        .arg(di.to_le_bytes())
        .arg(bins.to_le_bytes())
        .arg(5000i32.to_le_bytes());
    device.run("histogram", &launch);
    let mut expected = vec![0u32; 64];
    input.iter().for_each(|&b| expected[b as usize % 64] += 1);
    assert_eq!(device.download::<u32>(bins, 64), expected);
}

#[test]
fn local_memory_holds_private_arrays() {
    let device = Device::new(PTX);
    let input: Vec<i32> = (0..64 * 8).map(|i: i32| (i.wrapping_mul(7919) % 1009) - 500).collect();
    let di = device.upload(&input);
    let out = device.memory.alloc(4 * input.len());
    let launch = Launch::new([1, 1, 1], [64, 1, 1]).arg(di.to_le_bytes()).arg(out.to_le_bytes());
    device.run("local_sort", &launch);
    let mut expected = input.clone();
    expected.chunks_mut(8).for_each(<[i32]>::sort);
    assert_eq!(device.download::<i32>(out, input.len()), expected);
}

#[test]
fn the_same_seed_gives_the_same_counters_serial_or_parallel() {
    let run = |parallel, seed| {
        let device = Device::with(PTX, Options { parallel, seed, ..Options::default() });
        let input = device.upload(&floats(64 * 40, 5));
        let out = device.memory.alloc(4 * 64 * 40);
        let launch = Launch::new([16, 1, 1], [128, 1, 1])
            .arg(input.to_le_bytes())
            .arg(out.to_le_bytes())
            .arg(40i32.to_le_bytes());
        device.run("softmax", &launch)
    };
    assert_eq!(run(false, 1), run(true, 1));
    assert_eq!(run(false, 1), run(false, 2));
}
