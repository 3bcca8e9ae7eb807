//! Sums into memory: reductions and atomics of single words, each at an address of its own, and bulk copies that store or
//! reduce. What they do with subnormals and NaN is the question.

use super::inputs::{Random, bytes, float};
use super::kernel::Kernel;
use super::scalar::half_pair;
use super::{Arg, Case, FLOAT, Rule};

const F16_PAIR: Rule = Rule::Halves { ulp: 0, infinity: 0x7c00 };
const BF16_PAIR: Rule = Rule::Halves { ulp: 0, infinity: 0x7f80 };
/// Words that a bulk copy moves.
const WORDS: usize = 128;

/// Reductions of one word: version, target, name, type, whether words are pairs of halves.
const WORDWISE: [(&str, &str, &str, &str, bool, &Rule); 4] = [
    ("7.0", "sm_80", "add_f32", "add.f32", false, &FLOAT),
    ("7.0", "sm_80", "add_f16x2", "add.noftz.f16x2", true, &F16_PAIR),
    ("7.8", "sm_90", "add_bf16x2", "add.noftz.bf16x2", true, &BF16_PAIR),
    ("7.0", "sm_80", "max_s32", "max.s32", false, &Rule::Exact),
];

/// Bulk reductions, likewise.
const BULK: [(&str, &str, bool, &Rule); 5] = [
    ("add_f32", "add.f32", false, &FLOAT),
    ("add_f16", "add.noftz.f16", true, &F16_PAIR),
    ("add_bf16", "add.noftz.bf16", true, &BF16_PAIR),
    ("max_s32", "max.s32", false, &Rule::Exact),
    ("add_u32", "add.u32", false, &Rule::Exact),
];

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (version, target, name, operation, halves, rule) in WORDWISE {
        cases.push(wordwise(version, target, name, operation, halves, rule));
    }
    cases.push(bulk("bulk_store", "cp.async.bulk.global.shared::cta.bulk_group", false, &Rule::Exact));
    for (name, operation, halves, rule) in BULK {
        let instruction = format!("cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}");
        cases.push(bulk(&format!("bulk_{name}"), &instruction, halves, rule));
    }
    cases
}

fn draw(random: &mut Random, index: usize, halves: bool) -> u32 {
    if halves { half_pair(random, index) } else { float(random, index) }
}

/// Into this thread's word: a reduction, then the same as an atomic. Outputs are what the atomic found and what is left.
fn wordwise(
    version: &'static str,
    target: &'static str,
    name: &str,
    operation: &str,
    halves: bool,
    rule: &Rule,
) -> Case {
    let name = format!("red_{name}");
    let body = format!(
        "mul.wide.u32 %q0, %item, 8;\nadd.u64 %q0, %out, %q0;\nst.global.b32 [%q0], %a0;\n\
         red.relaxed.gpu.global.{operation} [%q0], %a1;\n\
         atom.relaxed.gpu.global.{operation} %d0, [%q0], %a2;\nld.relaxed.gpu.global.b32 %d1, [%q0];\n"
    );
    let kernel = Kernel::new(version, target, 3, 2, body).threads(256);
    let mut random = Random::new(&name);
    // Operands of one word come from different places of the list of special values.
    let input: Vec<u32> = (0..3 * 256).map(|i| draw(&mut random, i / 3 + 7 * (i % 3), halves)).collect();
    kernel.case(name, &input, Vec::new(), rule.clone())
}

/// Shared memory into the middle of a buffer of other values.
fn bulk(name: &str, instruction: &str, halves: bool, rule: &Rule) -> Case {
    let body = format!(
        "setp.ne.u32 %p0, %thread, 0;\n@%p0 bra ISSUED;\nadd.u64 %q0, %out, 64;\n\
         {instruction} [%q0], [%s], {};\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nISSUED:\nbar.sync 0;\n",
        4 * WORDS
    );
    let kernel = Kernel::new("8.0", "sm_90", 0, 0, body).shared(4 * WORDS);
    let mut random = Random::new(name);
    let mut words = |count: usize, shift: usize| -> Vec<u32> {
        (0..count).map(|i| draw(&mut random, i + shift, halves)).collect()
    };
    let (fill, before) = (words(WORDS, 0), words(WORDS + 32, 5));
    let mut case = kernel.case(name, &[], bytes(&fill), rule.clone());
    case.args[1] = Arg::Output(bytes(&before));
    if name != "bulk_store" {
        return case;
    }
    let mut documented = before;
    documented[16..16 + WORDS].copy_from_slice(&fill);
    case.documented(bytes(&documented))
}
