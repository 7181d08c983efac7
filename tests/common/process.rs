//! The real binary, started as a user starts it.
#![allow(dead_code, unreachable_pub, reason = "every test crate uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_tokenmill");

/// The binary with an empty environment, so that the tester's own settings do not matter.
pub fn tokenmill(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// A running server; killed when dropped.
pub struct Running {
    _data: Option<tempfile::TempDir>,
    pub child: Child,
    pub address: String,
    pub log: BufReader<ChildStderr>,
}

impl Running {
    /// Waits until the server says where it listens; the model may still be loading.
    pub fn start(arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut running = Self::start_in(data.path(), arguments);
        running._data = Some(data);
        running
    }

    /// The same with a data folder of the test's, for servers that follow each other.
    pub fn start_in(data: &Path, arguments: &[&str]) -> Self {
        let mut command = tokenmill(&[&["serve", "--port", "0", "--log-format", "json"], arguments].concat());
        let mut child = command.arg("--data-dir").arg(data).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self { _data: None, child, address: String::new(), log };
        let mut line = String::new();
        while running.address.is_empty() {
            line.clear();
            assert!(running.log.read_line(&mut line).unwrap() > 0, "the server ended before it listened");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if event["message"] == "listening" {
                running.address = event["address"].as_str().unwrap().trim_start_matches("http://").to_owned();
            }
        }
        running
    }

    /// Waits until the model answers.
    pub fn start_ready(arguments: &[&str]) -> Self {
        Self::start(arguments).ready()
    }

    /// Waits until the model answers.
    pub fn ready(mut self) -> Self {
        let running = &mut self;
        while !running.get("/readyz").starts_with("HTTP/1.1 200") {
            assert!(running.child.try_wait().unwrap().is_none(), "the server ended while it loaded");
        }
        self
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// The whole answer, head and body.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The value of a metric without labels beside the model's; 0 if it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let lines = text.lines().filter(|line| line.starts_with(name));
        let of_name = |line: &&str| line[name.len()..].starts_with([' ', '{']);
        lines.filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
