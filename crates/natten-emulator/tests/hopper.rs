//! Tensor maps, mbarriers and wgmma together, right and wrong.

mod support;

use natten_emulator::{
    Completion, Counters, Fault, FaultKind, Launch, Options, Swizzle, TensorMapDesc, WaitReason, WgmmaProblem,
};
use support::{Device, all_orders, bf16, floats};

const PTX: &str = include_str!("kernels/hopper.ptx");

/// Runs an entry on 64 x k times k x 64 and compares with f64 if it ends well.
fn product(entry: &str, k: usize, options: Options) -> Result<Counters, Fault> {
    run(PTX, entry, k, options)
}

fn run(ptx: &str, entry: &str, k: usize, options: Options) -> Result<Counters, Fault> {
    let device = Device::with(ptx, options);
    let (a, b) = (floats(64 * k, 1), floats(k * 64, 2));
    let (a, b): (Vec<u16>, Vec<u16>) =
        (a.iter().map(|x| bf16(*x)).collect(), b.iter().map(|x| bf16(*x)).collect());
    let (da, db) = (device.upload(&a), device.upload(&b));
    let dd = device.memory.alloc(64 * 64 * 4);
    let a_map =
        TensorMapDesc::new(da, 2, &[k as u64, 64], &[2 * k as u64], &[64, 64]).with_swizzle(Swizzle::B128);
    let b_map = TensorMapDesc::new(db, 2, &[64, k as u64], &[128], &[64, 64]).with_swizzle(Swizzle::B128);
    let d_map = TensorMapDesc::new(dd, 4, &[64, 64], &[256], &[32, 64]);
    let launch = Launch::new([1, 1, 1], [160, 1, 1])
        .shared(4 * 8192 + 64 * 64 * 4 + 64)
        .arg(a_map.to_bytes())
        .arg(b_map.to_bytes())
        .arg(d_map.to_bytes())
        .arg((k as i32).to_le_bytes());
    let counters = device.try_run(entry, &launch)?;
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
        let counters = product("gemm", 320, options).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        assert_eq!(counters.mma_flops, 2 * 64 * 64 * 320);
        assert_eq!(counters.global_load_bytes, 2 * 2 * 64 * 320);
        assert_eq!(counters.global_store_bytes, 64 * 64 * 4);
    }
}

#[test]
fn a_missing_wait_for_data_is_found() {
    for options in all_orders() {
        let fault = product("gemm_no_full_wait", 320, options).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. }), "{fault}");
    }
}

#[test]
fn a_missing_wait_for_room_is_found() {
    for options in all_orders() {
        let fault = product("gemm_no_empty_wait", 320, options).expect_err("a race");
        assert!(
            matches!(
                fault.kind,
                FaultKind::Race { .. } | FaultKind::Uninitialised { .. } | FaultKind::Mbarrier { .. }
            ),
            "{fault}"
        );
    }
}

#[test]
fn a_missing_proxy_fence_is_found() {
    for options in all_orders() {
        let fault = product("gemm_no_proxy_fence", 64, options).expect_err("a missing fence");
        assert!(matches!(fault.kind, FaultKind::MissingProxyFence { .. }), "{fault}");
        let site = fault.site.expect("a place");
        assert!(site.instruction.starts_with("cp.async.bulk.tensor.2d.global"), "{}", site.instruction);
    }
}

#[test]
fn a_missing_fence_after_mbarrier_init_is_found() {
    let fault = product("gemm_no_init_fence", 64, Options::default()).expect_err("a missing fence");
    assert!(matches!(fault.kind, FaultKind::MissingProxyFence { .. }), "{fault}");
}

#[test]
fn a_missing_fence_of_registers_is_found() {
    for options in all_orders() {
        let edited = PTX.replace("wgmma.fence.sync.aligned;", "");
        let fault = run(&edited, "gemm", 64, options).expect_err("a missing fence");
        let problem = WgmmaProblem::MissingFence;
        assert!(matches!(fault.kind, FaultKind::WgmmaRegister { problem: p } if p == problem), "{fault}");
    }
}

#[test]
fn accumulators_in_flight_may_not_be_read() {
    let fault = product("gemm_no_wgmma_wait", 64, Options::default()).expect_err("a register in flight");
    assert!(matches!(fault.kind, FaultKind::WgmmaRegister { .. }), "{fault}");
}

#[test]
fn a_deadlock_names_who_waits_for_what() {
    let options = Options { completion: Completion::Latest, ..Options::default() };
    let fault = product("gemm_no_expect", 64, options).expect_err("a deadlock");
    let FaultKind::Deadlock { waits } = fault.kind else { panic!("{fault}") };
    // The four consumer warps wait for the arrival that nobody makes.
    assert_eq!(waits.len(), 4);
    for (warp, wait) in waits.iter().enumerate() {
        assert_eq!(wait.warp, warp as u32);
        assert!(matches!(wait.reason, WaitReason::Mbarrier { pending_arrivals: 1, .. }), "{wait}");
    }
}
