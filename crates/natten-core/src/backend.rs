//! What a backend is: views it reads and writes, and the forward, backward and merge of a validated problem.

use crate::element::Element;
use crate::error::Role;
use crate::layout::Layout;
use crate::problem::Problem;

/// The operands of a call. `V` is whatever stands for a tensor: a view, or a [`Layout`] for validation.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<V> {
    /// `[batch, tokens.., heads, head_dim]`
    pub query: V,
    /// `[batch, tokens.., heads_kv, head_dim]`
    pub key: V,
    /// `[batch, tokens.., heads_kv, head_dim_v]`
    pub value: V,
    /// Keys `[batch, n, heads_kv, head_dim]` and values `[batch, n, heads_kv, head_dim_v]` that every query
    /// sees besides its window, in the same softmax.
    pub additional: Option<[V; 2]>,
}

impl<V> Inputs<V> {
    /// Without additional keys and values.
    pub fn new(query: V, key: V, value: V) -> Self {
        Inputs { query, key, value, additional: None }
    }

    /// With keys and values that every query sees.
    pub fn with_additional(self, keys: V, values: V) -> Self {
        Inputs { additional: Some([keys, values]), ..self }
    }

    /// The same operands in another form, which may borrow from this one.
    pub fn map<'a, W>(&'a self, mut f: impl FnMut(&'a V) -> W) -> Inputs<W> {
        Inputs {
            query: f(&self.query),
            key: f(&self.key),
            value: f(&self.value),
            additional: self.additional.as_ref().map(|pair| pair.each_ref().map(&mut f)),
        }
    }

    /// Each operand with its name.
    pub fn roles(&self) -> impl Iterator<Item = (Role, &V)> {
        let additional = self
            .additional
            .as_ref()
            .map(|[keys, values]| [(Role::AdditionalKeys, keys), (Role::AdditionalValues, values)]);
        [(Role::Query, &self.query), (Role::Key, &self.key), (Role::Value, &self.value)]
            .into_iter()
            .chain(additional.into_iter().flatten())
    }
}

/// What a forward call gives. `lse` is the natural logarithm of the sum of exponentials of the scaled scores.
#[derive(Clone, Debug)]
pub struct Output<O, L> {
    /// `[batch, tokens.., heads, head_dim_v]`
    pub out: O,
    /// `[batch, tokens.., heads]`, when asked for.
    pub lse: Option<L>,
}

/// What a backward call reads besides the inputs.
#[derive(Clone, Copy, Debug)]
pub struct Saved<V, L> {
    /// The forward's output. For one branch of a merge: the merged output.
    pub out: V,
    /// The forward's log-sum-exp. For one branch of a merge: the merged one.
    pub lse: L,
    /// Gradient of the output.
    pub d_out: V,
    /// Gradient of the log-sum-exp, when it is used.
    pub d_lse: Option<L>,
}

/// What a backward call gives, shaped as the inputs.
#[derive(Clone, Debug)]
pub struct Gradients<T> {
    /// As `query`.
    pub query: T,
    /// As `key`.
    pub key: T,
    /// As `value`.
    pub value: T,
    /// As the additional keys and values.
    pub additional: Option<[T; 2]>,
}

/// Partial results over disjoint sets of keys, to be merged into one softmax.
#[derive(Clone, Debug)]
pub struct Partials<V, L> {
    /// Outputs, `[batch, tokens.., heads, head_dim_v]` each.
    pub outs: Vec<V>,
    /// Their log-sum-exps, `[batch, tokens.., heads]` each.
    pub lses: Vec<L>,
}

/// A place where tensors live and the operator runs.
///
/// The facade validates every call with [`Problem`] first: an implementation may rely on shapes, on contiguous
/// last axes, and on views to write that name each element once. It never re-validates.
pub trait Backend: Clone {
    /// A borrowed tensor to read.
    type View<'a, E: Element>: Clone;
    /// A borrowed tensor to write.
    type ViewMut<'a, E: Element>;
    /// An owned tensor.
    type Tensor<E: Element>;
    /// Its own failures.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Short name for messages: `cpu`, `cuda`.
    fn name(&self) -> &'static str;

    /// Which device this is, for the message when operands live on different ones.
    fn device_name(&self) -> String {
        self.name().to_owned()
    }

    /// Whether tensors of both can meet in one call.
    fn is_same_device(&self, _other: &Self) -> bool {
        true
    }

    /// Shape and strides of a view.
    fn layout<E: Element>(view: &Self::View<'_, E>) -> Layout;

    /// Shape and strides of a view to write.
    fn layout_mut<E: Element>(view: &Self::ViewMut<'_, E>) -> Layout;

    /// A new tensor whose content may be anything that the call at hand overwrites.
    ///
    /// # Errors
    /// When memory cannot be had.
    fn allocate<E: Element>(&self, shape: &[usize]) -> Result<Self::Tensor<E>, Self::Error>;

    /// A view of an owned tensor.
    fn view<E: Element>(tensor: &Self::Tensor<E>) -> Self::View<'_, E>;

    /// A view of an owned tensor, to write.
    fn view_mut<E: Element>(tensor: &mut Self::Tensor<E>) -> Self::ViewMut<'_, E>;

    /// Writes every element of `output`.
    ///
    /// # Errors
    /// When the device fails or does not support the problem.
    fn forward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<Self::View<'_, E>>,
        output: Output<Self::ViewMut<'_, E>, Self::ViewMut<'_, f32>>,
    ) -> Result<(), Self::Error>;

    /// Writes every element of `gradients`.
    ///
    /// # Errors
    /// When the device fails or does not support the problem.
    fn backward<E: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<Self::View<'_, E>>,
        saved: &Saved<Self::View<'_, E>, Self::View<'_, f32>>,
        gradients: Gradients<Self::ViewMut<'_, E>>,
    ) -> Result<(), Self::Error>;

    /// Merges partial results: `lse = log sum exp lse_i`, `out = sum exp(lse_i - lse) out_i`; writes every
    /// element of `output`.
    ///
    /// # Errors
    /// When the device fails.
    fn merge<E: Element>(
        &self,
        partials: &Partials<Self::View<'_, E>, Self::View<'_, f32>>,
        output: Output<Self::ViewMut<'_, E>, Self::ViewMut<'_, f32>>,
    ) -> Result<(), Self::Error>;
}
