//! `mbarrier` phases: scripts of arrivals, expected and completed bytes, with both parities tested after each step.

use super::inputs::bytes;
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

/// An mbarrier as documented: a phase ends when no arrival is pending and all bytes expected are there.
struct Model {
    expected: u32,
    pending: u32,
    bytes: i64,
    phase: u32,
}

impl Model {
    fn new(count: u32) -> Self {
        Model { expected: count, pending: count, bytes: 0, phase: 0 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Arrive => self.pending -= 1,
            ArriveCount(n) => self.pending -= n,
            ArriveDrop => (self.pending, self.expected) = (self.pending - 1, self.expected - 1),
            Expect(bytes) => self.bytes += i64::from(bytes),
            ArriveExpect(bytes) => {
                self.bytes += i64::from(bytes);
                self.pending -= 1;
            }
            Complete(bytes) => self.bytes -= i64::from(bytes),
            Renew(count) => *self = Model::new(count),
        }
        if self.pending == 0 && self.bytes == 0 {
            (self.phase, self.pending) = (self.phase + 1, self.expected);
        }
    }

    /// Whether the phase of each parity counts as completed: a fresh barrier passes for parity 1.
    fn tests(&self) -> [u32; 2] {
        [self.phase % 2, 1 - self.phase % 2]
    }
}

/// Word `2 i + p` of the output: whether the phase of parity `p` had completed after step `i` (0: initialisation).
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
    let mut model = Model::new(count);
    let mut documented = model.tests().to_vec();
    for &step in steps {
        model.step(step);
        documented.extend(model.tests());
    }
    let kernel = Kernel::new("8.0", "sm_90", 0, outputs, body).threads(1).shared(16);
    kernel.case(name, &[], vec![0; 16], Rule::Exact).documented(bytes(&documented))
}
