//! The API as its users meet it: a real coordinator on a folder of its own, asked without a network. What needs workers is
//! tested in `tests/cli`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod access;
mod described;
mod guests;
mod recovery;
mod refusals;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidemill_connector_kit::Registry;
use tidemill_coordinator::{Coordinator, CoordinatorSettings, SlotSettings};
use tidemill_rest::Settings;
use tidemill_worker::{LocalRecoverySettings, LocalRecoveryWhen, WorkerSettings};
use tokio::net::TcpListener;
use tower::ServiceExt as _;

/// A cluster, at first without workers.
struct Cluster {
    storage: Arc<TempDir>,
    router: Router,
    coordinator: Arc<Coordinator>,
}

/// What was answered.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Cluster {
    fn start() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        Self::of_slots(settings, SlotSettings::default())
    }

    fn of_slots(settings: Settings, slots: SlotSettings) -> Self {
        let storage = Arc::new(tempfile::tempdir().unwrap());
        // Where jobs look for their input, in vain.
        std::fs::create_dir(storage.path().join("in")).unwrap();
        let coordinator = Self::coordinator(&storage, registry(), slots);
        Self { storage, router: tidemill_rest::router(coordinator.clone(), settings), coordinator }
    }

    /// The next coordinator on its storage, which knows these connectors. The one before was killed, as far as anyone sees:
    /// it has no workers.
    fn again(&self, registry: Arc<Registry>) -> Self {
        let storage = self.storage.clone();
        let coordinator = Self::coordinator(&storage, registry, SlotSettings::default());
        let router = tidemill_rest::router(coordinator.clone(), Settings::default());
        Self { storage, router, coordinator }
    }

    fn coordinator(storage: &TempDir, registry: Arc<Registry>, slots: SlotSettings) -> Arc<Coordinator> {
        let settings = CoordinatorSettings { slots, ..CoordinatorSettings::default() };
        Coordinator::start(storage.path().to_str().unwrap(), registry, settings).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::post(path).body(body.into()).unwrap()).await
    }

    async fn json(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// A worker of four slots, in this process, that may use so much memory.
    async fn worker(&self, memory_bytes: u64) {
        self.worker_of(4, memory_bytes).await;
    }

    async fn worker_of(&self, slots: u32, memory_bytes: u64) {
        let before = self.get("/api/v1/overview").await.value()["workers"].as_u64().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(tidemill_coordinator::serve(self.coordinator.clone(), listener, None).unwrap());
        let settings = WorkerSettings {
            coordinator: address.to_string(),
            slots,
            memory_bytes,
            local_recovery: LocalRecoverySettings {
                when: LocalRecoveryWhen::Never,
                folder: self.storage.path().join(format!("copies-{before}")),
                limit_bytes: 0,
            },
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            tls: None,
        };
        tokio::spawn(tidemill_worker::run(settings, registry(), std::future::pending()));
        self.until("/api/v1/overview", |overview| overview["workers"] == before + 1).await;
    }

    /// A job of the evil guest on its best behaviour; it waits for slots that never come.
    async fn job(&self, more: &str) -> String {
        let submitted = self.submit(more).await;
        assert_eq!(submitted.status, StatusCode::CREATED, "{}", submitted.text);
        submitted.value()["id"].as_str().unwrap().to_owned()
    }

    async fn submit(&self, more: &str) -> Answer {
        let artifact = self.artifact().await;
        self.submit_as("evil", &artifact, more).await
    }

    /// With another name, and another plan.
    async fn submit_as(&self, name: &str, artifact: &str, more: &str) -> Answer {
        let folder = self.storage.path().join("in").display().to_string();
        let manifest = format!(
            "[job]\nname = \"{name}\"\ncomponent = \"x\"\n{more}\n[sources.in]\nconnector = \"files\"\npath = \"{folder}\"\nformat = \"csv\"\ndiscover-every = \"1 s\"\nprefetch-bytes = \"1 MiB\"\n[sinks.out]\nconnector = \"blackhole\"\n"
        );
        self.json("/api/v1/jobs", &json!({"artifact": artifact, "manifest": manifest})).await
    }

    async fn artifact(&self) -> String {
        self.upload(guests::good()).await
    }

    async fn upload(&self, component: Vec<u8>) -> String {
        let kept = self.post("/api/v1/artifacts", component).await;
        assert_eq!(kept.status, StatusCode::CREATED, "{}", kept.text);
        kept.value()["id"].as_str().unwrap().to_owned()
    }

    /// What is at a path, when it is as wished: soon, however busy the machine is.
    async fn until(&self, path: &str, wished: impl Fn(&Value) -> bool) -> Value {
        let mut found = Value::Null;
        for _ in 0..60_000 {
            found = self.get(path).await.value();
            if wished(&found) {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("never as wished: {found}")
    }
}

fn registry() -> Arc<Registry> {
    let mut registry = Registry::new();
    tidemill_connector_builtin::register(&mut registry);
    tidemill_connector_files::register(&mut registry);
    Arc::new(registry)
}

impl Answer {
    fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// That it is a refusal which says so.
    #[track_caller]
    fn refuses(&self, status: u16, words: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json", "{}", self.text);
        let problem = self.value();
        assert_eq!(problem["status"], status);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(words), "not '{words}': {detail}");
    }
}

/// All operations of the document, with an id where one belongs.
fn operations(document: &Value) -> Vec<(Method, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            (method, path.clone(), operation.clone())
        })
    });
    all.collect()
}
