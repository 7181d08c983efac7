//! Turns a generation into a response: one JSON object, or a stream of events.
//!
//! What a stream sends and in which order is decided here; what each event looks like, by a [`Shape`].

use std::sync::Arc;

use super::{
    Request,
    generation::{Generation, Update},
    parameters::{Endpoint, Parameters},
};
use crate::{
    app::App,
    body::Response,
    error::ApiError,
    sse::{self, SseOptions, SseSender},
    stream::choice::Delta,
    trace::random_u64,
};

/// The answers of one endpoint.
pub(super) trait Shape: Send + Sync + 'static {
    /// Which endpoint.
    const ENDPOINT: Endpoint;

    /// The events for what is new about one choice.
    fn push_update(generation: &Generation, update: Update, sender: &mut SseSender);

    /// The event with the usage.
    fn push_usage(generation: &Generation, sender: &mut SseSender);

    /// The whole answer; `choices` holds one delta per choice, each with its end.
    fn whole(generation: &Generation, choices: Vec<Delta>) -> Response;
}

/// Answers one request.
///
/// # Errors
/// Everything that goes wrong before the status is sent.
pub(super) async fn answer<S: Shape>(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let params = Parameters::from_body(S::ENDPOINT, &request.body)?;
    let mut generation = Generation::start(&app, &request, S::ENDPOINT, params).await?;
    if let Some(stream) = &generation.params.stream {
        let defaults = app.sse_options();
        let keep_alive = stream.ping.unwrap_or(defaults.keep_alive);
        let (sender, response) = sse::channel(SseOptions { keep_alive, ..defaults });
        tokio::spawn(pump::<S>(generation, sender));
        return Ok(response);
    }
    let choices = collect(&mut generation).await?;
    Ok(S::whole(&generation, choices))
}

/// Waits for the end of a generation: one delta per choice.
///
/// # Errors
/// What ended it before.
pub(super) async fn collect(generation: &mut Generation) -> Result<Vec<Delta>, ApiError> {
    let mut choices = vec![Delta::default(); generation.num_choices()];
    while let Some(update) = generation.next().await {
        let Update { choice, delta, .. } = update?;
        if let Some(delta) = delta {
            choices[choice as usize].append(delta);
        }
    }
    Ok(choices)
}

/// Feeds a stream until its end or until nobody reads it; dropping the generation stops it.
async fn pump<S: Shape>(mut generation: Generation, sender: SseSender) {
    let Some(mut sender) = feed(&mut generation, sender, S::push_update).await else { return };
    if generation.params.stream.as_ref().is_some_and(|stream| stream.include_usage) {
        S::push_usage(&generation, &mut sender);
    }
    let _left = sender.done().await;
}

/// Feeds a stream until the generation's end and gives it back open; `None` if it is over: nobody reads it, or an error has
/// ended it.
pub(super) async fn feed(
    generation: &mut Generation,
    mut sender: SseSender,
    mut push_update: impl FnMut(&Generation, Update, &mut SseSender),
) -> Option<SseSender> {
    loop {
        let mut update = tokio::select! {
            update = generation.next() => update,
            () = sender.closed() => return None,
        };
        if update.is_none() {
            return Some(sender);
        }
        // Everything that a step has brought leaves in one frame.
        while let Some(ready) = update {
            match ready {
                Ok(ready) => push_update(generation, ready, &mut sender),
                Err(error) => {
                    report(generation, &error);
                    // A client that has left needs no error.
                    let _left = sender.fail(&error).await;
                    return None;
                }
            }
            update = generation.try_next();
        }
        if sender.flush().await.is_err() {
            return None;
        }
    }
}

pub(super) fn report(generation: &Generation, error: &ApiError) {
    if error.status().is_server_error() {
        tracing::error!(id = generation.id, code = error.kind().row().code, cause = error.cause(), "a stream failed");
    }
}

/// Random characters that bring `len` to a multiple of 32, so that the size of an event says less about its text.
pub(super) fn obfuscation(len: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bits = 0;
    let padding = (0..32 - len % 32).map(|index| {
        if index % 12 == 0 {
            bits = random_u64();
        }
        let char = ALPHABET[(bits & 31) as usize];
        bits >>= 5;
        char::from(char)
    });
    padding.collect()
}
