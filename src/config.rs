//! The settings: one typed struct, filled from four sources.
//!
//! Defaults (config/default.yaml, built in) < the file of `--config` < environment < flags. Every setting is applied by itself,
//! so an error names the key and where it came from. This is the only place that reads the environment.

mod hub;
pub mod machine;
mod sessions;
mod source;
mod units;

pub use hub::{HubConfig, HubSettings};
pub use sessions::{OnFailure, SessionsConfig};
pub use source::{ConfigError, Overrides};
pub use units::{Auto, ByteSize, Span};

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// config/default.yaml: every setting, its default and what it means.
pub const DEFAULTS: &str = include_str!("../config/default.yaml");

/// The settings that have a flag, and a short environment variable, of their own: name and key.
/// `--max-queue` and `TOKENMILL_MAX_QUEUE` both are `limits.max_queue`.
pub const FLAGS: &[(&str, &str)] = &[
    ("model", "model"),
    ("model_name", "model_name"),
    ("port", "server.port"),
    ("host", "server.host"),
    ("threads", "engine.threads"),
    ("memory", "engine.memory"),
    ("ctx", "engine.ctx"),
    ("quantize", "engine.quantize"),
    ("kv_type", "engine.kv_type"),
    ("data_dir", "data_dir"),
    ("api_key_file", "auth.key_file"),
    ("max_queue", "limits.max_queue"),
    ("max_batch_tokens", "engine.max_batch_tokens"),
    ("max_batch_seqs", "engine.max_batch_seqs"),
    ("log_level", "log.level"),
    ("log_format", "log.format"),
];

/// All settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A GGUF file, a Hugging Face folder, a name on the hub, or `demo`.
    pub model: String,
    /// The name clients use.
    pub model_name: Auto<String>,
    /// Where Tokenmill writes.
    pub data_dir: Auto<PathBuf>,
    /// The model hub.
    pub hub: HubConfig,
    /// The network side.
    pub server: ServerConfig,
    /// Who may ask.
    pub auth: AuthConfig,
    /// The computing side.
    pub engine: EngineConfig,
    /// What one request, and all together, may ask for.
    pub limits: LimitsConfig,
    /// What is remembered of conversations.
    pub sessions: SessionsConfig,
    /// The log.
    pub log: LogConfig,
}

/// The network side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Connections at the same time.
    pub max_connections: u32,
    /// Connections of one client address at the same time; `auto` is nine tenths of all.
    pub max_connections_per_address: Auto<u32>,
    /// Largest request body.
    pub max_body: ByteSize,
    /// What the request bodies in work may hold together.
    pub max_body_total: ByteSize,
    /// For a request's head.
    pub header_timeout: Span,
    /// Longest silence in a request's body.
    pub body_idle_timeout: Span,
    /// For a whole request body.
    pub body_timeout: Span,
    /// For a connection without a request.
    pub idle_timeout: Span,
    /// For a client that does not read.
    pub stall_timeout: Span,
    /// Silence before a comment in an event stream; zero for none.
    pub sse_keep_alive: Span,
    /// The kernel's send buffer per connection.
    pub send_buffer: ByteSize,
    /// How long running requests may go on after a signal.
    pub drain_timeout: Span,
    /// Threads for the network and text.
    pub threads: Auto<u32>,
    /// Origins of web pages that may call the API.
    pub cors_origins: Vec<String>,
}

/// Who may ask.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// API keys.
    pub keys: Vec<String>,
    /// A file with one key per line, or `none`.
    pub key_file: PathBuf,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthConfig {{ keys: {}, key_file: {} }}", self.keys.len(), self.key_file.display())
    }
}

/// The computing side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Threads that compute.
    pub threads: Auto<u32>,
    /// Memory for weights, KV cache and buffers.
    pub memory: Auto<ByteSize>,
    /// Longest sequence served, tokens.
    pub ctx: Auto<u32>,
    /// What happens to the weights at load.
    pub quantize: QuantizeSetting,
    /// What the KV cache holds.
    pub kv_type: KvTypeSetting,
    /// Tokens per step at most.
    pub max_batch_tokens: u32,
    /// Sequences per step at most.
    pub max_batch_seqs: u32,
}

/// What happens to the weights at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizeSetting {
    /// The file's format stays.
    Auto,
    /// 8 bits, blocks of 32.
    Q8_0,
    /// 4 bits, blocks of 32.
    Q4_0,
    /// f32 throughout, KV cache included.
    None,
}

/// What the KV cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvTypeSetting {
    /// What the loader finds best.
    Auto,
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 1 byte and scales.
    Int8,
}

/// What one request, and all together, may ask for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Requests that may wait for the engine.
    pub max_queue: u32,
    /// Prompt tokens that may wait for the engine.
    pub max_queue_tokens: u64,
    /// Largest `n`.
    pub max_n: u32,
    /// Most prompts in one request.
    pub max_prompts: u32,
    /// Output tokens where a request names no limit.
    pub default_max_tokens: Auto<u32>,
    /// How long a request may wait for its first step; zero for ever.
    pub queue_timeout: Span,
}

/// The log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or levels per module.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Config {
    /// The defaults alone.
    pub fn defaults() -> Self {
        source::merge(&[]).expect("config/default.yaml is valid, a test reads it")
    }

    /// The defaults, then `file` or else the one that `TOKENMILL_CONFIG` names, then the environment, then `flags`; validated.
    ///
    /// # Errors
    /// One line that names the key and where it was set.
    pub fn load(file: Option<&Path>, flags: Overrides) -> Result<Self, ConfigError> {
        let mut layers = Vec::new();
        // Read here alone: everything else is handed its settings.
        let variables: Vec<_> = std::env::vars_os().collect();
        let named = variables.iter().find(|(name, _)| name == source::CONFIG_FILE_VARIABLE);
        if let Some(path) = file.or(named.map(|(_, path)| Path::new(path))) {
            layers.push(Overrides::from_file(path)?);
        }
        layers.push(Overrides::from_environment(variables.into_iter())?);
        layers.push(flags);
        Self::from_layers(&layers)
    }

    /// The defaults, then `layers` in order; validated.
    ///
    /// # Errors
    /// One line that names the key and where it was set.
    pub fn from_layers(layers: &[Overrides]) -> Result<Self, ConfigError> {
        let config = source::merge(layers)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let server = &self.server;
        at_least("server.max_connections", u64::from(server.max_connections), 1)?;
        if let Auto::Value(max) = server.max_connections_per_address {
            at_least("server.max_connections_per_address", u64::from(max), 1)?;
        }
        at_least("server.max_body", server.max_body.get(), 1024)?;
        at_least("server.max_body_total", server.max_body_total.get(), server.max_body.get())?;
        at_least("server.send_buffer", server.send_buffer.get(), 4096)?;
        for (key, span) in [
            ("server.header_timeout", server.header_timeout),
            ("server.body_idle_timeout", server.body_idle_timeout),
            ("server.body_timeout", server.body_timeout),
            ("server.idle_timeout", server.idle_timeout),
            ("server.stall_timeout", server.stall_timeout),
        ] {
            if span.get().is_zero() {
                return Err(ConfigError::invalid(key, "must be longer than 0"));
            }
        }
        if self.model.is_empty() {
            return Err(ConfigError::invalid("model", "is empty; name a GGUF file, a Hugging Face folder or demo"));
        }
        if tracing_subscriber::EnvFilter::try_new(&self.log.level).is_err() {
            let message = format!("'{}' is not a level; use error, warn, info, debug or trace", self.log.level);
            return Err(ConfigError::invalid("log.level", &message));
        }
        if let Auto::Value(threads) = server.threads {
            in_range("server.threads", u64::from(threads), 1, 64)?;
        }
        for (idx, key) in self.auth.keys.iter().enumerate() {
            // The key itself is not repeated: errors end up in logs.
            if key.trim().is_empty() || key.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(ConfigError::invalid(&format!("auth.keys[{idx}]"), "must not be empty or contain blanks"));
            }
        }
        let engine = &self.engine;
        if let Auto::Value(threads) = engine.threads {
            in_range("engine.threads", u64::from(threads), 1, 1024)?;
        }
        if let Auto::Value(ctx) = engine.ctx {
            at_least("engine.ctx", u64::from(ctx), 16)?;
        }
        if let Auto::Value(memory) = engine.memory {
            at_least("engine.memory", memory.get(), 16 << 20)?;
        }
        in_range("engine.max_batch_tokens", u64::from(engine.max_batch_tokens), 1, 65_536)?;
        in_range("engine.max_batch_seqs", u64::from(engine.max_batch_seqs), 1, 4096)?;
        if engine.max_batch_seqs > engine.max_batch_tokens {
            return Err(ConfigError::invalid(
                "engine.max_batch_seqs",
                &format!(
                    "{} is more than engine.max_batch_tokens ({})",
                    engine.max_batch_seqs, engine.max_batch_tokens
                ),
            ));
        }
        self.sessions.validate()?;
        let limits = &self.limits;
        in_range("limits.max_queue", u64::from(limits.max_queue), 1, 1 << 20)?;
        at_least("limits.max_queue_tokens", limits.max_queue_tokens, 1)?;
        in_range("hub.connections", u64::from(self.hub.connections), 1, 32)?;
        in_range("limits.max_n", u64::from(limits.max_n), 1, 128)?;
        in_range("limits.max_prompts", u64::from(limits.max_prompts), 1, 4096)?;
        if let Auto::Value(tokens) = limits.default_max_tokens {
            at_least("limits.default_max_tokens", u64::from(tokens), 1)?;
        }
        Ok(())
    }

    /// Connections that one client address may have, with `auto` resolved.
    pub fn max_connections_per_address(&self) -> u32 {
        match self.server.max_connections_per_address {
            Auto::Value(max) => max,
            Auto::Auto => self.server.max_connections - self.server.max_connections / 10,
        }
    }

    /// All API keys: those of the settings and those of the key file.
    ///
    /// # Errors
    /// If the key file cannot be read or holds no key.
    pub fn api_keys(&self) -> Result<Vec<String>, ConfigError> {
        let mut keys = self.auth.keys.clone();
        let path = &self.auth.key_file;
        if path.as_os_str() != "none" {
            let text = std::fs::read_to_string(path).map_err(|error| {
                ConfigError::invalid("auth.key_file", &format!("cannot read {}: {error}", path.display()))
            })?;
            let found = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = keys.len();
            keys.extend(found.map(str::to_owned));
            if keys.len() == before {
                let message = format!("{} holds no key; put one on a line of its own", path.display());
                return Err(ConfigError::invalid("auth.key_file", &message));
            }
        }
        Ok(keys)
    }

    /// Where Tokenmill writes, with `auto` resolved.
    ///
    /// # Errors
    /// If there is no home folder to put it in.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        match &self.data_dir {
            Auto::Value(path) => Ok(path.clone()),
            Auto::Auto => source::default_data_dir(std::env::vars_os())
                .ok_or_else(|| ConfigError::invalid("data_dir", "HOME is not set; name a folder with --data-dir")),
        }
    }
}

fn at_least(key: &str, value: u64, least: u64) -> Result<(), ConfigError> {
    if value < least {
        return Err(ConfigError::invalid(key, &format!("must be at least {least}, not {value}")));
    }
    Ok(())
}

fn in_range(key: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if !(least..=most).contains(&value) {
        return Err(ConfigError::invalid(key, &format!("must be between {least} and {most}, not {value}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_defaults_are_valid() {
        let config = Config::defaults();
        config.validate().unwrap();
        assert_eq!((config.model.as_str(), config.server.port), ("demo", 8000));
        assert_eq!(config.server.header_timeout.get(), Duration::from_secs(10));
        assert_eq!(config.server.max_body.get(), 8 << 20);
        assert_eq!(config.engine.memory, Auto::Auto);
        assert_eq!(config.api_keys().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_default_has_a_comment() {
        let mut commented = false;
        for line in DEFAULTS.lines().map(str::trim) {
            let is_section = line.ends_with(':');
            if !line.is_empty() && !line.starts_with('#') && !is_section {
                assert!(commented, "no comment above `{line}`");
            }
            commented = line.starts_with('#');
        }
    }

    #[test]
    fn validate_names_the_key() {
        let check = |text: &str, key: &str| {
            let config = source::merge(&[Overrides::from_yaml(text, "test").unwrap()]).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        };
        check("server: {max_body: 10}", "server.max_body");
        check("server: {header_timeout: 0s}", "server.header_timeout");
        check("engine: {max_batch_seqs: 500}", "engine.max_batch_seqs");
        check("engine: {threads: 0}", "engine.threads");
        check("limits: {max_n: 129}", "limits.max_n");
        check("auth: {keys: ['a b']}", "auth.keys[0]");
    }

    #[test]
    fn keys_come_from_the_settings_and_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# ours\n\n  one \ntwo\n").unwrap();
        let mut config = Config::defaults();
        config.auth.keys = vec!["zero".to_owned()];
        config.auth.key_file = path.clone();
        assert_eq!(config.api_keys().unwrap(), ["zero", "one", "two"]);
        std::fs::write(&path, "# none\n").unwrap();
        assert!(config.api_keys().unwrap_err().to_string().contains("holds no key"));
        config.auth.key_file = dir.path().join("absent");
        assert!(config.api_keys().unwrap_err().to_string().contains("cannot read"));
    }
}
