//! The arithmetic limit beside what calls reach.

mod support;

use std::time::{Duration, Instant};

use natten_core::{Element, bf16};
use natten_cpu::{Cpu, Isa, peak};
use support::{Case, forward};

/// Nothing but products of long rows, in calls short enough to run between two disturbances.
fn dense() -> Case {
    Case { head_dims: [64, 64], ..Case::attention(48, 512, false) }
}

/// How long either is tried before it is the other's turn.
const ROUND: Duration = Duration::from_millis(25);

/// FLOP/s of calls and of arithmetic alone, each the best of rounds that take turns. Disturbances lower either, so the
/// rounds go on while the limit is the lower one: it stays that only if it is too low by construction.
fn best<E: Element>(isa: Isa) -> (f64, f64) {
    let cpu = Cpu::new().isa(isa).unwrap().threads(1).unwrap();
    let operands = dense().operands::<E>(3);
    let (problem, inputs) = (operands.problem(), operands.inputs());
    let (mut reached, mut limit) = (0.0f64, 0.0f64);
    for round in 0..200 {
        let start = Instant::now();
        while start.elapsed() < ROUND {
            let begin = Instant::now();
            forward(&cpu, problem, &inputs);
            reached = reached.max(problem.useful_flops() / begin.elapsed().as_secs_f64());
        }
        limit = limit.max(peak::ceiling(isa, E::TYPE, 1, ROUND).0);
        if round >= 5 && reached <= limit {
            break;
        }
    }
    (reached, limit)
}

#[test]
fn no_backend_is_above_the_limit() {
    for isa in Isa::available() {
        for (reached, limit) in [best::<f32>(isa), best::<bf16>(isa)] {
            assert!(reached <= limit, "{isa}: {:.1} of {:.1} GFLOP/s", reached * 1e-9, limit * 1e-9);
        }
    }
}
