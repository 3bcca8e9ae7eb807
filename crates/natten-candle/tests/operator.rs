//! Output, log-sum-exp and gradients against dense masked attention in candle, for every parameter and element type.

mod support;

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use natten_candle::{
    AttentionParams, Params, attention, attention_with_lse, na1d, na1d_with_lse, na2d, na2d_with_lse, na3d,
    na3d_with_lse, neighborhood_attention, neighborhood_attention_qkv, neighborhood_attention_with_lse,
};
use support::{Neighborhood, Operands, Sizes, assert_close, axis, loss, neighborhood, random, sizes};

/// Every parameter alone and together, over every rank.
fn problems() -> Vec<(&'static str, Neighborhood, Sizes<'static>)> {
    vec![
        ("window", neighborhood(&[axis(5)]), sizes(&[13])),
        ("even window", neighborhood(&[axis(4)]), sizes(&[9])),
        ("whole window", neighborhood(&[axis(7)]), sizes(&[7])),
        ("stride", neighborhood(&[axis(5).stride(3)]), sizes(&[14])),
        ("stride of the window", neighborhood(&[axis(4).stride(4)]), sizes(&[10])),
        ("dilation", neighborhood(&[axis(3).dilation(3)]), sizes(&[11])),
        ("causal", neighborhood(&[axis(4).causal()]), sizes(&[9])),
        ("causal stride", neighborhood(&[axis(4).stride(2).causal()]), sizes(&[9])),
        ("scale", neighborhood(&[axis(3)]).scale(-0.7), sizes(&[6])),
        ("scale 0", neighborhood(&[axis(3)]).scale(0.0), sizes(&[6])),
        ("groups", neighborhood(&[axis(3)]), Sizes { heads: 6, heads_kv: 2, ..sizes(&[8]) }),
        ("one key head", neighborhood(&[axis(3)]), Sizes { heads: 3, heads_kv: 1, ..sizes(&[8]) }),
        ("long values", neighborhood(&[axis(3)]), Sizes { head_dim_v: 20, ..sizes(&[8]) }),
        ("short values", neighborhood(&[axis(3)]), Sizes { head_dim_v: 1, ..sizes(&[8]) }),
        ("short rows", neighborhood(&[axis(3)]), Sizes { head_dim: 1, ..sizes(&[8]) }),
        ("additional", neighborhood(&[axis(3)]), Sizes { additional: 5, ..sizes(&[8]) }),
        ("image", neighborhood(&[axis(3), axis(5).dilation(2)]), sizes(&[5, 11])),
        (
            "image, all",
            all_of_an_image(),
            Sizes { heads: 4, head_dim_v: 12, additional: 3, ..sizes(&[6, 9]) },
        ),
        ("video", neighborhood(&[axis(2).causal(), axis(3), axis(3).stride(2)]), sizes(&[3, 5, 6])),
        (
            "video, more",
            neighborhood(&[axis(3), axis(3), axis(3)]),
            Sizes { additional: 2, ..sizes(&[3, 4, 5]) },
        ),
    ]
}

fn all_of_an_image() -> Neighborhood {
    neighborhood(&[axis(4).stride(2).causal(), axis(3).stride(2).dilation(2)]).scale(0.4)
}

fn gradients_of(loss: &Tensor, variables: &[Var]) -> Result<Vec<Tensor>> {
    let gradients = loss.backward()?;
    // Candle has none where a factor of 0 cuts the way.
    variables.iter().map(|var| gradients.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)).collect()
}

#[test]
fn forward_lse_and_gradients_are_those_of_dense_attention() -> Result<()> {
    for (name, neighborhood, sizes) in problems() {
        // f64 leaves the rounding of the log-sum-exp, which is f32.
        for (dtype, most) in [(DType::F64, 2e-6), (DType::F32, 2e-5)] {
            let what = format!("{name}, {dtype:?}");
            let (variables, operands) = sizes.variables(dtype)?;
            let (out, lse) = operands.call().forward_with_lse(neighborhood.params())?;
            let (expected_out, expected_lse) = neighborhood.dense(&operands)?;
            assert_eq!((out.dtype(), lse.dtype()), (dtype, DType::F32));
            assert_close(&out, &expected_out, most, &format!("{what}: out"));
            assert_close(&lse, &expected_lse, most, &format!("{what}: lse"));
            let expected = (loss(&expected_out, 7)? + loss(&expected_lse, 8)?)?;
            let expected = gradients_of(&expected, &variables)?;
            let both = (loss(&out, 7)? + loss(&lse, 8)?.to_dtype(dtype)?)?;
            for (i, (found, expected)) in gradients_of(&both, &variables)?.iter().zip(&expected).enumerate() {
                assert_close(found, expected, most, &format!("{what}: gradient {i}"));
            }
        }
    }
    Ok(())
}

#[test]
fn without_a_graph_the_output_is_the_same() -> Result<()> {
    for (name, neighborhood, sizes) in problems() {
        let (_, tracked) = sizes.variables(DType::F32)?;
        let out = tracked.call().forward(neighborhood.params())?;
        let detached = |tensor: &Tensor| tensor.detach();
        let plain = Operands {
            query: detached(&tracked.query),
            key: detached(&tracked.key),
            value: detached(&tracked.value),
            additional: tracked.additional.as_ref().map(|pair| pair.each_ref().map(detached)),
        };
        let (found, lse) = plain.call().forward_with_lse(neighborhood.params())?;
        assert!(out.track_op() && !found.track_op() && !lse.track_op());
        assert_close(&found, &out, 0.0, name);
        assert_close(&plain.call().forward(neighborhood.params())?, &out, 0.0, name);
    }
    Ok(())
}

#[test]
fn half_types_round_results_and_nothing_else() -> Result<()> {
    // Half a unit in the last place of results of about 1, and of the output that the backward reads.
    for (dtype, most) in [(DType::F16, 2e-3), (DType::BF16, 1.6e-2)] {
        for (name, neighborhood, sizes) in problems() {
            let (variables, operands) = sizes.variables(dtype)?;
            let (out, lse) = operands.call().forward_with_lse(neighborhood.params())?;
            let gradients = gradients_of(&loss(&out, 7)?, &variables)?;
            // The same numbers, exactly, in f64.
            let wide: Vec<_> = variables
                .iter()
                .map(|var| Var::from_tensor(&var.to_dtype(DType::F64)?))
                .collect::<Result<_>>()?;
            let operands = Operands::of(&wide.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>());
            let (expected, expected_lse) = neighborhood.dense(&operands)?;
            assert_eq!(out.dtype(), dtype);
            assert_close(&out, &expected, most, &format!("{name}, {dtype:?}: out"));
            assert_close(&lse, &expected_lse, 1e-4, &format!("{name}, {dtype:?}: lse"));
            let weights = random(out.dims().to_vec(), 7)?.to_dtype(dtype)?.to_dtype(DType::F64)?;
            let expected = gradients_of(&expected.mul(&weights)?.sum_all()?, &wide)?;
            for (i, (found, expected)) in gradients.iter().zip(&expected).enumerate() {
                assert_eq!(found.dtype(), dtype);
                // Gradients sum over queries; their size says how large their last place is.
                let size = expected.abs()?.max_all()?.to_scalar::<f64>()?.max(1.0);
                assert_close(found, expected, 2.0 * most * size, &format!("{name}, {dtype:?}: gradient {i}"));
            }
        }
    }
    Ok(())
}

#[test]
fn views_are_read_where_they_lie() -> Result<()> {
    let image = neighborhood(&[axis(3), axis(3).dilation(2)]);
    let (batch, x, y, heads, dim) = (2, 4, 7, 2, 8);
    // Packed qkv, [batch, x, y, 3, heads, dim], and room around it.
    let packed = Var::from_tensor(&random(vec![batch + 1, x, y + 2, 3, heads, dim], 1)?)?;
    let packed_views = |source: &Tensor| -> Result<Vec<Tensor>> {
        let inner = source.narrow(0, 1, batch)?.narrow(2, 1, y)?;
        (0..3).map(|i| inner.i((.., .., .., i))).collect()
    };
    // Heads before tokens, as other attention wants them, tokens transposed, and a batch that repeats.
    let heads_first = Var::from_tensor(&random(vec![3 * batch, heads, x, y, dim], 2)?)?;
    let heads_first_views = |source: &Tensor| -> Result<Vec<Tensor>> {
        (0..3).map(|i| source.narrow(0, i * batch, batch)?.permute((0, 2, 3, 1, 4))).collect()
    };
    let transposed = Var::from_tensor(&random(vec![3, batch, y, x, heads, dim], 3)?)?;
    let transposed_views =
        |source: &Tensor| -> Result<Vec<Tensor>> { (0..3).map(|i| source.i(i)?.transpose(1, 2)).collect() };
    let one = Var::from_tensor(&random(vec![3, 1, x, y, heads, dim], 4)?)?;
    let repeated = |source: &Tensor| -> Result<Vec<Tensor>> {
        (0..3).map(|i| source.i(i)?.broadcast_as((batch, x, y, heads, dim))).collect()
    };
    type Views<'a> = &'a dyn Fn(&Tensor) -> Result<Vec<Tensor>>;
    let cases: [(&str, &Var, Views); 4] = [
        ("packed", &packed, &packed_views),
        ("heads first", &heads_first, &heads_first_views),
        ("transposed", &transposed, &transposed_views),
        ("repeated", &one, &repeated),
    ];
    for (name, source, views) in cases {
        let operands = Operands::of(&views(source)?);
        assert!(!operands.query.is_contiguous(), "{name}");
        let out = operands.call().forward(image.params())?;
        let (expected, _) = image.dense(&operands)?;
        assert_close(&out, &expected, 2e-6, name);
        let found = gradients_of(&loss(&out, 5)?, std::slice::from_ref(source))?;
        let expected = gradients_of(&loss(&expected, 5)?, std::slice::from_ref(source))?;
        assert_close(&found[0], &expected[0], 2e-6, &format!("{name}: gradient"));
    }
    Ok(())
}

#[test]
fn rows_of_one_number_may_have_any_stride() -> Result<()> {
    // [batch, tokens, 1, heads] transposed: the last axis has the stride of the heads.
    let x = random(vec![1, 6, 1, 2], 1)?.transpose(2, 3)?;
    let params = Params::<1>::new(3);
    let dense = x.force_contiguous()?;
    assert_ne!(x.stride().last(), Some(&1));
    assert_close(
        &na1d(&x, &x, &x, &params)?,
        &na1d(&dense, &dense, &dense, &params)?,
        0.0,
        "rows of one number",
    );
    Ok(())
}

#[test]
fn a_packed_tensor_is_its_three_views() -> Result<()> {
    let cases: [(Neighborhood, &[usize]); 3] = [
        (neighborhood(&[axis(3)]), &[6]),
        (neighborhood(&[axis(3), axis(2).causal()]), &[4, 5]),
        (neighborhood(&[axis(2), axis(3), axis(3).stride(2)]).scale(0.3), &[3, 4, 5]),
    ];
    for (neighborhood, tokens) in cases {
        for has_gaps in [false, true] {
            let shape = [&[2], tokens, &[3, 2, if has_gaps { 12 } else { 8 }]].concat();
            let source = Var::from_tensor(&random(shape, 1)?)?;
            let qkv = source.narrow(tokens.len() + 3, 0, 8)?;
            let third = |i| qkv.narrow(tokens.len() + 1, i, 1)?.squeeze(tokens.len() + 1);
            let out = neighborhood_attention_qkv(&qkv, neighborhood.params())?;
            let expected = neighborhood_attention(&third(0)?, &third(1)?, &third(2)?, neighborhood.params())?;
            assert_close(&out, &expected, 0.0, "packed");
            let found = gradients_of(&loss(&out, 5)?, std::slice::from_ref(&source))?;
            let expected = gradients_of(&loss(&expected, 5)?, std::slice::from_ref(&source))?;
            assert_close(&found[0], &expected[0], 1e-12, "packed gradient");
        }
    }
    Ok(())
}

#[test]
fn every_entry_is_the_same_operator() -> Result<()> {
    let of = |tokens| Ok::<_, candle_core::Error>(sizes(tokens).variables(DType::F32)?.1);
    let same = |(out, lse): (Tensor, Tensor), alone: Tensor, operands: &Operands, params| {
        let (expected, expected_lse) = operands.call().forward_with_lse(params)?;
        assert_close(&out, &expected, 0.0, "out");
        assert_close(&alone, &expected, 0.0, "out alone");
        assert_close(&lse, &expected_lse, 0.0, "lse");
        Ok::<_, candle_core::Error>(())
    };
    let o = of(&[9])?;
    let params = Params::<1>::new(3);
    same(
        na1d_with_lse(&o.query, &o.key, &o.value, &params)?,
        na1d(&o.query, &o.key, &o.value, &params)?,
        &o,
        params.to_dyn(),
    )?;
    let o = of(&[5, 6])?;
    let params = Params::<2>::new([3, 5]).is_causal([true, false]);
    same(
        na2d_with_lse(&o.query, &o.key, &o.value, &params)?,
        na2d(&o.query, &o.key, &o.value, &params)?,
        &o,
        params.to_dyn(),
    )?;
    let o = of(&[3, 4, 5])?;
    let params = Params::<3>::new(3).whole_axis(1);
    same(
        na3d_with_lse(&o.query, &o.key, &o.value, &params)?,
        na3d(&o.query, &o.key, &o.value, &params)?,
        &o,
        params.to_dyn(),
    )?;
    let of_any_rank = neighborhood_attention_with_lse(&o.query, &o.key, &o.value, params)?;
    same(of_any_rank, neighborhood_attention(&o.query, &o.key, &o.value, params)?, &o, params.to_dyn())
}

#[test]
fn plain_attention_is_a_window_over_everything() -> Result<()> {
    let (variables, operands) = sizes(&[7]).variables(DType::F64)?;
    let Operands { query, key, value, .. } = &operands;
    for (params, axis) in [
        (AttentionParams::new(), axis(7)),
        (AttentionParams::new().is_causal(true), axis(7).causal()),
        (AttentionParams::new().causal_from_end(), axis(7).causal()),
    ] {
        let (out, lse) = attention_with_lse(query, key, value, &params)?;
        let (expected, expected_lse) = neighborhood(&[axis]).dense(&operands)?;
        assert_close(&out, &expected, 2e-6, "out");
        assert_close(&lse, &expected_lse, 2e-6, "lse");
        let found = gradients_of(&loss(&out, 5)?, &variables)?;
        for (found, expected) in found.iter().zip(gradients_of(&loss(&expected, 5)?, &variables)?) {
            assert_close(found, &expected, 2e-6, "gradient");
        }
    }
    // One new token over a cache sees all of it, and [batch, heads, tokens, dim] comes as a transposed view.
    let new = query.narrow(1, 6, 1)?.transpose(1, 2)?.contiguous()?;
    let heads_first = |tensor: &Tensor| tensor.transpose(1, 2)?.contiguous();
    let (key, value) = (heads_first(key)?, heads_first(value)?);
    let params = AttentionParams::new().causal_from_end();
    let out = attention(&new.transpose(1, 2)?, &key.transpose(1, 2)?, &value.transpose(1, 2)?, &params)?;
    let (expected, _) = neighborhood(&[axis(7)]).dense(&operands)?;
    assert_close(&out, &expected.narrow(1, 6, 1)?, 2e-6, "decoding");
    Ok(())
}

#[test]
fn an_empty_batch_gives_empty_results() -> Result<()> {
    for tokens in [&[6][..], &[4, 5], &[3, 3, 4]] {
        let window = vec![axis(2); tokens.len()];
        for additional in [0, 3] {
            let sizes = Sizes { batch: 0, additional, ..sizes(tokens) };
            let (variables, operands) = sizes.variables(DType::F32)?;
            let (out, lse) = operands.call().forward_with_lse(neighborhood(&window).params())?;
            assert_eq!((out.elem_count(), lse.elem_count()), (0, 0));
            assert_eq!(out.dims(), operands.query.dims());
            let loss = (out.sum_all()? + lse.sum_all()?)?;
            for (gradient, variable) in gradients_of(&loss, &variables)?.iter().zip(&variables) {
                assert_eq!(gradient.dims(), variable.dims());
            }
        }
    }
    Ok(())
}

#[test]
fn operands_of_one_storage_and_of_one_tensor_add_up() -> Result<()> {
    let x = Var::from_tensor(&random(vec![1, 9, 2, 8], 1)?)?;
    let params = Params::<1>::new(3);
    let window = neighborhood(&[axis(3)]);
    let found = loss(&na1d(&x, &x, &x, &params)?, 5)?.backward()?;
    let expected = window
        .dense(&Operands::of(&[x.as_tensor().clone(), x.as_tensor().clone(), x.as_tensor().clone()]))?
        .0;
    let expected = loss(&expected, 5)?.backward()?;
    assert_close(found.get(&x).expect("found"), expected.get(&x).expect("expected"), 2e-6, "gradient");
    assert!(Device::Cpu.same_device(found.get(&x).expect("found").device()));
    Ok(())
}
