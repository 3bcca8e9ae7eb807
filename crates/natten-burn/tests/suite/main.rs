//! The operator on burn's tensors: values and gradients held to attention written in burn's own operations, to finite differences,
//! and to what the layout of a tensor, its element type or its place in a graph must not change.

mod elements;
mod errors;
mod graph;
mod layouts;
mod module;
mod support;
mod values;
