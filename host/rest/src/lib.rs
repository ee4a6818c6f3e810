//! The management API of a cluster: JSON over HTTP, below `/api/v1`, described by itself at `/api/v1/openapi.json` and, for
//! people, at `/docs`.
//!
//! Errors are `application/problem+json` (RFC 9457), whoever finds them; `detail` names the thing and the mend. What takes
//! long is an *operation*: it is answered at once with an id to ask with. In reading order:

pub mod access;
pub mod listen;
pub mod operations;

mod artifacts;
mod cluster;
mod docs;
mod extract;
mod follow;
mod jobs;
mod logs;
mod metrics;
mod problem;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use tidemill_coordinator::Coordinator;
use tokio::sync::Semaphore;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Access;
use crate::problem::Problem;

pub use jobs::{RescaleRequest, SavepointRequest, StartFrom, StopRequest, SubmitRequest};
pub use problem::ProblemBody;

/// No component is larger.
pub const UPLOAD_BYTES: usize = 64 << 20;
/// No other request is larger: a manifest and what is set over it.
const REQUEST_BYTES: usize = 1 << 20;
/// So many uploads are in memory at once, the next ones wait for them.
const UPLOADS: usize = 4;

/// What the API is told when it is started.
#[derive(Default)]
pub struct Settings {
    /// Who may do what.
    pub access: Access,
    /// The settings of the coordinator's process, to be shown: without secrets.
    pub configuration: Value,
}

/// What handlers share.
#[derive(Clone)]
struct Shared {
    coordinator: Arc<Coordinator>,
    uploads: Arc<Semaphore>,
    configuration: Arc<Value>,
}

type Answer<T> = Result<T, Problem>;

/// The API, to be made within a tokio runtime. It goes on with the operations that coordinators before this one began.
pub fn router(coordinator: Arc<Coordinator>, settings: Settings) -> Router {
    let shared = Shared {
        coordinator,
        uploads: Arc::new(Semaphore::new(UPLOADS)),
        configuration: Arc::new(settings.configuration),
    };
    for begun in shared.coordinator.operations().take_unfinished() {
        operations::follow(&shared, begun);
    }
    let (routes, document) = described();
    let document = docs::complete(document);
    let page = docs::page(&document);
    routes
        .route("/api/v1/openapi.json", get(move || async { Json(document) }))
        .route("/docs", get(move || async { page }))
        .fallback(problem::nothing_here)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .layer(middleware::from_fn_with_state(Arc::new(settings.access), access::check))
        .layer(middleware::map_response(problem::always))
        .with_state(shared)
}

/// The routes with their description.
fn described() -> (Router<Shared>, utoipa::openapi::OpenApi) {
    let api = OpenApiRouter::new()
        .routes(routes!(cluster::overview))
        .routes(routes!(cluster::workers))
        .routes(routes!(cluster::configuration))
        .routes(routes!(artifacts::list, artifacts::upload))
        .routes(routes!(artifacts::detail, artifacts::delete))
        .routes(routes!(jobs::list, jobs::submit))
        .routes(routes!(jobs::detail))
        .routes(routes!(jobs::plan))
        .routes(routes!(jobs::vertices))
        .routes(routes!(jobs::exceptions))
        .routes(routes!(jobs::checkpoints, jobs::checkpoint))
        .routes(routes!(logs::list))
        .routes(routes!(metrics::of_job))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::stop))
        .routes(routes!(jobs::savepoint))
        .routes(routes!(jobs::rescale))
        .routes(routes!(operations::list))
        .routes(routes!(operations::detail));
    OpenApiRouter::with_openapi(docs::Description::openapi())
        .nest("/api/v1", api)
        .routes(routes!(cluster::health))
        .routes(routes!(cluster::ready))
        .routes(routes!(metrics::metrics))
        .split_for_parts()
}
