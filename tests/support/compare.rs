//! Comparing tensors, non-finite numbers included.

use natten::{Element, Tensor};

/// The largest difference; NaN where one is not finite and the other is not the same.
pub fn largest_error<A: Element, B: Element>(found: &Tensor<A>, expected: &Tensor<B>) -> f64 {
    assert_eq!(found.shape(), expected.shape(), "shapes");
    let pairs = found.as_slice().iter().zip(expected.as_slice());
    let errors = pairs.map(|(a, b)| difference::<A>(a.to_f64(), b.to_f64()));
    errors.fold(0.0, |worst: f64, e| if worst.is_nan() || e.is_nan() { f64::NAN } else { worst.max(e) })
}

/// Between an element and what it should be. The number of its type that is nearest to that, an infinity where it has no larger
/// ones, is as near as can be.
fn difference<A: Element>(found: f64, expected: f64) -> f64 {
    let nearest = A::from_f64(expected).to_f64();
    let same = found == expected || found == nearest || (found.is_nan() && expected.is_nan());
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
            let error = |(a, b): &(&A, &B)| rank(difference::<A>(a.to_f64(), b.to_f64()));
            error(x).total_cmp(&error(y))
        })
        .expect("an empty tensor has no error");
    panic!(
        "{what}: element {index} of {:?} is {a:?}, expected {b:?}; error {error:e}, allowed {tolerance:e}",
        found.shape()
    );
}

/// Whether every element is within what its exact value allows; the error names the first that is not.
///
/// # Errors
/// See above.
pub fn each_within<A: Element, B: Element>(
    what: &str,
    found: &Tensor<A>,
    expected: &Tensor<B>,
    allowed: impl Fn(f64) -> f64,
) -> Result<(), String> {
    each_within_at(what, found, expected, |_, exact| allowed(exact))
}

/// [`each_within`] where what is allowed depends on the element's number, too.
///
/// # Errors
/// As there.
pub fn each_within_at<A: Element, B: Element>(
    what: &str,
    found: &Tensor<A>,
    expected: &Tensor<B>,
    allowed: impl Fn(usize, f64) -> f64,
) -> Result<(), String> {
    if found.shape() != expected.shape() {
        return Err(format!("{what}: shape {:?}, expected {:?}", found.shape(), expected.shape()));
    }
    for (i, (a, b)) in found.as_slice().iter().zip(expected.as_slice()).enumerate() {
        let (a, b) = (a.to_f64(), b.to_f64());
        // What an infinity allows is infinite, so it is asked of finite numbers only.
        let error = difference::<A>(a, b);
        let is_within = error <= allowed(i, b);
        if error != 0.0 && !is_within {
            return Err(format!("{what}[{i}] = {a}, expected {b}"));
        }
    }
    Ok(())
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

/// Whether one row of two tensors, so many elements wide, is the same bits.
pub fn same_row<E: Element>(a: &Tensor<E>, b: &Tensor<E>, row: usize, width: usize) -> bool {
    let bytes = |tensor: &Tensor<E>| {
        bytemuck::cast_slice::<E, u8>(&tensor.as_slice()[row * width..][..width]).to_vec()
    };
    bytes(a) == bytes(b)
}

/// The largest difference of one row of two tensors, so many elements wide; NaN as in [`largest_error`].
pub fn row_error<A: Element, B: Element>(a: &Tensor<A>, b: &Tensor<B>, row: usize, width: usize) -> f64 {
    let row = row * width..(row + 1) * width;
    let pairs = a.as_slice()[row.clone()].iter().zip(&b.as_slice()[row]);
    let errors = pairs.map(|(a, b)| difference::<A>(a.to_f64(), b.to_f64()));
    errors.fold(0.0, |worst: f64, e| if worst.is_nan() || e.is_nan() { f64::NAN } else { worst.max(e) })
}

/// Fails unless what should be finite is, and the rest is the same infinity or NaN.
pub fn assert_same_classes<A: Element, B: Element>(what: &str, found: &Tensor<A>, expected: &Tensor<B>) {
    assert_eq!(found.shape(), expected.shape(), "{what}: shapes");
    let class = |x: f64| (x.is_nan(), x.is_infinite().then_some(x > 0.0));
    for (i, (found, expected)) in found.as_slice().iter().zip(expected.as_slice()).enumerate() {
        let is_same = class(found.to_f64()) == class(expected.to_f64());
        assert!(is_same, "{what}: element {i} is {found:?}, expected {expected:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No tolerance is a bridge to infinity, or from it.
    #[test]
    fn what_is_not_finite_equals_only_itself() {
        let one = |x: f64| Tensor::from_vec(&[1], vec![x]).expect("one number");
        let numbers = [0.0, 5.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        for (i, a) in numbers.into_iter().enumerate() {
            for (j, b) in numbers.into_iter().enumerate() {
                let is_close = largest_error(&one(a), &one(b)) <= 10.0;
                assert_eq!(is_close, i == j || i.max(j) < 2, "{a} and {b}");
            }
        }
    }
}
