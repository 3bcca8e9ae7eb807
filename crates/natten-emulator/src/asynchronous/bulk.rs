//! To be filled: nothing asynchronous or tensor-like is decoded yet.
#[derive(Debug, Default)]
pub(crate) struct BulkQueue;
