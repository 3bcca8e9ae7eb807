//! Copies of views whose rows are not contiguous, as gradients are that were broadcast: the same bits, in order.

use natten::{Element, Tensor, TensorView};

use super::{Check, Scope, Suite};
use crate::in_type;
use crate::rng::Rng;
use crate::subject::{Subject, Unsupported};

/// A view of a buffer.
#[derive(Clone, Copy, Debug)]
struct Viewed {
    shape: &'static [usize],
    strides: &'static [isize],
    /// Of its first element.
    offset: usize,
}

/// Broadcast from one number and from one a row, apart, backwards, in another order, dense; of any number of axes, rows shorter and
/// longer than a warp, and none.
const VIEWS: [Viewed; 10] = [
    Viewed { shape: &[2, 3, 4, 2, 2, 40], strides: &[0, 0, 0, 0, 0, 0], offset: 3 },
    Viewed { shape: &[2, 5, 3, 33], strides: &[15, 3, 1, 0], offset: 0 },
    Viewed { shape: &[2, 4, 3, 2, 65], strides: &[1560, 390, 130, 65, 2], offset: 1 },
    Viewed { shape: &[1, 7, 2, 40], strides: &[0, -80, 40, -1], offset: 519 },
    Viewed { shape: &[2, 6, 2, 8], strides: &[96, 1, 48, 6], offset: 0 },
    Viewed { shape: &[3, 2, 2, 3, 4, 8], strides: &[384, 192, 96, 32, 8, 1], offset: 0 },
    Viewed { shape: &[5, 70], strides: &[1, 5], offset: 2 },
    Viewed { shape: &[9], strides: &[3], offset: 1 },
    Viewed { shape: &[2, 0, 3, 8], strides: &[0, 0, 0, 0], offset: 0 },
    Viewed { shape: &[1, 300, 1, 1], strides: &[300, 1, 1, 0], offset: 0 },
];

/// Every view in every type.
pub fn suite<S: Subject>(scope: &Scope) -> Suite<S> {
    let mut checks = Vec::new();
    for (n, viewed) in VIEWS.into_iter().enumerate().filter(|_| scope.copies) {
        for element_type in scope.types() {
            let name = format!("copies {n} {element_type}");
            checks.push(Check::new(
                name,
                viewed,
                move |subject| in_type!(element_type, E => same_numbers::<E, S>(subject, viewed, n as u64)),
            ));
        }
    }
    Suite { name: "copies", checks }
}

fn same_numbers<E: Element, S: Subject>(subject: &S, viewed: Viewed, seed: u64) -> Result<(), Unsupported> {
    let mut rng = Rng::new(seed);
    let reach: isize =
        viewed.shape.iter().zip(viewed.strides).map(|(&n, s)| (n.max(1) as isize - 1) * s.max(&0)).sum();
    let numbers: Vec<E> =
        (0..viewed.offset + reach as usize + 1).map(|_| E::from_f64(rng.normal())).collect();
    let view = TensorView::strided(&numbers, viewed.offset, viewed.shape, viewed.strides).expect("a view");
    let found: Tensor<E> = subject.contiguous(&view)?;
    assert_eq!(found.shape(), viewed.shape);
    // Index by index, by the definition of strides.
    for (place, &number) in found.as_slice().iter().enumerate() {
        let mut rest = place;
        let mut at = viewed.offset as isize;
        for (&extent, &stride) in viewed.shape.iter().zip(viewed.strides).rev() {
            at += (rest % extent) as isize * stride;
            rest /= extent;
        }
        assert!(number == numbers[at as usize], "element {place} of {viewed:?}");
    }
    Ok(())
}
