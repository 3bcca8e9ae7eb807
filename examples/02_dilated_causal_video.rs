//! Video: a window over time and space, causal in time, wider in space through dilation.
//!
//! Frames see themselves and the past alone, so changing the last frame must leave all earlier ones as they were.

use natten::{Error, Params, Tensor, na3d};

fn main() -> Result<(), Error> {
    // [batch, time, height, width, heads, head_dim]
    let shape = [1, 6, 16, 16, 2, 32];
    let video = Tensor::from_fn(&shape, |i| (i as f32 * 0.37).sin())?;
    // 3 frames back, every second pixel of a 9 x 9 area: 5 x 5 tokens.
    let params = Params::new([3, 5, 5]).dilation([1, 2, 2]).is_causal([true, false, false]);
    let out = na3d(&video, &video, &video, &params)?;

    let last_frame = video.as_slice().len() / 6 * 5;
    let mut changed = video.clone();
    changed.as_mut_slice()[last_frame..].fill(1.0);
    let out_changed = na3d(&changed, &changed, &changed, &params)?;

    let same = out.as_slice()[..last_frame] == out_changed.as_slice()[..last_frame];
    println!("{:?}; frames 0 to 4 unchanged by a new frame 5: {same}", out.shape());
    assert!(same);
    Ok(())
}
