//! What the forward kernel costs a score: counted, printed for docs/kernels.md, and held.

use natten_core::{Element, Params, bf16};
use natten_emulator::{Class, Counters, Options};

use crate::case::{Case, OnDevice, Operands, emulated, forward};

/// One of the bench problems on fewer tokens and heads. Windows and rows are its own; of N1's residues there are fewer,
/// each as long as in the bench.
struct Bench {
    name: &'static str,
    tokens: [usize; 3],
    params: Params<3>,
    heads: usize,
    head_dim: usize,
    /// PTX instructions a thread issues for each score, at most: what was counted plus a tenth.
    instructions: [f64; 2],
    /// Bytes that lanes load for each score, at most, in bf16 and f32.
    bytes: [f64; 2],
}

fn bench() -> [Bench; 6] {
    let local = |size: [usize; 3]| Params::new(size).scale(1.0);
    let naf = Params::new([1, 9, 9]).dilation([1, 4, 4]);
    let of = |name, tokens, params, heads, head_dim, instructions, bytes| Bench {
        name,
        tokens,
        params,
        heads,
        head_dim,
        instructions,
        bytes,
    };
    [
        of("L0", [8, 16, 24], local([3, 7, 7]), 1, 64, [480.0, 444.0], [87.0, 174.0]),
        of("L1", [8, 16, 32], local([3, 7, 7]), 1, 64, [480.0, 444.0], [87.0, 174.0]),
        of("L2", [8, 16, 32], local([3, 5, 5]), 1, 64, [591.0, 546.0], [104.0, 207.0]),
        of("L4", [8, 32, 32], local([3, 3, 3]), 1, 64, [817.0, 751.0], [131.0, 261.0]),
        of("N1 d8", [1, 128, 128], naf, 4, 8, [75.0, 71.0], [11.0, 21.5]),
        of("N1 d64", [1, 128, 128], naf, 1, 64, [453.0, 415.0], [85.0, 169.0]),
    ]
}

#[test]
fn forward_costs_a_score() {
    println!("problem  type   scores   instr  float  convert  integer  load  exchange  control  bytes");
    for bench in bench() {
        count::<bf16>(&bench, 0);
        count::<f32>(&bench, 1);
    }
}

fn count<E: Element>(bench: &Bench, column: usize) {
    let cuda = emulated();
    cuda.device().set_options(Options { check_races: false, check_initialised: false, ..Options::default() });
    let case = Case::new(bench.tokens, bench.params).dims(bench.head_dim, bench.head_dim);
    let operands = Operands::<E>::draw(&case.heads(bench.heads, bench.heads));
    let problem = operands.problem(&bench.params);
    forward(&cuda, &problem, &OnDevice::upload(&cuda, &operands)).expect("the emulator takes it");
    let counters = cuda.device().take_counters();
    let (_, counters) = counters.into_iter().next().expect("one kernel ran");

    let keys: usize = problem.axes().iter().map(|axis| axis.kernel_size).product();
    let scores = (problem.query_tokens() * problem.heads() * keys) as f64;
    // Thread instructions: 32 for each warp instruction, whether its lanes are enabled or not.
    let per_score = |classes: &[Class]| {
        let warp: u64 = classes.iter().map(|&class| Counters::instructions(&counters, class)).sum();
        32.0 * warp as f64 / scores
    };
    let all = 32.0 * counters.warp_instructions() as f64 / scores;
    let bytes = counters.global_load_bytes as f64 / scores;
    println!(
        "{:<8} {:<5} {scores:>8} {all:>7.0} {:>6.0} {:>8.0} {:>8.0} {:>5.1} {:>9.1} {:>8.1} {bytes:>6.0}",
        bench.name,
        E::TYPE,
        per_score(&[Class::Float, Class::Special]),
        per_score(&[Class::Convert]),
        per_score(&[Class::Integer]),
        per_score(&[Class::LoadGlobal]),
        per_score(&[Class::Collective]),
        per_score(&[Class::Control]),
    );
    assert!(all <= bench.instructions[column], "{} {}: {all} instructions a score", bench.name, E::TYPE);
    assert!(bytes <= bench.bytes[column], "{} {}: {bytes} bytes a score", bench.name, E::TYPE);
}
