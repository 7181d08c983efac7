//! What a hostile HTTP/2 client can do, frame by frame: its connection ends, the server and its other clients go on.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use common::{PATIENCE, TestServer};
use std::time::Duration;
use tokenmill::config::Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /livez` in HPACK: indexed method and scheme, literal path and authority.
fn get_head() -> Vec<u8> {
    [&b"\x82\x86\x04\x06/livez\x01\x01x"[..]].concat()
}

/// `POST` of a body that never ends, to an endpoint that reads it.
fn post_head() -> Vec<u8> {
    let path = b"/v1/chat/completions";
    [&b"\x83\x86\x04"[..], &[u8::try_from(path.len()).unwrap()], path, b"\x01\x01x"].concat()
}

async fn connect(server: &TestServer) -> TcpStream {
    let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
    server.raw(&hello).await
}

/// Writes `attack` while the server takes it, reads to the end of the connection; the error code of its GOAWAY, if it sent one.
async fn run(stream: TcpStream, attack: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Option<u32> {
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        for bytes in attack {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // Stays open: it is for the server to end this.
        std::future::pending::<()>().await;
    });
    let mut answer = Vec::new();
    // A reset is an end too.
    let _end = timeout(PATIENCE, reader.read_to_end(&mut answer)).await.expect("the server ends the connection");
    writing.abort();
    goaway(&answer)
}

fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while let [a, b, c, kind, _flags, _, _, _, _, rest @ ..] = bytes {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let payload = rest.get(..len)?;
        if *kind == GOAWAY {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        bytes = &rest[len..];
    }
    None
}

async fn start() -> TestServer {
    TestServer::start_bare(tokenmill::api::ROUTES, |config| {
        config.server.idle_timeout = Span::new(Duration::from_secs(2));
        config.server.header_timeout = Span::new(Duration::from_secs(2));
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_opened_and_reset_at_once_end_the_connection() {
    let server = start().await;
    let attack = (0..20_000u32).map(|idx| {
        let id = 2 * idx + 1;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, id, &get_head());
        [head, frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
    });
    assert_eq!(run(connect(&server).await, attack).await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.app.lifecycle.num_in_flight(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_ends_the_connection() {
    let server = start().await;
    // 64 KiB of literal headers a frame, and never END_HEADERS.
    let filler: Vec<u8> = (0..400).flat_map(|_| [&b"\x00\x05x-abc\x1e"[..], &[b'v'; 30]].concat()).collect();
    let attack = std::iter::once(frame(HEADERS, END_STREAM, 1, &get_head()))
        .chain((0..4000).map(move |_| frame(CONTINUATION, 0, 1, &filler)));
    run(connect(&server).await, attack).await;
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_control_frames_do_not_pile_up() {
    let server = start().await;
    for kind in [PING, SETTINGS] {
        let payload: &[u8] = if kind == PING { &[7; 8] } else { &[] };
        let one = frame(kind, 0, 0, payload);
        // Answers go unread for long: the server must stop reading rather than collect them.
        let attack = (0..2000).map(move |_| one.repeat(100));
        run(connect(&server).await, attack).await;
        assert_eq!(server.get("/livez").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_data_frames_end_the_connection() {
    let server = start().await;
    let head = frame(HEADERS, END_HEADERS, 1, &post_head());
    let empty = frame(DATA, 0, 1, &[]).repeat(1000);
    let attack = std::iter::once(head).chain((0..2000).map(move |_| empty.clone()));
    run(connect(&server).await, attack).await;
    assert_eq!(server.get("/livez").await.status, 200);
}
