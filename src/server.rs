//! The network side: accepting connections, HTTP/1.1 and HTTP/2 on one port, and the drain at the end.
//!
//! Bounded everywhere: connections by permits (more wait in the kernel's backlog), what a connection may cost by the limits set
//! in [`builder`] and `configure`, time by src/connection.rs and src/body.rs.

use crate::app::App;
use crate::connection::{Activity, Driven, Socket, supervise};
use crate::disconnect::Disconnect;
use crate::peers::Peers;
use crate::router;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockRef, TcpKeepalive};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep, timeout};

/// Between two foldings of the histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// For the error events of streams that a drain has cut to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// Read and write buffer of one connection in user space; also the largest head of a request.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;

/// Serves on `listener` until `shutdown` resolves, then drains: what runs may finish within the setting's time, new requests get
/// 503 and `Connection: close`. Returns when nothing is left.
pub async fn serve(app: Arc<App>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let permits =
        Arc::new(Semaphore::new(usize::try_from(app.config.server.max_connections).unwrap_or(usize::MAX >> 3)));
    let life = &app.lifecycle;
    let stop = async {
        shutdown.await;
        drain(&app).await;
    };
    let upkeep = async {
        let mut ticks = interval(UPKEEP_EVERY);
        loop {
            ticks.tick().await;
            app.metrics.run_upkeep();
        }
    };
    tokio::select! {
        () = stop => {}
        () = upkeep => {}
        () = accept_all(&app, &listener, &permits) => {}
    }
    drop(listener);
    life.close();
    // Every connection holds a permit: with all of them back, none is left.
    let all = app.config.server.max_connections;
    let closed = timeout(LAST_WORDS, permits.acquire_many(all)).await;
    tracing::info!(clean = closed.is_ok(), "server stopped");
}

async fn drain(app: &App) {
    let life = &app.lifecycle;
    let limit = app.config.server.drain_timeout.get();
    tracing::info!(in_flight = life.num_in_flight(), limit_s = limit.as_secs(), "draining");
    life.start_draining();
    if timeout(limit, life.idle()).await.is_err() {
        tracing::warn!(in_flight = life.num_in_flight(), "drain time is over, ending what still runs");
        life.cut_short();
        if timeout(LAST_WORDS, life.idle()).await.is_err() {
            tracing::warn!(in_flight = life.num_in_flight(), "some clients did not take their last event");
        }
    }
}

async fn accept_all(app: &Arc<App>, listener: &TcpListener, permits: &Arc<Semaphore>) {
    let builder = Arc::new(builder());
    let peers = Peers::new(app.config.max_connections_per_address());
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = peers.enter(peer.ip()) else {
                    app.metrics.count_closed("per_address");
                    continue;
                };
                let (app, builder) = (app.clone(), builder.clone());
                tokio::spawn(async move {
                    app.metrics.connections.increment(1.0);
                    serve_connection(&app, &builder, stream).await;
                    app.metrics.connections.decrement(1.0);
                    drop((place, permit));
                });
            }
            // The client's fault: it went away in the backlog.
            Err(error) if is_about_one_client(&error) => {}
            // Ours: no file descriptors left, most likely. Trying again at once would burn a core.
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // It would also run between requests; src/connection.rs tells the two apart.
        .header_read_timeout(None)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        // Where the end of the client's stream is watched for by us, hyper need not drop an answer that is ready with it.
        .half_close(crate::connection::WATCHES_END_OF_STREAM);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(1 << 20)
        .max_header_list_size(16 << 10)
        .max_send_buf_size(CONNECTION_BUFFER_BYTES)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn serve_connection(app: &Arc<App>, builder: &auto::Builder<TokioExecutor>, stream: TcpStream) {
    if let Err(error) = configure(app, &stream) {
        tracing::debug!(%error, "socket options");
    }
    let stream = Arc::new(stream);
    let activity = Activity::new();
    let client = Disconnect::new();
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let busy = activity.begin(request.version() == hyper::Version::HTTP_2);
        let work = router::handle(app.clone(), request, client.child(), Some(busy));
        async { Ok::<_, Infallible>(work.await) }
    });
    let io = TokioIo::new(Socket::new(stream.clone(), activity.clone()));
    supervise(app, builder.serve_connection(io, service), &stream, &activity, &client).await;
}

impl<I, S, B, E> Driven for auto::Connection<'_, I, S, E>
where
    Self: Future,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn retire(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

fn configure(app: &App, stream: &TcpStream) -> io::Result<()> {
    // Events are small and must leave at once.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // Or the kernel would buffer megabytes for a client that does not read.
    let server = &app.config.server;
    socket.set_send_buffer_size(usize::try_from(server.send_buffer.get()).unwrap_or(usize::MAX))?;
    // Clients whose machine has gone say nothing: noticed when they do not acknowledge, or else by probes.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(server.stall_timeout.get()))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))
}
