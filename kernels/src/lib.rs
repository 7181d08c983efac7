//! SIMD kernels for quantized decoder models.
//!
//! An operation is a module; inside it, an instruction set is a file, and `scalar.rs` is the reference that nobody
//! optimises. Public functions are safe: they check lengths once and split work over a [`pool::Pool`].
//!
//! Guarantee: a row of any result depends only on that row's inputs, bit for bit, never on how many rows share the
//! call, on the tile it falls into or on the number of threads.
#![allow(unsafe_code, reason = "the one crate whose job is intrinsics and disjoint writes from several threads")]

pub mod activations;
pub mod aligned;
pub mod isa;
pub mod matmul;
pub mod pool;
pub mod quant;
mod shared;
