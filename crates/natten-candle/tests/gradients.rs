//! Gradients against finite differences in f64, and what a graph must not do in silence.

mod support;

use candle_core::{DType, Result, Tensor, Var};
use natten_candle::{Params, Region, na1d, na1d_with_lse};
use support::{Neighborhood, Operands, Sizes, assert_close, axis, loss, neighborhood, random, sizes};

/// The loss of a call without a graph.
fn loss_of(neighborhood: &Neighborhood, tensors: &[Tensor]) -> Result<f64> {
    let operands = Operands::of(tensors);
    let out = operands.call().forward(neighborhood.params())?;
    loss(&out, 7)?.to_scalar::<f64>()
}

#[test]
fn gradients_are_the_slopes_of_the_loss() -> Result<()> {
    const STEP: f64 = 1e-4;
    let cases = [
        (
            neighborhood(&[axis(3).stride(2).causal()]).scale(0.9),
            Sizes { batch: 1, additional: 2, ..sizes(&[5]) },
        ),
        (
            neighborhood(&[axis(3), axis(2).dilation(2)]),
            Sizes { batch: 1, heads: 4, head_dim: 3, head_dim_v: 5, ..sizes(&[3, 4]) },
        ),
        (
            neighborhood(&[axis(2).causal(), axis(2), axis(3)]),
            Sizes { batch: 1, heads: 1, heads_kv: 1, head_dim: 4, head_dim_v: 3, ..sizes(&[2, 3, 3]) },
        ),
    ];
    for (neighborhood, sizes) in cases {
        let (variables, operands) = sizes.variables(DType::F64)?;
        let out = operands.call().forward(neighborhood.params())?;
        let gradients = loss(&out, 7)?.backward()?;
        let tensors: Vec<Tensor> = variables.iter().map(|var| var.as_tensor().detach()).collect();
        for (i, variable) in variables.iter().enumerate() {
            let numbers = tensors[i].flatten_all()?.to_vec1::<f64>()?;
            let slopes = (0..numbers.len()).map(|at| {
                let moved = |by: f64| {
                    let mut numbers = numbers.clone();
                    numbers[at] += by;
                    let mut tensors = tensors.clone();
                    tensors[i] = Tensor::from_vec(numbers, tensors[i].shape(), tensors[i].device())?;
                    loss_of(&neighborhood, &tensors)
                };
                Ok((moved(STEP)? - moved(-STEP)?) / (2.0 * STEP))
            });
            let slopes = slopes.collect::<Result<Vec<f64>>>()?;
            let slopes = Tensor::from_vec(slopes, tensors[i].shape(), tensors[i].device())?;
            let found = gradients.get(variable).expect("a gradient");
            assert_close(found, &slopes, 1e-6, &format!("{:?}, gradient {i}", neighborhood.axes));
        }
    }
    Ok(())
}

#[test]
fn a_broadcast_gradient_is_that_of_ones() -> Result<()> {
    let (variables, operands) = sizes(&[6]).variables(DType::F64)?;
    let params = neighborhood(&[axis(3)]).params();
    // The gradient of a sum has stride 0 along every axis, that of a product with ones has none.
    let of_sum = operands.call().forward(params)?.sum_all()?.backward()?;
    let out = operands.call().forward(params)?;
    let of_ones = out.mul(&out.ones_like()?)?.sum_all()?.backward()?;
    for variable in &variables {
        let (found, expected) = (of_sum.get(variable), of_ones.get(variable));
        assert_close(found.expect("found"), expected.expect("expected"), 0.0, "gradient");
    }
    let (_, lse) = operands.call().forward_with_lse(params)?;
    let (of_sum, of_ones) = (lse.sum_all()?.backward()?, lse.mul(&lse.ones_like()?)?.sum_all()?.backward()?);
    for variable in &variables {
        let (found, expected) = (of_sum.get(variable), of_ones.get(variable));
        assert_close(found.expect("found"), expected.expect("expected"), 0.0, "gradient of the log-sum-exp");
    }
    // One number, whose strides say nothing.
    let one = Sizes { batch: 1, heads: 1, heads_kv: 1, head_dim_v: 1, ..sizes(&[1]) };
    let (only, one) = one.variables(DType::F64)?;
    let gradients = one.call().forward(neighborhood(&[axis(1)]).params())?.sum_all()?.backward()?;
    let of_value = gradients.get(&only[2]).expect("a gradient");
    // The log-sum-exp is f32.
    assert_close(of_value, &of_value.ones_like()?, 1e-7, "gradient of the only value");
    // Broadcast along the tokens alone: the last axis is contiguous.
    let weights = random(vec![2, 1, 2, 8], 3)?;
    let of_part = out.broadcast_mul(&weights)?.sum_all()?.backward()?;
    let whole = weights.broadcast_as(out.shape())?.contiguous()?;
    let of_whole = out.mul(&whole)?.sum_all()?.backward()?;
    for variable in &variables {
        let (found, expected) = (of_part.get(variable), of_whole.get(variable));
        assert_close(found.expect("found"), expected.expect("expected"), 1e-14, "gradient");
    }
    Ok(())
}

/// Queries and keys that are a part of the whole, cut out of its tensors: values, and through them gradients of the whole's operands.
#[test]
fn a_part_has_what_the_whole_has_there() -> Result<()> {
    let window = neighborhood(&[axis(4).stride(2).dilation(2), axis(3).causal()]);
    let (variables, operands) = Sizes { heads: 4, additional: 2, ..sizes(&[17, 6]) }.variables(DType::F64)?;
    let part = |tensor: &Tensor, rows: [usize; 2], columns: [usize; 2]| {
        tensor.narrow(1, rows[0], rows[1] - rows[0])?.narrow(2, columns[0], columns[1] - columns[0])
    };
    // Blocks of 4 rows: that of rows 8 to 11 has its windows from row 6 to row 13.
    let (queries, keys) = ([[9, 12], [2, 6]], [[6, 14], [0, 6]]);
    let held = Operands {
        query: part(&operands.query, queries[0], queries[1])?,
        key: part(&operands.key, keys[0], keys[1])?,
        value: part(&operands.value, keys[0], keys[1])?,
        ..operands.clone()
    };
    let params = window.params().region(0, Region::of(17).queries(9..12).keys(6..14));
    let params = params.region(1, Region::of(6).queries(2..6));
    let (out, lse) = held.call().forward_with_lse(params)?;
    let (of_whole, lse_of_whole) = operands.call().forward_with_lse(window.params())?;
    let there = part(&of_whole, queries[0], queries[1])?;
    assert_close(&out, &there, 1e-13, "output");
    assert_close(&lse, &part(&lse_of_whole, queries[0], queries[1])?, 1e-6, "log-sum-exp");
    let (found, expected) = (loss(&out, 7)?.backward()?, loss(&there, 7)?.backward()?);
    for (i, variable) in variables.iter().enumerate() {
        let (found, expected) = (found.get(variable), expected.get(variable));
        // The log-sum-exp that gradients start from is f32.
        assert_close(found.expect("found"), expected.expect("expected"), 2e-6, &format!("gradient {i}"));
    }
    Ok(())
}

#[test]
fn the_log_sum_exp_has_a_gradient_alone_too() -> Result<()> {
    let window = neighborhood(&[axis(3), axis(3)]);
    let (variables, operands) = Sizes { additional: 2, ..sizes(&[4, 5]) }.variables(DType::F64)?;
    let (out, lse) = operands.call().forward_with_lse(window.params())?;
    assert!(out.track_op() && lse.track_op());
    let (_, expected) = window.dense(&operands)?;
    let found = loss(&lse, 8)?.backward()?;
    let expected = loss(&expected, 8)?.backward()?;
    for (i, variable) in variables.iter().enumerate() {
        let found = found.get(variable).expect("found");
        match expected.get(variable) {
            Some(expected) => assert_close(found, expected, 2e-6, &format!("gradient {i}")),
            None => assert_close(found, &found.zeros_like()?, 0.0, "values do not reach the log-sum-exp"),
        }
    }
    // The same graph gives the output's gradient again, whatever was asked of it before.
    let again = loss(&out, 7)?.backward()?;
    let expected = loss(&window.dense(&operands)?.0, 7)?.backward()?;
    for variable in &variables {
        let (found, expected) = (again.get(variable).expect("found"), expected.get(variable));
        assert_close(found, expected.expect("expected"), 2e-6, "gradient of the output");
    }
    Ok(())
}

#[test]
fn only_what_has_a_graph_gets_a_gradient_and_one_is_enough() -> Result<()> {
    let (variables, operands) = sizes(&[6]).variables(DType::F64)?;
    let params = neighborhood(&[axis(3)]).params();
    let all = loss(&operands.call().forward(params)?, 7)?.backward()?;
    for (i, variable) in variables.iter().enumerate() {
        let mut tensors: Vec<_> = variables.iter().map(|var| var.as_tensor().detach()).collect();
        tensors[i] = variable.as_tensor().clone();
        let alone = loss(&Operands::of(&tensors).call().forward(params)?, 7)?.backward()?;
        assert_close(alone.get(variable).expect("found"), all.get(variable).expect("expected"), 0.0, "alone");
        assert!(variables.iter().enumerate().all(|(j, other)| j == i || alone.get(other).is_none()));
    }
    Ok(())
}

#[test]
fn a_second_derivative_is_an_error() -> Result<()> {
    let (variables, operands) = sizes(&[6]).variables(DType::F64)?;
    let (out, lse) = na1d_with_lse(&operands.query, &operands.key, &operands.value, &Params::new(3))?;
    for first in [loss(&out, 7)?, loss(&lse, 7)?] {
        let gradients = first.backward()?;
        for variable in &variables {
            let gradient = gradients.get(variable).expect("a gradient");
            let error = gradient.sqr()?.sum_all()?.backward().map(drop).expect_err("a second derivative");
            assert!(error.to_string().contains("has no second derivative"), "{error}");
            // Detached it is a number like any other.
            assert!(gradient.detach().sqr()?.sum_all()?.backward().is_ok());
        }
    }
    Ok(())
}

#[test]
fn a_step_of_gradient_descent_goes_downhill() -> Result<()> {
    let x = Var::from_tensor(&random(vec![1, 8, 2, 8], 1)?)?;
    let descend = || -> Result<f64> {
        let loss = na1d(&x, &x, &x, &Params::new(3))?.sqr()?.sum_all()?;
        let gradient = loss.backward()?.remove(&x).expect("a gradient");
        x.set(&x.sub(&gradient.affine(0.05, 0.0)?)?)?;
        loss.to_scalar::<f64>()
    };
    let losses = (0..20).map(|_| descend()).collect::<Result<Vec<_>>>()?;
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    Ok(())
}
