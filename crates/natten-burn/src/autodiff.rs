//! The operator as a node of burn's graph of gradients.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex, TensorMetadata};
use burn::tensor::{DType, Shape};
use natten::{Inputs, Saved};

use crate::{Error, MaskParams, flex};

/// A tensor of Flex's with its place in the graph, tracked or not.
pub type Recorded = FloatTensor<Autodiff<Flex>>;

/// Where the gradient of the log-sum-exp waits for that of the output: this operator has two outputs, a node of burn's one.
type Handover = Arc<Mutex<Option<FlexTensor>>>;

/// The output, recorded.
pub fn forward(inputs: Inputs<Recorded>, params: MaskParams) -> Result<Recorded, Error> {
    if is_constant(&inputs) {
        return Ok(constant(flex::forward(inputs.into_map(|tensor| tensor.into_primitive()), &params)?));
    }
    attend(inputs, params).map(|(out, _, _)| out)
}

/// The output and the log-sum-exp, both recorded: whatever is made of either has gradients of all inputs.
pub fn forward_with_lse(inputs: Inputs<Recorded>, params: MaskParams) -> Result<[Recorded; 2], Error> {
    if is_constant(&inputs) {
        let inputs = inputs.into_map(|tensor| tensor.into_primitive());
        return Ok(flex::forward_with_lse(inputs, &params)?.map(constant));
    }
    let (out, lse, d_lse) = attend(inputs, params)?;
    // A child of the output's node, so that its gradient is there before the output's is asked for.
    let state = LseState { d_lse, shape: out.shape(), dtype: out.dtype() };
    let lse = match Lse.prepare::<NoCheckpointing>([out.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state, lse),
        OpsKind::UnTracked(prep) => prep.finish(lse),
    };
    Ok([out, lse])
}

/// Whether nothing is tracked: the result has no place in a graph then, and costs no node.
fn is_constant(inputs: &Inputs<Recorded>) -> bool {
    !inputs.roles().any(|(_, tensor)| tensor.is_tracked())
}

fn constant(tensor: FlexTensor) -> Recorded {
    Autodiff::<Flex>::from_inner(tensor)
}

fn attend(inputs: Inputs<Recorded>, params: MaskParams) -> Result<(Recorded, FlexTensor, Handover), Error> {
    let tensors = inputs.map(|tensor| tensor.primitive().clone());
    let [out, lse] = flex::forward_with_lse(tensors, &params)?;
    let d_lse = Handover::default();
    let made = (out, lse.clone(), d_lse.clone());
    let Inputs { query, key, value, additional } = inputs;
    let out = match additional {
        None => record([query, key, value], params, made),
        Some([keys, values]) => record([query, key, value, keys, values], params, made),
    };
    Ok((out, lse, d_lse))
}

/// Puts an output behind the inputs that it was made of.
fn record<const N: usize>(
    inputs: [Recorded; N],
    params: MaskParams,
    (out, lse, d_lse): (FlexTensor, FlexTensor, Handover),
) -> Recorded {
    let nodes = inputs.each_ref().map(|tensor| tensor.node());
    // Never computed again, so that it is the same for every strategy of checkpointing; the inputs are kept by theirs.
    match Attend(params).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let inputs = inputs.each_ref().map(|tensor| prep.checkpoint(tensor));
            prep.finish(State { inputs, out: out.clone(), lse, d_lse }, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

/// The node of the output.
#[derive(Debug)]
struct Attend(MaskParams);

#[derive(Clone, Debug)]
struct State<const N: usize> {
    inputs: [NodeId; N],
    out: FlexTensor,
    lse: FlexTensor,
    d_lse: Handover,
}

impl<const N: usize> Backward<Flex, N> for Attend {
    type State = State<N>;

    fn backward(self, ops: Ops<State<N>, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { inputs, out, lse, d_lse } = ops.state;
        let mut inputs = inputs.into_iter().map(|id| checkpointer.retrieve_node_output::<FlexTensor>(id));
        let [query, key, value] = [(); 3].map(|()| inputs.next().expect("3 or 5 inputs were recorded"));
        let additional = inputs.next().zip(inputs.next()).map(<[FlexTensor; 2]>::from);
        let inputs = Inputs { query, key, value, additional };
        let d_lse = d_lse.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = Saved { out, lse, d_out: grads.consume::<Flex>(&ops.node), d_lse };
        // The forward has checked all but whether there is memory for the gradients, and burn takes no error here.
        let found = flex::backward(inputs, &self.0, saved).unwrap_or_else(|error| panic!("{error}"));
        let found =
            [found.query, found.key, found.value].into_iter().chain(found.additional.into_iter().flatten());
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// The node of the log-sum-exp.
#[derive(Debug)]
struct Lse;

#[derive(Clone, Debug)]
struct LseState {
    d_lse: Handover,
    /// Those of the output.
    shape: Shape,
    dtype: DType,
}

impl Backward<Flex, 1> for Lse {
    type State = LseState;

    fn backward(self, ops: Ops<LseState, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let LseState { d_lse, shape, dtype } = ops.state;
        *d_lse.lock().unwrap_or_else(PoisonError::into_inner) = Some(grads.consume::<Flex>(&ops.node));
        // The output has a gradient then, if only one 0 in every place.
        let strides = vec![0; shape.num_dims()];
        let zero = FlexTensor::zeros(Shape::new([1]), dtype).with_layout(Layout::new(shape, strides, 0));
        for parent in ops.parents.into_iter().flatten() {
            grads.register::<Flex>(parent.id, zero.clone());
        }
    }
}
