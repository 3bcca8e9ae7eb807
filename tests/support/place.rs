//! Tensors placed in memory in every way a view can describe, surrounded by poison, so that a read or a write
//! outside the view shows, and so does an element never written.

use natten::{Element, Layout, Tensor, TensorView, TensorViewMut};

/// How a tensor `[batch, tokens.., heads, (dim)]` lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// Densely, in the order of its axes.
    Contiguous,
    /// `[batch, heads, tokens.., dim]` in memory.
    HeadsFirst,
    /// Cut out of a larger tensor: gaps after every row, head and token.
    Gapped,
    /// Tokens and heads run backwards.
    Reversed,
    /// Batch varies faster than tokens, tokens in the opposite order of their axes.
    Shuffled,
}

/// How a tensor lies in memory, and where that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The order of its elements.
    pub arrangement: Arrangement,
    /// Whether the first element and all gaps are multiples of 16 bytes. Rows of whole chunks of 16 bytes are aligned
    /// then, each of them; else none is.
    pub is_aligned: bool,
}

impl Place {
    /// Beginning at a multiple of 16 bytes.
    pub fn aligned(arrangement: Arrangement) -> Self {
        Place { arrangement, is_aligned: true }
    }

    /// Beginning anywhere else.
    pub fn unaligned(arrangement: Arrangement) -> Self {
        Place { arrangement, is_aligned: false }
    }

    /// Elements around the tensor, and between steps where it has gaps.
    fn margin_and_gap<E: Element>(self) -> (usize, usize) {
        if self.is_aligned { (32 / size_of::<E>(), 16 / size_of::<E>()) } else { (5, 3) }
    }
}

impl Arrangement {
    /// All of them.
    pub const ALL: [Arrangement; 5] = [
        Arrangement::Contiguous,
        Arrangement::HeadsFirst,
        Arrangement::Gapped,
        Arrangement::Reversed,
        Arrangement::Shuffled,
    ];

    /// The axes of a tensor of this rank from slowest to fastest. `has_dim` says whether the last axis is a row's, which
    /// must stay contiguous.
    fn order(self, rank: usize, has_dim: bool) -> Vec<usize> {
        let heads = rank - 1 - usize::from(has_dim);
        let mut order: Vec<usize> = (0..rank).collect();
        match self {
            Arrangement::HeadsFirst => {
                order.remove(heads);
                order.insert(1, heads);
            }
            Arrangement::Shuffled => order[..heads].reverse(),
            _ => {}
        }
        order
    }
}

/// A buffer with a tensor somewhere inside.
#[derive(Clone, Debug)]
pub struct Placed<E> {
    data: Vec<E>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
}

/// All bits set: a NaN in every format, with a payload that no arithmetic makes.
fn poison<E: Element>() -> E {
    let mut value = E::zeroed();
    bytemuck::bytes_of_mut(&mut value).fill(0xFF);
    value
}

/// Whether an element was never written.
pub fn is_poison<E: Element>(value: &E) -> bool {
    bytemuck::bytes_of(value).iter().all(|&byte| byte == 0xFF)
}

impl<E: Element> Placed<E> {
    /// A tensor full of poison. `has_dim` says whether the last axis is a row (it stays contiguous).
    pub fn poisoned(shape: &[usize], place: Place, has_dim: bool) -> Self {
        let (margin, gap) = place.margin_and_gap::<E>();
        let gap = if place.arrangement == Arrangement::Gapped { gap as isize } else { 0 };
        let order = place.arrangement.order(shape.len(), has_dim);
        let mut strides = vec![0isize; shape.len()];
        let mut step = 1;
        for &axis in order.iter().rev() {
            strides[axis] = step;
            step = step * shape[axis].max(1) as isize + gap;
        }
        let mut offset = margin;
        if place.arrangement == Arrangement::Reversed {
            let turned = 1..shape.len() - usize::from(has_dim);
            for axis in turned {
                offset += (shape[axis].max(1) - 1) * strides[axis] as usize;
                strides[axis] = -strides[axis];
            }
        }
        let data = vec![poison(); step as usize + 2 * margin];
        Placed { data, offset, shape: shape.to_vec(), strides }
    }

    /// A copy of a tensor, with poison all around it.
    pub fn of(tensor: &Tensor<E>, place: Place) -> Self {
        Self::filled(tensor, place, true)
    }

    /// A copy of a tensor without the axis of components, as a log-sum-exp.
    pub fn of_scalars(tensor: &Tensor<E>, place: Place) -> Self {
        Self::filled(tensor, place, false)
    }

    fn filled(tensor: &Tensor<E>, place: Place, has_dim: bool) -> Self {
        let mut placed = Self::poisoned(tensor.shape(), place, has_dim);
        let indices: Vec<usize> = placed.indices().collect();
        indices.into_iter().zip(tensor.as_slice()).for_each(|(index, &value)| placed.data[index] = value);
        placed
    }

    /// The same tensor once along the batch axis, repeated there by a stride of 0.
    pub fn broadcast_batch(mut self, batch: usize) -> Self {
        assert_eq!(self.shape[0], 1, "only an extent of one can be repeated");
        (self.shape[0], self.strides[0]) = (batch, 0);
        self
    }

    /// To read.
    pub fn view(&self) -> TensorView<'_, E> {
        TensorView::strided(&self.data, self.offset, &self.shape, &self.strides).expect("placed inside")
    }

    /// To write.
    pub fn view_mut(&mut self) -> TensorViewMut<'_, E> {
        TensorViewMut::strided(&mut self.data, self.offset, &self.shape, &self.strides)
            .expect("placed inside")
    }

    /// Where the elements are, from the first one on.
    pub fn layout(&self) -> Layout {
        *self.view().layout()
    }

    /// Buffer index of every element, last axis fastest.
    fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        let layout = Layout::contiguous(&self.shape).expect("small");
        (0..layout.len()).map(move |mut n| {
            let mut index = self.offset as isize;
            for axis in (0..self.shape.len()).rev() {
                index += (n % self.shape[axis]) as isize * self.strides[axis];
                n /= self.shape[axis];
            }
            index as usize
        })
    }

    /// The tensor, whatever it holds.
    pub fn elements(&self) -> Tensor<E> {
        let values = self.indices().map(|index| self.data[index]).collect();
        Tensor::from_vec(&self.shape, values).expect("as many as the shape holds")
    }

    /// The tensor, after checking that all of it was written and nothing around it.
    pub fn written(&self, what: &str) -> Tensor<E> {
        let values: Vec<E> = self.indices().map(|index| self.data[index]).collect();
        let missed = values.iter().filter(|value| is_poison(*value)).count();
        assert_eq!(missed, 0, "{what}: {missed} of {} elements were never written", values.len());
        let around = self.data.iter().filter(|value| is_poison(*value)).count();
        assert_eq!(around, self.data.len() - values.len(), "{what}: something beside the view was written");
        Tensor::from_vec(&self.shape, values).expect("as many as the shape holds")
    }
}
