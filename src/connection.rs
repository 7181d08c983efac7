//! One TCP connection: its socket, what happens on it, and when it has to be closed.
//!
//! hyper leaves four holes that are closed here. A client that connects and says nothing is never timed out (hyper detects the
//! HTTP version first, without a clock); an HTTP/2 connection without requests neither; a client that does not read its response
//! neither; and a closed socket goes unnoticed while unread bytes lie in front of the end of the stream, so a client that had
//! pipelined one byte would have its completion computed to the end.
//!
//! [`Socket`] notes reads and blocked writes in [`Activity`]; [`supervise`] drives the connection, looks at the activity from
//! time to time ([`Activity::verdict`]) and waits for the kernel to report the end of the stream. Used by src/server.rs.
//!
//! Half-closing: a client that shuts down its writing side is taken to have left, for nothing tells it from one that has.
//! Answers that are ready within [`GRACE`] still reach it.

use crate::app::App;
use crate::config::ServerConfig;
use crate::disconnect::Disconnect;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// From the end of the client's stream to giving up its requests.
pub const GRACE: Duration = Duration::from_millis(100);

/// What a client that could not keep up must take within the stall limit, unless it takes all there is.
const PROGRESS_BYTES: u64 = 8192;

/// Whether the kernel tells of the end of the client's stream while bytes before it are unread.
pub(crate) const WATCHES_END_OF_STREAM: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// The limits of a connection, from the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    header: Duration,
    idle: Duration,
    stall: Duration,
}

impl Limits {
    pub(crate) fn new(config: &ServerConfig) -> Self {
        Self { header: config.header_timeout.get(), idle: config.idle_timeout.get(), stall: config.stall_timeout.get() }
    }

    /// How often a busy connection is looked at: often enough to be right within a quarter of the shortest limit.
    fn check_every(&self) -> Duration {
        (self.header.min(self.idle).min(self.stall) / 4).clamp(Duration::from_millis(10), Duration::from_secs(5))
    }
}

/// What happens on a connection. Times are milliseconds since it was opened, plus one; 0 is never.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    /// Requests whose response is not out to its last byte.
    num_busy: AtomicU32,
    /// Requests so far.
    num_requests: AtomicU64,
    /// When the last request ended.
    idle_since: AtomicU64,
    /// First byte read since then.
    first_byte_at: AtomicU64,
    /// Since when the kernel takes no more of what we write, or takes it in drops.
    blocked_since: AtomicU64,
    /// Bytes that it has taken since then.
    taken_since: AtomicU64,
    is_http2: AtomicBool,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Look again after this time.
    Keep(Duration),
    /// Nothing has been asked for so long that it may go, politely.
    Retire,
    /// It has broken this limit.
    Close(&'static str),
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            num_busy: AtomicU32::new(0),
            num_requests: AtomicU64::new(0),
            idle_since: AtomicU64::new(1),
            first_byte_at: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            taken_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// A request begins; it ends when the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, is_http2: bool) -> Busy {
        self.num_busy.fetch_add(1, Ordering::AcqRel);
        self.num_requests.fetch_add(1, Ordering::Relaxed);
        if is_http2 {
            self.is_http2.store(true, Ordering::Relaxed);
        }
        Busy(self.clone())
    }

    fn note_read(&self, bytes: &[u8]) {
        if self.num_busy.load(Ordering::Acquire) == 0 && self.first_byte_at.load(Ordering::Relaxed) == 0 {
            self.first_byte_at.store(self.now(), Ordering::Relaxed);
            if self.num_requests.load(Ordering::Relaxed) == 0 && bytes.starts_with(b"PRI") {
                self.is_http2.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The kernel takes nothing now.
    fn note_blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == 0 {
            self.taken_since.store(0, Ordering::Relaxed);
            self.blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The kernel has taken `num_bytes`. A blocked client must read [`PROGRESS_BYTES`] to count as reading again: one byte at a
    /// time would hold its stream for ever.
    fn note_taken(&self, num_bytes: usize) {
        if self.blocked_since.load(Ordering::Relaxed) != 0
            && self.taken_since.fetch_add(num_bytes as u64, Ordering::Relaxed) + num_bytes as u64 >= PROGRESS_BYTES
        {
            self.note_flushed();
        }
    }

    /// Nothing is left to write.
    fn note_flushed(&self) {
        self.blocked_since.store(0, Ordering::Relaxed);
    }

    fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.now();
        let left = |since: u64, limit: Duration| limit.saturating_sub(Duration::from_millis(now.saturating_sub(since)));
        let blocked_since = self.blocked_since.load(Ordering::Relaxed);
        if blocked_since != 0 {
            return match left(blocked_since, limits.stall) {
                Duration::ZERO => Verdict::Close("stalled"),
                left => Verdict::Keep(left),
            };
        }
        if self.num_busy.load(Ordering::Acquire) > 0 {
            return Verdict::Keep(limits.check_every());
        }
        let first_byte_at = self.first_byte_at.load(Ordering::Relaxed);
        let is_http2 = self.is_http2.load(Ordering::Relaxed);
        // Before its first request, and from the first byte of the next, a client is expected to send a whole head. HTTP/2
        // clients answer pings, so bytes mean nothing there.
        let head_since = match (is_http2, self.num_requests.load(Ordering::Relaxed), first_byte_at) {
            (true, ..) | (false, 1.., 0) => None,
            (false, 0, _) => Some(1),
            (false, _, since) => Some(since),
        };
        match head_since {
            Some(since) => match left(since, limits.header) {
                Duration::ZERO => Verdict::Close("header_timeout"),
                left => Verdict::Keep(left),
            },
            None => match left(self.idle_since.load(Ordering::Relaxed), limits.idle) {
                Duration::ZERO => Verdict::Retire,
                left => Verdict::Keep(left),
            },
        }
    }
}

/// A request on a connection, until its response is out.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let activity = &self.0;
        activity.idle_since.store(activity.now(), Ordering::Relaxed);
        activity.first_byte_at.store(0, Ordering::Relaxed);
        activity.num_busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A TCP stream that notes its activity. Shares the stream, so that its end can be waited for meanwhile.
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
}

impl Socket {
    pub(crate) fn new(stream: Arc<TcpStream>, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    fn poll_try_write(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(ready) = self.stream.poll_write_ready(cx) else {
                self.activity.note_blocked();
                return Poll::Pending;
            };
            ready?;
            match write(&self.stream) {
                // Readiness was stale; it is cleared now.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    self.activity.note_taken(*result.as_ref().unwrap_or(&0));
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let before = buf.filled().len();
            match self.stream.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(_) => {
                    self.activity.note_read(&buf.filled()[before..]);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try_write(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try_write(cx, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes when it has written all that it holds.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.note_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write))
    }
}

/// Resolves when the client has closed or reset its side, whatever bytes still lie unread before that.
#[cfg(any(target_os = "linux", target_os = "android"))]
async fn end_of_stream(stream: &TcpStream) {
    // Streams are registered for reading and writing only, so of what "priority" waits for, urgent data and the closed reading
    // side, only the second is ever reported.
    if stream.ready(tokio::io::Interest::PRIORITY).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Elsewhere there is no such event: a client is missed when hyper reads or writes.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
async fn end_of_stream(_stream: &TcpStream) {
    std::future::pending::<()>().await;
}

/// A connection of hyper's, as far as [`supervise`] needs it.
pub(crate) trait Driven: Future {
    /// Finish what runs, take nothing new.
    fn retire(self: Pin<&mut Self>);
}

/// Drives `connection` to its end: its own, the client's, or that of a limit. Whatever runs on it is dropped then.
pub(crate) async fn supervise<C: Driven>(
    app: &App,
    connection: C,
    stream: &TcpStream,
    activity: &Activity,
    client: &Disconnect,
) {
    let limits = Limits::new(&app.config.server);
    let mut connection = std::pin::pin!(connection);
    let mut check = std::pin::pin!(sleep(limits.check_every().min(limits.header)));
    let mut gone = std::pin::pin!(async {
        end_of_stream(stream).await;
        sleep(GRACE).await;
    });
    // Connections of a draining server are left alone: they exist to be told so.
    let mut draining = std::pin::pin!(app.lifecycle.draining());
    let mut retired = app.lifecycle.stage() == crate::app::Stage::Draining;
    let mut idle_ended = false;
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => break,
            () = gone.as_mut() => break,
            () = app.lifecycle.closed() => break,
            () = draining.as_mut(), if !retired => {
                retired = true;
                connection.as_mut().retire();
            }
            () = check.as_mut() => {
                let again = match activity.verdict(&limits) {
                    Verdict::Keep(again) => again,
                    Verdict::Retire if !idle_ended => {
                        idle_ended = true;
                        connection.as_mut().retire();
                        // For the last frames of HTTP/2.
                        limits.check_every().min(Duration::from_secs(1))
                    }
                    Verdict::Retire => {
                        app.metrics.count_closed("idle");
                        break;
                    }
                    Verdict::Close(reason) => {
                        app.metrics.count_closed(reason);
                        tracing::debug!(reason, "connection closed");
                        break;
                    }
                };
                check.as_mut().reset(Instant::now() + again.max(Duration::from_millis(5)));
            }
        }
    }
    client.set_gone();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const LIMITS: Limits =
        Limits { header: Duration::from_secs(10), idle: Duration::from_secs(60), stall: Duration::from_secs(30) };

    async fn after(seconds: u64, activity: &Activity) -> Verdict {
        advance(Duration::from_secs(seconds)).await;
        activity.verdict(&LIMITS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_must_come_in_time() {
        let silent = Activity::new();
        assert_eq!(after(9, &silent).await, Verdict::Keep(Duration::from_secs(1)));
        assert_eq!(after(1, &silent).await, Verdict::Close("header_timeout"));

        let dribbling = Activity::new();
        for _ in 0..9 {
            assert!(matches!(after(1, &dribbling).await, Verdict::Keep(_)));
            dribbling.note_read(b"G");
        }
        assert_eq!(after(1, &dribbling).await, Verdict::Close("header_timeout"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_used_connection_may_rest_longer_but_not_begin_and_stop() {
        let activity = Activity::new();
        drop(activity.begin(false));
        assert!(matches!(after(59, &activity).await, Verdict::Keep(_)));
        assert_eq!(after(1, &activity).await, Verdict::Retire);
        drop(activity.begin(false));
        assert!(matches!(after(5, &activity).await, Verdict::Keep(_)));
        activity.note_read(b"GET / HT");
        assert!(matches!(after(9, &activity).await, Verdict::Keep(_)));
        activity.note_read(b"TP/1.1");
        assert_eq!(after(1, &activity).await, Verdict::Close("header_timeout"));
    }

    #[tokio::test(start_paused = true)]
    async fn http2_rests_without_a_request_and_pings_do_not_count() {
        let activity = Activity::new();
        activity.note_read(b"PRI * HTTP/2.0\r\n");
        for _ in 0..59 {
            assert!(matches!(after(1, &activity).await, Verdict::Keep(_)));
            activity.note_read(b"ping");
        }
        assert_eq!(after(1, &activity).await, Verdict::Retire);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_long_unless_its_reader_stalls() {
        let activity = Activity::new();
        let busy = activity.begin(false);
        assert!(matches!(after(600, &activity).await, Verdict::Keep(_)));
        activity.note_blocked();
        assert!(matches!(after(20, &activity).await, Verdict::Keep(_)));
        activity.note_blocked();
        assert_eq!(activity.verdict(&LIMITS), Verdict::Keep(Duration::from_secs(10)));
        activity.note_flushed();
        assert!(matches!(after(20, &activity).await, Verdict::Keep(_)));
        activity.note_blocked();
        drop(busy);
        assert_eq!(after(30, &activity).await, Verdict::Close("stalled"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_in_drops_has_stalled_a_slow_one_has_not() {
        for (bytes_a_second, verdict) in [(1, Verdict::Close("stalled")), (512, Verdict::Keep(LIMITS.stall))] {
            let activity = Activity::new();
            let _busy = activity.begin(false);
            activity.note_blocked();
            let mut worst = Verdict::Keep(LIMITS.stall);
            for _ in 0..100 {
                match after(1, &activity).await {
                    Verdict::Keep(_) => {}
                    verdict => worst = verdict,
                }
                activity.note_taken(bytes_a_second);
                activity.note_blocked();
            }
            assert_eq!(worst, verdict, "{bytes_a_second} bytes a second");
        }
    }
}
