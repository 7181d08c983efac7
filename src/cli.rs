//! The command line: subcommands and flags, and which setting each flag is.
//!
//! Flags hold text as typed; src/config.rs gives them types, so that a bad value gets the same message from every source.

use crate::config::{ConfigError, FLAGS, Overrides};
use crate::quantize::Target;
use crate::synth::{Shape, SynthFormat};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Serves language models from small machines with OpenAI's API.
#[derive(Debug, Parser)]
#[command(name = "tokenmill", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP (settings: defaults < --config FILE < TOKENMILL_… < flags)
    Serve(Box<ServeArgs>),
    /// Fetch a model from the hub and print where it is
    Pull(PullArgs),
    /// Write a GGUF file with random weights at the shape of a published model, for benches
    Synth(SynthArgs),
    /// Measure prefill and decode tokens/s by batch size, and what they are of this machine's limits
    Bench(BenchArgs),
    /// Write a model as a GGUF file in fewer bits
    Quantize(QuantizeArgs),
    /// Say what a model's files hold and what serving it takes
    Inspect(InspectArgs),
    /// Talk to a running server, or answer one prompt in a pipe
    Chat(ChatArgs),
    /// Print what a shell needs to complete this program's commands
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Print the manual page of this program or of one of its commands
    Man {
        /// A command of this program
        command: Option<String>,
        /// Write all pages into this folder instead
        #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
}

/// Flags of `tokenmill chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Where the server listens
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model to talk to [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Go on with the conversation in this file, and keep it there
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// Sampling temperature [default: the server's]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Longest answer, in tokens [default: the server's]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Show time to first token and tokens/s after each answer
    #[arg(long)]
    pub stats: bool,
    /// File with the API key [default: the variable `TOKENMILL_API_KEY`]
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Ask only this, then leave; what is piped in comes after it
    pub prompt: Option<String>,
}

/// Flags of `tokenmill pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// `org/name`, `org/name:Q4_K_M`, `org/name:file.gguf`, or any of them with `@revision` after the name
    pub model: String,
    /// Any setting, as in `--set hub.connections=8`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Flags of `tokenmill synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// Whose shape
    #[arg(long, value_enum)]
    pub shape: Shape,
    /// How the weights are stored
    #[arg(long, value_enum, default_value = "q8_0")]
    pub format: SynthFormat,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Of the random weights
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The file to write
    pub out: PathBuf,
}

/// Flags of `tokenmill serve`. All of them are settings; config/default.yaml documents each.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// GGUF file, Hugging Face folder, name on the hub (`org/name:Q4_K_M`), or `demo` [default: demo]
    #[arg(long, value_name = "SPEC")]
    pub model: Option<String>,
    /// Name that clients use for the model [default: the file's or folder's name]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8000]
    #[arg(long)]
    pub port: Option<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    pub host: Option<String>,
    /// How to compute
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Where Tokenmill keeps what it writes [default: ~/.local/share/tokenmill]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// File with one API key per line; without keys everybody is let in
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<String>,
    /// Requests that may wait; more get 503 [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_queue: Option<String>,
    /// Tokens per engine step [default: 256]
    #[arg(long, value_name = "N")]
    pub max_batch_tokens: Option<String>,
    /// Sequences per engine step [default: 64]
    #[arg(long, value_name = "N")]
    pub max_batch_seqs: Option<String>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// auto, text or json [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// YAML file with settings
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of all commands that load a model.
#[derive(Debug, Default, Args)]
pub struct EngineArgs {
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<String>,
    /// Memory for weights, KV cache and buffers, as in 3GiB [default: the machine's, less a margin]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Longest sequence, prompt and output together [default: the model's, as far as memory allows]
    #[arg(long, value_name = "TOKENS")]
    pub ctx: Option<String>,
    /// `auto`, `q8_0`, `q4_0`, or `none` for f32 throughout [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// KV cache: `auto`, `f32`, `f16` or `int8` [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<String>,
    /// Any other setting, as in `--set server.idle_timeout=90s`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Flags of `tokenmill bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// GGUF file, Hugging Face folder, name on the hub, or `demo`
    pub model: String,
    /// How to compute
    #[command(flatten)]
    pub engine: EngineArgs,
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Flags of `tokenmill quantize`.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// GGUF file or Hugging Face folder
    #[arg(value_name = "IN")]
    pub source: PathBuf,
    /// The GGUF file to write
    pub out: PathBuf,
    /// What the weights become
    #[arg(long, value_enum)]
    pub to: Target,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

/// Flags of `tokenmill inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// GGUF file, Hugging Face folder, name on the hub, or `demo`
    pub model: String,
    /// `auto`, `q8_0`, `q4_0`, or `none`: what the sizes are computed for [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

impl ServeArgs {
    /// The settings among the flags.
    ///
    /// # Errors
    /// A `--set` without `=`.
    pub fn overrides(&self) -> Result<Overrides, ConfigError> {
        let mut overrides = self.engine.overrides()?;
        for (flag, key) in FLAGS {
            if let Some(value) = self.value_of(flag) {
                overrides.set(&format!("--{}", flag.replace('_', "-")), key, value);
            }
        }
        Ok(overrides)
    }

    fn value_of(&self, flag: &str) -> Option<&str> {
        let value = match flag {
            "model" => &self.model,
            "model_name" => &self.model_name,
            "port" => &self.port,
            "host" => &self.host,
            "data_dir" => &self.data_dir,
            "api_key_file" => &self.api_key_file,
            "max_queue" => &self.max_queue,
            "max_batch_tokens" => &self.max_batch_tokens,
            "max_batch_seqs" => &self.max_batch_seqs,
            "log_level" => &self.log_level,
            "log_format" => &self.log_format,
            _ => return None,
        };
        value.as_deref()
    }
}

impl EngineArgs {
    /// The settings among the flags.
    ///
    /// # Errors
    /// A `--set` without `=`.
    pub fn overrides(&self) -> Result<Overrides, ConfigError> {
        let mut overrides = Overrides::new();
        for assignment in &self.set {
            let Some((key, value)) = assignment.split_once('=') else {
                return Err(ConfigError::Syntax {
                    origin: format!("--set {assignment}"),
                    reason: "expected KEY=VALUE, as in --set server.idle_timeout=90s".to_owned(),
                });
            };
            // Everybody on the machine can read a process's arguments.
            if key.trim() == "auth.keys" {
                let reason = "keys do not belong on the command line; use --api-key-file or TOKENMILL_AUTH__KEYS";
                return Err(ConfigError::invalid("auth.keys", reason));
            }
            overrides.set("--set", key.trim(), value);
        }
        for (flag, value) in [
            ("threads", &self.threads),
            ("memory", &self.memory),
            ("ctx", &self.ctx),
            ("quantize", &self.quantize),
            ("kv_type", &self.kv_type),
        ] {
            if let Some(value) = value {
                overrides.set(&format!("--{}", flag.replace('_', "-")), key_of(flag), value);
            }
        }
        Ok(overrides)
    }
}

impl PullArgs {
    /// The settings among the flags.
    ///
    /// # Errors
    /// A `--set` without `=`.
    pub fn overrides(&self) -> Result<Overrides, ConfigError> {
        EngineArgs { set: self.set.clone(), ..EngineArgs::default() }.overrides()
    }
}

impl BenchArgs {
    /// The settings among the flags, the model included.
    ///
    /// # Errors
    /// A `--set` without `=`.
    pub fn overrides(&self) -> Result<Overrides, ConfigError> {
        let mut overrides = self.engine.overrides()?;
        overrides.set("MODEL", "model", &self.model);
        Ok(overrides)
    }
}

impl InspectArgs {
    /// The settings among the flags, the model included.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::new();
        overrides.set("MODEL", "model", &self.model);
        if let Some(quantize) = &self.quantize {
            overrides.set("--quantize", key_of("quantize"), quantize);
        }
        overrides
    }
}

fn key_of(flag: &str) -> &'static str {
    FLAGS.iter().find(|(name, _)| *name == flag).map(|(_, key)| *key).expect("every flag has a row, a test tries them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_nothing_wrong() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_a_setting_and_reaches_it() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").unwrap();
        let mut names: Vec<_> = serve.get_arguments().map(|arg| arg.get_id().to_string()).collect();
        names.retain(|name| !["config", "set", "help", "version"].contains(&name.as_str()));
        let flags: Vec<_> = FLAGS.iter().map(|(flag, _)| (*flag).to_owned()).collect();
        assert_eq!(names.len(), flags.len());
        for flag in &flags {
            assert!(names.contains(flag), "{flag}");
            let argument = format!("--{}=17", flag.replace('_', "-"));
            let cli = Cli::try_parse_from(["tokenmill", "serve", &argument]).unwrap();
            let Command::Serve(args) = cli.command else { panic!("another command") };
            assert!(format!("{:?}", args.overrides().unwrap()).contains(&argument[..argument.len() - 3]), "{flag}");
        }
    }

    #[test]
    fn flags_win_and_set_reaches_every_setting() {
        let parse = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["tokenmill", "serve"], arguments].concat()).unwrap();
            let Command::Serve(args) = cli.command else { panic!("another command") };
            args.overrides().and_then(|flags| Config::from_layers(&[flags]))
        };
        let config = parse(&["--port", "9", "--set", "server.idle_timeout=90s", "--set", "server.port=8"]).unwrap();
        assert_eq!((config.server.port, config.server.idle_timeout.get().as_secs()), (9, 90));
        assert!(parse(&["--set", "port"]).unwrap_err().to_string().contains("KEY=VALUE"));
        let error = parse(&["--set", "auth.keys=secret"]).unwrap_err().to_string();
        assert!(error.contains("--api-key-file") && !error.contains("secret"), "{error}");
        let error = parse(&["--max-queue", "few"]).unwrap_err().to_string();
        assert!(error.starts_with("--max-queue: bad value for `limits.max_queue`"), "{error}");
    }
}
