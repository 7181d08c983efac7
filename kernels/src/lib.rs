//! SIMD kernels for quantized decoder models.
//!
//! An operation is a module. Matrix products have a file per instruction set, and `scalar.rs` is the reference that
//! nobody optimises; all else is written once over sixteen lanes and compiled per instruction set (`simd/`). Public functions are safe: they check lengths once and split work over a [`pool::Pool`].
//!
//! Guarantee: a row of any result depends only on that row's inputs, bit for bit, never on how many rows share the
//! call, on the tile it falls into or on the number of threads.
#![allow(unsafe_code, reason = "the one crate whose job is intrinsics and disjoint writes from several threads")]

pub mod activation;
pub mod activations;
pub mod aligned;
pub mod attention;
pub mod isa;
pub mod kv_cache;
pub mod logits;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod probe;
pub mod quant;
pub mod rope;
mod shared;
mod simd;
