//! From a row of logits to a token: processors in a fixed order, then the draw.
//!
//! penalties → bias → allowed tokens, banned stop tokens → temperature → top-k / top-p / min-p → draw. Log-probabilities
//! are those of the model itself, before any of these.
//!
//! Invariant: a token depends only on the sequence's own row, parameters, history and generator.

mod draw;
mod processors;
pub mod rng;
mod rows;
mod sampler;

pub use sampler::{History, Sampler, Scratch};
