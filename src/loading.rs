//! From the settings to a model that answers: files, tokenizer, template, engine.
//!
//! Slow and blocking; called once at start, on a thread of its own, while the server already answers health checks.

use crate::app::App;
use crate::config::{ByteSize, Config, ConfigError, KvTypeSetting, QuantizeSetting, machine};
use crate::demo;
use crate::hub::{Hub, HubError, HubSpec};
use crate::prompt::{ChatTemplate, Tokenizer};
use crate::serving::admission::AdmissionLimits;
use crate::serving::handle::{ModelHandle, ServedModel};
use crate::trace::{self, random_u64};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::KvType;
use tokenmill_models::runner::ModelRunner;
use tokenmill_models::{LoadError, LoadOptions, ModelInfo, ModelSource, Quantize};
use tokenmill_scheduler::engine::EngineLimits;
use tokenmill_scheduler::kv_cache::PrefixCache;

/// Planned with where the machine does not tell what it has.
const FALLBACK_MEMORY: u64 = 2 << 30;

/// Why the model does not answer. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// Nothing lies where the setting points.
    #[error(
        "no model at '{0}': --model takes a GGUF file, a Hugging Face folder, a name on the hub (org/name), or demo"
    )]
    NotFound(String),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model's files.
    #[error("cannot load model '{model}': {source}")]
    Model {
        /// The setting.
        model: String,
        /// What is wrong with them.
        source: LoadError,
    },
    /// Tokenizer or template.
    #[error("cannot load the {part} of model '{model}': {reason}")]
    Text {
        /// The setting.
        model: String,
        /// Which.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The demo model could not be unpacked.
    #[error("cannot unpack the demo model to {}: {source}; name another folder with --data-dir", path.display())]
    Demo {
        /// Where to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No thread for the engine.
    #[error("the system refuses the engine's thread: {0}")]
    Thread(#[from] io::Error),
}

/// Loads the model of the settings and starts its engine; `/health` turns good when it is in `app.models`.
///
/// # Errors
/// See [`LoadFailure`].
pub fn load(app: &Arc<App>) -> Result<Arc<ModelHandle>, LoadFailure> {
    let started = Instant::now();
    let config = &app.config;
    let spec = config.model.as_str();
    let path = resolve(config)?;
    let options = load_options(config);
    let loaded = tokenmill_models::load(&path, &options)
        .map_err(|source| LoadFailure::Model { model: spec.to_owned(), source })?;
    let (tokenizer, template) = load_text(spec, &loaded.source, &loaded.info)?;
    let name = config.model_name.get_or(|| default_name(spec, &path));
    let metrics = app.metrics.model(&name);
    let served = ServedModel {
        name,
        created: app.started_at_unix_s,
        info: loaded.info,
        tokenizer: Arc::new(tokenizer),
        template,
        metrics: metrics.clone(),
    };
    log_loaded(&served, &loaded.runner, &options, started);
    let (engine, admission) = limits(config);
    let (died, stepped) = (app.clone(), app.clone());
    let handle = ModelHandle::start(
        served,
        loaded.runner,
        engine,
        admission,
        Box::new(move |stats, times| {
            stepped.lifecycle.note_step();
            metrics.observe_step(stats, times);
        }),
        Box::new(move || died.lifecycle.set_engine_dead()),
    )?;
    app.models.insert(handle.clone());
    Ok(handle)
}

/// Where the model's files are; unpacks the demo model, fetches a model of the hub. Blocks.
///
/// # Errors
/// Nothing is there, or it cannot be unpacked or fetched.
pub fn resolve(config: &Config) -> Result<PathBuf, LoadFailure> {
    // A file or folder of that name in the current folder is reached as ./demo.
    if config.model == demo::SPEC {
        let data_dir = config.data_dir()?;
        return demo::unpack(&data_dir).map_err(|source| LoadFailure::Demo { path: data_dir, source });
    }
    let path = PathBuf::from(&config.model);
    if path.exists() {
        return Ok(path);
    }
    match HubSpec::parse(&config.model) {
        Some(spec) => Ok(Hub::new(config.hub.settings()?).pull_blocking(&spec)?),
        None => Err(LoadFailure::NotFound(config.model.clone())),
    }
}

/// Fetches a model of the hub and returns where it is; what happens goes to the log. Blocks.
///
/// # Errors
/// `name` is no name on the hub, or the model cannot be fetched.
pub fn pull(config: &Config, name: &str) -> Result<PathBuf, LoadFailure> {
    trace::init(&config.log).map_err(|error| ConfigError::invalid("log.level", &error.to_string()))?;
    let spec = HubSpec::parse(name).ok_or_else(|| {
        let reason = format!("'{name}' is no name on the hub; expected org/name, as in org/name:Q4_K_M");
        ConfigError::invalid("model", &reason)
    })?;
    Ok(Hub::new(config.hub.settings()?).pull_blocking(&spec)?)
}

/// The settings as the loader takes them, with what is `auto` found out.
pub fn load_options(config: &Config) -> LoadOptions {
    let engine = &config.engine;
    let memory = engine.memory.get_or(|| ByteSize::new(machine::memory_bytes().unwrap_or(FALLBACK_MEMORY)));
    LoadOptions {
        isa: Isa::best(),
        num_threads: usize::try_from(engine.threads.get_or(machine::num_threads)).unwrap_or(1),
        quantize: match engine.quantize {
            QuantizeSetting::Auto => Quantize::Auto,
            QuantizeSetting::Q8_0 => Quantize::Q8_0,
            QuantizeSetting::Q4_0 => Quantize::Q4_0,
            QuantizeSetting::None => Quantize::None,
        },
        kv_type: match engine.kv_type {
            KvTypeSetting::Auto => None,
            KvTypeSetting::F32 => Some(KvType::F32),
            KvTypeSetting::F16 => Some(KvType::F16),
            KvTypeSetting::Int8 => Some(KvType::Int8),
        },
        memory_bytes: memory.get(),
        max_model_len: engine.ctx.value(),
        max_batch_tokens: engine.max_batch_tokens,
        max_batch_seqs: engine.max_batch_seqs,
    }
}

fn load_text(
    spec: &str,
    source: &ModelSource,
    info: &ModelInfo,
) -> Result<(Tokenizer, Option<ChatTemplate>), LoadFailure> {
    let failure = |part: &'static str, reason: String| LoadFailure::Text { model: spec.to_owned(), part, reason };
    let tokenizer = match source {
        ModelSource::Folder { dir } => Tokenizer::from_folder(dir),
        ModelSource::Gguf(metadata) => Tokenizer::from_gguf(metadata),
    }
    .map_err(|error| failure("tokenizer", error.to_string()))?;
    // An id that the model has no embedding for must not reach it.
    let (tokens, rows) = (tokenizer.vocab_size(), usize::try_from(info.vocab_size).unwrap_or(usize::MAX));
    if tokens > rows {
        let reason = format!("it has {tokens} tokens, but the model only {rows}; the files do not belong together");
        return Err(failure("tokenizer", reason));
    }
    let template = if tokenizer.chat_templates().is_empty() {
        None
    } else {
        Some(ChatTemplate::from_tokenizer(&tokenizer).map_err(|error| failure("chat template", error.to_string()))?)
    };
    Ok((tokenizer, template))
}

/// `demo`, the name on the hub, the name of the file without `.gguf`, or the name of the folder.
fn default_name(spec: &str, path: &Path) -> String {
    if spec == demo::SPEC {
        return spec.to_owned();
    }
    if let Some(spec) = HubSpec::parse(spec).filter(|_| !Path::new(spec).exists()) {
        return spec.repo;
    }
    // `.` and `..` have a name only in full; a link has the better one itself, in the hub's cache the only one.
    let has_name = path.components().next_back().is_some_and(|part| matches!(part, Component::Normal(_)));
    let full = if has_name { path.to_owned() } else { path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
    let name = full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = if full.is_file() { name.strip_suffix(".gguf").unwrap_or(&name) } else { &name };
    if stem.is_empty() { "model".to_owned() } else { stem.to_owned() }
}

fn limits(config: &Config) -> (EngineLimits, AdmissionLimits) {
    // What runs does not wait.
    let max_seqs = config.limits.max_queue + config.engine.max_batch_seqs;
    let engine = EngineLimits {
        max_waiting: usize::try_from(max_seqs).unwrap_or(usize::MAX),
        // Tenants cannot find hash collisions under a secret that they do not know.
        prefix_cache: PrefixCache::On { secret: [random_u64(), random_u64()] },
        ..EngineLimits::default()
    };
    let max_queued_tokens = u32::try_from(config.limits.max_queue_tokens).unwrap_or(u32::MAX);
    (engine, AdmissionLimits { max_seqs, max_queued_tokens })
}

fn log_loaded(served: &ServedModel, runner: &impl ModelRunner, options: &LoadOptions, started: Instant) {
    let (info, geometry) = (&served.info, runner.geometry());
    let kv_tokens = u64::from(geometry.num_blocks) * u64::from(geometry.block_size);
    tracing::info!(
        name = served.name,
        params = info.num_params,
        threads = options.num_threads,
        isa = %options.isa,
        memory = %ByteSize::new(options.memory_bytes),
        weights = %ByteSize::new(info.weights_bytes),
        kv_cache = %ByteSize::new(kv_tokens.saturating_mul(info.kv_bytes_per_token)),
        kv_type = ?info.kv_type,
        kv_tokens,
        ctx = info.max_model_len,
        ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "model and memory plan"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auto;

    #[test]
    fn a_model_has_the_name_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiny.Q8_0.gguf");
        std::fs::write(&file, "").unwrap();
        let folder = dir.path().join("my-model");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(default_name("x", &file), "tiny.Q8_0");
        assert_eq!(default_name("x", &folder), "my-model");
        assert_eq!(default_name("x", &folder.join("..").join("my-model")), "my-model");
        assert_eq!(default_name("org/name:q4_0", &file), "org/name");
        #[cfg(unix)]
        {
            let link = dir.path().join("linked.gguf");
            std::os::unix::fs::symlink(&file, &link).unwrap();
            assert_eq!(default_name("x", &link), "linked");
        }
        assert_eq!(default_name("demo", Path::new("/data/demo-123")), "demo");
    }

    #[test]
    fn settings_reach_the_loader() {
        let mut config = Config::defaults();
        config.engine.threads = Auto::Value(3);
        config.engine.memory = Auto::Value(ByteSize::new(1 << 30));
        config.engine.ctx = Auto::Value(777);
        config.engine.quantize = QuantizeSetting::Q4_0;
        config.engine.kv_type = KvTypeSetting::Int8;
        let options = load_options(&config);
        assert_eq!((options.num_threads, options.memory_bytes, options.max_model_len), (3, 1 << 30, Some(777)));
        assert_eq!((options.quantize, options.kv_type), (Quantize::Q4_0, Some(KvType::Int8)));
        let (engine, admission) = limits(&config);
        assert_eq!(admission.max_seqs, 1024 + 64);
        assert!(engine.max_waiting >= 1024);
    }

    #[test]
    fn a_missing_model_says_what_the_flag_takes() {
        let mut config = Config::defaults();
        config.model = "no/such.gguf".to_owned();
        let message = resolve(&config).unwrap_err().to_string();
        assert!(message.contains("no/such.gguf") && message.contains("--model takes"), "{message}");
    }
}
