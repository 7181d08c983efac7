//! The gateway of Tokenmill: HTTP and text on this side, token ids on the engine's.
//!
//! Read from the top: [`server`] accepts connections, [`router`] finds the route in [`api::ROUTES`], the handler in [`api`]
//! answers, by itself or through an event stream ([`sse`]).

pub mod api;
pub mod app;
pub mod auth;
pub mod bench;
pub mod body;
pub mod cli;
pub mod completions;
pub mod config;
pub mod connection;
pub mod demo;
pub mod disconnect;
pub mod error;
pub mod http_client;
pub mod hub;
pub mod inspect;
pub mod loading;
pub mod metrics;
mod peers;
pub mod prompt;
pub mod quantize;
pub mod router;
pub mod server;
pub mod serving;
pub mod sessions;
pub mod sse;
pub mod startup;
pub mod stream;
pub mod synth;
pub mod terminal;
pub mod trace;
