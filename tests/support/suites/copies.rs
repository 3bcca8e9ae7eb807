//! Copies, and sums in place, of views whose rows are not contiguous, as gradients are that were broadcast, and copies to where rows are not: the same
//! bits, in order, and nothing beside them.

use natten::{Element, Tensor, TensorView, TensorViewMut};

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

/// How the elements lie where they are copied to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    /// Last axis fastest, in a part of longer rows.
    Rows,
    /// First axis fastest.
    FirstFastest,
    /// Last axis fastest, every second element, in reverse: contiguous along no axis.
    Apart,
}

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
            for target in [Target::Rows, Target::FirstFastest, Target::Apart] {
                for adds in [false, true] {
                    let what = if adds { "sums" } else { "copies" };
                    checks.push(Check::new(
                        format!("{what} {n} {element_type} to {target:?}"),
                        viewed,
                        move |subject| {
                            in_type!(element_type, E => same_there::<E, S>(subject, viewed, (target, adds)))
                        },
                    ));
                }
            }
        }
    }
    Suite { name: "copies", checks }
}

fn same_numbers<E: Element, S: Subject>(subject: &S, viewed: Viewed, seed: u64) -> Result<(), Unsupported> {
    let numbers = viewed.numbers::<E>(seed);
    let view = TensorView::strided(&numbers, viewed.offset, viewed.shape, viewed.strides).expect("a view");
    let found: Tensor<E> = subject.contiguous(&view)?;
    assert_eq!(found.shape(), viewed.shape);
    let places = viewed.places(viewed.strides, viewed.offset);
    for (place, (&number, at)) in found.as_slice().iter().zip(places).enumerate() {
        assert!(number == numbers[at], "element {place} of {viewed:?}");
    }
    Ok(())
}

fn same_there<E: Element, S: Subject>(
    subject: &S,
    viewed: Viewed,
    (target, adds): (Target, bool),
) -> Result<(), Unsupported> {
    let numbers = viewed.numbers::<E>(7);
    let view = TensorView::strided(&numbers, viewed.offset, viewed.shape, viewed.strides).expect("a view");
    let (strides, offset, len) = target.layout(viewed.shape);
    let mut expected = vec![E::from_f64(77.0); len];
    let mut found = expected.clone();
    let mut to = TensorViewMut::strided(&mut found, offset, viewed.shape, &strides).expect("a view");
    if adds {
        subject.accumulate(&view, &mut to)?;
    } else {
        subject.copy(&view, &mut to)?;
    }
    let (from, to) = (viewed.places(viewed.strides, viewed.offset), viewed.places(&strides, offset));
    let sum = |a: E, b: E| E::from_f64(a.to_f64() + b.to_f64());
    from.zip(to).for_each(|(from, to)| {
        expected[to] = if adds { sum(expected[to], numbers[from]) } else { numbers[from] };
    });
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "{viewed:?} to {target:?}: element {at} of the buffer");
    }
    Ok(())
}

impl Viewed {
    /// A buffer that the view reaches the end of.
    fn numbers<E: Element>(&self, seed: u64) -> Vec<E> {
        let mut rng = Rng::new(seed);
        let reach: isize =
            self.shape.iter().zip(self.strides).map(|(&n, s)| (n.max(1) as isize - 1) * s.max(&0)).sum();
        (0..self.offset + reach as usize + 1).map(|_| E::from_f64(rng.normal())).collect()
    }

    /// Where elements are in a buffer, last axis fastest: index by index, by the definition of strides.
    fn places<'a>(&self, strides: &'a [isize], offset: usize) -> impl Iterator<Item = usize> + use<'a> {
        let shape = self.shape;
        (0..shape.iter().product()).map(move |mut rest: usize| {
            let mut at = offset as isize;
            for (&extent, &stride) in shape.iter().zip(strides).rev() {
                at += (rest % extent) as isize * stride;
                rest /= extent;
            }
            at as usize
        })
    }
}

impl Target {
    /// Strides of a tensor of this shape, the place of its first element, and the length of a buffer with room beside it.
    fn layout(self, shape: &[usize]) -> (Vec<isize>, usize, usize) {
        let (mut strides, mut step) = (vec![0; shape.len()], if self == Target::Apart { 2 } else { 1 });
        let mut axes: Vec<usize> = (0..shape.len()).rev().collect();
        if self == Target::FirstFastest {
            axes.reverse();
        }
        for (n, axis) in axes.into_iter().enumerate() {
            strides[axis] = step;
            let gap = usize::from(self == Target::Rows && n == 0) * 3;
            step *= (shape[axis].max(1) + gap) as isize;
        }
        let len = step as usize + 2;
        if self == Target::Apart {
            strides.iter_mut().for_each(|stride| *stride = -*stride);
            return (strides, len - 1, len);
        }
        (strides, 1, len)
    }
}
