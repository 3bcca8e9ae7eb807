//! Views of parts, in other orders, split, and of pointers. Small enough for Miri, which sees any overlap of what is borrowed.

use super::*;

fn counted(shape: &[usize]) -> Tensor<f32> {
    Tensor::from_fn(shape, |i| i as f32).unwrap()
}

#[test]
fn parts_name_the_elements_that_indices_name() {
    let tensor = counted(&[3, 4, 5]);
    let at = |x: usize, y: usize, z: usize| (20 * x + 5 * y + z) as f32;
    let part = tensor.view().narrow(1, 1..3).unwrap();
    assert_eq!(part.shape(), [3, 2, 5]);
    let expected = Tensor::from_fn(&[3, 2, 5], |i| at(i / 10, 1 + i / 5 % 2, i % 5)).unwrap();
    assert_eq!(part.to_tensor(), expected);

    let slice = part.index_axis(0, 2).unwrap();
    assert_eq!(slice.to_tensor(), Tensor::from_fn(&[2, 5], |i| at(2, 1 + i / 5, i % 5)).unwrap());
    let turned = slice.permute(&[1, 0]).unwrap();
    assert_eq!(turned.to_tensor(), Tensor::from_fn(&[5, 2], |i| at(2, 1 + i % 2, i / 2)).unwrap());
    assert_eq!(turned.layout(), turned.swap_axes(0, 1).unwrap().swap_axes(1, 0).unwrap().layout());

    let backwards = TensorView::strided(tensor.as_slice(), 59, &[60], &[-1]).unwrap();
    assert_eq!(backwards.narrow(0, 58..60).unwrap().to_tensor().as_slice(), [1.0, 0.0]);
    assert_eq!(tensor.view().narrow(2, 5..5).unwrap().to_tensor().as_slice(), [0.0; 0]);
}

#[test]
fn what_is_not_there_is_an_error() {
    let tensor = counted(&[3, 4]);
    let view = tensor.view();
    assert_eq!(view.narrow(2, 0..1).unwrap_err(), TensorError::Axis { axis: 2, rank: 2 });
    let range = TensorError::Range { axis: 1, start: 2, end: 5, extent: 4 };
    assert_eq!(view.narrow(1, 2..5).unwrap_err(), range);
    assert_eq!(range.to_string(), "2..5 of axis 1, which has 4");
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = view.narrow(1, 3..2).unwrap_err();
    assert_eq!(reversed, TensorError::Range { axis: 1, start: 3, end: 2, extent: 4 });
    assert!(matches!(view.index_axis(0, 3), Err(TensorError::Range { .. })));
    assert!(matches!(view.index_axis(0, usize::MAX), Err(TensorError::Range { .. })));
    assert!(matches!(counted(&[3]).view().index_axis(0, 0), Err(TensorError::Rank { rank: 0, .. })));
    for axes in [&[0, 0][..], &[1], &[0, 2], &[0, 1, 2]] {
        let error = TensorError::Permutation { axes: axes.to_vec(), rank: 2 };
        assert_eq!(view.permute(axes).unwrap_err(), error);
    }
    assert!(matches!(Layout::with_unsigned_strides(&[2, 2], &[usize::MAX, 1]), Err(TensorError::Overflow)));
    let unsigned = Layout::with_unsigned_strides(&[2, 3], &[3, 1]).unwrap();
    assert_eq!(unsigned, Layout::contiguous(&[2, 3]).unwrap());
}

/// The thirds of a packed tensor are written by three threads at once, element between element.
#[test]
fn split_views_are_written_at_once() {
    let mut packed = Tensor::<f32>::zeros(&[4, 3, 2]).unwrap();
    let (first, rest) = packed.view_mut().split_at(1, 1).unwrap();
    let (second, third) = rest.split_at(1, 1).unwrap();
    assert!(first.as_view().buffer().is_none());
    std::thread::scope(|scope| {
        for (number, mut part) in [first, second, third].into_iter().enumerate() {
            scope.spawn(move || {
                assert_eq!(part.shape(), [4, 1, 2]);
                part.write((0..8).map(|i| (100 * number + i) as f32));
                assert_eq!(part.as_view().to_tensor().as_slice()[7], (100 * number + 7) as f32);
            });
        }
    });
    let expected = Tensor::from_fn(&[4, 3, 2], |i| (i / 2 % 3 * 100 + i / 6 * 2 + i % 2) as f32).unwrap();
    assert_eq!(packed, expected);
    let range = packed.view_mut().split_at(2, 3).unwrap_err();
    assert_eq!(range, TensorError::Range { axis: 2, start: 0, end: 3, extent: 2 });
}

#[test]
fn pointers_make_views() {
    let mut buffer: Vec<f32> = (0..10).map(|i| i as f32).collect();
    let layout = Layout::strided(&[2, 3], &[-5, 2]).unwrap();
    // SAFETY: indices 0 to 9 of the buffer are reached from 5.
    let view = unsafe { TensorView::from_raw_parts(buffer.as_ptr().wrapping_add(5), layout) }.unwrap();
    assert_eq!(view.to_tensor().as_slice(), [5.0, 7.0, 9.0, 0.0, 2.0, 4.0]);
    assert_eq!((view.as_raw_buffer().len(), view.offset(), view.buffer()), (10, 5, None));

    // SAFETY: likewise.
    let mut view =
        unsafe { TensorViewMut::from_raw_parts(buffer.as_mut_ptr().wrapping_add(5), layout) }.unwrap();
    view.write([10.0, 11.0, 12.0]);
    assert_eq!(buffer, [0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 6.0, 11.0, 8.0, 12.0]);

    let null = std::ptr::null_mut::<f32>();
    let (empty, twice) = (Layout::contiguous(&[0, 3]).unwrap(), Layout::strided(&[2], &[0]).unwrap());
    let far = Layout::strided(&[2], &[isize::MAX / 2]).unwrap();
    // SAFETY: refused before anything is touched, or empty.
    unsafe {
        assert_eq!(TensorView::from_raw_parts(null, empty).unwrap().to_tensor().as_slice(), [0.0; 0]);
        assert_eq!(TensorView::from_raw_parts(null, layout).unwrap_err(), TensorError::NullPointer);
        assert_eq!(TensorView::from_raw_parts(null, far).unwrap_err(), TensorError::Overflow);
        assert_eq!(TensorViewMut::from_raw_parts(null, twice).unwrap_err(), TensorError::Overlap);
    }
}

#[test]
fn elements_of_the_same_size_are_cast() {
    let tensor = counted(&[2, 2]);
    assert!(tensor.view().cast_elements::<f64>().is_none());
    assert_eq!(tensor.view().cast_elements::<f32>().unwrap().to_tensor(), tensor);
    let halves = Tensor::from_fn(&[3], |i| half::f16::from_bits(0x3f80 + i as u16)).unwrap();
    let cast = halves.view().swap_axes(0, 0).unwrap().cast_elements::<half::bf16>().unwrap();
    assert_eq!(cast.to_tensor().as_slice()[0], half::bf16::ONE);
}

/// Sums are those of the elements at the same index, wherever they lie, each rounded once; what is between them stays.
#[test]
fn views_are_added_element_by_element() {
    fn check<E: InputElement>() {
        let numbers: Vec<E> = (0..30).map(|i| E::narrow(f64::from(i) * 0.37 - 4.0)).collect();
        let from = TensorView::strided(&numbers, 29, &[2, 3, 2], &[-15, -4, -1]).unwrap();
        let mut found: Vec<E> = (0..24).map(|i| E::narrow(f64::from(i * i) * 1.3)).collect();
        let mut expected = found.clone();
        let strides = [12, 1, 3];
        TensorViewMut::strided(&mut found, 2, &[2, 3, 2], &strides).unwrap().accumulate(&from).unwrap();
        for (i, j, k) in (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..2).map(move |k| (i, j, k)))) {
            let (to, from) = (&mut expected[2 + 12 * i + j + 3 * k], numbers[29 - 15 * i - 4 * j - k]);
            *to = E::narrow(to.widen() + from.widen());
        }
        assert_eq!(found, expected);
        let dense = TensorView::from_slice(&[30], &numbers).unwrap();
        let mut twice = numbers.clone();
        TensorViewMut::from_slice(&[30], &mut twice).unwrap().accumulate(&dense).unwrap();
        assert!(twice.iter().zip(&numbers).all(|(twice, once)| twice.widen() == 2.0 * once.widen()));
        let error = TensorViewMut::from_slice(&[5, 6], &mut twice).unwrap().accumulate(&dense).unwrap_err();
        assert_eq!(error, TensorError::Shape { expected: vec![5, 6], found: vec![30] });
    }
    check::<crate::f16>();
    check::<crate::bf16>();
    check::<f32>();
    check::<f64>();
}
