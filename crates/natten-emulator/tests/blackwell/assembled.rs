//! What runs here is what NVIDIA's assembler takes: the programs of these tests, assembled for sm_100a where `cargo xtask
//! kernels --score` has installed it.

use std::path::{Path, PathBuf};
use std::process::Command;

use natten_emulator::Module;

use crate::oracle::Movement;
use crate::problem;
use crate::tensor_maps;
use crate::text::{
    AFTER, BEFORE, COMMIT, DESCRIBE, FILL, MMA, WAIT_LOAD, WAIT_STORE, first, kernel, registers, wait,
};

/// The assemblers of the pinned wheels that know sm_100a.
fn assemblers() -> Vec<PathBuf> {
    let env = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.kernels-env");
    let places = ["ptxas-12.9/nvidia/cuda_nvcc/bin/ptxas", "ptxas-13.0/nvidia/cu13/bin/ptxas"];
    places.iter().map(|place| env.join(place)).filter(|path| path.exists()).collect()
}

/// Every form of every instruction that is modelled, and the programs of other tests.
fn programs() -> Vec<(String, String)> {
    let mut forms = String::new();
    for movement in Movement::all().iter().filter(|movement| movement.repeats == 1) {
        let once = movement.registers() as usize;
        let in_two = movement.shape == "16x32bx2";
        let split = if in_two { ", 16" } else { "" };
        for repeats in (0..8).map(|power| 1 << power).take_while(|repeats| repeats * once <= 128) {
            let list = registers(10, once * repeats);
            let shape = format!("sync.aligned.{}.x{repeats}", movement.shape);
            for (pack, unpack) in
                [("", ""), (".pack::16b", ".unpack::16b")].into_iter().take(if in_two { 1 } else { 2 })
            {
                forms += &format!("tcgen05.ld.{shape}{pack}.b32 {list}, [%mine+4]{split};\n{WAIT_LOAD}");
                forms += &format!("tcgen05.st.{shape}{unpack}.b32 [%mine]{split}, {list};\n{WAIT_STORE}");
            }
        }
    }
    let others = "
        tcgen05.alloc.cta_group::1.sync.aligned.b32 [%rd1], 32;
        tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [slot+4], %r1;
        tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r1, %r2;
        tcgen05.mma.cta_group::1.kind::f16.collector::a::discard [%base+16], [%r1+8], %rd2, 136314896, !%p1;
        tcgen05.mma.cta_group::1.kind::f16 [%base], %rd1, %rd2, %r2, 1;
        tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%rd1];
        tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%r1];
        tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%rd1+8];
        setmaxnreg.dec.sync.aligned.u32 64;
        elect.sync %r1|%p2, 0xffffffff;\n";
    let multiply = format!(
        "{FILL}{DESCRIBE}{}{}{AFTER}{BEFORE}",
        first(&format!("{MMA}{COMMIT}"), "ISSUED"),
        wait(0, "DONE")
    );
    vec![
        ("products".into(), problem::PTX.to_owned()),
        ("tensor_maps".into(), tensor_maps::text()),
        ("movements".into(), kernel(&forms)),
        (
            "others".into(),
            kernel(others).replace(
                ".visible .entry k(.param .u64 p)",
                ".visible .entry k(.param .u64 p)\n.maxntid 128, 1, 1",
            ),
        ),
        ("multiply".into(), kernel(&multiply)),
    ]
}

#[test]
fn the_assembler_takes_what_the_emulator_does() {
    for (name, text) in programs() {
        Module::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let assemblers = assemblers();
    if assemblers.is_empty() {
        println!("SKIP: no ptxas for sm_100a; `cargo xtask kernels --score` installs it");
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("blackwell");
    std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
    for (name, text) in programs() {
        let (from, to) = (folder.join(format!("{name}.ptx")), folder.join(format!("{name}.cubin")));
        std::fs::write(&from, text).expect("a file in that folder");
        for ptxas in &assemblers {
            let output = Command::new(ptxas).arg("-arch=sm_100a").arg(&from).arg("-o").arg(&to).output();
            let output = output.expect("the assembler starts");
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} by {}: {said}", ptxas.display());
        }
    }
}
