//! To be filled: nothing asynchronous or tensor-like is decoded yet.
