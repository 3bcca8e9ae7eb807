//! Tokens that every query sees besides its window: registers, a prompt, a summary of the picture.
//!
//! They share the softmax with the window, and get gradients of their own.

use natten::{Call, Error, Params, Saved, Tensor};

fn main() -> Result<(), Error> {
    // [batch, height, width, heads, head_dim]; keys and values have 2 heads for the query's 4.
    let query = Tensor::from_fn(&[1, 12, 12, 4, 16], |i| (i as f32 * 0.31).sin())?;
    let key = Tensor::from_fn(&[1, 12, 12, 2, 16], |i| (i as f32 * 0.47).cos())?;
    let value = Tensor::from_fn(&[1, 12, 12, 2, 16], |i| (i as f32 * 0.13).sin())?;
    // [batch, n, heads_kv, head_dim]
    let register_keys = Tensor::from_fn(&[1, 5, 2, 16], |i| (i as f32 * 0.71).sin())?;
    let register_values = Tensor::from_fn(&[1, 5, 2, 16], |i| (i as f32 * 0.19).cos())?;
    let params = Params::new([3, 3]);

    let call = Call::new(&query, &key, &value)?.additional(&register_keys, &register_values)?;
    let (out, lse) = call.forward_with_lse(&params)?;
    let d_out = Tensor::from_fn(out.shape(), |_| 1.0)?;
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let gradients = call.backward(&params, &saved)?;

    println!("out {:?}, lse {:?}", out.shape(), lse.shape());
    if let Some([d_keys, d_values]) = gradients.additional {
        println!("gradients of the registers {:?} and {:?}", d_keys.shape(), d_values.shape());
    }
    Ok(())
}
