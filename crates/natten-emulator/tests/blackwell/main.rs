//! `tcgen05` of data-center Blackwell: products, movements, descriptors against tables that are not the emulator's, and
//! every rule of order broken once.

#[path = "../support/mod.rs"]
mod support;

mod allocation;
mod assembled;
mod data_paths;
mod descriptors;
mod edited;
mod hostile;
mod movements;
mod numbers;
mod oracle;
mod order;
mod places;
mod problem;
mod products;
mod refused;
mod shared;
mod tensor_maps;
mod text;
