//! Encodes a truth case's tensor map with the driver.

use natten_cuda::cudarc::driver::sys;

use crate::driver::{Buffer, Failure, Parameter};
use crate::truth::{MapElement, Swizzle, TensorMap};

/// The map over `buffer`, as a kernel parameter.
///
/// # Errors
/// When the driver refuses it.
pub fn encode(map: &TensorMap, buffer: &Buffer) -> Result<Parameter, Failure> {
    use sys::CUtensorMapDataType_enum as Type;
    use sys::CUtensorMapSwizzle_enum as Mode;
    let element = match map.element {
        MapElement::U16 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        MapElement::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        MapElement::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => Mode::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => Mode::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => Mode::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => Mode::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let mut encoded = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
    // SAFETY: every array has as many entries as the rank (the strides one less), and the result has the driver's own
    // type and alignment.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            encoded.as_mut_ptr(),
            element,
            map.extents.len() as u32,
            buffer.address as *mut _,
            map.extents.as_ptr(),
            map.strides_bytes.as_ptr(),
            map.box_extents.as_ptr(),
            map.element_strides.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    if status != sys::CUresult::CUDA_SUCCESS {
        let text = format!("cuTensorMapEncodeTiled refused ({}): {map:?}", status as i32);
        return Err(Failure { text });
    }
    // SAFETY: zeroed, then written by the driver; any bits are a value of the type.
    let encoded = unsafe { encoded.assume_init() };
    let mut bytes = [0; 128];
    for (to, word) in bytes.chunks_exact_mut(8).zip(encoded.opaque) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Ok(Parameter(bytes))
}
