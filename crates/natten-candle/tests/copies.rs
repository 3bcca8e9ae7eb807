//! Operands are not copied: a call allocates its results and what natten itself does, whatever the strides.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use natten_candle::{Params, na2d, neighborhood_attention_qkv};

/// The system's allocator, with the sum of what was asked of it.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes_of(call: impl Fn() -> Result<Tensor>) -> Result<usize> {
    // The first call may set up what later ones share.
    call()?;
    let before = BYTES.load(Relaxed);
    call()?;
    Ok(BYTES.load(Relaxed) - before)
}

#[test]
fn views_allocate_no_more_than_contiguous_tensors() -> Result<()> {
    let params = Params::<2>::new(3);
    let (batch, side, heads, dim) = (2, 24, 4, 32);
    let out_bytes = batch * side * side * heads * dim * size_of::<f32>();
    let qkv = Tensor::randn(0f32, 1f32, (batch, side, side, 3, heads, dim), &Device::Cpu)?;
    let views: Vec<_> = (0..3).map(|i| qkv.i((.., .., .., i))).collect::<Result<_>>()?;
    let heads_first = Tensor::zeros((3, batch, heads, side, side, dim), DType::F32, &Device::Cpu)?;
    let permuted: Vec<_> =
        (0..3).map(|i| heads_first.i(i)?.permute((0, 2, 3, 1, 4))).collect::<Result<_>>()?;
    let dense: Vec<_> = views.iter().map(Tensor::contiguous).collect::<Result<_>>()?;
    let of_dense = bytes_of(|| na2d(&dense[0], &dense[1], &dense[2], &params))?;
    assert!(of_dense >= out_bytes);
    // Small things differ by what the pool of threads does meanwhile; a copy of an operand is as large as the output.
    let most = of_dense + out_bytes / 2;
    for (name, bytes) in [
        ("packed views", bytes_of(|| na2d(&views[0], &views[1], &views[2], &params))?),
        ("heads first", bytes_of(|| na2d(&permuted[0], &permuted[1], &permuted[2], &params))?),
        ("packed", bytes_of(|| neighborhood_attention_qkv(&qkv, params))?),
    ] {
        assert!(bytes < most, "{name}: {bytes} bytes, {of_dense} of contiguous tensors");
    }
    Ok(())
}
