//! Decoder-only models: what they are (families, weights) and what runs them.
//!
//! `runner` is the contract that a scheduler sees; everything else needs the feature `cpu`.

pub mod runner;
