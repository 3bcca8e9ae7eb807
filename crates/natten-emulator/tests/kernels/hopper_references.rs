//! References of rows on Hopper: weights are taken before anybody looks at scores, so where these lie decides whether a row's reference
//! moves, and whether its item comes again.

use natten_core::plan::{KeyStart, Tiling};
use natten_core::{Backend, Element, ElementType, Output, Params, Problem, Tensor, bf16, f16, reference};
use natten_cuda::{Cuda, Request};
use natten_emulator::{Completion, Emulated, Options};
use natten_tests::compare::each_within;

use crate::case::{self, Case, Operands};

const ROW: usize = 64;

/// Operands of one head, whose scores of some keys a query can shift: those keys are 1 in their first component, the others and all queries
/// 0.
fn operands<E: Element>(case: &Case, shifted: impl Fn(usize) -> bool) -> Operands<E> {
    let mut operands = Operands::<E>::draw(case);
    operands.query.as_mut_slice().iter_mut().step_by(ROW).for_each(|x| *x = E::from_f64(0.0));
    for (key, x) in operands.key.as_mut_slice().iter_mut().step_by(ROW).enumerate() {
        *x = E::from_f64(if shifted(key) { 1.0 } else { 0.0 });
    }
    operands
}

/// Multiplies a query's weights of those keys by a power of two.
fn shift<E: Element>(operands: &mut Operands<E>, problem: &Problem, query: usize, powers: f64) {
    let by = powers / (problem.scale() * std::f64::consts::LOG2_E);
    operands.query.as_mut_slice()[query * ROW] = E::from_f64(by);
}

/// What a forward gives, after it was held to the reference, and the pairs that its products were of.
struct Run<E> {
    out: Tensor<E>,
    pairs: f64,
    planned: f64,
}

fn run<E: Element>(operands: &Operands<E>, problem: &Problem) -> Run<E> {
    run_as(operands, problem, None)
}

fn run_as<E: Element>(operands: &Operands<E>, problem: &Problem, tiling: Option<Tiling>) -> Run<E> {
    let entry = if E::TYPE == ElementType::F16 {
        "natten_forward_sm90_f16_d64"
    } else {
        "natten_forward_sm90_bf16_d64"
    };
    let device = Emulated::new(9, 0);
    device.set_options(Options { seed: 7, completion: Completion::Random, ..Options::default() });
    let cuda = Cuda::new(device).with_request(Request { entry: Some(entry), tiling, ..Request::default() });
    let uploaded = case::OnDevice::upload(&cuda, operands);
    let mut of_plan = cuda.allocate::<E>(&problem.out_shape()).unwrap();
    let output = Output { out: of_plan.view_mut(), lse: None };
    let planned = cuda.explain(problem, &uploaded.inputs(), &output).unwrap().issued_over_useful
        * problem.scores() as f64;
    cuda.device().take_counters();
    let (out, lse) = case::forward(&cuda, problem, &uploaded).unwrap();
    let pairs = cuda.device().take_counters()[entry].mma_flops as f64 / (2.0 * 2.0 * ROW as f64);
    let expected = reference::forward(problem, &operands.inputs());
    let roundoff = if E::TYPE == ElementType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
    each_within("out", &out, &expected.out, |exact| roundoff * (exact.abs() + 2.0) * 1.02 + 1e-4).unwrap();
    each_within("lse", &lse, &expected.lse, |exact| 1e-5 * exact.abs().max(4.0)).unwrap();
    Run { out, pairs, planned }
}

/// Every query sees every key, so that all four items have the same tiles. The keys of all but the first are shifted.
fn dense<E: Element>() -> (Operands<E>, Problem) {
    let params = Params::new([1, 1, 512]);
    let operands =
        operands::<E>(&Case::new([1, 1, 512], params).dims(ROW, ROW).heads(1, 1), |key| key >= 128);
    let problem = operands.problem(&params);
    (operands, problem)
}

/// Powers of two that a reference of 0 is too far from, but no weight: in one direction and the other.
fn within_reach<E: Element>() -> [f64; 2] {
    if E::TYPE == ElementType::F16 { [-20.0, 20.0] } else { [-70.0, 70.0] }
}

/// Weights that f32 has are moved, row by row, and no other row notices; no product is done again.
fn rows_move_alone<E: Element + PartialEq + std::fmt::Debug>() {
    let (mut operands, problem) = dense::<E>();
    let plain = run(&operands, &problem);
    assert_eq!(plain.pairs, plain.planned);
    for (query, powers) in [3, 130, 131, 511].into_iter().zip(within_reach::<E>().into_iter().cycle()) {
        shift(&mut operands, &problem, query, powers);
    }
    let shifted = run(&operands, &problem);
    assert_eq!(shifted.pairs, shifted.planned);
    let rows = plain.out.as_slice().chunks(ROW).zip(shifted.out.as_slice().chunks(ROW));
    for (query, (before, after)) in rows.enumerate() {
        assert!([3, 130, 131, 511].contains(&query) || before == after, "query {query}");
    }
}

#[test]
fn rows_move_alone_in_bf16() {
    rows_move_alone::<bf16>();
}

#[test]
fn rows_move_alone_in_f16() {
    rows_move_alone::<f16>();
}

/// Where weights leave f32 the item comes again, and no other: it is one of four. Only the row that lost them changes.
fn items_come_again<E: Element + PartialEq + std::fmt::Debug>() {
    let (mut operands, problem) = dense::<E>();
    let plain = run(&operands, &problem);
    shift(&mut operands, &problem, 200, 300.0);
    let again = run(&operands, &problem);
    assert_eq!(again.pairs, again.planned * 1.25);
    let others = |out: &Tensor<E>| [&out.as_slice()[..200 * ROW], &out.as_slice()[201 * ROW..]].concat();
    assert_eq!(others(&plain.out), others(&again.out));
    // The last item as well, behind which there is none that would ask how it went.
    shift(&mut operands, &problem, 400, 200.0);
    assert_eq!(run(&operands, &problem).pairs, again.planned * 1.5);
}

/// What one key has all the weight of is that key's value, to the bit.
#[test]
fn a_query_of_one_key_gets_its_value() {
    let params = Params::new([1, 1, 100]);
    let case = Case::new([1, 1, 100], params).dims(ROW, ROW).heads(1, 1);
    let mut operands = operands::<bf16>(&case, |key| key == 70);
    let problem = operands.problem(&params);
    (0..100).for_each(|query| shift(&mut operands, &problem, query, 61.3));
    let value = operands.value.as_slice()[70 * ROW..][..ROW].to_vec();
    let found = run(&operands, &problem).out;
    assert!(found.as_slice().chunks(ROW).all(|row| row == value));
}

#[test]
fn items_come_again_where_weights_leave_f32() {
    items_come_again::<bf16>();
    items_come_again::<f16>();
}

/// A row whose weights begin small in a later tile than the item's first: nothing tells before its end.
fn small_totals_come_again<E: Element>() {
    let params = Params::new([1, 5, 5]);
    let mut operands = operands::<E>(&Case::new([1, 32, 32], params).dims(ROW, ROW).heads(1, 1), |_| true);
    let problem = operands.problem(&params);
    let tiling = Tiling { query_tile: [1, 8, 16], key_tile: [1, 2, 32], key_start: KeyStart::Dynamic };
    let plain = run_as(&operands, &problem, Some(tiling));
    assert_eq!(plain.pairs, plain.planned);
    let [low, _] = within_reach::<E>();
    (0..32 * 32).for_each(|query| shift(&mut operands, &problem, query, low));
    let small = run_as(&operands, &problem, Some(tiling));
    assert!(
        small.pairs > small.planned && small.pairs <= 2.0 * small.planned,
        "{} {}",
        small.pairs,
        small.planned
    );
}

#[test]
fn small_totals_are_done_again() {
    small_totals_come_again::<bf16>();
    small_totals_come_again::<f16>();
}
