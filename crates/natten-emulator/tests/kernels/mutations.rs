//! Would these tests notice a broken kernel? Single edits of the shipped PTX, each of which they must catch.
//!
//! Edits are pinned to the text: when a kernel is compiled anew and an edit no longer finds its line, choose the line
//! again. These kernels have no barriers, so their faults are of counting, masking, exchange and arithmetic.

use natten_core::{Params, Saved, Tensor, reference};
use natten_cuda::Cuda;
use natten_cuda::registry::kernels;
use natten_emulator::Emulated;

use crate::case::{Case, OnDevice, Operands, backward, compare, forward, verify_backward, verify_forward};

const FORWARD: &str = "natten_forward_simt_f32_d64";
const QUERY: &str = "natten_backward_query_simt_f32_d64";
const KEY: &str = "natten_backward_key_simt_f32_d64";
const DELTA: &str = "natten_delta_f32";
const SUM: &str = "natten_sum_partials_f32";

/// Replaces `from` by `to` in the one line that is the `nth` (from 0) of exactly `of` lines holding `line`.
struct Mutation {
    entry: &'static str,
    what: &'static str,
    line: &'static str,
    nth: usize,
    of: usize,
    to: &'static str,
}

const fn edit(
    entry: &'static str,
    what: &'static str,
    line: &'static str,
    (nth, of): (usize, usize),
    to: &'static str,
) -> Mutation {
    Mutation { entry, what, line, nth, of, to }
}

const MUTATIONS: &[Mutation] = &[
    edit(FORWARD, "the reference point never moves", "0f41000000", (0, 1), "0f7F800000"),
    edit(
        FORWARD,
        "the reference point starts at 0",
        "mov.f32  %f1323, 0fFF7FFFFF",
        (1, 2),
        "mov.f32  %f1323, 0f00000000",
    ),
    edit(
        FORWARD,
        "scores are exchanged with the wrong lane, first step",
        "shfl.sync.bfly",
        (9, 12),
        "shfl.sync.idx",
    ),
    edit(FORWARD, "likewise, other half", "shfl.sync.bfly", (10, 12), "shfl.sync.idx"),
    edit(FORWARD, "likewise, second step", "shfl.sync.bfly", (11, 12), "shfl.sync.idx"),
    edit(
        FORWARD,
        "the longest walk of the warp is missed along Z",
        "shfl.sync.bfly",
        (0, 12),
        "shfl.sync.idx",
    ),
    edit(FORWARD, "a rescaling factor comes from the wrong lane", "shfl.sync.idx", (1, 12), "shfl.sync.bfly"),
    edit(FORWARD, "a weight comes from the wrong lane", "shfl.sync.idx", (5, 12), "shfl.sync.bfly"),
    edit(FORWARD, "another weight comes from the wrong lane", "shfl.sync.idx", (7, 12), "shfl.sync.bfly"),
    edit(FORWARD, "a denominator comes from the wrong lane", "shfl.sync.idx", (10, 12), "shfl.sync.bfly"),
    edit(
        FORWARD,
        "halves of the items are swapped",
        "selp.f32  %f839, %f822, %f790",
        (0, 1),
        "selp.f32  %f839, %f790, %f822",
    ),
    edit(FORWARD, "partial scores are subtracted", "add.f32  %f840, %f839", (0, 1), "sub.f32  %f840, %f839"),
    edit(FORWARD, "weights are not summed", "add.f32  %f1322, %f1388", (0, 1), "sub.f32  %f1322, %f1388"),
    edit(FORWARD, "one row too many along X", "setp.lt.u32", (0, 3), "setp.le.u32"),
    edit(FORWARD, "one row too many along Y", "setp.lt.u32", (1, 3), "setp.le.u32"),
    edit(FORWARD, "X or Y inside is enough", "and.pred   %p99", (0, 1), "or.pred   %p99"),
    edit(FORWARD, "one key too many has weight", "setp.ge.u32", (0, 1), "setp.gt.u32"),
    edit(FORWARD, "one key too many moves the reference point", "setp.lt.u32", (2, 3), "setp.le.u32"),
    edit(
        FORWARD,
        "the exponent has the wrong sign",
        "sub.f32  %f858, %f197, %f1323",
        (0, 1),
        "sub.f32  %f858, %f1323, %f197",
    ),
    edit(
        FORWARD,
        "a rescaling factor is upside down",
        "sub.f32  %f847, %f1323, %f197",
        (0, 1),
        "sub.f32  %f847, %f197, %f1323",
    ),
    edit(FORWARD, "a zero weight counts", "setp.neu", (20, 64), "setp.equ"),
    edit(FORWARD, "out is not divided", "rcp.approx", (0, 1), "sqrt.approx"),
    edit(FORWARD, "lse without its logarithm", "lg2.approx", (0, 1), "ex2.approx"),
    edit(FORWARD, "lse in base 2", "0f3F317218", (0, 1), "0f3F800000"),
    edit(FORWARD, "the edge of the items is missed", "setp.ge.s32", (28, 55), "setp.gt.s32"),
    edit(FORWARD, "a clamp of the window is reversed", "min.s32", (11, 72), "max.s32"),
    edit(FORWARD, "a clamp of the last query is reversed", "min.s32", (20, 72), "max.s32"),
    edit(QUERY, "the score's exponent misses lse", "sub.f32  %f202", (0, 1), "add.f32  %f202"),
    edit(QUERY, "delta has the wrong sign", "sub.f32  %f431", (0, 1), "add.f32  %f431"),
    edit(
        QUERY,
        "invisible keys have a gradient",
        "selp.f32  %f306, %f432, 0f00000000",
        (0, 1),
        "selp.f32  %f306, %f432, %f432",
    ),
    edit(QUERY, "a gradient comes from the wrong lane", "shfl.sync.idx", (1, 4), "shfl.sync.bfly"),
    edit(
        QUERY,
        "a gradient of the second token comes from the wrong lane",
        "shfl.sync.idx",
        (3, 4),
        "shfl.sync.bfly",
    ),
    edit(
        QUERY,
        "scores of the tokens are swapped",
        "selp.f32  %f423, %f420, %f422",
        (0, 1),
        "selp.f32  %f423, %f422, %f420",
    ),
    edit(QUERY, "a NaN gradient does not count", "setp.neu", (0, 32), "setp.ne"),
    edit(QUERY, "one row too many along Y", "setp.lt.u32", (1, 3), "setp.le.u32"),
    edit(QUERY, "one key too many", "setp.lt.u32", (2, 3), "setp.le.u32"),
    edit(KEY, "the score's exponent misses lse", "sub.f32  %f839", (0, 1), "add.f32  %f839"),
    edit(KEY, "delta has the wrong sign", "sub.f32  %f1112", (0, 1), "add.f32  %f1112"),
    edit(KEY, "a weight comes from the wrong lane", "shfl.sync.idx", (2, 8), "shfl.sync.bfly"),
    edit(KEY, "a gradient comes from the wrong lane", "shfl.sync.idx", (3, 8), "shfl.sync.bfly"),
    edit(KEY, "one query too many has weight", "setp.ge.u32", (0, 1), "setp.gt.u32"),
    edit(KEY, "one query too many has a gradient", "setp.lt.u32", (2, 3), "setp.le.u32"),
    edit(DELTA, "the gradient of lse has the wrong sign", "sub.f32", (0, 1), "add.f32"),
    edit(DELTA, "a step of the sum over lanes is wrong", "shfl.sync.bfly", (0, 5), "shfl.sync.idx"),
    edit(DELTA, "lse in the wrong base", "0f3FB8AA3B", (0, 1), "0f3F800000"),
    edit(SUM, "partial sums are subtracted", "add.f32", (0, 1), "sub.f32"),
];

impl Mutation {
    fn apply(&self) -> String {
        let kernel = kernels().find(|kernel| kernel.entry == self.entry).expect("a shipped kernel");
        let text = kernel.ptx();
        let lines: Vec<&str> = text.lines().collect();
        let places: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains(self.line)).collect();
        assert_eq!(places.len(), self.of, "{}: lines with {:?} in {}", self.what, self.line, self.entry);
        let place = places[self.nth];
        assert_eq!(lines[place].matches(self.line).count(), 1, "{}: {}", self.what, lines[place]);
        let edited = lines[place].replace(self.line, self.to);
        [&lines[..place], &[edited.as_str()], &lines[place + 1..]].concat().join("\n")
    }

    /// What the suite says about the broken kernel, or nothing.
    fn noticed(&self) -> Option<String> {
        let device = Emulated::new(7, 5);
        device.replace(self.entry, self.apply());
        suite(&Cuda::new(device), self.entry == FORWARD).err()
    }
}

#[test]
fn broken_kernels_are_noticed() {
    let mut missed = Vec::new();
    for mutation in MUTATIONS {
        match mutation.noticed() {
            Some(how) => println!("caught: {} ({})", mutation.what, how.lines().next().unwrap_or_default()),
            None => missed.push(mutation.what),
        }
    }
    println!("{} of {} caught", MUTATIONS.len() - missed.len(), MUTATIONS.len());
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
}

#[test]
fn whole_kernels_pass() {
    for forward in [true, false] {
        suite(&Cuda::new(Emulated::new(7, 5)), forward).expect("the shipped kernels are right");
    }
}

/// A digest of the other tests, small enough to run for every edit: borders in every axis, all flags, grouped heads,
/// additional keys, extreme scores, and poisoned tokens.
fn suite(cuda: &Cuda<Emulated>, is_forward: bool) -> Result<(), String> {
    let check = |case: &Case| {
        if is_forward { verify_forward::<f32>(cuda, case) } else { verify_backward::<f32>(cuda, case) }
    };
    let rows = Params::new([3, 2, 2]).stride([2, 1, 1]).is_causal([true, true, false]);
    check(&Case::new([7, 5, 6], rows).dims(64, 64).heads(1, 1))?;
    let flags = Params::new([2, 3, 3]).stride([1, 2, 1]).dilation([2, 1, 2]).is_causal([false, false, true]);
    let mut all = Case::new([5, 6, 7], flags.scale(-0.4)).dims(64, 48).heads(2, 1);
    all.additional = 3;
    check(&all)?;
    check(&Case::new([1, 9, 11], Params::new([1, 5, 5])).dims(64, 64))?;
    if is_forward {
        extreme_scores(cuda)?;
    }
    poisoned_token(cuda, is_forward)
}

/// Rising scores far apart move the lazy maximum again and again; far below zero they test where it starts.
fn extreme_scores(cuda: &Cuda<Emulated>) -> Result<(), String> {
    let case = Case::new([1, 1, 24], Params::new([1, 1, 9]).scale(1.0)).dims(64, 64).heads(1, 1);
    for slope in [12.0, -25.0] {
        let mut operands = Operands::<f32>::draw(&case);
        for (query, key) in operands
            .query
            .as_mut_slice()
            .chunks_mut(64)
            .zip(operands.key.as_mut_slice().chunks_mut(64).enumerate())
        {
            query.fill(0.0);
            query[5] = slope;
            key.1.fill(0.0);
            key.1[5] = (key.0 + 1) as f32;
        }
        let problem = operands.problem(&case.params);
        let (out, lse) = forward(cuda, &problem, &OnDevice::upload(cuda, &operands))?;
        let expected = reference::forward(&problem, &operands.inputs());
        compare("out of extreme scores", &out, &expected.out)?;
        compare("lse of extreme scores", &lse, &expected.lse)?;
    }
    Ok(())
}

/// NaN and infinity in one token of one head, in rows shorter than the kernel's.
fn poisoned_token(cuda: &Cuda<Emulated>, is_forward: bool) -> Result<(), String> {
    let case = Case::new([1, 5, 8], Params::new([1, 3, 3])).dims(48, 48).heads(2, 2);
    let mut operands = Operands::<f32>::draw(&case);
    let row = ((2 * 8 + 5) * 2 + 1) * 48;
    operands.key.as_mut_slice()[row..row + 48].fill(f32::NAN);
    operands.value.as_mut_slice()[row..row + 48].fill(f32::INFINITY);
    if is_forward {
        // Scores of plus or minus infinity: a reference point that moves there for an invisible key is lost.
        let infinite = (3 * 8 + 4) * 2 * 48;
        operands.key.as_mut_slice()[infinite..infinite + 48].fill(0.0);
        operands.key.as_mut_slice()[infinite] = f32::INFINITY;
    }
    let problem = operands.problem(&case.params);
    let device = OnDevice::upload(cuda, &operands);
    let expected = reference::forward(&problem, &operands.inputs());
    if is_forward {
        let (out, lse) = forward(cuda, &problem, &device)?;
        compare("out beside a poisoned token", &out, &expected.out)?;
        return compare("lse beside a poisoned token", &lse, &expected.lse);
    }
    let (out, lse): (Tensor<f32>, Tensor<f32>) = (expected.out.cast(), expected.lse.cast());
    let gradients = backward(cuda, &problem, &operands, &device, (&out, &lse, false))?;
    let is_nan = |row: &[f32]| row.iter().all(|x| x.is_nan());
    let poisoned: Vec<bool> = gradients.query.as_slice().chunks(48).map(is_nan).collect();
    let seeing: Vec<bool> = lse.as_slice().iter().map(|x| x.is_nan()).collect();
    if poisoned != seeing {
        return Err("d_query beside a poisoned token".to_owned());
    }
    poisoned_gradient(cuda, &case)
}

/// NaN in the output's gradient of one query reaches the keys it sees, and no other.
fn poisoned_gradient(cuda: &Cuda<Emulated>, case: &Case) -> Result<(), String> {
    let mut operands = Operands::<f32>::draw(case);
    operands.d_out.as_mut_slice()[(2 * 8 + 4) * 2 * 48] = f32::NAN;
    let problem = operands.problem(&case.params);
    let device = OnDevice::upload(cuda, &operands);
    let expected = reference::forward(&problem, &operands.inputs());
    let (out, lse): (Tensor<f32>, Tensor<f32>) = (expected.out.cast(), expected.lse.cast());
    let found = backward(cuda, &problem, &operands, &device, (&out, &lse, false))?;
    let (out, lse, d_out) = (out.view(), lse.view(), operands.d_out.view());
    let expected = reference::backward(&problem, &operands.inputs(), &Saved { out, lse, d_out, d_lse: None });
    compare("d_key of a poisoned gradient", &found.key, &expected.key)?;
    compare("d_value of a poisoned gradient", &found.value, &expected.value)
}
