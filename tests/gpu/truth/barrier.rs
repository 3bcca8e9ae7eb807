//! `mbarrier` phases: scripts of arrivals, expected and completed bytes, with both parities tested after each step.

use super::kernel::Kernel;
use super::{Case, Rule};

/// One step of a script.
#[derive(Clone, Copy)]
enum Step {
    /// One arrival.
    Arrive,
    /// So many arrivals at once.
    ArriveCount(u32),
    /// One arrival, and one fewer expected from the next phase on.
    ArriveDrop,
    /// So many more bytes expected in this phase.
    Expect(u32),
    /// An arrival with so many more bytes expected.
    ArriveExpect(u32),
    /// So many bytes done, as a copy would report.
    Complete(u32),
    /// Invalidated and initialised anew with this count.
    Renew(u32),
}

use Step::{Arrive, ArriveCount, ArriveDrop, ArriveExpect, Complete, Expect, Renew};

const SCRIPTS: [(&str, u32, &[Step]); 9] = [
    ("count_1", 1, &[Arrive, Arrive, Arrive, Arrive, Arrive]),
    ("count_3", 3, &[Arrive, Arrive, Arrive, Arrive, ArriveCount(2), ArriveCount(3), Arrive]),
    ("bytes", 1, &[ArriveExpect(64), Complete(32), Complete(32), ArriveExpect(16), Complete(16)]),
    (
        "expect_apart",
        2,
        &[Expect(128), Arrive, Complete(128), Arrive, Arrive, Expect(8), Complete(8), Arrive],
    ),
    ("bytes_first", 1, &[Complete(48), ArriveExpect(48), ArriveExpect(4), Complete(4)]),
    ("bytes_last", 2, &[ArriveExpect(96), Arrive, Complete(40), Complete(56), Arrive, Arrive]),
    ("expect_twice", 2, &[ArriveExpect(10), ArriveExpect(20), Complete(10), Complete(20), Arrive]),
    ("drop", 3, &[ArriveDrop, Arrive, Arrive, Arrive, Arrive, ArriveDrop, Arrive, Arrive]),
    ("renew", 2, &[Arrive, Renew(1), Arrive, Arrive, Renew(3), ArriveCount(3), Arrive]),
];

/// All of them.
pub fn cases() -> Vec<Case> {
    SCRIPTS.iter().map(|(name, count, steps)| script(&format!("mbarrier_{name}"), *count, steps)).collect()
}

/// Word `2 i + p` of the output: whether the phase of parity `p` had completed after step `i` (0: initialisation); then
/// the pending count after each arrival.
fn script(name: &str, count: u32, steps: &[Step]) -> Case {
    let init = |count: u32| {
        format!("mbarrier.init.shared::cta.b64 [%r0], {count};\nfence.mbarrier_init.release.cluster;\n")
    };
    let mut body = format!("mov.u32 %r0, barrier;\n{}", init(count));
    let mut outputs = 0;
    let mut test = |body: &mut String| {
        for parity in 0..2 {
            *body += &format!("mbarrier.test_wait.parity.shared::cta.b64 %p0, [%r0], {parity};\n");
            *body += &format!("selp.b32 %d{outputs}, 1, 0, %p0;\n");
            outputs += 1;
        }
    };
    test(&mut body);
    for step in steps {
        body += &match step {
            Arrive => "mbarrier.arrive.shared::cta.b64 %q0, [%r0];\n".to_owned(),
            ArriveCount(n) => format!("mbarrier.arrive.shared::cta.b64 %q0, [%r0], {n};\n"),
            ArriveDrop => "mbarrier.arrive_drop.shared::cta.b64 %q0, [%r0];\n".to_owned(),
            Expect(bytes) => format!("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r0], {bytes};\n"),
            ArriveExpect(bytes) => {
                format!("mbarrier.arrive.expect_tx.shared::cta.b64 %q0, [%r0], {bytes};\n")
            }
            Complete(bytes) => format!("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r0], {bytes};\n"),
            Renew(n) => format!("mbarrier.inval.shared::cta.b64 [%r0];\n{}", init(*n)),
        };
        test(&mut body);
    }
    let kernel = Kernel::new("8.0", "sm_90", 0, outputs, body).threads(1).shared(16);
    kernel.case(name, &[], vec![0; 16], Rule::Exact)
}
