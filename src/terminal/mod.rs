//! `tokenmill chat`: talks to a running server from a terminal, or answers one prompt in a pipe.
//!
//! It is a client like any other: it speaks HTTP to whatever server the address names and shares nothing with the engine. What
//! a server sends is never let through to a terminal as control characters. Started by `main`.

mod command;
mod conversation;
mod editor;
mod remote;
mod screen;

use crate::cli::ChatArgs;
use command::{COMMANDS, Command};
use conversation::Conversation;
use editor::{Editor, Input};
use remote::{Remote, Reply};
use screen::Screen;
use std::io::{IsTerminal, Read, stdin, stdout};
use std::path::{Path, PathBuf};
use tokio::runtime::Runtime;

/// Environment variable of the API key; on the command line everybody could read it.
pub const API_KEY_VARIABLE: &str = "TOKENMILL_API_KEY";
/// Longest prompt read from standard input, in bytes.
const MAX_PIPED_BYTES: u64 = 8 << 20;

/// Why a chat ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The address is none that can be spoken to.
    #[error("--url {url} is no address such as http://127.0.0.1:8000{hint}")]
    Address {
        /// As given.
        url: String,
        /// What else to know.
        hint: &'static str,
    },
    /// Nobody listens, or the connection breaks before an answer.
    #[error("no server answers at {url} ({cause}); start one with `tokenmill serve`, or name another with --url")]
    NoServer {
        /// Where.
        url: String,
        /// What the system says.
        cause: String,
    },
    /// The server says no.
    #[error("the server refused with status {status}: {message}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// In the server's words.
        message: String,
    },
    /// The answer broke off or cannot be understood.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {cause}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// There is nothing to ask.
    #[error("there is no prompt on standard input; pipe one in, give it as an argument, or run it on a terminal")]
    NoPrompt,
    /// The terminal or pipe fails.
    #[error("cannot read or write: {0}")]
    Io(#[from] std::io::Error),
}

/// Runs the command.
///
/// # Errors
/// See [`ChatError`].
pub fn run(args: &ChatArgs) -> Result<(), ChatError> {
    let key = api_key(args.api_key_file.as_deref())?;
    let remote = Remote::new(&args.url, key)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut conversation = match &args.session {
        Some(path) if path.exists() => Conversation::load(path)?,
        _ => Conversation::default(),
    };
    if let Some(system) = &args.system {
        conversation.system = Some(system.clone());
    }
    let is_interactive = args.prompt.is_none() && stdin().is_terminal() && stdout().is_terminal();
    let model = match &args.model {
        Some(model) => model.clone(),
        None => runtime.block_on(remote.first_model())?,
    };
    let screen = Screen::new();
    let mut chat = Chat { args, remote, runtime, conversation, model, screen, has_stats: args.stats };
    let result = if is_interactive { chat.converse() } else { chat.answer_once(args.prompt.as_deref()) };
    match result {
        // Who reads only the first lines has what they wanted.
        Err(ChatError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The key from the file or the environment.
fn api_key(file: Option<&Path>) -> Result<Option<String>, ChatError> {
    let key = match file {
        Some(path) => {
            let cause = |error: std::io::Error| ChatError::File {
                action: "read",
                path: path.to_owned(),
                cause: error.to_string(),
            };
            let text = std::fs::read_to_string(path).map_err(cause)?;
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.next().map(str::to_owned)
        }
        None => {
            let mut variables = std::env::vars_os();
            variables.find(|(name, _)| name == API_KEY_VARIABLE).and_then(|(_, value)| value.into_string().ok())
        }
    };
    Ok(key.filter(|key| !key.is_empty()))
}

/// A chat in progress.
struct Chat<'a> {
    args: &'a ChatArgs,
    remote: Remote,
    runtime: Runtime,
    conversation: Conversation,
    model: String,
    screen: Screen,
    has_stats: bool,
}

/// How an answer ended.
enum Ended {
    Whole,
    Stopped,
}

impl Chat<'_> {
    /// One prompt, one answer: for pipes and scripts.
    fn answer_once(&mut self, prompt: Option<&str>) -> Result<(), ChatError> {
        let mut parts: Vec<String> = prompt.map(str::to_owned).into_iter().collect();
        if !stdin().is_terminal() || prompt.is_none() {
            let mut piped = String::new();
            stdin().take(MAX_PIPED_BYTES).read_to_string(&mut piped)?;
            parts.push(piped);
        }
        parts.retain(|part| !part.trim().is_empty());
        if parts.is_empty() {
            return Err(ChatError::NoPrompt);
        }
        self.conversation.ask(parts.join("\n\n").trim_end());
        // Ctrl-C ends a program in a pipe as it ends any other.
        let mut reply = Reply::default();
        let body = self.body();
        self.runtime.block_on(self.remote.stream(&body, &mut reply, &mut self.screen))?;
        self.screen.end_of_answer()?;
        self.conversation.answer(&reply.text);
        self.tell_stats(&reply)?;
        self.keep_session()
    }

    /// Prompts until the user leaves.
    fn converse(&mut self) -> Result<(), ChatError> {
        let mut editor = Editor::new()?;
        self.screen.hint(&format!(
            "{} at {} · /help lists the commands, Ctrl-D leaves",
            self.model,
            self.remote.base()
        ))?;
        if !self.conversation.turns().is_empty() {
            let num_turns = self.conversation.turns().len();
            self.screen.hint(&format!("going on with a conversation of {num_turns} messages"))?;
        }
        loop {
            let line = match editor.read()? {
                Input::Line(line) => line,
                Input::Interrupted => {
                    self.screen.hint("Ctrl-D or /quit leaves")?;
                    continue;
                }
                Input::End => return Ok(()),
            };
            match command::parse(&line) {
                Ok(None) => {}
                Ok(Some(Command::Quit)) => return Ok(()),
                // What fails is said, and the chat goes on.
                Ok(Some(command)) => {
                    if let Err(error) = self.obey(command) {
                        self.screen.trouble(&error.to_string())?;
                    }
                }
                Err(message) => self.screen.trouble(&message)?,
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), ChatError> {
        match command {
            Command::Say(text) => {
                self.conversation.ask(&text);
                self.reply()
            }
            Command::Regenerate if self.conversation.forget_answer() => self.reply(),
            Command::Regenerate => Ok(self.screen.hint("there is nothing to answer yet")?),
            Command::New => {
                self.conversation.clear();
                Ok(self.screen.hint("a new conversation")?)
            }
            Command::System(None) => {
                let system = self.conversation.system.clone();
                Ok(self.screen.hint(system.as_deref().unwrap_or("no system message; /system TEXT sets one"))?)
            }
            Command::System(Some(text)) => {
                let is_set = text != "off";
                self.conversation.system = is_set.then_some(text);
                Ok(self.screen.hint(if is_set { "the system message is set" } else { "no system message" })?)
            }
            Command::Model(None) => {
                let models = self.runtime.block_on(self.remote.models())?;
                let mark =
                    |model: &String| if *model == self.model { format!("{model} (in use)") } else { model.clone() };
                let models: Vec<String> = models.iter().map(mark).collect();
                Ok(self.screen.hint(&models.join("\n"))?)
            }
            Command::Model(Some(model)) => {
                self.model = model;
                Ok(self.screen.hint(&format!("now talking to {}", self.model))?)
            }
            Command::Save(path) => {
                self.conversation.save(&path)?;
                Ok(self.screen.hint(&format!("saved; `--session {}` goes on with it", path.display()))?)
            }
            Command::Stats => {
                self.has_stats = !self.has_stats;
                Ok(self.screen.hint(if self.has_stats { "figures after each answer" } else { "no figures" })?)
            }
            Command::Help => {
                let lines: Vec<String> =
                    COMMANDS.iter().map(|row| format!("{:<18} {}", row.usage, row.about)).collect();
                let keys = "Ctrl-C stops an answer; a \\ at a line's end, or \"\"\" around it make a line go on; \
                            // sends a line that begins with /";
                Ok(self.screen.hint(&format!("{}\n{keys}", lines.join("\n")))?)
            }
            Command::Quit => Ok(()),
        }
    }

    /// Answers the last message, until Ctrl-C.
    fn reply(&mut self) -> Result<(), ChatError> {
        let mut reply = Reply::default();
        let body = self.body();
        let asked = self.remote.stream(&body, &mut reply, &mut self.screen);
        let ended = self.runtime.block_on(async {
            tokio::select! {
                result = asked => result.map(|()| Ended::Whole),
                signal = tokio::signal::ctrl_c() => signal.map(|()| Ended::Stopped).map_err(ChatError::Io),
            }
        });
        self.screen.end_of_answer()?;
        // What was said was said, even if no more came.
        if reply.text.is_empty() {
            self.conversation.forget_question();
        } else {
            self.conversation.answer(&reply.text);
        }
        match ended? {
            Ended::Stopped => self.screen.hint("stopped")?,
            Ended::Whole if reply.was_cut() => self.screen.hint("cut at the token limit")?,
            Ended::Whole => {}
        }
        self.tell_stats(&reply)?;
        self.keep_session()
    }

    fn body(&self) -> serde_json::Value {
        let mut body = serde_json::json!({
            "model": self.model,
            "messages": self.conversation.messages(),
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = temperature.into();
        }
        if let Some(max_tokens) = self.args.max_tokens {
            body["max_tokens"] = max_tokens.into();
        }
        body
    }

    fn tell_stats(&mut self, reply: &Reply) -> Result<(), ChatError> {
        if self.has_stats && !reply.text.is_empty() {
            self.screen.hint(&reply.stats())?;
        }
        Ok(())
    }

    fn keep_session(&self) -> Result<(), ChatError> {
        self.args.session.as_ref().map_or(Ok(()), |path| self.conversation.save(path))
    }
}
