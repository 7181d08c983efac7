//! Decoder-only models: what they are (families, weights) and what runs them.
//!
//! `runner` is the contract that a scheduler sees; everything else needs the feature `cpu`.

#[cfg(feature = "cpu")]
pub mod error;
#[cfg(feature = "cpu")]
pub mod families;
pub mod runner;
#[cfg(feature = "cpu")]
pub mod spec;
#[cfg(feature = "cpu")]
pub mod weights;

#[cfg(feature = "cpu")]
pub use error::LoadError;
