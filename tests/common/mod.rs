//! A real server on a free port, and a small client for it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test crate uses a part of it")]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokenmill::api::{ROUTES, Route};
use tokenmill::app::App;
use tokenmill::auth::ApiKeys;
use tokenmill::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes this long; a hang ends here.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server; dropping it stops it.
pub struct TestServer {
    pub app: Arc<App>,
    pub addr: SocketAddr,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// A response read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl TestServer {
    /// Without a model: for what does not need one.
    pub async fn start_bare(routes: &'static [Route], configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::defaults();
        config.server.port = 0;
        configure(&mut config);
        let keys = config.api_keys().unwrap();
        let app = App::with_routes(config, ApiKeys::new(keys.iter().map(String::as_str)), routes);
        app.lifecycle.set_ready();
        Self::serve(app).await
    }

    /// The real endpoints without a model.
    pub async fn start_without_model() -> Self {
        Self::start_bare(ROUTES, |_| {}).await
    }

    /// Serves an app on a free port.
    pub async fn serve(app: Arc<App>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(tokenmill::server::serve(app.clone(), listener, shutdown.clone().cancelled_owned()));
        Self { app, addr, shutdown, task: Some(task) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// What SIGTERM does.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Resolves when the server has stopped.
    pub async fn stopped(&mut self) {
        let task = self.task.take().expect("waited for once");
        timeout(PATIENCE, task).await.expect("the server stops").unwrap();
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        let headers = [("content-type", "application/json")];
        self.request("POST", path, &headers, Bytes::copy_from_slice(body)).await
    }

    /// One request on a connection of its own.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Reply {
        let work = async {
            let stream = TcpStream::connect(self.addr).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let driver = tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            driver.abort();
            Reply { status: parts.status.as_u16(), headers: parts.headers, body }
        };
        timeout(PATIENCE, work).await.expect("an answer in time")
    }

    /// A socket on which `bytes` have been sent.
    pub async fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Everything up to the end of the stream, or its reset.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset loses nothing that had been read before.
    let _reset = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server closes in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `end` has come.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let work = async {
        while !bytes.windows(end.len()).any(|window| window == end.as_bytes()) {
            let byte = stream.read_u8().await.expect("the stream goes on");
            bytes.push(byte);
        }
    };
    timeout(PATIENCE, work).await.expect("the server sends in time");
    String::from_utf8(bytes).unwrap()
}
