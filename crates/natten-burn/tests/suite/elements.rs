//! Every element type, against f64 on the same rounded numbers.

use burn::tensor::{DType, Device, Tensor};
use natten_burn::{Call, Params};

use crate::support::{assert_close, random};

/// Output and gradients of query, key and value; the log-sum-exp is f32 whatever the operands hold.
fn results(dtype: DType, rounded_to: DType) -> [Tensor<5>; 4] {
    let device = Device::flex().autodiff();
    let tensors = [1, 2, 3].map(|seed| {
        let tensor = random::<5>([1, 6, 7, 2, 16], seed, &device, DType::F64);
        tensor.cast(rounded_to).cast(dtype).detach().require_grad()
    });
    let [query, key, value] = tensors.clone();
    let params = Params::new([3, 5]).dilation([2, 1]);
    let (out, lse) = Call::new(query, key, value).forward_with_lse::<4>(&params).unwrap();
    assert_eq!((out.dtype(), lse.dtype()), (dtype, DType::F32));
    let weights = random(out.dims(), 4, &device, DType::F64).cast(rounded_to).cast(dtype);
    let gradients = (out.clone() * weights).sum().backward();
    let [query, key, value] = tensors.map(|tensor| tensor.grad(&gradients).unwrap());
    assert_eq!(query.dtype(), dtype);
    [out.inner(), query, key, value].map(|tensor| tensor.cast(DType::F64))
}

/// Some roundings of results between -1 and 1, of the order of one another.
#[test]
fn every_element_type_gives_what_f64_gives() {
    for (dtype, most) in [(DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let names = ["out", "query", "key", "value"];
        let pairs = results(dtype, dtype).into_iter().zip(results(DType::F64, dtype));
        for (name, (found, expected)) in names.iter().zip(pairs) {
            assert_close(&format!("{dtype:?}: {name}"), &found, &expected, most);
        }
    }
}
