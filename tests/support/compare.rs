//! Comparing tensors, non-finite numbers included.

use natten::{Element, Tensor};

/// The largest difference; NaN where one is not finite and the other is not the same.
pub fn largest_error<A: Element, B: Element>(found: &Tensor<A>, expected: &Tensor<B>) -> f64 {
    assert_eq!(found.shape(), expected.shape(), "shapes");
    let pairs = found.as_slice().iter().zip(expected.as_slice());
    let errors = pairs.map(|(a, b)| difference(a.to_f64(), b.to_f64()));
    errors.fold(0.0, |worst: f64, e| if worst.is_nan() || e.is_nan() { f64::NAN } else { worst.max(e) })
}

fn difference(found: f64, expected: f64) -> f64 {
    let same = found == expected || (found.is_nan() && expected.is_nan());
    if same {
        0.0
    } else if found.is_finite() && expected.is_finite() {
        (found - expected).abs()
    } else {
        f64::NAN
    }
}

/// Fails unless every difference is at most `tolerance`; names the worst element.
pub fn assert_close<A: Element, B: Element>(
    what: &str,
    found: &Tensor<A>,
    expected: &Tensor<B>,
    tolerance: f64,
) {
    let error = largest_error(found, expected);
    if error <= tolerance {
        return;
    }
    let pairs = found.as_slice().iter().zip(expected.as_slice());
    let rank = |e: f64| if e.is_nan() { f64::INFINITY } else { e };
    let (index, (a, b)) = pairs
        .enumerate()
        .max_by(|(_, x), (_, y)| {
            let error = |(a, b): &(&A, &B)| rank(difference(a.to_f64(), b.to_f64()));
            error(x).total_cmp(&error(y))
        })
        .expect("an empty tensor has no error");
    panic!(
        "{what}: element {index} of {:?} is {a:?}, expected {b:?}; error {error:e}, allowed {tolerance:e}",
        found.shape()
    );
}

/// Largest magnitude of a tensor.
pub fn largest<E: Element>(tensor: &Tensor<E>) -> f64 {
    tensor.as_slice().iter().fold(0.0, |worst: f64, x| worst.max(x.to_f64().abs()))
}

/// Whether two tensors are the same bits.
pub fn same_bits<E: Element>(a: &Tensor<E>, b: &Tensor<E>) -> bool {
    let bytes = |tensor: &Tensor<E>| bytemuck::cast_slice::<E, u8>(tensor.as_slice()).to_vec();
    a.shape() == b.shape() && bytes(a) == bytes(b)
}
