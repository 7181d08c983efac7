//! Rules of the house as a test: layers, sizes, and tables that agree with the documents.
//!
//! The lists of exceptions may only shrink: an entry that is no longer needed fails the test too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code that a file may have, tests and comments not counted.
const MAX_FILE_LINES: usize = 500;
/// Lines that a function may have.
const MAX_FUNCTION_LINES: usize = 70;

/// Files that are longer, with their limit.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions that are longer, as `file::function`.
const LONG_FUNCTIONS: &[&str] = &[];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file of the workspace, relative to its root, with its text.
fn rust_files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for top in ["src", "kernels", "models", "scheduler", "loadtest", "tests", "benches"] {
        collect(&root().join(top), &mut files);
    }
    assert!(files.len() > 30, "only {} files found", files.len());
    files
}

fn collect(dir: &Path, files: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.map(|entry| entry.expect("a readable folder").path()) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("inside the workspace").to_string_lossy().replace('\\', "/");
            files.insert(name, fs::read_to_string(&path).expect("source is UTF-8"));
        }
    }
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text)
}

#[test]
fn layers_hold() {
    let allowed: &[(&str, &[&str])] =
        &[("kernels", &[]), ("models", &["kernels"]), ("scheduler", &["kernels", "models"]), ("loadtest", &[])];
    let not_below_the_gateway = ["tokio", "hyper", "serde", "serde_json", "candle-core", "tokenizers", "redis"];
    for (member, may_use) in allowed {
        let manifest = read(&format!("{member}/Cargo.toml"));
        let dependencies = manifest.split("[dev-dependencies]").next().expect("a first part");
        let names: BTreeSet<&str> =
            dependencies.lines().filter_map(|line| line.split([' ', '.', '=']).next()).collect();
        for other in ["kernels", "models", "scheduler"] {
            let is_used = names.contains(format!("tokenmill-{other}").as_str());
            assert!(!is_used || may_use.contains(&other), "{member} may not use {other}");
        }
        if ["kernels", "scheduler"].contains(member) {
            for name in not_below_the_gateway {
                assert!(!names.contains(name), "{member} may not use {name}");
            }
        }
    }
}

#[test]
fn unsafe_code_lives_in_the_kernels_and_one_mmap_file() {
    for (name, text) in rust_files() {
        // A test that counts allocations wraps the system's allocator.
        let may = name.starts_with("kernels/") || name == "models/src/weights/mmap.rs" || name.ends_with("alloc.rs");
        let has = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or(line);
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(may || !has || name == "tests/tidy.rs", "{name} contains unsafe code");
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut long_files = Vec::new();
    let mut long_functions = Vec::new();
    for (name, text) in rust_files() {
        let code = without_tests(&text);
        let num_lines = code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        let limit = LONG_FILES.iter().find(|(file, _)| *file == name).map_or(MAX_FILE_LINES, |(_, limit)| *limit);
        if num_lines > limit {
            long_files.push(format!("{name}: {num_lines} lines of code, {limit} allowed"));
        }
        if num_lines <= MAX_FILE_LINES && limit != MAX_FILE_LINES {
            long_files.push(format!("{name} is short now: take it off the list"));
        }
        long_functions.extend(functions_over_limit(&name, code));
    }
    let known: BTreeSet<&str> = LONG_FUNCTIONS.iter().copied().collect();
    let found: BTreeSet<&str> = long_functions.iter().map(String::as_str).collect();
    let new: Vec<&&str> = found.difference(&known).collect();
    let gone: Vec<&&str> = known.difference(&found).collect();
    assert!(long_files.is_empty(), "{long_files:#?}");
    assert!(new.is_empty(), "functions over {MAX_FUNCTION_LINES} lines: {new:#?}");
    assert!(gone.is_empty(), "no longer long, take them off the list: {gone:#?}");
}

/// Functions as rustfmt writes them: from a line with `fn` to the brace that closes at the same indentation.
fn functions_over_limit(file: &str, code: &str) -> Vec<String> {
    let lines: Vec<&str> = code.lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let Some(at) = line.find("fn ") else { continue };
        let before = line[indent..at].trim();
        let is_item = before.split(' ').all(|word| {
            ["", "pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""].contains(&word)
        });
        if !is_item || line.trim_end().ends_with(';') {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[start..].iter().position(|line| *line == closing) else { continue };
        if length + 1 > MAX_FUNCTION_LINES {
            let name: String = line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            long.push(format!("{file}::{name}"));
        }
    }
    long
}

#[test]
fn every_route_is_in_the_readme_and_in_a_test() {
    let readme = read("README.md");
    let tests: String =
        rust_files().into_iter().filter(|(name, _)| name.starts_with("tests/")).map(|(_, text)| text).collect();
    for route in tokenmill::api::ROUTES {
        let row = format!("`{} {}`", route.method, route.path);
        assert!(readme.contains(&row), "README.md lacks {row}");
        let path = route.path.split('{').next().expect("a first part");
        assert!(tests.contains(path), "no test under tests/ asks for {path}");
    }
}

#[test]
fn every_family_has_a_golden_model_and_a_line_in_the_readme() {
    let readme = read("README.md");
    let golden = read("models/tests/golden.rs");
    for family in tokenmill_models::families::FAMILIES {
        assert!(readme.contains(family.name), "README.md lacks the family {}", family.name);
        assert!(golden.contains(&format!("\"{}", family.name)), "no golden model of the family {}", family.name);
    }
}

#[test]
fn every_format_is_in_the_readme() {
    let readme = read("README.md");
    for format in tokenmill_kernels::quant::FORMATS {
        assert!(readme.contains(format.name), "README.md lacks the format {}", format.name);
    }
}

#[test]
fn every_setting_is_explained() {
    let yaml = read("config/default.yaml");
    let mut explained = false;
    let mut num_settings = 0;
    for line in yaml.lines().map(str::trim) {
        if line.starts_with('#') {
            explained = true;
        } else if line.contains(": ") {
            assert!(explained || line.contains(" # "), "config/default.yaml does not explain `{line}`");
            num_settings += 1;
            explained = false;
        }
    }
    assert!(num_settings > 10, "only {num_settings} settings found");
}

#[test]
fn documents_name_files_that_exist() {
    for document in ["README.md", "docs/ARCHITECTURE.md", "docs/ADDING.md", "docs/STYLE.md"] {
        let text = read(document);
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path =
                quoted.contains('/') && [".rs", ".md", ".yaml", ".toml", ".py"].iter().any(|e| quoted.ends_with(e));
            if is_path && !quoted.contains(['<', '*', '{', ' ']) {
                assert!(root().join(quoted).exists(), "{document} names {quoted}, which is not there");
            }
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (name, text) in rust_files() {
        if name == "tests/tidy.rs" {
            continue;
        }
        for mark in ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("] {
            assert!(!text.contains(mark), "{name} contains {mark}");
        }
    }
}
