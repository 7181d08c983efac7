//! `tokenmill chat` with the real binary: in a pipe and on a terminal; completions and manual pages.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "common/process.rs"]
mod process;

use process::{Running, tokenmill};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// A server that answers by the last message: `slow` begins and never ends, `fail` gets a 503, `cut` breaks off, all else is
/// told back. Lives as long as the test.
struct Fake {
    url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Fake {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let log = Arc::clone(&log);
                thread::spawn(move || while answer(stream.as_ref().unwrap(), &log).is_some() {});
            }
        });
        Self { url, asked }
    }

    fn bodies(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

/// Answers one request; none when the client has gone.
fn answer(mut stream: &TcpStream, log: &Mutex<Vec<(String, Value)>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let start = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let whole = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    if head.starts_with("GET /v1/models") {
        let list = r#"{"data": [{"id": "first"}, {"id": "second"}]}"#;
        return stream.write_all(whole("200 OK", list).as_bytes()).ok();
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let last = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    log.lock().unwrap().push((head, body));
    if last == "fail" {
        let error = r#"{"error": {"message": "too many cooks"}}"#;
        return stream.write_all(whole("503 Service Unavailable", error).as_bytes()).ok();
    }
    let event = |value: &Value| format!("data: {value}\n\n");
    let text = |text: &str| event(&json!({"choices": [{"delta": {"content": text}}]}));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    stream.write_all((head.to_owned() + &text("You said \x1b[2J")).as_bytes()).ok()?;
    match last.as_str() {
        "slow" => {
            // Only the client can end this.
            let mut rest = Vec::new();
            drop(reader.read_to_end(&mut rest));
        }
        "cut" => {}
        _ => {
            let usage = event(&json!({"choices": [], "usage": {"completion_tokens": 2}}));
            let end = text(&last) + &usage + "data: [DONE]\n\n";
            stream.write_all(end.as_bytes()).ok()?;
        }
    }
    stream.shutdown(std::net::Shutdown::Both).ok();
    None
}

/// Runs it with `input` piped in.
fn piped(arguments: &[&str], input: &str) -> Output {
    let mut command = tokenmill(&[&["chat"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended already, with an error.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_pipe_gets_the_answer_and_nothing_else() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "# mine\nsecret\n").unwrap();
    let session = dir.path().join("s.json");
    let (key, session) = (key.to_str().unwrap(), session.to_str().unwrap());
    let output = piped(&["--url", &fake.url, "--system", "be brief", "--session", session], "hello\n");
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("You said \x1b[2Jhello\n", ""));
    let flags = ["--url", &fake.url, "--session", session, "--stats", "--api-key-file", key, "--max-tokens", "7"];
    let output = piped(&[&flags[..], &["--model", "second", "what is this?"]].concat(), "a\nb\n");
    assert!(output.status.success() && text(&output.stderr).contains("2 tokens"), "{}", text(&output.stderr));
    let bodies = fake.bodies();
    assert_eq!(
        (&bodies[0]["model"], &bodies[1]["model"], &bodies[1]["max_tokens"]),
        (&json!("first"), &json!("second"), &json!(7))
    );
    let said: Vec<&str> =
        bodies[1]["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["be brief", "hello", "You said \x1b[2Jhello", "what is this?\n\na\nb"]);
    let heads: Vec<String> = fake.asked.lock().unwrap().iter().map(|(head, _)| head.to_ascii_lowercase()).collect();
    assert!(!heads[0].contains("authorization") && heads[1].contains("authorization: bearer secret"));
}

#[test]
fn what_goes_wrong_is_one_line() {
    let fake = Fake::start();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (gone, fake) = (format!("http://{gone}"), fake.url.as_str());
    for (arguments, input, parts) in [
        (["--url", &gone], "x", ["no server answers at", "tokenmill serve"]),
        (["--url", "https://x"], "x", ["https://x", "proxy"]),
        (["--url", fake], "fail", ["503", "too many cooks"]),
        (["--url", fake], "cut", ["broke off", "too early"]),
        (["--url", fake], " \n", ["no prompt", "standard input"]),
        (["--api-key-file", "/no/such"], "x", ["/no/such", "read"]),
    ] {
        let output = piped(&arguments, input);
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
        assert!(stderr.starts_with("error: ") && parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    }
}

#[test]
fn it_talks_to_the_server_of_this_program() {
    let running = Running::start_ready(&[]);
    let url = format!("http://{}/v1", running.address);
    let output = piped(&["--url", &url, "--temperature", "0", "--stats"], "Hello! Who are you?");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).len() > 10 && text(&output.stderr).contains(" tokens/s"), "{output:?}");
}

#[cfg(unix)]
mod on_a_terminal {
    use super::{Fake, json, tokenmill};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};
    use std::process::{Child, Command};

    /// The program on a terminal of its own.
    struct Session {
        terminal: File,
        child: Child,
        /// What it has shown since the last look.
        shown: String,
    }

    impl Session {
        fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
            let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
            grantpt(&terminal).unwrap();
            unlockpt(&terminal).unwrap();
            let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
            let open = || OpenOptions::new().read(true).write(true).open(&name).unwrap();
            let mut command = tokenmill(&[&["chat"], arguments].concat());
            command.env("TERM", "xterm").envs(environment.iter().copied());
            let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
            Self { terminal: terminal.into(), child, shown: String::new() }
        }

        /// Reads until `part` is shown, and returns all up to it.
        fn wait_for(&mut self, part: &str) -> String {
            let mut buffer = [0; 4096];
            loop {
                if let Some(at) = self.shown.find(part) {
                    let rest = self.shown.split_off(at + part.len());
                    return std::mem::replace(&mut self.shown, rest);
                }
                let num_bytes = self.terminal.read(&mut buffer).unwrap_or(0);
                assert!(num_bytes > 0, "it ended without {part:?} after {:?}", self.shown);
                self.shown += &String::from_utf8_lossy(&buffer[..num_bytes]);
            }
        }

        fn type_in(&mut self, keys: &str) {
            self.terminal.write_all(keys.as_bytes()).unwrap();
        }

        fn interrupt(&self) {
            let pid = self.child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        }
    }

    impl Drop for Session {
        fn drop(&mut self) {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }

    #[test]
    fn a_conversation_with_stops_commands_and_errors() {
        let fake = Fake::start();
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let mut session = Session::start(&["--url", &fake.url], &[("HOME", home), ("TOKENMILL_API_KEY", "planted")]);
        assert!(session.wait_for("/help lists the commands").contains("\x1b[2mfirst at"), "dim, and names the model");
        session.wait_for("> ");
        session.type_in("one\r");
        let shown = session.wait_for("You said [2Jone");
        assert!(!shown.contains("\x1b[2J"), "the server's escape sequence does not reach the terminal");
        session.wait_for("> ");

        // Ctrl-C ends the answer, not the program; at the prompt it says how to leave.
        session.type_in("slow\r");
        session.wait_for("You said [2J");
        session.interrupt();
        session.wait_for("stopped");
        session.wait_for("> ");
        session.type_in("\x03");
        session.wait_for("Ctrl-D or /quit leaves");
        session.wait_for("> ");

        session.type_in("fail\r");
        session.wait_for("\x1b[31mthe server refused with status 503: too many cooks");
        session.wait_for("> ");
        session.type_in("/what\r");
        session.wait_for("no command /what");
        session.wait_for("> ");
        session.type_in("/system be brief\r");
        session.wait_for("the system message is set");
        session.type_in("/model second\r");
        session.wait_for("now talking to second");
        session.wait_for("> ");
        session.type_in("two\\\rlines\r");
        session.wait_for("You said [2Jtwo");
        session.wait_for("> ");
        session.type_in("/regenerate\r");
        session.wait_for("You said [2Jtwo");
        session.wait_for("> ");
        let file = dir.path().join("saved.json");
        session.type_in(&format!("/save {}\r", file.display()));
        session.wait_for("goes on with it");
        session.wait_for("> ");
        session.type_in("\x04");
        assert!(session.child.wait().unwrap().success());

        let bodies = fake.bodies();
        let said = |idx: usize| {
            let messages = bodies[idx]["messages"].as_array().unwrap();
            messages.iter().map(|message| message["content"].as_str().unwrap()).collect::<Vec<_>>()
        };
        let (first, stopped) = ("You said \x1b[2Jone", "You said \x1b[2J");
        assert_eq!(said(1), ["one", first, "slow"]);
        assert_eq!(said(3), ["be brief", "one", first, "slow", stopped, "two\nlines"]);
        assert_eq!((said(4), &bodies[4]["model"]), (said(3), &json!("second")));
        assert!(fake.asked.lock().unwrap()[0].0.to_ascii_lowercase().contains("authorization: bearer planted"));
        assert!(std::fs::read_to_string(file).unwrap().contains("be brief"));
        let history = std::fs::read_to_string(dir.path().join(".local/share/tokenmill/chat_history")).unwrap();
        assert!(history.starts_with("\"one\"\n\"slow\"\n") && history.contains("\"two\\\\\\nlines\"\n"), "{history}");
    }

    #[test]
    fn no_color_is_respected() {
        let fake = Fake::start();
        let mut session = Session::start(&["--url", &fake.url], &[("NO_COLOR", "1")]);
        assert!(!session.wait_for("/help lists the commands").contains("\x1b["));
        session.wait_for("> ");
        session.type_in("/quit\r");
        assert!(session.child.wait().unwrap().success());
    }
}

#[test]
fn every_shell_gets_completions() {
    for (shell, part) in [
        ("bash", "complete -F _tokenmill"),
        ("zsh", "#compdef tokenmill"),
        ("fish", "complete -c tokenmill"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer[tokenmill]"),
    ] {
        let output = tokenmill(&["completions", shell]).output().unwrap();
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains(part) && script.contains("max-tokens"), "{shell}: {script}");
    }
    assert_eq!(tokenmill(&["completions", "tcsh"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn every_command_has_a_page() {
    let output = tokenmill(&["man"]).output().unwrap();
    let page = text(&output.stdout);
    assert!(page.contains(".TH tokenmill 1") && page.contains("tokenmill\\-serve(1)"), "{page}");
    let output = tokenmill(&["man", "chat"]).output().unwrap();
    let page = text(&output.stdout);
    assert!(page.contains(".TH tokenmill-chat 1") && page.contains("\\-\\-session"), "{page}");
    let output = tokenmill(&["man", "no-such"]).output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("no command no-such"));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    let output = tokenmill(&["man", "--dir", folder.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    for command in ["", "-serve", "-chat", "-bench", "-inspect", "-synth", "-completions", "-man"] {
        let page = std::fs::read_to_string(folder.join(format!("tokenmill{command}.1"))).unwrap();
        assert!(page.contains(&format!("tokenmill{command}")), "{command}");
    }
}
