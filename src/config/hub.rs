//! Settings of the model hub, with the environment variables that other tools for it read too.
//!
//! `auto` means what those tools do: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`,
//! `HF_HUB_OFFLINE`, `XDG_CACHE_HOME`. So a model that one of them has downloaded is found here, and the other way round.

use super::{Auto, ConfigError};
use serde::Deserialize;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where models come from that are named `org/name`.
const ENDPOINT: &str = "https://huggingface.co";

/// The model hub.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// Where models come from that are named `org/name`.
    pub endpoint: Auto<String>,
    /// Where they are kept.
    pub cache_dir: Auto<PathBuf>,
    /// The file with the token; `none` for no token.
    pub token_file: Auto<PathBuf>,
    /// Whether to use only what is in the cache.
    pub offline: Auto<bool>,
    /// Connections of one download.
    pub connections: u32,
}

/// The hub's settings with everything found out.
#[derive(Clone)]
pub struct HubSettings {
    /// Without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--org--name`.
    pub cache_dir: PathBuf,
    /// Sent to the endpoint's host alone.
    pub token: Option<String>,
    /// Use only what is in the cache.
    pub offline: bool,
    /// Connections of one download.
    pub connections: usize,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubConfig {
    /// The settings, `auto` from the process's environment.
    ///
    /// # Errors
    /// There is no home folder for the cache, or the token file that is set cannot be read.
    pub fn settings(&self) -> Result<HubSettings, ConfigError> {
        self.settings_from(std::env::vars_os())
    }

    fn settings_from(&self, variables: impl Iterator<Item = (OsString, OsString)>) -> Result<HubSettings, ConfigError> {
        let variables: HashMap<OsString, OsString> = variables.filter(|(_, value)| !value.is_empty()).collect();
        let path = |name: &str| variables.get(std::ffi::OsStr::new(name)).map(PathBuf::from);
        let text = |name: &str| variables.get(std::ffi::OsStr::new(name)).and_then(|value| value.to_str());
        let home = path("HF_HOME").or_else(|| {
            let cache =
                path("XDG_CACHE_HOME").or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache_dir = self.cache_dir.value().or_else(|| path("HF_HUB_CACHE"));
        let cache_dir = cache_dir.or_else(|| Some(home.as_ref()?.join("hub")));
        let token = match &self.token_file {
            Auto::Value(file) if file.as_os_str() == "none" => None,
            Auto::Value(file) => Some(read_token(file)?),
            Auto::Auto => text("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(|| {
                let file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
                read_token(&file).ok()
            }),
        };
        let is_yes = |value: &str| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let endpoint = self.endpoint.get_or(|| text("HF_ENDPOINT").unwrap_or(ENDPOINT).to_owned());
        Ok(HubSettings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache_dir: cache_dir.ok_or_else(|| {
                ConfigError::invalid("hub.cache_dir", "HOME is not set; name a folder with --set hub.cache_dir=DIR")
            })?,
            token: token.filter(|token| !token.is_empty()),
            offline: self.offline.get_or(|| text("HF_HUB_OFFLINE").is_some_and(is_yes)),
            connections: usize::try_from(self.connections).unwrap_or(1),
        })
    }
}

fn read_token(file: &Path) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(file);
    text.map(|text| text.trim().to_owned())
        .map_err(|error| ConfigError::invalid("hub.token_file", &format!("cannot read {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(config: &HubConfig, variables: &[(&str, &str)]) -> HubSettings {
        config.settings_from(variables.iter().map(|(name, value)| (name.into(), value.into()))).unwrap()
    }

    #[test]
    fn the_environment_is_read_as_other_tools_read_it() {
        let config = Config::defaults().hub;
        let plain = settings(&config, &[("HOME", "/h")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!((plain.cache_dir, plain.token, plain.offline), ("/h/.cache/huggingface/hub".into(), None, false));
        let cache_dir = |variables: &[(&str, &str)]| settings(&config, variables).cache_dir;
        assert_eq!(cache_dir(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache_dir(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")]), Path::new("/f/hub"));
        assert_eq!(cache_dir(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), " from-file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let all = [("HF_HOME", home), ("HF_ENDPOINT", "http://127.0.0.1:9/"), ("HF_HUB_OFFLINE", "1")];
        let found = settings(&config, &all);
        assert_eq!((found.endpoint.as_str(), found.offline), ("http://127.0.0.1:9", true));
        assert_eq!(found.token.as_deref(), Some("from-file"));
        assert!(!format!("{found:?}").contains("from-file"));
        let found = settings(&config, &[("HF_HOME", home), ("HF_TOKEN", "mine")]);
        assert_eq!(found.token.as_deref(), Some("mine"));
        let none = HubConfig { token_file: Auto::Value("none".into()), ..config.clone() };
        assert_eq!(settings(&none, &[("HF_HOME", home), ("HF_TOKEN", "mine")]).token, None);
        assert!(config.settings_from(std::iter::empty()).unwrap_err().to_string().contains("hub.cache_dir"));
    }
}
