//! The shapes of JSON that handlers answer with: serde only, no logic.

pub mod chat;
pub mod completion;
pub mod dialogue;
pub mod tokenize;
pub mod usage;
