//! Tokens to text as they come: whole characters only, and stop strings found before the client sees them.

pub mod choice;
pub mod detokenizer;
pub mod stop;

pub use detokenizer::Detokenizer;
pub use stop::{StopOutput, StopScanner};
