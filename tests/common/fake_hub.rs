//! A model hub on loopback: one repository `org/name`, a storage on another port, and faults on demand.
//!
//! Files above 8 KiB are "large": the hub redirects to the storage for them, as the real one does.
#![allow(dead_code, unreachable_pub, reason = "as in the other files here")]

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

/// The one commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const LARGE: usize = 8 << 10;

/// What happens to the next answer with contents.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// The connection ends after so many bytes.
    Cut(usize),
    /// A status instead.
    Refuse(u16),
    /// One byte is another.
    Damage,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: VecDeque<Fault>,
    log: Vec<String>,
    no_ranges: bool,
    size: Option<u64>,
    api_refusal: Option<(u16, String, String)>,
    storage: Option<SocketAddr>,
}

/// Ends with the test.
pub struct FakeHub {
    state: Arc<Mutex<State>>,
    addr: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

type Body = BoxBody<Bytes, io::Error>;

impl FakeHub {
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let addr = listen(&runtime, &state);
        let storage = listen(&runtime, &state);
        state.lock().unwrap().storage = Some(storage);
        Self { state, addr, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// An address where nobody listens.
    pub fn dead_url(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    pub fn add_faults(&self, faults: &[Fault]) {
        self.state.lock().unwrap().faults.extend(faults);
    }

    pub fn num_faults(&self) -> usize {
        self.state.lock().unwrap().faults.len()
    }

    /// Requests since the last call: method, path, range, whether there was a token.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    pub fn set_ranges(&self, has_ranges: bool) {
        self.state.lock().unwrap().no_ranges = !has_ranges;
    }

    pub fn lie_about_size(&self, size: u64) {
        self.state.lock().unwrap().size = Some(size);
    }

    /// Status, `X-Error-Code` and `Retry-After` of what the API answers; status 0 for the truth.
    pub fn refuse_api(&self, (status, code, wait): (u16, &str, &str)) {
        self.state.lock().unwrap().api_refusal = (status > 0).then(|| (status, code.to_owned(), wait.to_owned()));
    }
}

fn listen(runtime: &tokio::runtime::Runtime, state: &Arc<Mutex<State>>) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let addr = listener.local_addr().unwrap();
    let state = state.clone();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let state = state.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = answer(&state, &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ended =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

fn text(status: u16, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

fn answer(state: &Mutex<State>, request: &Request<Incoming>) -> Response<Body> {
    let mut state = state.lock().unwrap();
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let authorized = if header("authorization") == "Bearer secret" { " authorized" } else { "" };
    let path = request.uri().path().to_owned();
    state.log.push(format!("{} {path} {}{authorized}", request.method(), header("range")));
    if path == "/api/models/org/name/revision/main" {
        if let Some((status, code, wait)) = &state.api_refusal {
            let mut response = text(*status, "no");
            response.headers_mut().insert("x-error-code", HeaderValue::from_str(code).unwrap());
            response.headers_mut().insert("retry-after", HeaderValue::from_str(wait).unwrap());
            return response;
        }
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        return text(200, &serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }
    let of_hub = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let of_storage = path.strip_prefix("/storage/");
    let Some(content) = of_hub.or(of_storage).and_then(|name| state.files.get(name)).cloned() else {
        return text(404, "no");
    };
    let is_large = content.len() > LARGE;
    if let (Some(name), true) = (of_hub, is_large) {
        let mut response = text(302, "");
        let location = format!("http://{}/storage/{name}", state.storage.unwrap());
        let headers = response.headers_mut();
        headers.insert("location", HeaderValue::from_str(&location).unwrap());
        headers.insert(
            "x-linked-etag",
            HeaderValue::from_str(&format!("\"{}\"", hex(&Sha256::digest(&content)))).unwrap(),
        );
        headers.insert("x-linked-size", state.size.unwrap_or(content.len() as u64).into());
        headers.insert("x-repo-commit", HeaderValue::from_static(COMMIT));
        return response;
    }
    if request.method() == Method::HEAD {
        let mut response = text(200, "");
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {}\0", content.len()));
        hasher.update(&content);
        let etag = format!("W/\"{}\"", hex(&hasher.finalize()));
        response.headers_mut().insert("etag", HeaderValue::from_str(&etag).unwrap());
        response.headers_mut().insert("content-length", content.len().into());
        return response;
    }
    let range = if state.no_ranges { "" } else { header("range") };
    let fault = state.faults.pop_front().unwrap_or(Fault::None);
    contents(&content, range, fault)
}

fn contents(content: &[u8], range: &str, fault: Fault) -> Response<Body> {
    if let Fault::Refuse(status) = fault {
        let mut response = text(status, "no");
        response.headers_mut().insert("retry-after", HeaderValue::from_static("0"));
        return response;
    }
    let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let bounds = bounds.map(|(first, last)| (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap()));
    let mut bytes = bounds.map_or(content, |(first, last)| &content[first..=last]).to_vec();
    let len = bytes.len();
    if let Fault::Damage = fault {
        bytes[len / 2] ^= 1;
    }
    let mut frames: Vec<Result<Frame<Bytes>, io::Error>> = Vec::new();
    if let Fault::Cut(at) = fault {
        bytes.truncate(at);
        frames.push(Ok(Frame::data(bytes.into())));
        frames.push(Err(io::ErrorKind::ConnectionReset.into()));
    } else {
        frames.push(Ok(Frame::data(bytes.into())));
    }
    // What came before a cut is sent before it: hyper does so when the body makes it wait.
    let frames = stream::iter(frames).then(async |frame| {
        if frame.is_err() {
            tokio::task::yield_now().await;
        }
        frame
    });
    let body = BodyExt::boxed(StreamBody::new(frames));
    let builder = Response::builder().header("content-length", len).header("etag", "\"storage-1\"");
    let builder = match bounds {
        Some((first, last)) => {
            builder.status(206).header("content-range", format!("bytes {first}-{last}/{}", content.len()))
        }
        None => builder,
    };
    builder.body(body).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
