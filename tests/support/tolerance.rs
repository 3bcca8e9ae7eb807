//! How much a backend may err: twice as much as a naive implementation in the same element type, plus a floor measured on
//! the exact result. There is no other number.

use natten::{Element, ElementType, Tensor};

use crate::dense::Summed;

/// Allowed error of a result in `E`, of every element alike.
///
/// The naive implementation that a kernel is measured by keeps its weights as the kernel does: in f32, or rounded to the
/// element type before they meet the values. The floor is what the exact result loses when it is stored in `E`, plus one
/// unit of roundoff of the arithmetic on the terms that are added up: a naive result may be exact by luck, as where a
/// window holds one key.
pub fn tolerance<E: Element>(exact: &Summed, naive: &Summed) -> f64 {
    let stored: Tensor<E> = naive.value.cast();
    let error = |a: f64, b: f64| if a.is_finite() && b.is_finite() { (a - b).abs() } else { 0.0 };
    let numbers = exact.value.as_slice().iter().zip(stored.as_slice());
    let naive_error = numbers.fold(0.0, |worst: f64, (&x, y)| worst.max(error(y.to_f64(), x)));
    let stored = exact.value.as_slice().iter().map(|&x| error(E::from_f64(x).to_f64(), x));
    let storing = stored.fold(0.0, f64::max);
    let terms =
        exact.terms.as_slice().iter().filter(|x| x.is_finite()).fold(0.0, |worst: f64, &x| worst.max(x));
    2.0 * naive_error + storing + roundoff::<E>() * terms
}

/// One unit of roundoff of the arithmetic on tensors of `E`.
fn roundoff<E: Element>() -> f64 {
    (if E::TYPE == ElementType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) }) / 2.0
}

/// What a number loses when it is rounded to the element type, at most, relative to itself: half of what lies between 1 and
/// the next number.
pub fn rounding<E: Element>() -> f64 {
    let is_above_one = |step: &f64| E::from_f64(1.0 + step).to_f64() > 1.0;
    (1..60).map(|log2| 0.5f64.powi(log2)).take_while(is_above_one).last().unwrap_or(1.0) / 2.0
}
