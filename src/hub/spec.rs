//! Names of models on the hub: `org/name`, `org/name:Q4_K_M`, `org/name:file.gguf`, `org/name@revision`.
//!
//! Invariant: every part is safe to be a name in a folder. Used by `--model` and by `tokenmill pull`.

use std::fmt;

/// Longest name of a repository.
const MAX_NAME: usize = 96;
/// Longest path of a file.
const MAX_PATH: usize = 512;

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSpec {
    /// `org/name`.
    pub repo: String,
    /// A branch, tag or commit; `main` where none is named.
    pub revision: String,
    /// Which file or quantization, where there are several.
    pub choice: Option<String>,
}

impl HubSpec {
    /// Reads `text`; `None` if it cannot be the name of a model on the hub.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, choice) = match text.split_once(':') {
            Some((name, choice)) => (name, Some(choice)),
            None => (text, None),
        };
        let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
        let (org, model) = repo.split_once('/')?;
        let is_name = |part: &str| {
            part.starts_with(|char: char| char.is_ascii_alphanumeric())
                && part.len() <= MAX_NAME
                && part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
                && !part.contains("..")
                && !part.contains("--")
        };
        // Somebody who types the path of a GGUF file has mistyped it.
        let is_file = choice.is_none() && model.to_lowercase().ends_with(".gguf");
        if !is_name(org) || !is_name(model) || is_file || !is_safe_path(revision) {
            return None;
        }
        if choice.is_some_and(|choice| !is_safe_path(choice)) {
            return None;
        }
        Some(Self { repo: repo.to_owned(), revision: revision.to_owned(), choice: choice.map(str::to_owned) })
    }

    /// `models--org--name`, the repository's folder in the cache.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }
}

impl fmt::Display for HubSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.choice.as_ref().map_or(Ok(()), |choice| write!(f, ":{choice}"))
    }
}

/// Whether `path`, which may come from a server, stays below the folder it is joined to, on every system.
pub(super) fn is_safe_path(path: &str) -> bool {
    path.len() <= MAX_PATH
        && path.split('/').all(|part| {
            !part.is_empty()
                && part.len() <= 255
                && !part.trim_matches(['.', ' ']).is_empty()
                && !part.ends_with('.')
                && part.chars().all(|char| !char.is_control() && !"\\:*?\"<>|".contains(char))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let parse = |text: &str| HubSpec::parse(text).map(|spec| (spec.repo, spec.revision, spec.choice));
        let spec = |repo: &str, revision: &str, choice: Option<&str>| {
            Some((repo.to_owned(), revision.to_owned(), choice.map(str::to_owned)))
        };
        assert_eq!(parse("Qwen/Qwen2.5-0.5B"), spec("Qwen/Qwen2.5-0.5B", "main", None));
        assert_eq!(parse("a/b-GGUF:q4_k_m"), spec("a/b-GGUF", "main", Some("q4_k_m")));
        assert_eq!(parse("a/b@refs/pr/3:sub/x.gguf"), spec("a/b", "refs/pr/3", Some("sub/x.gguf")));
        for text in [
            "demo",
            "./a/b",
            "/a/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b.gguf",
            "~/b",
            "a/",
            "/b",
            "a b/c",
            "a/b:../x",
            "a/b:",
            "a/b@",
            "a/b@../x",
            "a--b/c",
            "a/b:/etc/passwd",
            "a/b:x\\y",
            "a\\b",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(HubSpec::parse("a/b@x:q8_0").unwrap().to_string(), "a/b@x:q8_0");
        assert_eq!(HubSpec::parse("a/b").unwrap().folder(), "models--a--b");
    }

    #[test]
    fn paths_that_leave_the_folder_are_not_safe() {
        for path in ["a", "a/b.c", ".gitattributes", "1_Pooling/config.json", "ü.txt"] {
            assert!(is_safe_path(path), "{path}");
        }
        for path in [
            "", "/a", "a/", "a//b", "..", "a/../b", ".", "./a", "...", "a/ ..", "C:\\x", "c:x", "a\\..\\b", "a\0b",
            "a\n",
        ] {
            assert!(!is_safe_path(path), "{path:?}");
        }
    }
}
