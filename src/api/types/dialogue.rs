//! Answers of `/chat` and `/sessions`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::usage::{Timings, Usage};
use crate::sessions::Message;

/// An answer of `/chat` that is sent as a whole.
#[derive(Debug, Serialize)]
pub struct DialogueReply {
    /// `chatcmpl-…`
    pub id: String,
    /// `chat.reply`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What the model says.
    pub reply: String,
    /// How it ended.
    #[serde(flatten)]
    pub end: DialogueEnd,
}

/// What is known when the reply is complete.
#[derive(Debug, Serialize)]
pub struct DialogueEnd {
    /// To go on with; null if no session was begun.
    pub session_id: Option<String>,
    /// Whether the turn is in the session.
    pub saved: bool,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// Oldest turns that did not fit the context.
    pub dropped_turns: u32,
    /// Counts.
    pub usage: Usage,
    /// Times.
    pub timings: DialogueTimings,
}

/// [`Timings`], and the stages around the engine.
#[derive(Debug, Serialize)]
pub struct DialogueTimings {
    /// The engine's.
    #[serde(flatten)]
    pub engine: Timings,
    /// Milliseconds by stage, in the order in which they ran.
    pub stages_ms: Map<String, Value>,
}

/// One event of a streamed answer of `/chat`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DialogueEvent<'a> {
    /// The first.
    Start {
        /// The same as in a whole answer.
        id: &'a str,
        /// Seconds since 1970.
        created: u64,
        /// The model's name.
        model: &'a str,
        /// The session; a new one exists when the last event says `saved`.
        session_id: Option<&'a str>,
        /// Oldest turns that did not fit the context.
        dropped_turns: u32,
    },
    /// Text to append.
    Delta {
        /// The text.
        delta: &'a str,
    },
    /// The last.
    End(&'a DialogueEnd),
}

/// A session in the list of sessions.
#[derive(Debug, Serialize)]
pub struct SessionLine {
    /// Its id.
    pub id: String,
    /// Seconds until it is forgotten, if nobody uses it.
    pub expires_in: u64,
}

/// The list of sessions.
#[derive(Debug, Serialize)]
pub struct SessionList {
    /// `list`
    pub object: &'static str,
    /// Those that were used last come first.
    pub data: Vec<SessionLine>,
    /// There are more than the list shows.
    pub has_more: bool,
}

/// One session.
#[derive(Debug, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// `session`
    pub object: &'static str,
    /// Seconds until it is forgotten, if nobody uses it.
    pub expires_in: u64,
    /// All messages, oldest first.
    pub messages: Vec<Message>,
}

/// A session that is no more.
#[derive(Debug, Serialize)]
pub struct SessionDeleted {
    /// Its id.
    pub id: String,
    /// `session.deleted`
    pub object: &'static str,
    /// True.
    pub deleted: bool,
}
