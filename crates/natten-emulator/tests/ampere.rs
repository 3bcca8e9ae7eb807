//! cp.async, ldmatrix and mma.sync together, right and wrong.

mod support;

use natten_emulator::{Class, Counters, Fault, FaultKind, Launch, Options};
use support::{Device, all_orders, bf16, floats};

const PTX: &str = include_str!("kernels/ampere.ptx");

/// Runs an entry on 64 x k times k x 64 and compares with f64 if it ends well.
fn product(entry: &str, k: usize, options: Options) -> Result<Counters, Fault> {
    let device = Device::with(PTX, options);
    let (a, b) = (floats(64 * k, 1), floats(k * 64, 2));
    let (a, b): (Vec<u16>, Vec<u16>) =
        (a.iter().map(|x| bf16(*x)).collect(), b.iter().map(|x| bf16(*x)).collect());
    let (da, db) = (device.upload(&a), device.upload(&b));
    let dd = device.memory.alloc(64 * 64 * 4);
    let mut launch = Launch::new([1, 1, 1], [128, 1, 1]);
    for pointer in [da, db, dd] {
        launch = launch.arg(pointer.to_le_bytes());
    }
    let counters = device.try_run(entry, &launch.arg((k as i32).to_le_bytes()))?;
    let d = device.download::<f32>(dd, 64 * 64);
    let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    for row in 0..64 {
        for column in 0..64 {
            let exact: f64 = (0..k).map(|i| value(a[row * k + i]) * value(b[i * 64 + column])).sum();
            let got = f64::from(d[row * 64 + column]);
            assert!((got - exact).abs() < 1e-4, "{entry} ({row}, {column}): {got} is not {exact}");
        }
    }
    Ok(counters)
}

#[test]
fn gemm_under_every_order_of_completion() {
    for options in all_orders() {
        let counters = product("gemm", 128, options).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        assert_eq!(counters.mma_flops, 2 * 64 * 64 * 128);
        assert_eq!(counters.instructions(Class::Mma), 4 * (128 / 16) * 8);
        // The rows are padded so that neither ldmatrix nor cp.async conflicts.
        assert_eq!(counters.shared_bank_conflicts, 0);
        // Every element of A and B exactly once.
        assert_eq!(counters.global_load_bytes, 2 * 2 * 64 * 128);
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    for options in all_orders() {
        let fault = product("gemm_no_barrier", 128, options).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{fault}");
    }
}

#[test]
fn a_missing_loop_barrier_is_a_race_even_when_the_result_is_right() {
    for options in all_orders() {
        let fault = product("gemm_no_loop_barrier", 128, options).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{fault}");
    }
}

#[test]
fn a_missing_wait_is_a_race() {
    for options in all_orders() {
        let fault = product("gemm_no_wait", 128, options).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{fault}");
        let site = fault.site.expect("a place");
        assert!(site.instruction.starts_with("ldmatrix"), "{}", site.instruction);
    }
}
