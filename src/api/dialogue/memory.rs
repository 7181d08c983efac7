//! What a turn knows of its session, from its opening to its storing.

use crate::{
    app::App,
    auth::Tenant,
    config::OnFailure,
    error::{ApiError, ErrorKind},
    sessions::{Message, Owner, Purpose, SessionId, SessionKey, StoreError, TurnGuard},
};

/// The session of one turn; no other turn of it runs in this server meanwhile.
pub(super) struct Memory {
    session: Option<OpenSession>,
    /// What the client can go on with.
    session_id: Option<String>,
    /// The conversation so far.
    history: Vec<Message>,
    /// The turn is to be stored.
    store: bool,
}

struct OpenSession {
    key: SessionKey,
    is_new: bool,
    _turn: TurnGuard,
}

impl Memory {
    /// Finds the session, or begins one. `history` takes the place of what is stored; it becomes the beginning of a new session.
    pub(super) async fn open(
        app: &App,
        tenant: Tenant,
        session_id: Option<&str>,
        history: Option<Vec<Message>>,
        store: bool,
    ) -> Result<Self, ApiError> {
        if !store && session_id.is_none() {
            return Ok(Self { session: None, session_id: None, history: history.unwrap_or_default(), store });
        }
        match Self::find(app, tenant, session_id, store).await {
            Ok((session, stored)) => {
                let session_id = Some(session.key.id.as_str().to_owned());
                Ok(Self { session: Some(session), session_id, history: history.unwrap_or(stored), store })
            }
            Err(error) if may_serve(app, &error) => {
                tracing::warn!(cause = error.cause(), "a turn is answered without its session");
                let session_id = session_id.map(str::to_owned);
                Ok(Self { session: None, session_id, history: history.unwrap_or_default(), store: false })
            }
            Err(error) => Err(error),
        }
    }

    /// The session and what is stored of it.
    async fn find(
        app: &App,
        tenant: Tenant,
        session_id: Option<&str>,
        store: bool,
    ) -> Result<(OpenSession, Vec<Message>), ApiError> {
        let owner = Owner::from(tenant);
        let Some(session_id) = session_id else {
            // Before any work: what cannot be stored afterwards is refused now.
            app.sessions.store.check().await.map_err(session_error)?;
            let id = SessionId::random().map_err(session_error)?;
            let turn = lock_session(app, &id).await?;
            return Ok((OpenSession { key: SessionKey { id, owner }, is_new: true, _turn: turn }, Vec::new()));
        };
        let id = SessionId::parse(session_id).ok_or_else(ApiError::session_not_found)?;
        let turn = lock_session(app, &id).await?;
        let key = SessionKey { id, owner };
        let session = app.sessions.store.load(&key, Purpose::Turn).await.map_err(session_error)?;
        let max_turns = app.config.sessions.max_turns;
        let num_turns = session.messages.iter().filter(|message| message.role == "user").count();
        if store && num_turns >= max_turns as usize {
            return Err(ApiError::invalid(
                "session_id",
                format!(
                    "the session has {num_turns} turns, the most it may have (setting sessions.max_turns); begin a new one"
                ),
            ));
        }
        Ok((OpenSession { key, is_new: false, _turn: turn }, session.messages))
    }

    pub(super) fn history(&self) -> &[Message] {
        &self.history
    }

    /// The session that the client can go on with.
    pub(super) fn session_id(&self) -> Option<&str> {
        self.session_id.as_deref()
    }

    /// Stores the turn; whether it is stored.
    pub(super) async fn save(&mut self, app: &App, query: &str, reply: &str) -> Result<bool, ApiError> {
        let Some(session) = self.session.as_ref().filter(|_| self.store) else { return Ok(false) };
        let mut messages = if session.is_new { std::mem::take(&mut self.history) } else { Vec::new() };
        messages.extend([Message::new("user", query), Message::new("assistant", reply)]);
        match app.sessions.store.append(&session.key, &messages, session.is_new).await.map_err(session_error) {
            Ok(()) => Ok(true),
            Err(error) if may_serve(app, &error) => {
                tracing::warn!(cause = error.cause(), "a turn is not saved");
                if session.is_new {
                    self.session_id = None;
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether the request is to be answered all the same.
fn may_serve(app: &App, error: &ApiError) -> bool {
    error.kind() == ErrorKind::SessionStoreUnavailable && app.config.sessions.on_failure == OnFailure::Serve
}

/// Waits for the session's other turns, as long as a request may wait for the engine.
pub(in crate::api) async fn lock_session(app: &App, id: &SessionId) -> Result<TurnGuard, ApiError> {
    let limit = app.config.limits.queue_timeout.get();
    let turn = app.sessions.lock(id);
    let turn = if limit.is_zero() {
        turn.await
    } else {
        tokio::time::timeout(limit, turn).await.map_err(|_| ApiError::deadline_exceeded())?
    };
    turn.map_err(|_| ApiError::overloaded(1))
}

/// What a store's error is to the client.
pub(in crate::api) fn session_error(error: StoreError) -> ApiError {
    match error {
        StoreError::NotFound => ApiError::session_not_found(),
        StoreError::Full | StoreError::Unavailable(_) => ApiError::session_store_unavailable(error),
    }
}
