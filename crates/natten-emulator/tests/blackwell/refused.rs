//! Forms that nothing here executes, by name, and what belongs to other architectures.

use natten_cuda::DeviceError;
use natten_cuda::device::Device as _;
use natten_emulator::{Emulated, Module, ParseProblem};

use crate::text::{kernel, module, registers};

fn reason(text: &str) -> String {
    match Module::parse(text).expect_err("a form that is refused").problem {
        ParseProblem::Unsupported { reason } => reason,
        other => other.to_string(),
    }
}

#[test]
fn what_is_not_modelled_is_named() {
    let mma = |modifiers: &str, operands: &str| format!("tcgen05.mma{modifiers} [%r1], {operands};\n");
    let dense = "%rd1, %rd2, %r2, %p1";
    let list = [
        (mma(".cta_group::2.kind::f16", dense), "cta_group::2"),
        (mma(".cta_group::1.kind::tf32", dense), "kind::tf32"),
        (mma(".cta_group::1.kind::i8", dense), "kind::i8"),
        (mma(".cta_group::1.kind::f8f6f4", dense), "kind::f8f6f4"),
        (mma(".cta_group::1.kind::mxf8f6f4.block_scale", "%rd1, %rd2, %r2, [%r3], [%r4], %p1"), "block scaling"),
        (mma(".cta_group::1.kind::mxf4.block_scale.scale_vec::2X", "%rd1, %rd2, %r2, [%r3], [%r4], %p1"), "block scaling"),
        (mma(".ws.cta_group::1.kind::f16", dense), "weight-stationary"),
        (mma(".sp.cta_group::1.kind::f16", "%rd1, %rd2, [%r5], %r2, %p1"), "sparse A"),
        (mma(".cta_group::1.kind::f16.ashift", "[%r3], %rd2, %r2, %p1"), "shifted A"),
        (mma(".cta_group::1.kind::f16.collector::a::fill", dense), "collector"),
        (mma(".cta_group::1.kind::f16.collector::a::use", dense), "collector"),
        (mma(".cta_group::1.kind::f16.collector::a::lastuse", dense), "collector"),
        (mma(".cta_group::1.kind::f16", "%rd1, %rd2, %r2, {%r4, %r5, %r6, %r7}, %p1"), "mask of lanes"),
        (mma(".cta_group::1.kind::f16", "%rd1, %rd2, %r2, %p1, 3"), "scale of the input D"),
        ("tcgen05.cp.cta_group::1.128x256b [%r1], %rd1;\n".into(), "cp"),
        ("tcgen05.shift.cta_group::1.down [%r1];\n".into(), "shift"),
        ("tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%r1], 32;\n".into(), "cta_group::2"),
        ("tcgen05.commit.cta_group::2.mbarrier::arrive::one.b64 [%rd1];\n".into(), "cta_group::2"),
        (
            "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%r1], %r2;\n".into(),
            "several ctas",
        ),
        ("tcgen05.ld.red.sync.aligned.32x32b.x2.max.f32 {%r1, %r2}, %r3, [%r4];\n".into(), "reduction"),
        ("tcgen05.ld.sync.aligned.16x32bx2.x1.pack::16b.b32 {%r1}, [%r4], 2;\n".into(), "16x32bx2"),
    ];
    for (instruction, name) in &list {
        let reason = reason(&module(instruction));
        assert!(reason.contains(name) && reason.contains("not modelled"), "{instruction}: {reason}");
    }
}

#[test]
fn what_there_is_not_is_refused() {
    let list = [
        "tcgen05.mma.kind::f16 [%r1], %rd1, %rd2, %r2, %p1;".to_owned(),
        "tcgen05.mma.cta_group::1 [%r1], %rd1, %rd2, %r2, %p1;".to_owned(),
        "tcgen05.mma.cta_group::1.kind::f16 %r1, %rd1, %rd2, %r2, %p1;".to_owned(),
        "tcgen05.mma.cta_group::1.kind::f16 [%rd1], %rd1, %rd2, %r2, %p1;".to_owned(),
        "tcgen05.mma.cta_group::1.kind::f16 [%r1], %r1, %rd2, %r2, %p1;".to_owned(),
        "tcgen05.mma.cta_group::1.kind::f16 [%r1], %rd1, %rd2, %r2;".to_owned(),
        "tcgen05.alloc.sync.aligned.shared::cta.b32 [%r1], 32;".to_owned(),
        "tcgen05.alloc.cta_group::1.aligned.shared::cta.b32 [%r1], 32;".to_owned(),
        "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cta.b64 [%r1];".to_owned(),
        "tcgen05.wait::ld.aligned;".to_owned(),
        "tcgen05.wait::all.sync.aligned;".to_owned(),
        "tcgen05.fence::before_thread_sync.sync;".to_owned(),
        "tcgen05.ld.sync.aligned.32x32b.x1.b32 %r1, [%r2];".to_owned(),
        "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r1}, [%r2];".to_owned(),
        "tcgen05.ld.sync.aligned.32x32b.x3.b32 {%r1, %r2, %r3}, [%r4];".to_owned(),
        "tcgen05.ld.sync.aligned.32x32b.b32 {%r1}, [%r4];".to_owned(),
        "tcgen05.ld.sync.aligned.64x32b.x1.b32 {%r1}, [%r4];".to_owned(),
        "tcgen05.ld.sync.aligned.16x32bx2.x1.b32 {%r1}, [%r4];".to_owned(),
        format!("tcgen05.ld.sync.aligned.16x128b.x128.b32 {}, [%r299];", registers(0, 256)),
        format!("tcgen05.st.sync.aligned.16x256b.x64.b32 [%r299], {};", registers(0, 256)),
    ];
    for instruction in &list {
        assert!(Module::parse(&module(instruction)).is_err(), "{instruction}");
    }
}

#[test]
fn each_architecture_has_its_own() {
    let text = kernel("");
    assert!(Module::parse(&text).is_ok());
    for (version, target, is_known) in [
        ("8.6", "sm_100a", true),
        ("9.0", "sm_100a", true),
        ("8.5", "sm_100a", false),
        ("8.6", "sm_100", false),
        ("8.6", "sm_100f", false),
        ("8.8", "sm_100f", true),
        ("8.8", "sm_103a", true),
        ("8.6", "sm_90a", false),
        ("8.7", "sm_120a", false),
    ] {
        let other = text.replace(".version 8.6", &format!(".version {version}")).replace("sm_100a", target);
        assert_eq!(Module::parse(&other).is_ok(), is_known, "{target} of PTX {version}");
        if !is_known {
            assert!(reason(&other).contains(target), "{}", reason(&other));
        }
    }
    let wgmma = module("wgmma.fence.sync.aligned;");
    assert_eq!(reason(&wgmma), "wgmma on target sm_100a of PTX 8.6");
    assert!(Module::parse(&wgmma.replace("sm_100a", "sm_90a").replace("8.6", "8.0")).is_ok());
}

#[test]
fn a_device_loads_what_is_for_it() {
    let text = kernel("");
    let loads = |major, minor, target: &str| {
        let text = match target {
            "sm_100a" => text.clone(),
            other => module("").replace("sm_100a", other).replace("8.6", "9.0"),
        };
        Emulated::new(major, minor).load(&text, "k", 0).map(|_| ())
    };
    for (major, minor, target) in [
        (10, 0, "sm_100a"),
        (10, 0, "sm_80"),
        (10, 0, "sm_100f"),
        (10, 3, "sm_100f"),
        (9, 0, "sm_90a"),
        (12, 0, "sm_80"),
    ] {
        assert!(loads(major, minor, target).is_ok(), "{target} on {major}.{minor}");
    }
    for (major, minor, target) in [
        (9, 0, "sm_100a"),
        (10, 3, "sm_100a"),
        (10, 0, "sm_90a"),
        (12, 0, "sm_100f"),
        (10, 0, "sm_103f"),
        (8, 0, "sm_90"),
    ] {
        let error = loads(major, minor, target).expect_err("another architecture");
        let DeviceError::Other { source, .. } = &error else { panic!("{error}") };
        assert_eq!(
            source.to_string(),
            format!("target {target} does not run on compute capability {major}.{minor}")
        );
    }
}
