//! `tokenmill serve`: from settings to a running server, and its end.
//!
//! The port is bound first (a taken one is told before minutes of loading), the server answers health checks with 503 while
//! the model loads, and a signal at any time drains.

use crate::app::App;
use crate::auth::ApiKeys;
use crate::config::machine;
use crate::config::{Config, ConfigError};
use crate::loading::{self, LoadFailure};
use crate::serving::handle::ModelHandle;
use crate::{server, trace};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// For engines to end, when the server has.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Exit code after a second signal, as a shell reports a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Why the server did not start, or did not end well. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// No threads, no signals.
    #[error("the system refuses {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadFailure),
    /// Loading panicked.
    #[error("loading the model failed; the log says why")]
    LoadPanicked,
    /// The engine died while serving.
    #[error("the engine died; the log says why")]
    EngineDied,
}

/// Serves until a signal, then drains.
///
/// # Errors
/// See [`StartError`].
pub fn serve(config: Config) -> Result<(), StartError> {
    trace::init(&config.log).map_err(|error| ConfigError::invalid("log.level", &error.to_string()))?;
    raise_file_limit();
    let keys = config.api_keys()?;
    let keys = ApiKeys::new(keys.iter().map(String::as_str));
    let num_workers = config.server.threads.get_or(|| machine::num_threads().clamp(2, 4));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::try_from(num_workers).unwrap_or(2))
        .thread_name("gateway")
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "threads", source })?;
    let result = runtime.block_on(run(App::new(config, keys)));
    // Loading and tokenizing may still run on the blocking pool; nobody waits for it any more.
    runtime.shutdown_background();
    result
}

async fn run(app: Arc<App>) -> Result<(), StartError> {
    let listener = listen(&app.config).await?;
    let addr = listener.local_addr().map_err(|source| StartError::System { what: "the address", source })?;
    let mut signals = Signals::new().map_err(|source| StartError::System { what: "signal handlers", source })?;
    warn_if_open(&app, addr);
    app.sessions.store.start();
    tracing::info!(address = %format!("http://{addr}"), keys = app.keys.len(), "listening");
    let load = spawn_blocking({
        let app = app.clone();
        move || loading::load(&app)
    });
    let (outcome, ended) = oneshot::channel();
    let stop = {
        let app = app.clone();
        async move {
            let result = tokio::select! {
                () = signals.next() => Ok(()),
                () = app.lifecycle.engine_dead() => Err(StartError::EngineDied),
                failure = serve_when_loaded(&app, load, addr) => Err(failure),
            };
            tokio::spawn(signals.exit_on_the_next());
            // The receiver lives until the server has stopped.
            let _sent = outcome.send(result);
        }
    };
    server::serve(app.clone(), listener, stop).await;
    // Nothing is in flight any more, so this takes a step at most; a hanging engine must not keep the process.
    let stopping = spawn_blocking(move || app.models.list().iter().for_each(|model| model.stop()));
    if timeout(STOP_LIMIT, stopping).await.is_err() {
        tracing::warn!("the engine does not stop");
    }
    ended.await.unwrap_or(Ok(()))
}

/// Opens the server when the model is loaded; resolves only if that fails.
async fn serve_when_loaded(
    app: &App,
    load: JoinHandle<Result<Arc<ModelHandle>, LoadFailure>>,
    addr: SocketAddr,
) -> StartError {
    match load.await {
        Ok(Ok(model)) => {
            app.lifecycle.set_ready();
            announce(&model, addr);
            std::future::pending().await
        }
        Ok(Err(failure)) => failure.into(),
        Err(_) => StartError::LoadPanicked,
    }
}

async fn listen(config: &Config) -> Result<TcpListener, StartError> {
    let (host, port) = (config.server.host.as_str(), config.server.port);
    // An IPv6 address may come in the brackets that it has in a URL.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let explain = |error: &io::Error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "the port is taken; stop the program that has it, or choose another with --port"
            }
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address; choose another with --host",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose another with --port",
            _ => return StartError::Listen(format!("cannot listen on {host}:{port}: {error}; see --host and --port")),
        };
        StartError::Listen(format!("cannot listen on {host}:{port}: {advice}"))
    };
    let addrs = lookup_host((bare, port)).await.map_err(|error| {
        StartError::Listen(format!("cannot find the address of host '{host}': {error}; choose another with --host"))
    })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for addr in addrs {
        match bind(addr) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(explain(&last))
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of a server that has just ended must not keep its successor from the port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn warn_if_open(app: &App, addr: SocketAddr) {
    if app.keys.is_empty() && !addr.ip().is_loopback() {
        tracing::warn!("no API keys are set: whoever reaches {addr} may use this server (--api-key-file)");
    }
}

/// The address to try the server under, and a line to paste into a shell.
fn announce(model: &ModelHandle, addr: SocketAddr) {
    // Nobody can connect to "all interfaces".
    let host = if addr.ip().is_unspecified() { "127.0.0.1".to_owned() } else { addr.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("http://{host}:{}", addr.port());
    tracing::info!(model = model.name(), "ready: OpenAI clients use base_url {url}/v1");
    let (path, asked) = if model.template().is_some() {
        ("chat/completions", r#""messages": [{"role": "user", "content": "Hello! Who are you?"}]"#)
    } else {
        ("completions", r#""prompt": "Once upon a time""#)
    };
    let body = format!(r#"{{"model": "{}", "stream": true, {asked}}}"#, model.name());
    tracing::info!("try: curl -N {url}/v1/{path} -H 'Content-Type: application/json' -d '{body}'");
}

/// Every connection takes a file descriptor, and the usual soft limit is 1024.
#[cfg(unix)]
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(not(unix))]
fn raise_file_limit() {}

/// SIGTERM and SIGINT; Ctrl-C elsewhere.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whoever sends a second signal does not want to wait.
    async fn exit_on_the_next(mut self) {
        self.next().await;
        tracing::warn!("second signal, exiting at once");
        std::process::exit(INTERRUPTED);
    }
}
