//! `POST /chat`: one message in, one reply out, and the server remembers the conversation.
//!
//! A [`Turn`] goes through its stages in the order of [`Turn::open`] and [`Turn::finish`]: session, prompt, engine, store. Each
//! is timed; a further stage has its place there. The turn is stored before its end is told, and a client that leaves before
//! leaves nothing half: no turn at all.

mod memory;
mod question;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::StatusCode;
use serde_json::{Map, Value};

pub(super) use self::memory::{lock_session, session_error};
use self::{memory::Memory, question::Question};
use super::{
    Request,
    answer::{collect, feed, report},
    conversation::Conversation,
    generation::{Generation, Update},
    parameters::{Endpoint, Input},
    types::dialogue::{DialogueEnd, DialogueEvent, DialogueReply, DialogueTimings},
};
use crate::{
    app::App,
    body::{self, Response},
    error::ApiError,
    sse::{self, SseOptions, SseSender},
    stream::choice::{Delta, Finish},
};

/// Answers one message.
///
/// # Errors
/// 400 that names the field, 404 for an unknown model or session, 503 when the queue is full or sessions cannot be stored.
pub async fn create(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let mut turn = Turn::open(Arc::clone(&app), &request).await?;
    if let Some(stream) = &turn.generation.params.stream {
        let defaults = app.sse_options();
        let keep_alive = stream.ping.unwrap_or(defaults.keep_alive);
        let (sender, response) = sse::channel(SseOptions { keep_alive, ..defaults });
        tokio::spawn(turn.stream(sender));
        return Ok(response);
    }
    let choices = turn.stages.time("engine", collect(&mut turn.generation)).await?;
    let reply = choices.into_iter().next().unwrap_or_default();
    let end = turn.finish(&reply).await?;
    let generation = &turn.generation;
    let answer = DialogueReply {
        id: generation.id.clone(),
        object: "chat.reply",
        created: generation.created,
        model: generation.handle.name().to_owned(),
        reply: reply.text,
        end,
    };
    Ok(body::json(StatusCode::OK, &answer))
}

/// How long each stage took.
#[derive(Default)]
struct Stages(Vec<(&'static str, Duration)>);

impl Stages {
    async fn time<T>(&mut self, name: &'static str, stage: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = stage.await;
        self.0.push((name, start.elapsed()));
        result
    }

    /// Milliseconds, rounded to microseconds.
    fn to_map(&self) -> Map<String, Value> {
        let millis = |time: &Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        self.0.iter().map(|(name, time)| ((*name).to_owned(), millis(time).into())).collect()
    }
}

/// A question on its way to being a turn of its session.
struct Turn {
    app: Arc<App>,
    query: String,
    memory: Memory,
    generation: Generation,
    stages: Stages,
}

impl Turn {
    /// The stages before the engine.
    async fn open(app: Arc<App>, request: &Request) -> Result<Self, ApiError> {
        let mut stages = Stages::default();
        let Question { query, history, session_id, store, mut params } = Question::read(&app, &request.body)?;
        let opening = Memory::open(&app, request.tenant, session_id.as_deref(), history, store);
        let memory = stages.time("session", opening).await?;
        params.input = Input::Conversation(Conversation::new(memory.history(), &query));
        let starting = Generation::start(&app, request, Endpoint::Chat, params);
        let generation = stages.time("prompt", starting).await.map_err(name_the_query)?;
        Ok(Self { app, query, memory, generation, stages })
    }

    /// The stages after the engine; the turn is stored when it returns.
    async fn finish(&mut self, reply: &Delta) -> Result<DialogueEnd, ApiError> {
        let saving = self.memory.save(&self.app, &self.query, &reply.text);
        let saved = self.stages.time("store", saving).await?;
        let generation = &self.generation;
        Ok(DialogueEnd {
            session_id: self.memory.session_id().map(str::to_owned),
            saved,
            finish_reason: reply.finish.as_ref().unwrap_or(&Finish::Length).reason(),
            dropped_turns: generation.prompt_of(0).num_dropped_turns,
            usage: generation.usage(),
            timings: DialogueTimings { engine: generation.timings(), stages_ms: self.stages.to_map() },
        })
    }

    /// Feeds a stream to its end; dropping the turn stops the engine.
    async fn stream(mut self, mut sender: SseSender) {
        sender.push(&DialogueEvent::Start {
            id: &self.generation.id,
            created: self.generation.created,
            model: self.generation.handle.name(),
            session_id: self.memory.session_id(),
            dropped_turns: self.generation.prompt_of(0).num_dropped_turns,
        });
        if sender.flush().await.is_err() {
            return;
        }
        let mut reply = Delta::default();
        let push = |_: &Generation, update: Update, sender: &mut SseSender| {
            let Some(delta) = update.delta else { return };
            if !delta.text.is_empty() {
                sender.push(&DialogueEvent::Delta { delta: &delta.text });
            }
            reply.append(delta);
        };
        let feeding = feed(&mut self.generation, sender, push);
        let Some(mut sender) = self.stages.time("engine", feeding).await else { return };
        if sender.is_closed() {
            return;
        }
        // A client that has left meanwhile needs neither end nor error.
        let _left = match self.finish(&reply).await {
            Ok(end) => {
                sender.push(&DialogueEvent::End(&end));
                sender.done().await
            }
            Err(error) => {
                report(&self.generation, &error);
                sender.fail(&error).await
            }
        };
    }
}

/// What the prompt is too long for is, to the client, its `query`.
fn name_the_query(error: ApiError) -> ApiError {
    if error.param() == Some("messages") { error.with_param("query") } else { error }
}
