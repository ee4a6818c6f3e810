//! The cluster as a whole: its workers, its settings, and whether it is well.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidemill_coordinator::view::{Overview, WorkerView};
use utoipa::ToSchema;

use crate::extract::blocking;
use crate::problem::Problem;
use crate::{Answer, Shared};

/// The cluster in a few numbers
#[utoipa::path(get, operation_id = "get_overview", path = "/overview", tag = "cluster", responses((status = 200, body = Overview)))]
pub async fn overview(State(shared): State<Shared>) -> Json<Overview> {
    Json(shared.coordinator.overview())
}

/// All workers that are there
#[utoipa::path(get, operation_id = "list_workers", path = "/workers", tag = "cluster", responses((status = 200, body = Vec<WorkerView>)))]
pub async fn workers(State(shared): State<Shared>) -> Json<Vec<WorkerView>> {
    Json(shared.coordinator.workers())
}

/// The settings of the coordinator's process, without secrets
#[utoipa::path(get, operation_id = "get_configuration", path = "/configuration", tag = "cluster",
    responses((status = 200, body = Object, description = "By their names, as in its file")))]
pub async fn configuration(State(shared): State<Shared>) -> Json<Value> {
    Json(Value::clone(&shared.configuration))
}

/// Whether the process is there. Asks for no token
#[utoipa::path(get, operation_id = "get_health", path = "/health", tag = "health",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn health() -> &'static str {
    "ok\n"
}

/// The answer of `GET /ready`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// Whether jobs can be submitted.
    pub ready: bool,
}

/// Whether it can do its work: the storage answers. Asks for no token
#[utoipa::path(get, operation_id = "get_ready", path = "/ready", tag = "health",
    responses((status = 200, body = Ready),
        (status = 503, description = "It can't, now", body = crate::ProblemBody,
            content_type = "application/problem+json")))]
pub async fn ready(State(shared): State<Shared>) -> Answer<Json<Ready>> {
    let ready = blocking(move || shared.coordinator.ready()).await;
    // Details of the storage are for those who may ask.
    ready.map(|()| Json(Ready { ready: true })).map_err(|error| {
        tracing::warn!("not ready: {error}");
        let detail = "the storage does not answer\n  mend: The coordinator's log says more.";
        Problem::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, detail)
    })
}
