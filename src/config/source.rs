//! Where settings come from, and putting them together.
//!
//! A source is a list of single settings, each with a path (`server.port`), a value and an origin for messages. [`merge`] lays
//! them over the defaults one by one and tries the whole each time, so the first setting that does not fit is the one named.

use super::{Config, DEFAULTS, FLAGS};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Start of the names of our environment variables.
const ENV_PREFIX: &str = "TOKENMILL_";

/// The environment's `--config`.
pub(super) const CONFIG_FILE_VARIABLE: &str = "TOKENMILL_CONFIG";
/// Variables of ours that are no settings: that one, and the key that clients send.
const NO_SETTINGS: [&str; 2] = [CONFIG_FILE_VARIABLE, crate::terminal::API_KEY_VARIABLE];

/// What is wrong with the settings, in one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config file {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A source is not YAML, or not a tree of settings.
    #[error("{origin}: {reason}")]
    Syntax {
        /// Which source.
        origin: String,
        /// What the parser says.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Which source.
        origin: String,
        /// The key's path.
        key: String,
        /// ", did you mean `…`?" or empty.
        hint: String,
    },
    /// A value that does not fit its key.
    #[error("{origin}: bad value for `{key}`: {reason}")]
    BadValue {
        /// Which source.
        origin: String,
        /// The key's path.
        key: String,
        /// What is expected.
        reason: String,
    },
    /// A value that fits its type and still makes no sense.
    #[error("config: `{key}` {reason}")]
    Invalid {
        /// The key's path.
        key: String,
        /// What is allowed.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(key: &str, reason: &str) -> Self {
        Self::Invalid { key: key.to_owned(), reason: reason.to_owned() }
    }
}

/// Settings of one source.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<Setting>);

#[derive(Clone, Debug)]
struct Setting {
    path: Vec<String>,
    /// The readings of the value, the first that fits counts: `8000` in the environment may be a text or a number.
    values: Vec<Value>,
    origin: String,
}

impl Overrides {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one setting as text; `origin` (a flag's name) is named in errors, `key` is a path such as `server.port`.
    pub fn set(&mut self, origin: &str, key: &str, value: &str) {
        let path = key.split('.').map(str::to_owned).collect();
        self.0.push(Setting { path, values: readings(value), origin: origin.to_owned() });
    }

    /// The settings of a YAML file.
    ///
    /// # Errors
    /// If it cannot be read or is not a tree of settings.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::File { path: origin.clone(), reason: error.to_string() })?;
        Self::from_yaml(&text, &origin)
    }

    /// The settings of a YAML text; `origin` is named in errors.
    ///
    /// # Errors
    /// If it is not a tree of settings.
    pub fn from_yaml(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let mut settings = Vec::new();
        match parse_yaml(text) {
            Ok(Value::Null) => {}
            Ok(tree @ Value::Object(_)) => flatten(tree, &mut Vec::new(), origin, &mut settings),
            Ok(_) => {
                let reason = "the settings must be `key: value` lines".to_owned();
                return Err(ConfigError::Syntax { origin: origin.to_owned(), reason });
            }
            Err(reason) => return Err(ConfigError::Syntax { origin: origin.to_owned(), reason }),
        }
        Ok(Self(settings))
    }

    /// The settings among environment variables: `TOKENMILL_SERVER__PORT` is `server.port`, and so is `TOKENMILL_PORT`, for the
    /// flag is `--port`.
    ///
    /// # Errors
    /// If one of ours is not UTF-8.
    pub fn from_environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, ConfigError> {
        // Sorted, so that the error of two bad ones does not depend on the environment's order.
        let ours: BTreeMap<String, OsString> = variables
            .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
            .filter(|(name, value)| {
                name.starts_with(ENV_PREFIX) && !NO_SETTINGS.contains(&name.as_str()) && !is_service_link(name, value)
            })
            .collect();
        let mut settings = Vec::new();
        for (name, value) in ours {
            let Ok(value) = value.into_string() else {
                return Err(ConfigError::Syntax { origin: name, reason: "the value is not UTF-8".to_owned() });
            };
            let key = name[ENV_PREFIX.len()..].to_ascii_lowercase();
            let key = FLAGS
                .iter()
                .find(|(flag, _)| *flag == key)
                .map_or(key.replace("__", "."), |(_, key)| (*key).to_owned());
            let path = key.split('.').map(str::to_owned).collect();
            settings.push(Setting { path, values: readings(&value), origin: name });
        }
        Ok(Self(settings))
    }
}

/// Whether Kubernetes has put the variable there to tell of a service that is called `tokenmill`.
fn is_service_link(name: &str, value: &OsString) -> bool {
    let name = &name[ENV_PREFIX.len()..];
    let is_url = value.to_str().is_some_and(|value| value.starts_with("tcp://") || value.starts_with("udp://"));
    name.starts_with("SERVICE_") || name.starts_with("PORT_") || (name == "PORT" && is_url)
}

/// Lays `layers` over the defaults in order.
pub(super) fn merge(layers: &[Overrides]) -> Result<Config, ConfigError> {
    let defaults = parse_yaml(DEFAULTS)
        .map_err(|reason| ConfigError::Syntax { origin: "config/default.yaml".to_owned(), reason })?;
    let mut tree = defaults.clone();
    for setting in layers.iter().flat_map(|layer| &layer.0) {
        apply(&mut tree, &defaults, setting)?;
    }
    Config::deserialize(tree)
        .map_err(|error| ConfigError::Syntax { origin: "config/default.yaml".to_owned(), reason: error.to_string() })
}

fn apply(tree: &mut Value, defaults: &Value, setting: &Setting) -> Result<(), ConfigError> {
    let key = setting.path.join(".");
    let takes_list = match at_path(defaults, &setting.path) {
        None => {
            return Err(ConfigError::UnknownKey {
                origin: setting.origin.clone(),
                hint: nearest(&key, defaults).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default(),
                key,
            });
        }
        Some(Value::Object(_)) => {
            let reason = "it is a section; set the keys in it".to_owned();
            return Err(ConfigError::BadValue { origin: setting.origin.clone(), key, reason });
        }
        Some(default) => default.is_array(),
    };
    let mut reason = "a list does not fit".to_owned();
    for value in setting.values.iter().filter(|value| takes_list || !value.is_array()) {
        let mut tried = tree.clone();
        *at_path_mut(&mut tried, &setting.path).expect("the path is in the defaults") = value.clone();
        match Config::deserialize(&tried) {
            Ok(_) => {
                *tree = tried;
                return Ok(());
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(ConfigError::BadValue { origin: setting.origin.clone(), key, reason })
}

fn at_path<'a>(tree: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |node, part| node.as_object()?.get(part))
}

fn at_path_mut<'a>(tree: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(tree, |node, part| node.as_object_mut()?.get_mut(part))
}

fn flatten(tree: Value, path: &mut Vec<String>, origin: &str, settings: &mut Vec<Setting>) {
    match tree {
        Value::Object(members) => {
            for (name, value) in members {
                path.push(name);
                flatten(value, path, origin, settings);
                path.pop();
            }
        }
        // `server:` with everything below it commented out.
        Value::Null if !path.is_empty() && path.len() == 1 => {}
        value => settings.push(Setting { path: path.clone(), values: vec![value], origin: origin.to_owned() }),
    }
}

/// How a text from a flag or the environment can be read: as it is, as YAML, as a list.
fn readings(text: &str) -> Vec<Value> {
    let mut values = vec![Value::String(text.to_owned())];
    values.extend(parse_yaml(text).ok().filter(|value| !value.is_string() && !value.is_null()));
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    values.push(entries.map(|entry| Value::String(entry.to_owned())).collect());
    values
}

fn parse_yaml(text: &str) -> Result<Value, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#')) {
        return Ok(Value::Null);
    }
    // The first line says what and where; an excerpt of the file follows, which a one-line message has no room for.
    serde_saphyr::from_str(text).map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// The existing key that is most like `key`, if one is like it at all.
fn nearest(key: &str, defaults: &Value) -> Option<String> {
    let mut known = Vec::new();
    flatten(defaults.clone(), &mut Vec::new(), "", &mut known);
    known
        .iter()
        .map(|setting| setting.path.join("."))
        .map(|known| {
            // `port` at the top is most likely `server.port`.
            let last = known.rsplit('.').next().unwrap_or(&known);
            let distance = edit_distance(key, &known).min(edit_distance(key, last).saturating_add(1));
            (distance, known)
        })
        .min()
        .filter(|(distance, known)| *distance <= 2 + known.len() / 8)
        .map(|(_, known)| known)
}

/// Levenshtein's distance.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (idx, from_char) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = idx + 1;
        for (column, to_char) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from_char != *to_char);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// `$XDG_DATA_HOME/tokenmill`, `~/.local/share/tokenmill`, or `%LOCALAPPDATA%\tokenmill`.
pub(super) fn default_data_dir(variables: impl Iterator<Item = (OsString, OsString)>) -> Option<PathBuf> {
    let mut homes: [Option<PathBuf>; 3] = [None, None, None];
    for (name, value) in variables.filter(|(_, value)| !value.is_empty()) {
        match name.to_str() {
            Some("XDG_DATA_HOME") => homes[0] = Some(value.into()),
            Some("HOME") => homes[1] = Some(Path::new(&value).join(".local/share")),
            Some("LOCALAPPDATA") => homes[2] = Some(value.into()),
            _ => {}
        }
    }
    homes.into_iter().flatten().next().map(|home| home.join("tokenmill"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auto;

    fn yaml(text: &str) -> Overrides {
        Overrides::from_yaml(text, "test.yaml").unwrap()
    }

    fn env(pairs: &[(&str, &str)]) -> Overrides {
        Overrides::from_environment(pairs.iter().map(|(name, value)| (name.into(), value.into()))).unwrap()
    }

    #[test]
    fn later_sources_win() {
        let mut flags = Overrides::new();
        flags.set("--port", "server.port", "3");
        let file = yaml("server: {port: 1, host: '::1'}\nmodel: a.gguf");
        let env = env(&[("TOKENMILL_SERVER__PORT", "2"), ("TOKENMILL_MODEL", "7"), ("OTHER", "x")]);
        let kubernetes = self::env(&[
            ("TOKENMILL_PORT", "tcp://10.0.0.9:80"),
            ("TOKENMILL_SERVICE_HOST", "10.0.0.9"),
            ("TOKENMILL_PORT_80_TCP", "tcp://10.0.0.9:80"),
        ]);
        let config = merge(&[file, env, flags, kubernetes]).unwrap();
        assert_eq!((config.server.port, config.server.host.as_str(), config.model.as_str()), (3, "::1", "7"));
    }

    #[test]
    fn texts_of_the_environment_take_the_type_of_their_key() {
        let config = merge(&[env(&[
            ("TOKENMILL_AUTH__KEYS", "one, two"),
            ("TOKENMILL_ENGINE__MEMORY", "4GiB"),
            ("TOKENMILL_THREADS", "3"),
            ("TOKENMILL_SERVER__IDLE_TIMEOUT", "90"),
            ("TOKENMILL_ENGINE__QUANTIZE", "none"),
        ])])
        .unwrap();
        assert_eq!(config.auth.keys, ["one", "two"]);
        assert_eq!(config.engine.memory.value().unwrap().get(), 4 << 30);
        assert_eq!(config.engine.threads, Auto::Value(3));
        assert_eq!(config.server.idle_timeout.get().as_secs(), 90);
        assert_eq!(config.engine.quantize, crate::config::QuantizeSetting::None);
    }

    #[test]
    fn errors_name_key_and_source_in_one_line() {
        let check = |overrides: Overrides, parts: &[&str]| {
            let error = merge(&[overrides]).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{error}");
        };
        check(yaml("server: {prot: 1}"), &["test.yaml", "unknown key `server.prot`", "did you mean `server.port`?"]);
        check(yaml("port: 1"), &["unknown key `port`", "did you mean `server.port`?"]);
        check(yaml("xyzzy: 1"), &["unknown key `xyzzy`"]);
        check(yaml("server: {port: many}"), &["bad value for `server.port`", "\"many\""]);
        check(yaml("server: {port: 70000}"), &["bad value for `server.port`"]);
        check(yaml("server: 5"), &["`server`", "section"]);
        check(yaml("engine: {quantize: q5_0}"), &["`engine.quantize`", "q8_0"]);
        check(yaml("engine: {memory: much}"), &["`engine.memory`", "4GiB"]);
        check(env(&[("TOKENMILL_SERVER_PORT", "1")]), &["TOKENMILL_SERVER_PORT", "did you mean `server.port`?"]);
        check(env(&[("TOKENMILL_PORT", "x")]), &["TOKENMILL_PORT: bad value for `server.port`", "\"x\""]);
        let mut flags = Overrides::new();
        flags.set("--ctx", "engine.ctx", "-4");
        check(flags, &["--ctx: bad value for `engine.ctx`"]);
    }

    #[test]
    fn broken_files_get_one_line() {
        for text in ["server: [", "- a\n- b", "just words", "a: b: c"] {
            let error = Overrides::from_yaml(text, "x.yaml").unwrap_err().to_string();
            assert!(error.starts_with("x.yaml: ") && !error.contains('\n'), "{error}");
        }
        assert!(merge(&[yaml(""), yaml("# nothing\n"), yaml("server:\n")]).is_ok());
        let error = Overrides::from_file(Path::new("/absent.yaml")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the config file /absent.yaml"), "{error}");
    }

    #[test]
    fn the_data_folder_follows_the_environment() {
        let find = |pairs: &[(&str, &str)]| {
            default_data_dir(pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
        };
        assert_eq!(find(&[("HOME", "/h")]), Some("/h/.local/share/tokenmill".into()));
        assert_eq!(find(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]), Some("/d/tokenmill".into()));
        assert_eq!(find(&[("HOME", "")]), None);
    }

    #[test]
    fn distances() {
        for (from, to, distance) in [("", "abc", 3), ("port", "prot", 2), ("port", "port", 0), ("kitten", "sitting", 3)]
        {
            assert_eq!(edit_distance(from, to), distance);
        }
    }
}
