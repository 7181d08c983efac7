//! From a model's name to a live engine.
//!
//! [`registry::Registry`] finds a [`handle::ModelHandle`]; a handle admits requests ([`admission`]), sends their sequences to
//! its engine's thread and hands back one [`stream::GenerationStream`] of events per request. Below this module nothing
//! knows text; above it nothing knows the engine.

pub mod admission;
pub mod handle;
pub mod registry;
pub mod stream;
