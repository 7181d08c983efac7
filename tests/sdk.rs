//! The official Python and Node SDKs against the real binary. `tests/sdk/install` installs them; without it these tests say
//! so and pass.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "common/process.rs"]
mod process;

use process::Running;
use std::path::{Path, PathBuf};
use std::process::Command;

const KEY: &str = "sk-test-key";

/// Runs `program script URL KEY MODEL extra…` against a server that wants a key, and shows its output if it fails.
fn check(program: &Path, script: &str, extra: &[&str]) {
    if !program.exists() {
        #[expect(clippy::print_stderr, reason = "says why nothing was tested")]
        {
            eprintln!("skipped: {} is not installed; run tests/sdk/install", program.display());
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, KEY).unwrap();
    let server = Running::start_ready(&["--api-key-file", keys.to_str().unwrap()]);
    let url = format!("http://{}/v1", server.address);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(script);
    let output = Command::new(program).arg(script).args([&url, KEY, "demo"]).args(extra).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

fn installed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdk").join(path)
}

#[test]
fn python_sdk() {
    check(&installed("venv/bin/python"), "chat.py", &[]);
}

#[test]
fn node_sdk() {
    let packages = installed("node/node_modules");
    let node = std::env::split_paths(&option_env!("PATH").unwrap_or_default())
        .map(|dir| dir.join("node"))
        .find(|node| node.exists() && packages.exists());
    check(&node.unwrap_or_else(|| packages.clone().join("node")), "chat.mjs", &[packages.to_str().unwrap()]);
}
