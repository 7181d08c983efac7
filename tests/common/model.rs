//! A real server with a model on a free port: the fake one, whose text depends on every token before it, or one from files.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test crate uses a part of it")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::{client::legacy::Client, client::legacy::connect::HttpConnector, rt::TokioExecutor};
use serde_json::Value;
use tokenmill::{
    app::App,
    auth::ApiKeys,
    config::Config,
    prompt::{ChatTemplate, Tokenizer},
    server,
    serving::{
        admission::AdmissionLimits,
        handle::{ModelHandle, ServedModel},
    },
};
use tokenmill_kernels::{isa::Isa, kv_cache::KvType};
use tokenmill_models::{
    GenerationDefaults, LoadOptions, ModelInfo, Quantize,
    runner::{Batch, ContextRules, Geometry, Logits, ModelRunner, RunnerError},
};
use tokenmill_scheduler::{engine::EngineLimits, sim::FakeRunner, stats::StepStats};
use tokio::{net::TcpListener, sync::oneshot};

/// Longest wait for anything; only a test that fails gets near it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The fake model's ids that end a sequence, as in its tokenizer.
const EOS_ID: u32 = 422;

/// A model with fewer KV blocks than it has, so that sequences must be put back.
struct Tight<R> {
    inner: R,
    num_blocks: u32,
}

impl<R: ModelRunner> ModelRunner for Tight<R> {
    fn geometry(&self) -> Geometry {
        let geometry = self.inner.geometry();
        let num_blocks = self.num_blocks.min(geometry.num_blocks);
        Geometry { num_blocks, max_model_len: geometry.max_model_len.min(num_blocks * geometry.block_size), ..geometry }
    }

    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), RunnerError> {
        self.inner.forward(batch, logits)
    }
}

/// A model with a bug.
struct Panicking(Geometry);

impl ModelRunner for Panicking {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn forward(&mut self, _: &Batch, _: &mut Logits) -> Result<(), RunnerError> {
        panic!("a bug that a test has put here");
    }
}

/// What tests may change.
#[derive(Clone)]
pub struct Options {
    pub geometry: Geometry,
    pub admission: AdmissionLimits,
    pub keys: Vec<String>,
    /// Steps of the fake model that fail, counted from 0.
    pub failing_steps: Vec<u64>,
    /// The fake model panics at its first step.
    pub panics: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            geometry: Geometry {
                block_size: 16,
                num_blocks: 512,
                max_batch_tokens: 64,
                max_batch_seqs: 16,
                max_logits_rows: 64,
                max_model_len: 1024,
                vocab_size: 425,
                context: ContextRules::PLAIN,
            },
            admission: AdmissionLimits { max_seqs: 256, max_queued_tokens: 100_000 },
            keys: Vec::new(),
            failing_steps: Vec::new(),
            panics: false,
        }
    }
}

fn fake_info(geometry: &Geometry) -> ModelInfo {
    ModelInfo {
        family: "fake",
        architecture: "FakeForCausalLM".to_owned(),
        num_params: 1,
        weights_bytes: 1,
        step_bytes: 1,
        kv_bytes_per_token: 8,
        kv_type: KvType::F32,
        layout: "none",
        max_model_len: geometry.max_model_len,
        max_position_embeddings: geometry.max_model_len,
        vocab_size: geometry.vocab_size,
        eos_token_ids: vec![EOS_ID],
        bos_token_id: None,
        generation: GenerationDefaults::default(),
    }
}

/// A server with one model.
pub struct TestServer {
    pub app: Arc<App>,
    pub address: std::net::SocketAddr,
    model: Arc<ModelHandle>,
    client: Client<HttpConnector, Full<Bytes>>,
    num_preemptions: Arc<AtomicU64>,
    _shutdown: oneshot::Sender<()>,
}

/// A whole response.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The events of a stream; the last must be `[DONE]`, which is left out.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        let mut data: Vec<&str> = Vec::new();
        for event in self.text().split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')) {
            data.push(event.strip_prefix("data: ").unwrap_or_else(|| panic!("not a data line: {event}")));
        }
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text());
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl TestServer {
    /// The fake model: what it says depends on every token before it and makes no sense.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers/byte-level");
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let template = ChatTemplate::from_tokenizer(&tokenizer).unwrap();
        let app = App::new(Config::defaults(), ApiKeys::new(options.keys.iter().map(String::as_str)));
        let served = ServedModel {
            name: "fake".to_owned(),
            created: 1,
            info: fake_info(&options.geometry),
            tokenizer: Arc::new(tokenizer),
            template: Some(template),
            metrics: app.metrics.model("fake"),
        };
        let limits = EngineLimits::default();
        if options.panics {
            return Self::run(app, served, Panicking(options.geometry), limits, options.admission).await;
        }
        let runner = FakeRunner::new(options.geometry).failing_at(options.failing_steps);
        Self::run(app, served, runner, limits, options.admission).await
    }

    /// A real model computed in f32 throughout, in steps of 64 tokens, with at most `num_blocks` KV blocks.
    pub async fn load(path: &Path, num_blocks: u32) -> Self {
        let options = LoadOptions {
            isa: Isa::best(),
            num_threads: 2,
            quantize: Quantize::None,
            kv_type: None,
            memory_bytes: 256 << 20,
            max_model_len: None,
            max_batch_tokens: 64,
            max_batch_seqs: 16,
        };
        let loaded = tokenmill_models::load(path, &options).unwrap();
        let tokenizer = Tokenizer::from_folder(path).unwrap();
        let app = App::new(Config::defaults(), ApiKeys::default());
        let served = ServedModel {
            name: "real".to_owned(),
            created: 1,
            info: loaded.info,
            template: ChatTemplate::from_tokenizer(&tokenizer).ok(),
            tokenizer: Arc::new(tokenizer),
            metrics: app.metrics.model("real"),
        };
        let runner = Tight { inner: loaded.runner, num_blocks };
        Self::run(app, served, runner, EngineLimits::default(), Options::default().admission).await
    }

    async fn run<R: ModelRunner + 'static>(
        app: Arc<App>,
        served: ServedModel,
        runner: R,
        limits: EngineLimits,
        admission: AdmissionLimits,
    ) -> Self {
        let num_preemptions = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&num_preemptions);
        let observer = Box::new(move |stats: &StepStats, _| {
            counter.fetch_add(u64::from(stats.num_preemptions), Ordering::Relaxed);
        });
        let model = ModelHandle::start(served, runner, limits, admission, observer, Box::new(|| {})).unwrap();
        let mut server = Self::serve(app, model).await;
        server.num_preemptions = num_preemptions;
        server
    }

    /// Sequences put back for want of KV blocks so far.
    pub fn num_preemptions(&self) -> u64 {
        self.num_preemptions.load(Ordering::Relaxed)
    }

    async fn serve(app: Arc<App>, model: Arc<ModelHandle>) -> Self {
        app.models.insert(Arc::clone(&model));
        app.lifecycle.set_ready();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, stopped) = oneshot::channel::<()>();
        tokio::spawn(server::serve(Arc::clone(&app), listener, async {
            // An error is the sender's end, which means the same.
            let _ = stopped.await;
        }));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { app, address, model, client, num_preemptions: Arc::default(), _shutdown: shutdown }
    }

    pub fn model(&self) -> &str {
        self.model.name()
    }

    pub fn handle(&self) -> &Arc<ModelHandle> {
        &self.model
    }

    pub fn vocab_size(&self) -> u32 {
        self.model.vocab_size()
    }

    pub fn max_model_len(&self) -> u32 {
        self.model.max_model_len()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.send(path, body, &[]).await
    }

    pub async fn send(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Reply {
        let mut request =
            Request::post(format!("http://{}{path}", self.address)).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let exchange = async {
            let response = self.client.request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Reply { status: parts.status.as_u16(), headers: parts.headers, body }
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("the server answers")
    }

    /// Resolves when no sequence runs or waits.
    pub async fn idle(&self) {
        let wait = async {
            while self.model.num_seqs() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("all sequences end");
    }
}
