//! The CPU runner: packed weights, buffers, and the forward pass on the kernels.

mod arena;
mod experts;
mod forward;
pub mod load;
mod memory;
mod pack;
mod plan;
mod runner;
mod weights;

pub use runner::CpuRunner;
