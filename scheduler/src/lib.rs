//! Continuous batching on integers: sequences, paged KV blocks, prefix reuse, sampling.

pub mod request;
