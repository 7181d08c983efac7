//! The binary: what it says and how it exits when something is wrong, and how it ends.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "common/process.rs"]
mod process;

use process::{Running, tokenmill};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;

/// Fails with `code` and one line on stderr that holds all of `parts`.
fn check_error(output: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    for part in parts {
        assert!(lines[0].contains(part), "no {part:?} in {stderr}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn version_and_help() {
    let output = tokenmill(&["--version"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), concat!("tokenmill ", env!("CARGO_PKG_VERSION"), "\n"));
    let output = tokenmill(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in
        ["--model", "--port", "--host", "--threads", "--memory", "--ctx", "--quantize", "--data-dir", "--config"]
    {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn bad_settings_name_key_and_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.yaml");
    let with_file = |text: &str, code: i32, parts: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let output = tokenmill(&["serve", "--config", file.to_str().unwrap()]).output().unwrap();
        check_error(&output, code, parts);
    };
    with_file("server:\n  prot: 80\n", 2, &["my.yaml", "unknown key `server.prot`", "did you mean `server.port`?"]);
    with_file("server:\n  port: [1]\n", 2, &["my.yaml", "`server.port`"]);
    with_file("server: {port: 1\n", 2, &["my.yaml"]);
    with_file("limits:\n  max_n: 0\n", 2, &["`limits.max_n`", "between 1 and 128"]);
    with_file("log:\n  level: loud=very\n", 2, &["`log.level`"]);
    with_file("auth:\n  key_file: /no/such/keys\n", 2, &["`auth.key_file`", "/no/such/keys"]);

    let output = tokenmill(&["serve", "--config", "/no/such.yaml"]).output().unwrap();
    check_error(&output, 2, &["cannot read the config file /no/such.yaml"]);
    let output = tokenmill(&["serve", "--memory", "lots"]).output().unwrap();
    check_error(&output, 2, &["--memory", "`engine.memory`", "4GiB"]);
    let output = tokenmill(&["serve"]).env("TOKENMILL_PORT", "http").output().unwrap();
    check_error(&output, 2, &["TOKENMILL_PORT", "`server.port`"]);
    let output = tokenmill(&["serve"]).env("TOKENMILL_SERVER__PROT", "1").output().unwrap();
    check_error(&output, 2, &["TOKENMILL_SERVER__PROT", "did you mean `server.port`?"]);
    let output = tokenmill(&["serve", "--prot", "1"]).output().unwrap();
    check_error(&output, 2, &["--prot"]);
}

#[test]
fn a_taken_port_is_told_before_the_model_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = tokenmill(&["serve", "--port", &port]).env("HOME", "/nonexistent").output().unwrap();
    check_error(&output, 1, &[&format!("127.0.0.1:{port}"), "the port is taken", "--port"]);
    let output = tokenmill(&["serve", "--port", "0", "--host", "203.0.113.1"]).output().unwrap();
    check_error(&output, 1, &["203.0.113.1", "--host"]);
}

#[cfg(unix)]
#[test]
fn sigterm_ends_it_with_success_and_a_log_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "planted-secret\n").unwrap();
    let mut running = Running::start(&["--api-key-file", keys.to_str().unwrap(), "--log-level", "trace"]);
    assert!(running.get("/livez").starts_with("HTTP/1.1 200"));
    assert!(running.get("/metrics").starts_with("HTTP/1.1 401"));
    assert!(running.get("/metrics?key=planted-secret").starts_with("HTTP/1.1 401"));
    running.signal("TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    running.log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("server stopped") && !rest.contains("planted-secret"), "{rest}");
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_it_at_once() {
    let mut running = Running::start(&["--set", "server.drain_timeout=5m"]);
    // A request whose body is missing holds the drain up.
    let mut stream = TcpStream::connect(&running.address).unwrap();
    write!(stream, "GET /version HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n").unwrap();
    while !running.get("/metrics").contains("\ntokenmill_http_requests_in_flight 2\n") {}
    running.signal("INT");
    while !running.get("/readyz").contains("server_shutting_down") {}
    running.signal("TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_model_that_cannot_be_loaded_ends_it_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |model: &str| tokenmill(&["serve", "--port", "0", "--model", model]).output().unwrap();
    check_error(&serve("no/such.gguf"), 1, &["no/such.gguf", "--model takes"]);
    let broken = dir.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\0\0\0 and no more").unwrap();
    check_error(&serve(broken.to_str().unwrap()), 1, &["broken.gguf"]);
    check_error(&serve(dir.path().to_str().unwrap()), 1, &["config.json"]);
    let data = broken.to_str().unwrap();
    let output = tokenmill(&["serve", "--port", "0", "--data-dir", data]).output().unwrap();
    check_error(&output, 1, &["broken.gguf", "--data-dir"]);
    let memory = ["serve", "--port", "0", "--memory", "16MiB", "--data-dir", dir.path().to_str().unwrap()];
    check_error(&tokenmill(&memory).output().unwrap(), 1, &["memory"]);
}

#[test]
fn synth_does_not_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("there.gguf");
    std::fs::write(&file, b"mine").unwrap();
    let output = tokenmill(&["synth", "--shape", "smollm2-135m", file.to_str().unwrap()]).output().unwrap();
    check_error(&output, 1, &["exists", "--force"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let output = tokenmill(&["synth", "--shape", "gpt-5", "x"]).output().unwrap();
    check_error(&output, 2, &["gpt-5"]);
}

#[test]
fn quantize_writes_a_model_and_does_not_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    let (file, demo) = (dir.path().join("demo.gguf"), concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model"));
    let run = |more: &[&str]| {
        let arguments = [&["quantize", demo, file.to_str().unwrap(), "--to", "q4_k_m"], more].concat();
        tokenmill(&arguments).output().unwrap()
    };
    let output = run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "no progress where nobody looks");
    assert!(text.contains("demo.gguf: ") && text.contains("tensors"), "{text}");
    check_error(&run(&[]), 1, &["demo.gguf exists", "--force"]);
    assert!(run(&["--force", "--threads", "1"]).status.success());
    let inspected = tokenmill(&["inspect", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8(inspected.stdout).unwrap();
    assert!(text.contains("supported          yes") && text.contains("Q5_0"), "{text}");
}
