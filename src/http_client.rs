//! The HTTPS client: one pool of connections to other servers.
//!
//! Invariants: nothing waits for ever (connecting, the head of an answer and each piece of its body have a limit), a
//! secret goes to the host it was given for and to no other, and a redirect never leads from HTTPS to HTTP. Used by the
//! hub's downloads.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::error::Error;
use std::time::Duration;
use tokio::time::timeout;

/// For a connection to stand.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// For the head of an answer.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// Longest silence in a body.
const BODY_LIMIT: Duration = Duration::from_secs(60);
/// Connections that wait for the next request.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Redirects that one request follows.
const MAX_REDIRECTS: usize = 8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not an address, or not one of HTTP.
    #[error("'{0}' is not an http or https address")]
    BadUrl(String),
    /// The host could not be reached.
    #[error("cannot reach {host}: {reason}")]
    Connect {
        /// Host and port.
        host: String,
        /// What was said.
        reason: String,
    },
    /// The answer broke off, or never came.
    #[error("the answer of {host} broke off: {reason}")]
    Broken {
        /// Host and port.
        host: String,
        /// What was said.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {reason}")]
    Redirect {
        /// Host and port.
        host: String,
        /// Where to, or how often.
        reason: String,
    },
    /// The body is longer than the caller takes.
    #[error("the answer of {host} is longer than {max} bytes")]
    TooLong {
        /// Host and port.
        host: String,
        /// Bytes allowed.
        max: usize,
    },
}

impl HttpError {
    /// Whether the same request may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. })
    }
}

/// Which redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Those that stay on the host; one that leaves it is the answer.
    WithinHost,
    /// All.
    Everywhere,
}

/// A request without a body.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// GET or HEAD.
    pub method: Method,
    /// An absolute address.
    pub url: String,
    /// Besides `Host` and `Authorization`.
    pub headers: HeaderMap,
    /// `Authorization`, for the host of `url` alone.
    pub authorization: Option<HeaderValue>,
}

impl HttpRequest {
    /// A request for `url` with no headers.
    #[must_use]
    pub fn new(method: Method, url: String) -> Self {
        Self { method, url, headers: HeaderMap::new(), authorization: None }
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct HttpResponse {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: HttpBody,
}

/// A body as it arrives.
#[derive(Debug)]
pub struct HttpBody {
    incoming: Incoming,
    host: String,
}

impl HttpBody {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`HttpError::Broken`] when the connection ends early or is silent for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame = timeout(BODY_LIMIT, self.incoming.frame()).await;
            let broken = |reason: String| HttpError::Broken { host: self.host.clone(), reason };
            match frame.map_err(|_| broken(format!("silence for {} s", BODY_LIMIT.as_secs())))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(cause(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// As [`HttpBody::chunk`], and [`HttpError::TooLong`] above `max` bytes.
    pub async fn collect(mut self, max: usize) -> Result<Vec<u8>, HttpError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > max {
                return Err(HttpError::TooLong { host: self.host, max });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// The client; cheap to clone, all clones share the connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpClient {
    /// A client that trusts the certificates of the system, or, where it has none, Mozilla's.
    #[must_use]
    pub fn new() -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_LIMIT));
        http.set_nodelay(true);
        let builder = match HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => builder,
            Err(error) => {
                tracing::debug!(%error, "no certificates of the system");
                HttpsConnectorBuilder::new().with_webpki_roots()
            }
        };
        let connector = builder.https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_LIMIT).build(connector);
        Self { client }
    }

    /// Sends `request` and waits for the head of the answer, whatever its status.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn send(&self, request: &HttpRequest, follow: Follow) -> Result<HttpResponse, HttpError> {
        let mut url: Uri = request.url.parse().map_err(|_| HttpError::BadUrl(request.url.clone()))?;
        let mut authorization = request.authorization.clone();
        for _ in 0..=MAX_REDIRECTS {
            let host = host_of(&url)?;
            let mut headers = request.headers.clone();
            if let Some(secret) = &authorization {
                headers.insert(AUTHORIZATION, secret.clone());
            }
            let response = self.send_once(&request.method, &url, headers, &host).await?;
            let Some(next) = redirect(&url, &response)? else { return Ok(response) };
            let is_same = next.scheme() == url.scheme() && next.authority() == url.authority();
            if !is_same {
                if follow == Follow::WithinHost {
                    return Ok(response);
                }
                // Once it has left, it does not come back with the secret either.
                authorization = None;
            }
            url = next;
        }
        Err(HttpError::Redirect { host: host_of(&url)?, reason: format!("more than {MAX_REDIRECTS} times") })
    }

    async fn send_once(
        &self,
        method: &Method,
        url: &Uri,
        headers: HeaderMap,
        host: &str,
    ) -> Result<HttpResponse, HttpError> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = method.clone();
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers;
        let broken = |reason: String| HttpError::Broken { host: host.to_owned(), reason };
        let answer = timeout(HEAD_LIMIT, self.client.request(request)).await;
        let answer = answer.map_err(|_| broken(format!("nothing in {} s", HEAD_LIMIT.as_secs())))?;
        let answer = answer.map_err(|error| match error.is_connect() {
            true => HttpError::Connect { host: host.to_owned(), reason: cause(&error) },
            false => broken(cause(&error)),
        })?;
        let (head, incoming) = answer.into_parts();
        let body = HttpBody { incoming, host: host.to_owned() };
        Ok(HttpResponse { status: head.status, headers: head.headers, body })
    }
}

fn host_of(url: &Uri) -> Result<String, HttpError> {
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let host = url.authority().filter(|_| is_http).map(|authority| match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    });
    host.ok_or_else(|| HttpError::BadUrl(url.to_string()))
}

/// Where `response` sends the client, if it does.
fn redirect(from: &Uri, response: &HttpResponse) -> Result<Option<Uri>, HttpError> {
    if !matches!(response.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let refused = |reason: &str| HttpError::Redirect { host: response.body.host.clone(), reason: reason.to_owned() };
    let target = response.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let target = target.ok_or_else(|| refused("without saying where"))?;
    let (scheme, authority) = (from.scheme_str().unwrap_or("http"), from.authority().map_or("", |name| name.as_str()));
    let absolute = if target.contains("://") {
        target.to_owned()
    } else if target.starts_with("//") {
        format!("{scheme}:{target}")
    } else if target.starts_with('/') {
        format!("{scheme}://{authority}{target}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{target}")
    };
    let next: Uri = absolute.parse().map_err(|_| refused("to something that is no address"))?;
    if scheme == "https" && next.scheme_str() != Some("https") {
        return Err(refused("from https to something else"));
    }
    Ok(Some(next))
}

/// An error with all that is behind it, on one line.
fn cause(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Answers one request per entry, each on a connection of its own, and returns the heads of the requests.
    fn serve(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                heads.push(String::from_utf8(head).unwrap().to_lowercase());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            heads
        });
        (url, thread)
    }

    fn get(url: String) -> HttpRequest {
        let mut request = HttpRequest::new(Method::GET, url);
        request.authorization = Some(HeaderValue::from_static("Bearer secret"));
        request
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

    fn to(location: &str) -> String {
        format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn a_secret_stays_with_its_host() {
        let (other, other_thread) = serve(vec![OK.to_owned(), OK.to_owned()]);
        let (url, thread) = serve(vec![to("/moved"), to(&format!("{other}/x")), to(&format!("{other}/y"))]);
        let client = HttpClient::new();
        let response = client.send(&get(format!("{url}/a/b")), Follow::Everywhere).await.unwrap();
        assert_eq!(response.body.collect(10).await.unwrap(), b"ok");
        let response = client.send(&get(format!("{url}/a/b")), Follow::WithinHost).await.unwrap();
        assert_eq!(response.status, 302);
        let error = client.send(&get(other), Follow::Everywhere).await.unwrap().body.collect(1).await.unwrap_err();
        assert!(error.to_string().contains("longer than 1 bytes"), "{error}");
        let heads = thread.join().unwrap();
        assert!(heads.iter().all(|head| head.contains("bearer secret")), "{heads:?}");
        assert!(heads[1].starts_with("get /moved "), "{heads:?}");
        let heads = other_thread.join().unwrap();
        assert!(heads[0].starts_with("get /x ") && !heads[0].contains("secret"), "{heads:?}");
    }

    #[tokio::test]
    async fn what_fails_says_why() {
        let client = HttpClient::new();
        let (url, _thread) = serve(vec!["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok".to_owned()]);
        let response = client.send(&get(url), Follow::Everywhere).await.unwrap();
        let error = response.body.collect(100).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("broke off"), "{error}");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = client.send(&get(url), Follow::Everywhere).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("cannot reach 127.0.0.1:"), "{error}");
        let error = client.send(&get("ftp://x/y".to_owned()), Follow::Everywhere).await.unwrap_err();
        assert!(error.to_string().contains("ftp://x/y"), "{error}");

        let (url, _thread) = serve((0..=MAX_REDIRECTS).map(|_| to("/again")).collect());
        let error = client.send(&get(url), Follow::Everywhere).await.unwrap_err();
        assert!(error.to_string().contains("more than 8 times"), "{error}");
    }
}
