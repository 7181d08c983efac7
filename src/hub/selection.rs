//! Which of a repository's files make up the model.
//!
//! Without a choice: safetensors with what belongs to them, else one GGUF file, the first of [`PREFERRED`] that is there.
//! With one: the GGUF file of that name, or of that quantization, all its parts. Used online with the hub's list of files
//! and offline with what lies in the cache.

use super::error::HubError;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Quantizations in the order of preference on a small machine: four bits first, as good as they come.
const PREFERRED: &[&str] = &[
    "q4_k_m", "q4_0", "q4_k_s", "iq4_xs", "iq4_nl", "q5_k_m", "q5_k_s", "q4_1", "q5_0", "q8_0", "q6_k", "q3_k_m",
    "mxfp4",
];

/// Files besides the weights that a folder of safetensors may have.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// To be fetched now.
    pub(super) files: Vec<String>,
    /// The file among them that names the weights' files, which are to be fetched too.
    pub(super) index: Option<&'static str>,
    /// What to load: a GGUF file, or `None` for the folder.
    pub(super) entry: Option<String>,
}

impl Selection {
    /// Chooses among `available`.
    pub(super) fn choose(repo: &str, choice: Option<&str>, available: &[String]) -> Result<Self, HubError> {
        let groups = gguf_groups(available);
        if let Some(choice) = choice {
            return find_gguf(&groups, choice).map(Self::gguf).ok_or_else(|| HubError::NoSuchFile {
                repo: repo.to_owned(),
                choice: choice.to_owned(),
                available: list(groups.keys().copied()),
            });
        }
        let has = |name: &str| available.iter().any(|file| file == name);
        let index = (has(INDEX) && !has(WEIGHTS)).then_some(INDEX);
        if has("config.json") && (has(WEIGHTS) || index.is_some()) {
            let is_template = |file: &str| file.starts_with("additional_chat_templates/") && file.ends_with(".jinja");
            let weights = index.unwrap_or(WEIGHTS);
            let is_wanted = |file: &&String| {
                COMPANIONS.contains(&file.as_str()) || is_template(file.as_str()) || file.as_str() == weights
            };
            let files = available.iter().filter(is_wanted).cloned().collect();
            return Ok(Self { files, index, entry: None });
        }
        let preferred = PREFERRED.iter().find_map(|name| find_gguf(&groups, name));
        let any = || groups.values().next().cloned();
        preferred.or_else(any).map(Self::gguf).ok_or_else(|| HubError::NoModel {
            repo: repo.to_owned(),
            available: list(available.iter().map(String::as_str)),
        })
    }

    fn gguf(files: Vec<String>) -> Self {
        let entry = files.first().cloned();
        Self { files, index: None, entry }
    }
}

/// The weights' files that an index names.
pub(super) fn files_of_index(json: &[u8]) -> Result<Vec<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(json)
        .map_err(|error| HubError::BadAnswer { what: INDEX.to_owned(), reason: error.to_string() })?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(files.into_iter().collect())
}

/// GGUF models by their name without the number of the part: all parts, in order.
fn gguf_groups(available: &[String]) -> BTreeMap<&str, Vec<String>> {
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut sorted: Vec<&String> = available.iter().collect();
    sorted.sort();
    for file in sorted {
        let Some(stem) = strip_gguf(file) else { continue };
        let name = stem.rsplit('/').next().unwrap_or(stem).to_lowercase();
        // Image towers and the like go with a model, they are none.
        if name.contains("mmproj") || name.contains("imatrix") {
            continue;
        }
        groups.entry(without_part(stem)).or_default().push(file.clone());
    }
    groups
}

fn strip_gguf(file: &str) -> Option<&str> {
    let (stem, extension) = file.rsplit_once('.')?;
    extension.eq_ignore_ascii_case("gguf").then_some(stem)
}

/// `x-00001-of-00003` is `x`.
fn without_part(stem: &str) -> &str {
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = stem.rsplit_once("-of-").filter(|(_, count)| digits(count));
    let parts = parts.and_then(|(rest, _)| rest.rsplit_once('-')).filter(|(_, number)| digits(number));
    parts.map_or(stem, |(name, _)| name)
}

/// The files of the group that `choice` names: a path, a file name, or a quantization, in any case.
fn find_gguf(groups: &BTreeMap<&str, Vec<String>>, choice: &str) -> Option<Vec<String>> {
    let wanted = choice.to_lowercase();
    let named = groups.values().find(|files| {
        files.iter().any(|file| {
            let file = file.to_lowercase();
            file == wanted || file.rsplit('/').next() == Some(wanted.as_str())
        })
    });
    let stem = || groups.iter().find(|(name, _)| name.to_lowercase() == wanted).map(|(_, files)| files);
    // As a word of its own: q4_k is not q4_k_m.
    let of_kind = || {
        let has_word = |name: &str| {
            let name = name.to_lowercase();
            name.match_indices(&wanted).any(|(start, found)| {
                let is_edge = |char: Option<char>| char.is_none_or(|char| "-./".contains(char));
                let before = name[..start].chars().next_back();
                // Some put `UD-` or `i1-` in front, some a dot, some an underscore.
                (is_edge(before) || before == Some('_')) && is_edge(name[start + found.len()..].chars().next())
            })
        };
        groups.iter().filter(|(name, _)| has_word(name)).min_by_key(|(name, _)| name.len()).map(|(_, files)| files)
    };
    named.or_else(stem).or_else(of_kind).cloned()
}

/// Some of `names`, for a message.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 12;
    let names: Vec<&str> = names.collect();
    match names.len() {
        0 => "none".to_owned(),
        len if len <= MOST => names.join(", "),
        len => format!("{} and {} more", names[..MOST].join(", "), len - MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(choice: Option<&str>, available: &[&str]) -> Result<Selection, String> {
        let available: Vec<String> = available.iter().map(|file| (*file).to_owned()).collect();
        Selection::choose("o/n", choice, &available).map_err(|error| error.to_string())
    }

    fn files(choice: Option<&str>, available: &[&str]) -> String {
        choose(choice, available).map_or_else(|error| error, |selection| selection.files.join(" "))
    }

    #[test]
    fn safetensors_come_with_what_belongs_to_them() {
        let all =
            ["README.md", "config.json", "model.safetensors", "tokenizer.json", "x.gguf", "original/consolidated.pth"];
        assert_eq!(files(None, &all), "config.json model.safetensors tokenizer.json");
        let split = ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "a.bin"];
        let selection = choose(None, &split).unwrap();
        assert_eq!((selection.files.len(), selection.index, selection.entry), (2, Some(INDEX), None));
        let index = br#"{"metadata": {}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        assert_eq!(files_of_index(index).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        assert!(files_of_index(b"[]").is_err());
    }

    #[test]
    fn a_gguf_is_found_by_name_and_by_quantization() {
        let all = [
            "M-Q4_K_M.gguf",
            "M-Q4_K_S.gguf",
            "M-q8_0.gguf",
            "mmproj-M-Q4_K_M.gguf",
            "M.Q2_K.gguf",
            "M-f16.gguf",
            "Q6_K/M-Q6_K-00002-of-00002.gguf",
            "Q6_K/M-Q6_K-00001-of-00002.gguf",
            "M-IQ4_XS.gguf",
        ];
        assert_eq!(files(None, &all), "M-Q4_K_M.gguf");
        assert_eq!(files(Some("q4_k_m"), &all), "M-Q4_K_M.gguf");
        assert_eq!(files(Some("Q8_0"), &all), "M-q8_0.gguf");
        assert_eq!(files(Some("q2_k"), &all), "M.Q2_K.gguf");
        assert_eq!(files(Some("F16"), &all), "M-f16.gguf");
        assert_eq!(files(Some("m-f16.GGUF"), &all), "M-f16.gguf");
        let parts = "Q6_K/M-Q6_K-00001-of-00002.gguf Q6_K/M-Q6_K-00002-of-00002.gguf";
        assert_eq!(files(Some("q6_k"), &all), parts);
        assert_eq!(files(Some("Q6_K/M-Q6_K-00001-of-00002.gguf"), &all), parts);
        let message = files(Some("q4_k"), &all);
        assert!(message.contains("no file or quantization 'q4_k'") && message.contains("M-Q4_K_M"), "{message}");
        assert_eq!(files(None, &["b-F16.gguf", "a-BF16.gguf"]), "a-BF16.gguf");
        assert!(files(None, &["README.md"]).contains("neither safetensors"));
    }
}
