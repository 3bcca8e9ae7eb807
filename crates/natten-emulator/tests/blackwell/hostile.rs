//! Operands of any value: a fault or a result, never a panic.

use natten_emulator::{Completion, Launch, Options};

use crate::oracle::Movement;
use crate::problem::Draw;
use crate::support::Device;
use crate::text::{EPILOGUE, FILL, PROLOGUE, first, module, registers};

/// Numbers around every limit there is.
fn word(draw: &mut Draw) -> u32 {
    let near = [
        0,
        16,
        31,
        32,
        64,
        127,
        128,
        255,
        256,
        480,
        511,
        512,
        1024,
        8192,
        65535,
        65536,
        1 << 20,
        1 << 21,
        u32::MAX,
    ];
    let base = draw.of(&near);
    match draw.below(4) {
        0 => base.wrapping_add(draw.below(5) as u32).wrapping_sub(2),
        1 => base.wrapping_add(draw.of(&near) << 16),
        2 => (draw.below(1 << 32)) as u32,
        _ => base,
    }
}

/// Kernels that take eight words from memory as operands: %r200 to %r207, and as pairs %rd20 to %rd23.
fn programs() -> Vec<String> {
    let mut bodies = Vec::new();
    for movement in Movement::all().iter().filter(|movement| movement.repeats == 1) {
        for repeats in [1, 4, 16] {
            let list = registers(10, movement.registers() as usize * repeats);
            let split = if movement.shape == "16x32bx2" { ", 300" } else { "" };
            let form = format!("sync.aligned.{}.x{repeats}", movement.shape);
            bodies.push(format!(
                "tcgen05.st.{form}.b32 [%r200]{split}, {list};
                tcgen05.wait::st.sync.aligned;
                tcgen05.ld.{form}.b32 {list}, [%r201+3]{split};
                tcgen05.wait::ld.sync.aligned;\n"
            ));
        }
    }
    let issue = |text: &str| format!("{FILL}setp.ne.u32 %p1, %r207, 0;\n{}", first(text, "ISSUED"));
    let commit = "tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%bar];\n";
    bodies.push(issue(&format!(
        "tcgen05.mma.cta_group::1.kind::f16 [%r200], %rd21, %rd22, %r206, %p1;\n{commit}"
    )));
    bodies.push(issue(&format!(
        "tcgen05.mma.cta_group::1.kind::f16 [%r200+9], [%r201], %rd22, 0x08040010, %p1;\n{commit}"
    )));
    bodies.push(issue("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r200];\n"));
    bodies.push(issue("tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%rd20];\n"));
    let warp = |text: &str| format!("@%others bra OVER;\n{text}OVER:\n");
    bodies.push(warp("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r200, %r201;\n"));
    let mut all: Vec<String> =
        bodies.iter().map(|body| module(&format!("{PROLOGUE}{OPERANDS}{body}{EPILOGUE}"))).collect();
    for address in ["%r201", "%rd21"] {
        let space = if address == "%r201" { ".shared::cta" } else { "" };
        let alloc = format!("tcgen05.alloc.cta_group::1.sync.aligned{space}.b32 [{address}], %r200;\n");
        all.push(module(&format!("ld.param.u64 %out, [p];\n{OPERANDS}{alloc}tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r201, %r200;\n")));
    }
    all
}

const OPERANDS: &str = "
    ld.global.v4.u32 {%r200, %r201, %r202, %r203}, [%out];
    ld.global.v4.u32 {%r204, %r205, %r206, %r207}, [%out+16];
    ld.global.v2.u64 {%rd20, %rd21}, [%out];
    ld.global.v2.u64 {%rd22, %rd23}, [%out+16];
";

#[test]
fn no_operand_is_too_strange() {
    let mut draw = Draw::new(3);
    let (mut ended, mut faulted) = (0, 0);
    for text in programs() {
        for turn in 0..120 {
            let completion = draw.of(&[Completion::Earliest, Completion::Latest, Completion::Random]);
            let options = Options {
                completion,
                seed: turn,
                check_races: draw.below(2) == 0,
                check_initialised: draw.below(2) == 0,
                ..Options::default()
            };
            let device = Device::with(&text, options);
            let operands: Vec<u32> = (0..8).map(|_| word(&mut draw)).collect();
            let data = device.upload(&operands);
            let launch = Launch::new([1, 1, 1], [128, 1, 1]).shared(16 << 10).arg(data.to_le_bytes());
            match device.try_run("k", &launch) {
                Ok(_) => ended += 1,
                Err(_) => faulted += 1,
            }
        }
    }
    assert!(ended > 0 && faulted > ended, "{ended} ended, {faulted} faulted");
}
