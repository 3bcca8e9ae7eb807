//! Every suite on the reference and on each path of the CPU. The CUDA kernels are held to the same in natten-emulator's
//! tests and by tests/gpu.

use natten::cpu::Isa;
use natten::{Element, bf16, f16};
use natten_tests::subject::cpu;
use natten_tests::suites::oracle::Expected;
use natten_tests::suites::{Scope, list};
use natten_tests::{Reference, Spec, mount};

mount! {
    reference: [Reference], Scope::reference();
    scalar: cpu(Isa::Scalar), Scope::host();
    avx2: cpu(Isa::Avx2), Scope::host();
    avx512: cpu(Isa::Avx512), Scope::host();
    avx512_bf16: cpu(Isa::Avx512Bf16), Scope::host();
    avx512_short: cpu(Isa::Avx512Short), Scope::host();
    avx512_long: cpu(Isa::Avx512Long), Scope::host();
    avx512_bf16_short: cpu(Isa::Avx512Bf16Short), Scope::of_bf16();
    avx512_bf16_long: cpu(Isa::Avx512Bf16Long), Scope::of_bf16();
    amx: cpu(Isa::Amx), Scope::of_bf16();
    amx_model: cpu(Isa::AmxModel), Scope::of_bf16();
    neon: cpu(Isa::Neon), Scope::host();
}

/// The measured tolerances must leave no room for a mistake: a few roundings of the element type, no more.
#[test]
fn tolerances_are_tight() {
    fn check<E: Element>(specs: &[Spec], most: f64) {
        for (i, spec) in specs.iter().enumerate() {
            let [out, lse] = Expected::<E>::of(&spec.draw(i as u64)).relative_tolerances();
            assert!(out <= most && lse <= 5e-6, "{} {spec:?}: out {out:e}, lse {lse:e}", E::TYPE);
        }
    }
    let specs = [list::windows(), list::attention()].concat();
    check::<f32>(&specs, 1e-5);
    check::<f16>(&specs, 2e-3);
    check::<bf16>(&specs, 2e-2);
    check::<f64>(&specs, 1e-13);
}
