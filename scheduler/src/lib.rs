//! Continuous batching on integers: sequences, paged KV blocks, prefix reuse, sampling.
//!
//! ```text
//!            Command                    SeqEvent
//! gateway ─────────────▶ engine ────────────────────▶ sink of each request
//!                          │
//!        ┌─────────────────┼──────────────────┐        one step, on one thread:
//!        ▼                 ▼                  ▼
//!    scheduler ─ Batch ▶ runner ─ Logits ▶ sampling    1 schedule: which tokens, which blocks
//!        │              (models)              │        2 forward:  the model, K and V, logits
//!        ▼                                    │        3 sample:   one token per sequence
//!  kv_cache, block_pool ◀───── commit ────────┘        4 commit:   append, publish, finish, free
//! ```
//!
//! Invariant of the crate: it knows block ids, never memory; token ids, never text; and no decision reads the clock.

mod block_key;
mod block_pool;
pub mod engine;
pub mod kv_cache;
pub mod request;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stats;
