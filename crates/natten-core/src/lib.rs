//! Neighborhood attention without a backend: problem descriptors, window mathematics, tile planning and
//! the f64 reference.
#![forbid(unsafe_code)]
