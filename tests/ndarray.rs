//! Arrays of the crate ndarray as operands and results.

use natten::{Error, Params, Saved, Tensor, TensorError, TensorView, TensorViewMut, na1d, na2d, na2d_into};
use ndarray::{Array, Array4, Array5, ArrayD, ArrayView, Axis, IxDyn, s};

fn counted(shape: [usize; 5]) -> Array5<f32> {
    let count = shape.iter().product::<usize>();
    Array::from_shape_vec(shape, (0..count).map(|i| (i as f32 * 0.37).sin()).collect()).unwrap()
}

fn tensor(array: &Array5<f32>) -> Tensor<f32> {
    Tensor::from_vec(array.shape(), array.iter().copied().collect()).unwrap()
}

#[test]
fn a_packed_array_is_three_operands() -> Result<(), Error> {
    // [batch, height, width, (q, k, v) x heads, head_dim]
    let packed = counted([2, 5, 6, 3 * 2, 8]);
    let part = |n: usize| packed.slice(s![.., .., .., 2 * n..2 * n + 2, ..]);
    let [q, k, v] = [0, 1, 2].map(|n| TensorView::try_from(part(n)).unwrap());
    assert_eq!(q.layout().strides(), part(0).strides());
    assert_eq!(q.as_ptr(), packed.as_ptr());
    let params = Params::new([3, 5]);
    let found = na2d(&q, &k, &v, &params)?;
    let copies = [0, 1, 2].map(|n| tensor(&part(n).to_owned()));
    assert_eq!(found, na2d(&copies[0], &copies[1], &copies[2], &params)?);
    let found = ArrayD::from(found);
    assert_eq!(found.shape(), [2, 5, 6, 2, 8]);
    Ok(())
}

#[test]
fn axes_run_in_either_direction_and_any_order() -> Result<(), Error> {
    let array = counted([1, 7, 4, 2, 8]);
    let turned = array.slice(s![.., ..;-1, .., .., ..]);
    let swapped = array.view().permuted_axes([0, 2, 1, 3, 4]);
    for view in [turned, swapped] {
        let copy = tensor(&view.to_owned());
        let operand = TensorView::try_from(view)?;
        assert_eq!(operand.to_tensor(), copy);
        let params = Params::new(3);
        assert_eq!(na2d(&operand, &operand, &operand, &params)?, na2d(&copy, &copy, &copy, &params)?);
    }
    Ok(())
}

#[test]
fn results_go_into_arrays() -> Result<(), Error> {
    let array = counted([1, 4, 5, 2, 8]);
    let x = TensorView::try_from(array.view())?;
    let params = Params::new(3);
    // Every other head of a wider array, the last token first.
    let mut wide = Array5::<f32>::from_elem([1, 4, 5, 4, 8], 7.0);
    let mut out = TensorViewMut::try_from(wide.slice_mut(s![.., ..;-1, .., ..;2, ..]))?;
    na2d_into(&x, &x, &x, &params, &mut out)?;
    let expected = ArrayD::from(na2d(&x, &x, &x, &params)?);
    assert_eq!(wide.slice(s![.., ..;-1, .., ..;2, ..]).into_dyn(), expected);
    assert!(wide.slice(s![.., .., .., 1..;2, ..]).iter().all(|&other| other == 7.0));
    Ok(())
}

/// A gradient that is one number everywhere, as that of a sum.
#[test]
fn a_broadcast_array_is_a_gradient() -> Result<(), Error> {
    let array = counted([1, 4, 5, 2, 8]);
    let x = TensorView::try_from(array.view())?;
    let params = Params::new(3);
    let (out, lse) = natten::na2d_with_lse(&x, &x, &x, &params)?;
    let one = ArrayD::from_elem(IxDyn(&[]), 1.0f32);
    let ones = one.broadcast(out.shape()).unwrap();
    let d_out = TensorView::try_from(ones)?;
    assert_eq!(d_out.layout().strides(), [0; 5]);
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: None };
    let found = natten::na2d_backward(&x, &x, &x, &params, &saved)?;
    let dense = d_out.to_tensor();
    let saved = Saved { out: &out, lse: &lse, d_out: &dense, d_lse: None };
    let expected = natten::na2d_backward(&x, &x, &x, &params, &saved)?;
    assert_eq!((found.query, found.key, found.value), (expected.query, expected.key, expected.value));
    Ok(())
}

#[test]
fn owned_arrays_are_taken_over() {
    let array = counted([1, 3, 2, 1, 4]);
    let first = array.as_ptr();
    let taken = Tensor::try_from(array.clone()).unwrap();
    assert_eq!(taken, tensor(&array));
    assert_eq!(Tensor::try_from(array).unwrap().as_slice().as_ptr(), first);
    assert_eq!(ArrayD::from(taken.clone()).as_slice().unwrap(), taken.as_slice());

    // Of a part, in another order, and empty: what the array's own iterator gives.
    let array = counted([2, 3, 2, 1, 4]);
    let part = array.clone().slice_move(s![1.., 1.., .., .., ..]);
    let turned = array.clone().reversed_axes();
    let inverted = array.clone().slice_move(s![.., .., .., .., ..;-1]);
    let none = array.slice_move(s![.., 3.., .., .., ..]);
    for array in [part, turned, inverted, none] {
        let found = Tensor::try_from(array.clone()).unwrap();
        assert_eq!(found.shape(), array.shape());
        assert!(found.as_slice().iter().eq(array.iter()));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let deep = ArrayD::<f32>::zeros(IxDyn(&[1; 9]));
    assert!(matches!(TensorView::try_from(deep.view()), Err(TensorError::Rank { rank: 9, .. })));
    assert!(matches!(Tensor::try_from(deep), Err(TensorError::Rank { rank: 9, .. })));
    // Rows that are not contiguous are told apart from other rules, as of any operand.
    let array = Array4::<f32>::zeros([1, 8, 8, 4]);
    let turned = TensorView::try_from(array.view().permuted_axes([0, 1, 3, 2])).unwrap();
    let error = na1d(&turned, &turned, &turned, &Params::new([3])).unwrap_err().to_string();
    assert!(error.contains("query") && error.contains("contiguous"), "{error}");
    let empty = ArrayView::from_shape((1, 0, 2, 4), &[0f32; 0]).unwrap();
    let empty = TensorView::try_from(empty).unwrap();
    assert!(empty.to_tensor().as_slice().is_empty());
    let one = array.index_axis(Axis(0), 0);
    assert_eq!(TensorView::try_from(one).unwrap().shape(), [8, 8, 4]);
}
