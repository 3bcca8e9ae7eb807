//! Video that arrives frame by frame: each attends to itself and to the frames before it, which a cache keeps.
//!
//! The cache holds a few frames however long the stream gets, and every output is that of one call on all of it.

use natten::cpu::Cpu;
use natten::streaming::{FrameCache, Length, StreamError};
use natten::{Params, Tensor, na3d};

fn main() -> Result<(), StreamError> {
    // 5 frames back in steps of 2, and the 7 x 7 pixels around; two queries in time share a window.
    let params = Params::new([5, 7, 7]).dilation([2, 1, 1]).stride([2, 1, 1]).is_causal([true, false, false]);
    // [batch, frames, height, width, heads, head_dim]: what the camera delivers at once.
    let one_frame = [1, 1, 16, 16, 2, 32];
    let mut cache = FrameCache::new(Cpu::new(), params, Length::Unbounded, &one_frame, 32)?;

    let clip = Tensor::from_fn(&[1, 40, 16, 16, 2, 32], |i| (i as f32 * 0.37).sin())?;
    let mut streamed = Tensor::<f32>::zeros(clip.shape())?;
    for t in 0..40 {
        let frame = clip.view().narrow(1, t..t + 1)?;
        cache.append(&frame, &frame)?;
        let out = cache.attend(&frame)?;
        streamed.view_mut().narrow(1, t..t + 1)?.copy_from(&out.view())?;
    }

    let whole = na3d(&clip, &clip, &clip, &params)?;
    let pairs = streamed.as_slice().iter().zip(whole.as_slice());
    let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{} frames, room for {} in the cache", cache.frames(), cache.stored_frames());
    println!("largest difference from one call on all of them: {error:e}");
    assert!(error < 1e-6);
    Ok(())
}
