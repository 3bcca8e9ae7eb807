//! Attention over keys that arrive in parts: attend to each part, then merge by log-sum-exp.
//!
//! This is how keys are split over machines, or cached ones joined with new ones; the result is that of one softmax
//! over all of them.

use std::ops::Range;

use natten::{
    AttentionParams, Error, Tensor, TensorError, TensorView, attention, attention_with_lse, merge_attentions,
};

/// Some tokens of a tensor `[1, tokens, heads, head_dim]`.
fn part(tensor: &Tensor<f32>, tokens: Range<usize>) -> Result<TensorView<'_, f32>, TensorError> {
    let &[_, _, heads, head_dim] = tensor.shape() else { unreachable!("four axes") };
    let row = heads * head_dim;
    let shape = [1, tokens.len(), heads, head_dim];
    TensorView::from_slice(&shape, &tensor.as_slice()[tokens.start * row..tokens.end * row])
}

fn main() -> Result<(), Error> {
    // [batch, tokens, heads, head_dim]
    let (heads, head_dim, keys) = (2, 16, 96);
    let query = Tensor::from_fn(&[1, 40, heads, head_dim], |i| (i as f32 * 0.29).sin())?;
    let key = Tensor::from_fn(&[1, keys, heads, head_dim], |i| (i as f32 * 0.53).cos())?;
    let value = Tensor::from_fn(&[1, keys, heads, head_dim], |i| (i as f32 * 0.17).sin())?;
    let params = AttentionParams::new();

    // The first 32 keys and the other 64, as views of the same memory.
    let (out_a, lse_a) = attention_with_lse(&query, &part(&key, 0..32)?, &part(&value, 0..32)?, &params)?;
    let (out_b, lse_b) =
        attention_with_lse(&query, &part(&key, 32..keys)?, &part(&value, 32..keys)?, &params)?;
    let (merged, _) = merge_attentions(&[&out_a, &out_b], &[&lse_a, &lse_b])?;

    let whole = attention(&query, &key, &value, &params)?;
    let apart = whole.as_slice().iter().zip(merged.as_slice()).map(|(a, b)| (a - b).abs());
    let apart = apart.fold(0.0, f32::max);
    println!("{:?}; largest difference to one softmax over all keys: {apart:.1e}", merged.shape());
    assert!(apart < 1e-5);
    Ok(())
}
