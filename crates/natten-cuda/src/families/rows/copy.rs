//! Copies between tensors of one shape, and sums in place, whatever their strides: the kernel steps through one axis with the lanes of a warp, and
//! along that axis the elements it writes are contiguous.

use natten_core::{ElementType, Layout};

use super::{Rows, ctas};
use crate::error::CudaError;
use crate::family::Family;
use crate::params::{CopyParams, RowCount, Strides};
use crate::registry::{Facts, Kernel, Operation, kernels_of};
use crate::rejection::{Rejection, RejectionReason, Rejections};

/// One launch of the kernel, which has no plan.
pub(crate) struct CopyLaunch {
    pub kernel: &'static Kernel,
    pub ctas: u32,
    pub params: CopyParams,
}

/// The launches that copy a tensor of this type, or add it, both given by the address of the first element and the layout. One, unless
/// the tensor has six axes and is contiguous along none of them where it is written: then one for each index of the shortest.
/// None where there are no elements.
pub(crate) fn launches(
    operation: Operation,
    element_type: ElementType,
    from: (u64, &Layout),
    to: (u64, &Layout),
) -> Result<Vec<CopyLaunch>, CudaError> {
    if to.1.is_empty() {
        return Ok(Vec::new());
    }
    let mut axes = six_axes(from.1, to.1);
    let is_contiguous = |axis: &&CopyAxis| axis.extent == 1 || axis.to_stride == 1;
    let along = (0..6).filter(|&i| is_contiguous(&&axes[i])).max_by_key(|&i| axes[i].extent);
    let along = along.or_else(|| (0..6).min_by_key(|&i| axes[i].extent)).unwrap_or(5);
    axes.swap(along, 5);
    let element_type = match in_pairs(element_type, [from.0, to.0], &axes) {
        // Two numbers in one word can be moved, and not added.
        Some(pairs) if operation == Operation::CopyRows => {
            axes = pairs;
            ElementType::F32
        }
        _ => element_type,
    };
    let kernel = kernel(operation, element_type)?;
    let row = axes[5];
    // Rows of one element, where the axis is not contiguous.
    let parts = if is_contiguous(&&row) { 1 } else { row.extent };
    axes[5].extent = row.extent / parts;
    let bytes = element_type.size_bytes() as i64;
    let moved = |address: u64, stride: i64, i: usize| {
        address.wrapping_add_signed(stride.wrapping_mul(i as i64).wrapping_mul(bytes))
    };
    let [batch, x, y, z, heads, length] = axes.map(|axis| axis.extent);
    let count = RowCount::new(batch, [x, y, z], heads, length)?;
    let strides = |of: fn(&CopyAxis) -> i64| {
        let [batch, x, y, z, head, _] = axes.map(|axis| of(&axis));
        Strides { batch, axis: [x, y, z], head }
    };
    let params = |i| CopyParams {
        from: moved(from.0, row.from_stride, i),
        to: moved(to.0, row.to_stride, i),
        from_step: row.from_stride,
        from_strides: strides(|axis| axis.from_stride),
        to_strides: strides(|axis| axis.to_stride),
        count,
    };
    let ctas = ctas(&count, kernel);
    Ok((0..parts).map(|i| CopyLaunch { kernel, ctas, params: params(i) }).collect())
}

/// The axes in words of two elements, where elements of two bytes lie so in both tensors: a lane moves as much as it does of f32,
/// and no number is looked at on the way.
fn in_pairs(element_type: ElementType, addresses: [u64; 2], axes: &[CopyAxis; 6]) -> Option<[CopyAxis; 6]> {
    let [others @ .., row] = axes;
    let is_even = |axis: &CopyAxis| axis.extent == 1 || (axis.from_stride | axis.to_stride) % 2 == 0;
    let fits = element_type.size_bytes() == 2
        && addresses.iter().all(|address| address % 4 == 0)
        && others.iter().all(is_even)
        && row.extent % 2 == 0
        && [row.from_stride, row.to_stride] == [1; 2];
    let halved = |axis: &CopyAxis| CopyAxis {
        from_stride: axis.from_stride / 2,
        to_stride: axis.to_stride / 2,
        ..*axis
    };
    fits.then(|| {
        let mut pairs = axes.each_ref().map(halved);
        pairs[5] = CopyAxis { extent: row.extent / 2, ..*row };
        pairs
    })
}

/// The kernel that copies, or adds, elements of this type.
fn kernel(operation: Operation, element_type: ElementType) -> Result<&'static Kernel, CudaError> {
    let against = |kernel: &'static Kernel| Rejection {
        kernel: kernel.entry,
        reason: RejectionReason::ElementType { kernel: kernel.element_type(), problem: element_type },
    };
    let kernels = || kernels_of(Rows.name(), operation);
    kernels()
        .find(|kernel| kernel.element_type() == element_type)
        .ok_or_else(|| CudaError::Unsupported(Rejections(kernels().map(against).collect())))
}

/// One axis of both tensors. Strides are in elements.
#[derive(Clone, Copy)]
struct CopyAxis {
    extent: usize,
    from_stride: i64,
    to_stride: i64,
}

/// The axes that there are, behind others of extent 1.
fn six_axes(from: &Layout, to: &Layout) -> [CopyAxis; 6] {
    let mut axes = [CopyAxis { extent: 1, from_stride: 0, to_stride: 0 }; 6];
    let strides = from.strides().iter().zip(to.strides());
    let own = to.shape().iter().zip(strides).map(|(&extent, (&from, &to))| CopyAxis {
        extent,
        from_stride: from as i64,
        to_stride: to as i64,
    });
    axes[6 - to.rank()..].iter_mut().zip(own).for_each(|(axis, own)| *axis = own);
    axes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The launches of a copy between tensors of this shape with these strides, the first elements at these addresses.
    fn of(shape: &[usize], from: (u64, &[isize]), to: (u64, &[isize])) -> Vec<CopyLaunch> {
        let layout = |strides| Layout::strided(shape, strides).expect("small");
        let places = ((from.0, &layout(from.1)), (to.0, &layout(to.1)));
        // Sums never go in words of two.
        let sums = launches(Operation::AddRows, ElementType::Bf16, places.0, places.1).expect("a kernel");
        assert!(sums.iter().all(|sum| sum.kernel.entry == "natten_add_rows_bf16"));
        launches(Operation::CopyRows, ElementType::Bf16, places.0, places.1).expect("a kernel")
    }

    #[test]
    fn rows_of_pairs_are_copied_in_words() {
        let is_in_words = |shape: &[usize], from: (u64, &[isize]), to: (u64, &[isize])| {
            let [copy] = &of(shape, from, to)[..] else { panic!("one launch") };
            copy.kernel.element_type() == ElementType::F32
        };
        let (shape, dense) = ([3, 8], (0x100, &[8, 1][..]));
        assert!(is_in_words(&shape, dense, (0x204, &[20, 1])));
        assert!(!is_in_words(&shape, dense, (0x202, &[20, 1])), "half a word from one");
        assert!(!is_in_words(&shape, dense, (0x204, &[21, 1])), "every second row half a word from one");
        assert!(!is_in_words(&shape, (0x100, &[8, 2]), dense), "elements apart");
        assert!(!is_in_words(&[3, 7], dense, dense), "half a word is left");
        // Of one row the step to the next does not matter.
        assert!(is_in_words(&[1, 8], (0x100, &[7, 1]), dense));
        let [copy] = &of(&shape, dense, (0x204, &[20, 1]))[..] else { panic!("one launch") };
        let CopyParams { from_step, from_strides, to_strides, count, .. } = copy.params;
        assert_eq!((from_step, from_strides.head, to_strides.head, count.length), (1, 4, 10, 4));
    }

    /// A tensor of six axes that is contiguous along none of them, where it is written.
    #[test]
    fn what_has_no_row_is_copied_index_by_index() {
        let shape = [2, 3, 2, 2, 2, 4];
        let (dense, apart) = ([96, 32, 16, 8, 4, 1], [192, 64, 32, 16, 8, 2]);
        assert_eq!(of(&shape, (0, &dense), (0x1000, &apart)).len(), 2);
        assert_eq!(of(&shape, (0, &apart), (0x1000, &dense)).len(), 1);
        assert!(of(&[2, 0], (0, &[1, 1]), (0x1000, &[1, 1])).is_empty());
    }
}
