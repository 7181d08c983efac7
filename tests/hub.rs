//! Models from the hub, with a fake one on loopback that cuts, damages, refuses and redirects.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "common/fake_hub.rs"]
mod fake_hub;
#[path = "common/process.rs"]
mod process;

use fake_hub::{FakeHub, Fault};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokenmill::config::HubSettings;
use tokenmill::hub::{Hub, HubError, HubSpec, Patience};

const PART: usize = 64 << 10;
/// Several parts and a bit.
const BIG: usize = 5 * PART + 1234;

fn settings(hub: &FakeHub, cache: &Path) -> HubSettings {
    HubSettings {
        endpoint: hub.url(),
        cache_dir: cache.to_owned(),
        token: Some("secret".to_owned()),
        offline: false,
        connections: 3,
    }
}

fn client_with(settings: HubSettings, max_failures: u32) -> Hub {
    Hub::new(settings).with_patience(Patience {
        part_bytes: PART as u64,
        max_failures,
        first_wait: Duration::from_millis(1),
        max_wait: Duration::from_secs(5),
    })
}

fn pull(hub: &FakeHub, cache: &Path, name: &str) -> Result<PathBuf, HubError> {
    client_with(settings(hub, cache), 5).pull_blocking(&HubSpec::parse(name).unwrap())
}

/// Bytes that look random.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}

fn gguf_hub() -> FakeHub {
    FakeHub::start(&[("m-Q8_0.gguf", bytes(BIG, 1)), ("m-Q4_K_M.gguf", bytes(BIG, 2)), ("README.md", bytes(50, 3))])
}

fn blobs(cache: &Path) -> Vec<String> {
    let names = fs::read_dir(cache.join("models--org--name/blobs")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_folder_comes_whole_and_only_once() {
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", bytes(3000, 4)),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-00001-of-00002.safetensors", bytes(BIG, 5)),
        ("model-00002-of-00002.safetensors", bytes(PART - 7, 6)),
        ("additional_chat_templates/tools.jinja", b"x".to_vec()),
        ("empty.txt", Vec::new()),
    ];
    let hub = FakeHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let path = pull(&hub, cache.path(), "org/name").unwrap();
    let repo = cache.path().join("models--org--name");
    assert_eq!(path, repo.join("snapshots").join(fake_hub::COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), fake_hub::COMMIT);
    for (name, content) in &files {
        if *name == "empty.txt" {
            assert!(!path.join(name).exists());
            continue;
        }
        assert_eq!(&fs::read(path.join(name)).unwrap(), content, "{name}");
        let target = fs::read_link(path.join(name)).unwrap();
        let up = if name.contains('/') { "../../../blobs" } else { "../../blobs" };
        assert!(target.starts_with(up), "{}", target.display());
    }
    assert!(blobs(cache.path()).iter().all(|name| name.len() == 64 || name.len() == 40), "{:?}", blobs(cache.path()));
    let log = hub.take_log();
    assert!(log.iter().any(|line| line.contains("bytes=65536-131071")), "{log:?}");
    // The token goes to the hub and not to where it redirects.
    for line in &log {
        assert_eq!(line.contains("authorized"), !line.contains("/storage/"), "{line}");
    }

    assert_eq!(pull(&hub, cache.path(), "org/name").unwrap(), path);
    let log = hub.take_log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].contains("/api/models/org/name"), "{log:?}");
}

#[test]
fn a_quantization_is_fetched_through_cuts_damage_and_refusals() {
    let hub = gguf_hub();
    hub.add_faults(&[
        Fault::Cut(10_000),
        Fault::Refuse(429),
        Fault::Refuse(503),
        Fault::Cut(0),
        Fault::Cut(30_000),
        Fault::Damage,
    ]);
    let cache = tempfile::tempdir().unwrap();
    let path = pull(&hub, cache.path(), "org/name:q8_0").unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(BIG, 1));
    assert!(path.ends_with("m-Q8_0.gguf"));
    assert_eq!(hub.num_faults(), 0, "all faults have happened");
    assert_eq!(blobs(cache.path()).len(), 1, "nothing is left over: {:?}", blobs(cache.path()));
    // What comes without a choice is the better file for a small machine.
    let path = pull(&hub, cache.path(), "org/name").unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(BIG, 2));
}

#[test]
fn a_second_run_goes_on_where_the_first_was_cut() {
    let hub = gguf_hub();
    let cache = tempfile::tempdir().unwrap();
    let mut one = settings(&hub, cache.path());
    one.connections = 1;
    // Two parts come, the third is cut.
    hub.add_faults(&[Fault::None, Fault::None, Fault::Cut(1000)]);
    let spec = HubSpec::parse("org/name:q8_0").unwrap();
    let error = client_with(one, 1).pull_blocking(&spec).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }) && error.to_string().contains("to go on"), "{error}");
    hub.take_log();
    let path = pull(&hub, cache.path(), "org/name:q8_0").unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(BIG, 1));
    let ranges: Vec<String> = hub.take_log().into_iter().filter(|line| line.contains("GET /storage/")).collect();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    let third = format!("bytes={}-{}", 2 * PART + 1000, 3 * PART - 1);
    assert!(ranges.iter().any(|line| line.contains(&third)), "{ranges:?}");
}

#[test]
fn damage_that_stays_is_an_error_and_leaves_no_blob() {
    let hub = gguf_hub();
    hub.add_faults(&[Fault::Damage; 30]);
    let cache = tempfile::tempdir().unwrap();
    let error = pull(&hub, cache.path(), "org/name:q8_0").unwrap_err();
    assert!(matches!(error, HubError::Checksum { kind: "SHA-256", .. }), "{error}");
    assert_eq!(blobs(cache.path()), Vec::<String>::new());
    let hub = FakeHub::start(&[("config.json", b"{}".to_vec()), ("model.safetensors", bytes(10, 1))]);
    hub.add_faults(&[Fault::Damage; 4]);
    let error = pull(&hub, tempfile::tempdir().unwrap().path(), "org/name").unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
}

#[test]
fn a_server_that_knows_no_ranges_sends_the_whole() {
    let hub = gguf_hub();
    hub.set_ranges(false);
    let cache = tempfile::tempdir().unwrap();
    let path = pull(&hub, cache.path(), "org/name:q8_0").unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(BIG, 1));
}

#[test]
fn two_at_the_same_time_fetch_it_once() {
    let hub = gguf_hub();
    let cache = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| pull(&hub, cache.path(), "org/name:q8_0"))).collect();
        for one in both {
            let path = one.join().unwrap().unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes(BIG, 1));
        }
    });
    let log = hub.take_log();
    assert_eq!(log.iter().filter(|line| line.contains("GET /storage/")).count(), 6, "{log:?}");
}

#[test]
fn offline_takes_what_is_there_and_asks_nobody() {
    let hub = gguf_hub();
    let cache = tempfile::tempdir().unwrap();
    let offline = || HubSettings { offline: true, ..settings(&hub, cache.path()) };
    let find = |name: &str| client_with(offline(), 1).pull_blocking(&HubSpec::parse(name).unwrap());
    let error = find("org/name").unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    let path = pull(&hub, cache.path(), "org/name:q8_0").unwrap();
    hub.take_log();
    assert_eq!(find("org/name:q8_0").unwrap(), path);
    assert_eq!(find(&format!("org/name@{}", fake_hub::COMMIT)).unwrap(), path);
    assert!(find("org/name:q4_k_m").is_err());
    assert_eq!(hub.take_log(), Vec::<String>::new());
    // Nobody answers: the cache will do.
    let mut gone = settings(&hub, cache.path());
    gone.endpoint = hub.dead_url();
    let spec = HubSpec::parse("org/name:q8_0").unwrap();
    assert_eq!(client_with(gone.clone(), 1).pull_blocking(&spec).unwrap(), path);
    let spec = HubSpec::parse("org/name:q4_k_m").unwrap();
    let error = client_with(gone, 1).pull_blocking(&spec).unwrap_err();
    assert!(error.to_string().contains("cannot reach"), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let hub = gguf_hub();
    let cache = tempfile::tempdir().unwrap();
    let check = |refusal: (u16, &str, &str), token: bool, parts: &[&str]| {
        hub.refuse_api(refusal);
        let mut settings = settings(&hub, cache.path());
        settings.token = token.then(|| "secret".to_owned());
        let error = client_with(settings, 2).pull_blocking(&HubSpec::parse("org/name").unwrap()).unwrap_err();
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)) && !message.contains('\n'), "{message}");
        assert!(!message.contains("secret"), "{message}");
    };
    check((404, "", ""), true, &["no model 'org/name'", "HF_TOKEN"]);
    check((401, "RepoNotFound", ""), false, &["no model 'org/name'", "HF_TOKEN"]);
    check((401, "", ""), true, &["refuses the token", "/settings/tokens"]);
    check((403, "GatedRepo", ""), true, &["restricted", "/org/name", "HF_TOKEN"]);
    check((429, "", "3600"), false, &["wait 3600 s", "HF_TOKEN"]);
    check((500, "", ""), true, &["answers 500", "later"]);
    hub.refuse_api((0, "", ""));
    let message = pull(&hub, cache.path(), "org/name:q2_k").unwrap_err().to_string();
    assert!(message.contains("'q2_k'") && message.contains("m-Q4_K_M"), "{message}");

    for name in ["../../evil", "/etc/passwd", "a/../../b", "C:\\x"] {
        let hub = FakeHub::start(&[("m-q8_0.gguf", bytes(10, 1)), (name, bytes(10, 1))]);
        let message = pull(&hub, cache.path(), "org/name").unwrap_err().to_string();
        assert!(message.contains("would not stay in the cache"), "{message}");
    }
}

#[test]
fn a_full_disk_is_told_before_anything_comes() {
    let hub = gguf_hub();
    hub.lie_about_size(u64::MAX / 2);
    let cache = tempfile::tempdir().unwrap();
    let error = pull(&hub, cache.path(), "org/name").unwrap_err();
    assert!(matches!(error, HubError::NoSpace { .. }) && error.to_string().contains("HF_HUB_CACHE"), "{error}");
}

#[test]
fn the_command_prints_where_the_model_is() {
    let hub = gguf_hub();
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], extra: &[(&str, &str)]| {
        let mut command = process::tokenmill(arguments);
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", home.path()).env("HF_ENDPOINT", hub.url()).envs(extra.iter().copied()).output().unwrap()
    };
    let output = run(&["pull", "org/name:Q8_0"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let path = String::from_utf8(output.stdout).unwrap();
    assert!(Path::new(path.trim()).starts_with(home.path().join("hub")), "{path}");
    assert_eq!(fs::read(path.trim()).unwrap(), bytes(BIG, 1));
    let output = run(&["pull", "org/name:Q8_0"], &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
    let output = run(&["pull", "not-a-name"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected org/name"));
    // The same name serves as a model, and this one is no GGUF file at all.
    let output = run(&["inspect", "org/name:Q8_0"], &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("m-Q8_0.gguf"), "{output:?}");
}
