//! `tokenmill serve`: from settings to a running server, and its end.
//!
//! The port is bound first (a taken one is told before minutes of loading), the server answers health checks with 503 while
//! the model loads, and a signal at any time drains.

use crate::app::App;
use crate::auth::ApiKeys;
use crate::config::machine;
use crate::config::{Config, ConfigError};
use crate::{server, trace};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
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
    let stop = {
        let app = app.clone();
        async move {
            tokio::select! {
                () = signals.next() => tracing::info!("signal received"),
                () = app.lifecycle.engine_dead() => tracing::error!("the engine has died, shutting down"),
            }
            tokio::spawn(signals.exit_on_the_next());
        }
    };
    app.lifecycle.set_ready();
    announce(&app, addr);
    server::serve(app.clone(), listener, stop).await;
    if app.lifecycle.is_engine_dead() { Err(StartError::EngineDied) } else { Ok(()) }
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

fn announce(app: &App, addr: SocketAddr) {
    if app.keys.is_empty() && !addr.ip().is_loopback() {
        tracing::warn!("no API keys are set: whoever reaches {addr} may use this server (--api-key-file)");
    }
    tracing::info!(address = %format!("http://{addr}"), keys = app.keys.len(), "listening");
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
