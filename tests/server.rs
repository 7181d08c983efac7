//! The network side against raw sockets: limits, leaving clients, keys, drain. Its own routes stand in for the model's.

mod common;

use bytes::Bytes;
use common::{PATIENCE, TestServer, read_to_end, read_until};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Method, Request as HttpRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use std::future::ready;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokenmill::api::{ROUTES, Request, Route, Scope};
use tokenmill::app::App;
use tokenmill::body::{self, Response};
use tokenmill::config::{Auto, ByteSize, Config, Span};
use tokenmill::error::ApiError;
use tokenmill::sse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Handlers that were dropped or told that their client has left, and a bell for it.
static LEFT: AtomicUsize = AtomicUsize::new(0);
static LEFT_BELL: Notify = Notify::const_new();
/// Lets `/held` answer.
static RELEASE: Notify = Notify::const_new();

struct Leaving;

impl Drop for Leaving {
    fn drop(&mut self) {
        LEFT.fetch_add(1, Ordering::SeqCst);
        LEFT_BELL.notify_one();
    }
}

const fn route(method: Method, path: &'static str, handler: tokenmill::api::Handler) -> Route {
    Route { method, path, scope: Scope::Inference, handler, summary: "" }
}

const TEST_ROUTES: &[Route] = &[
    route(Method::POST, "/echo", |_, request| Box::pin(ready(echo(request)))),
    route(Method::GET, "/echo/{id}", |_, request| Box::pin(async move { Ok(text(request.param("id"))) })),
    route(Method::POST, "/forever", |_, request| Box::pin(forever(request))),
    route(Method::GET, "/held", |_, _| Box::pin(held())),
    route(Method::GET, "/panic", |_, _| Box::pin(async { panic!("secret detail") })),
    route(Method::GET, "/stream", |app, _| Box::pin(ready(Ok(stream(&app))))),
    route(Method::GET, "/flood", |app, _| Box::pin(ready(Ok(flood(&app))))),
];

fn text(text: &str) -> Response {
    body::with_type(hyper::StatusCode::OK, "text/plain", text.to_owned())
}

fn echo(request: Request) -> Result<Response, ApiError> {
    Ok(body::with_type(hyper::StatusCode::OK, "text/plain", request.body))
}

/// A long completion: it hands its work to a task that must learn of the client's leaving.
async fn forever(request: Request) -> Result<Response, ApiError> {
    let work = tokio::spawn(async move {
        let _leaving = Leaving;
        request.disconnected.gone().await;
    });
    let _done = work.await;
    Err(ApiError::client_closed())
}

async fn held() -> Result<Response, ApiError> {
    RELEASE.notified().await;
    Ok(text("held"))
}

/// One event, then nothing until the client leaves or the drain cuts it.
fn stream(app: &App) -> Response {
    let (mut sender, response) = sse::channel(app.sse_options());
    tokio::spawn(async move {
        let _leaving = Leaving;
        let _sent = sender.data(&json!("first")).await;
        sender.closed().await;
    });
    response
}

/// As much as the client takes.
fn flood(app: &App) -> Response {
    let (mut sender, response) = sse::channel(app.sse_options());
    tokio::spawn(async move {
        let _leaving = Leaving;
        let line = "x".repeat(4096);
        while sender.data(&line).await.is_ok() {}
    });
    response
}

async fn start(configure: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::start_bare(TEST_ROUTES, configure).await
}

/// The tests that count leavers share the counters.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn wait_for_leaver(before: usize) {
    let work = async {
        while LEFT.load(Ordering::SeqCst) == before {
            LEFT_BELL.notified().await;
        }
    };
    timeout(PATIENCE, work).await.expect("the handler learns that its client has left");
}

fn ms(millis: u64) -> Span {
    Span::new(Duration::from_millis(millis))
}

fn short_limits(config: &mut Config) {
    config.server.header_timeout = ms(300);
    config.server.body_idle_timeout = ms(300);
    config.server.body_timeout = ms(1500);
    config.server.idle_timeout = ms(600);
    config.server.stall_timeout = ms(500);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_sockets_are_closed_within_their_limit() {
    let server = start(short_limits).await;
    let mut dribble = server.raw(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await;
    for opening in ["", "P", "GET /ec", "GET /echo/1 HTTP/1.1\r\nhost: x\r\nx-a: "] {
        let started = Instant::now();
        let mut stream = server.raw(opening.as_bytes()).await;
        assert_eq!(read_to_end(&mut stream).await, "", "{opening:?}");
        let elapsed = started.elapsed();
        assert!(elapsed >= Duration::from_millis(250) && elapsed < Duration::from_secs(3), "{opening:?}: {elapsed:?}");
    }
    // A body that stops: an answer first, then the end.
    let mut stream = server.raw(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
    assert!(read_to_end(&mut dribble).await.starts_with("HTTP/1.1 408 "));
    // After a request a connection may rest longer, then it goes; having begun a second head it goes earlier.
    let started = Instant::now();
    let mut stream = server.raw(b"GET /echo/1 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(read_to_end(&mut stream).await.ends_with("\r\n\r\n1"));
    assert!(started.elapsed() >= Duration::from_millis(550), "{:?}", started.elapsed());
    let closed = server.app.metrics.render();
    assert!(closed.contains("tokenmill_connections_closed_total{reason=\"header_timeout\"} 4"), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_without_requests_is_closed() {
    let server = start(short_limits).await;
    let started = Instant::now();
    // Preface, then an empty SETTINGS frame.
    let mut stream = server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    read_to_end(&mut stream).await;
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(550) && elapsed < Duration::from_secs(3), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_noticed_also_behind_a_pipelined_byte() {
    let _alone = ALONE.lock().await;
    let server = start(|_| {}).await;
    for extra in ["", "G", "GET /echo/2 HTTP/1.1\r\nhost: x\r\n\r\n"] {
        for reset in [false, true] {
            let before = LEFT.load(Ordering::SeqCst);
            let request = format!("POST /forever HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}{extra}");
            let stream = server.raw(request.as_bytes()).await;
            wait_in_flight(&server, 1).await;
            let left_at = Instant::now();
            if reset {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(stream);
            wait_for_leaver(before).await;
            wait_in_flight(&server, 0).await;
            assert!(left_at.elapsed() < Duration::from_secs(1), "{extra:?} {reset} {:?}", left_at.elapsed());
        }
    }
    assert!(server.app.metrics.render().contains("route=\"/forever\",method=\"POST\",status=\"499\"} 6"));
}

async fn wait_in_flight(server: &TestServer, num: usize) {
    let work = async {
        while server.app.lifecycle.num_in_flight() != num {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, work).await.expect("requests come and go");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_client() {
    let _alone = ALONE.lock().await;
    let server = start(|_| {}).await;
    for extra in ["", "G"] {
        let before = LEFT.load(Ordering::SeqCst);
        let mut stream = server.raw(format!("GET /stream HTTP/1.1\r\nhost: x\r\n\r\n{extra}").as_bytes()).await;
        let head = read_until(&mut stream, "data: \"first\"\n\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
        drop(stream);
        wait_for_leaver(before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_given_up() {
    let _alone = ALONE.lock().await;
    let server = start(short_limits).await;
    let before = LEFT.load(Ordering::SeqCst);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Else a whole answer fits into the kernel and nothing is tested.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.addr).await.unwrap();
    stream.write_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    wait_for_leaver(before).await;
    wait_in_flight(&server, 0).await;
    assert_eq!(server.get("/echo/1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_so_many_connections_and_no_more() {
    let server = start(|config| config.server.max_connections_per_address = Auto::Value(3)).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = server.raw(b"GET /echo/1 HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(read_until(&mut stream, "\r\n\r\n1").await.starts_with("HTTP/1.1 200 "));
        held.push(stream);
    }
    let mut fourth = TcpStream::connect(server.addr).await.unwrap();
    assert_eq!(read_to_end(&mut fourth).await, "");
    assert!(server.app.metrics.render().contains("tokenmill_connections_closed_total{reason=\"per_address\"} 1"));
    held.pop();
    // The place is free as soon as the server has seen the client leave.
    let again = async {
        loop {
            let mut stream = server.raw(b"GET /echo/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if read_to_end(&mut stream).await.ends_with('1') {
                return;
            }
        }
    };
    timeout(PATIENCE, again).await.expect("a place comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_in_drops_is_given_up() {
    let _alone = ALONE.lock().await;
    let server = start(short_limits).await;
    let before = LEFT.load(Ordering::SeqCst);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.addr).await.unwrap();
    stream.write_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let dribble = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while stream.read_u8().await.is_ok() {
            ticks.tick().await;
        }
    });
    wait_for_leaver(before).await;
    wait_in_flight(&server, 0).await;
    dribble.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn quick_answers_reach_a_client_that_shuts_its_writing_side() {
    let server = start(|_| {}).await;
    let mut stream = server.raw(b"GET /echo/here HTTP/1.1\r\nhost: x\r\n\r\n").await;
    stream.shutdown().await.unwrap();
    assert!(read_to_end(&mut stream).await.ends_with("here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_capped_however_they_announce_themselves() {
    let server = start(|config| config.server.max_body = ByteSize::new(1024)).await;
    assert_eq!(server.post_bytes("/echo", &[b'x'; 1024]).await.status, 200);
    let reply = server.post_bytes("/echo", &[b'x'; 1025]).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (413, Some("request_too_large")));
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let request =
        format!("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n");
    let mut stream = server.raw(request.as_bytes()).await;
    assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 413 "));
    // Asked before it sends, a client gets the answer without sending.
    let request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\nexpect: 100-continue\r\n\r\n";
    let mut stream = server.raw(request).await;
    assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods() {
    let server = start(|_| {}).await;
    let reply = server.get("/nothing").await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (404, Some("unknown_url")));
    let reply = server.get("/echo").await;
    assert_eq!((reply.status, reply.header("allow")), (405, "POST, OPTIONS"));
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    let reply = server.get("/echo/a%20b/c").await;
    assert_eq!((reply.status, reply.text()), (200, "a b/c"));
    let reply = server.request("HEAD", "/echo/four", &[], Bytes::new()).await;
    assert_eq!((reply.status, reply.header("content-length"), reply.text()), (200, "4", ""));
    let reply = server.request("OPTIONS", "/echo", &[], Bytes::new()).await;
    assert_eq!((reply.status, reply.header("allow")), (204, "POST, OPTIONS"));
    assert_eq!(server.request("BREW", "/echo", &[], Bytes::new()).await.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_names_its_request() {
    let server = start(|_| {}).await;
    let reply = server.request("GET", "/echo/1", &[("x-request-id", "mine-1")], Bytes::new()).await;
    assert_eq!(reply.header("x-request-id"), "mine-1");
    assert!(reply.header("openai-processing-ms").parse::<u64>().is_ok());
    let reply = server.request("GET", "/nothing", &[("x-request-id", "a b")], Bytes::new()).await;
    assert!(reply.header("x-request-id").starts_with("req_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_that_requests_own_500() {
    let server = start(|_| {}).await;
    let mut stream = server.raw(b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\nGET /echo/2 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    stream.set_nodelay(true).unwrap();
    let answers = read_until(&mut stream, "\r\n\r\n2").await;
    assert!(answers.starts_with("HTTP/1.1 500 ") && answers.contains("x-request-id: req_"), "{answers}");
    assert!(answers.contains("internal_error") && !answers.contains("secret detail"), "{answers}");
    assert!(server.app.metrics.render().contains("tokenmill_errors_total{code=\"internal_error\"} 1"));
    assert_eq!(server.app.lifecycle.num_in_flight(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_guard_every_route_but_the_health_checks() {
    let server = TestServer::start_bare(ROUTES, |config| config.auth.keys = vec!["k1".into(), "k2".into()]).await;
    for route in ROUTES {
        let method = route.method.as_str();
        let public = ["/health", "/livez", "/readyz"].contains(&route.path);
        for (headers, let_in) in [
            (vec![], public),
            (vec![("authorization", "Bearer wrong")], public),
            (vec![("authorization", "Bearer k")], public),
            (vec![("authorization", "Bearer k1")], true),
            (vec![("x-api-key", "k2")], true),
        ] {
            let reply = server.request(method, route.path, &headers, Bytes::new()).await;
            assert_eq!(reply.status != 401, let_in, "{method} {} {headers:?}", route.path);
            if !let_in {
                assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
                assert!(reply.header("www-authenticate").starts_with("Bearer"));
            }
        }
    }
    // Nothing can be probed either: neither paths nor methods.
    assert_eq!(server.get("/nothing").await.status, 401);
    assert_eq!(server.get("/metrics/").await.status, 401);
    assert_eq!(server.request("DELETE", "/metrics", &[], Bytes::new()).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_only_for_the_origins_in_the_settings() {
    let allow = |config: &mut Config| config.server.cors_origins = vec!["https://page.example".into()];
    let server = start(allow).await;
    let preflight = [
        ("origin", "https://page.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,x-stainless-os"),
    ];
    let reply = server.request("OPTIONS", "/echo", &preflight, Bytes::new()).await;
    assert_eq!(reply.header("access-control-allow-origin"), "https://page.example");
    assert_eq!(reply.header("access-control-allow-headers"), "authorization,x-stainless-os");
    assert!(reply.header("access-control-allow-methods").contains("POST"));
    let reply = server.request("GET", "/echo/1", &[("origin", "https://other.example")], Bytes::new()).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_on_the_same_port() {
    let server = start(|_| {}).await;
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    for _ in 0..3 {
        let request = HttpRequest::post(server.url("/echo")).body(Full::new(Bytes::from_static(b"hello"))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    driver.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_http2_stream_is_noticed() {
    let _alone = ALONE.lock().await;
    let server = start(|_| {}).await;
    let before = LEFT.load(Ordering::SeqCst);
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = HttpRequest::get(server.url("/stream")).body(Empty::<Bytes>::new()).unwrap();
    let mut response = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
    let frame = response.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame, "data: \"first\"\n\n");
    drop(response);
    wait_for_leaver(before).await;
    driver.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_runs_and_refuses_the_rest() {
    let mut server = start(|_| {}).await;
    let mut running = server.raw(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
    wait_in_flight(&server, 1).await;
    server.shut_down();
    server.app.lifecycle.draining().await;
    let reply = server.get("/echo/1").await;
    assert_eq!((reply.status, reply.header("connection")), (503, "close"));
    assert_eq!(reply.json()["error"]["code"], "server_shutting_down");
    assert!(!reply.header("retry-after").is_empty());
    RELEASE.notify_one();
    let answer = read_to_end(&mut running).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("held"), "{answer}");
    server.stopped().await;
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_runs_out_of_time_ends_streams_with_an_error_event() {
    let _alone = ALONE.lock().await;
    let mut server = start(|config| config.server.drain_timeout = ms(200)).await;
    let mut events = server.raw(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut events, "data: \"first\"\n\n").await;
    let mut running = server.raw(b"POST /forever HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await;
    wait_in_flight(&server, 2).await;
    server.shut_down();
    let rest = read_to_end(&mut events).await;
    assert!(rest.contains("server_shutting_down") && rest.contains("data: [DONE]\n\n"), "{rest}");
    assert!(rest.ends_with("0\r\n\r\n"), "the body ends as a body: {rest}");
    assert!(read_to_end(&mut running).await.starts_with("HTTP/1.1 503 "));
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_not_readiness() {
    let server = TestServer::start_without_model().await;
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    server.app.lifecycle.start_draining();
    for (path, status) in [("/health", 503), ("/livez", 200), ("/readyz", 503)] {
        assert_eq!(server.get(path).await.status, status, "{path}");
    }
    server.app.lifecycle.set_engine_dead();
    assert_eq!(server.get("/livez").await.status, 503);
    assert_eq!(server.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_closed_set_of_series() {
    let server = TestServer::start_without_model().await;
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    server.get("/nothing").await;
    server.request("BREW", "/health", &[], Bytes::new()).await;
    let before = series(server.get("/metrics").await.text());
    for idx in 0..50 {
        server.get(&format!("/nothing/{idx}")).await;
        server.request(&format!("M{idx}"), "/health", &[], Bytes::new()).await;
    }
    let reply = server.get("/metrics").await;
    assert!(reply.header("content-type").starts_with("text/plain; version=0.0.4"));
    // The first scrape itself is new in the second.
    let own = reply.text().lines().filter(|line| line.contains("route=\"/metrics\"")).count();
    assert_eq!(series(reply.text()), before + own, "{}", reply.text());
    assert!(reply.text().contains("tokenmill_connections "), "{}", reply.text());
}
