//! Decoder-only models: what they are (families, weights) and what runs them.
//!
//! `runner` is the contract that a scheduler sees; everything else needs the feature `cpu`. A model goes from files to
//! a runner through [`OpenModel`] (files opened and checked, a [`spec::DecoderSpec`] made from the configuration) and
//! [`load`] (memory planned, weights packed).

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cpu")]
pub mod error;
#[cfg(feature = "cpu")]
pub mod families;
#[cfg(feature = "cpu")]
pub mod open;
pub mod runner;
#[cfg(feature = "cpu")]
pub mod spec;
#[cfg(feature = "cpu")]
pub mod weights;

#[cfg(feature = "cpu")]
pub use cpu::CpuRunner;
#[cfg(feature = "cpu")]
pub use cpu::load::{Estimate, LoadOptions, LoadedModel, ModelInfo, Quantize, estimate, load};
#[cfg(feature = "cpu")]
pub use error::LoadError;
#[cfg(feature = "cpu")]
pub use open::{GenerationDefaults, ModelSource, OpenModel};
