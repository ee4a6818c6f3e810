//! The management API of a cluster: JSON over HTTP, below `/api/v1`.
//!
//! Errors are `application/problem+json` (RFC 9457); `detail` names the thing and the mend. There are no users yet, so
//! whoever serves it on more than loopback gives the cluster away.

use std::sync::Arc;

use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidemill_coordinator::view::{ArtifactView, JobView, Overview, WorkerView};
use tidemill_coordinator::{Coordinator, Job, Submission};
use tidemill_core::{Error, ErrorKind};

/// No component is larger.
pub const UPLOAD_BYTES: usize = 64 << 20;
/// No other request is larger: a manifest and what is set over it.
const REQUEST_BYTES: usize = 1 << 20;

type Shared = State<Arc<Coordinator>>;
type Answer<T> = Result<T, Problem>;

/// The API.
pub fn router(coordinator: Arc<Coordinator>) -> Router {
    let api = Router::new()
        .route("/overview", get(overview))
        .route("/workers", get(workers))
        .route("/artifacts", get(artifacts).post(upload).layer(DefaultBodyLimit::max(UPLOAD_BYTES)))
        .route("/artifacts/{id}", delete(delete_artifact))
        .route("/jobs", get(jobs).post(submit))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/jobs/{id}/stop", post(stop))
        .route("/jobs/{id}/savepoints", post(savepoint))
        .route("/jobs/{id}/rescale", post(rescale))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES))
        .with_state(coordinator);
    Router::new().nest("/api/v1", api).route("/health", get(async || "ok\n")).fallback(nothing_here)
}

/// What `POST /jobs/{id}/stop` takes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Where a savepoint is to be: an absolute folder that is not there yet, or a URL.
    #[serde(default)]
    pub savepoint: Option<String>,
}

/// What `POST /jobs/{id}/savepoints` takes, and what it answers when the savepoint is there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Savepoint {
    /// An absolute folder, or a URL.
    pub location: String,
}

/// What `POST /jobs/{id}/rescale` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RescaleRequest {
    /// How many slots.
    pub parallelism: u32,
}

/// An error as it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProblemBody {
    /// What kind of error, in a few words.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// What is wrong, and the mend.
    pub detail: String,
}

struct Problem {
    status: StatusCode,
    detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error").to_owned();
        let body = ProblemBody { title, status: self.status.as_u16(), detail: self.detail };
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, kind, Json(body).into_response().into_body()).into_response()
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Invalid | ErrorKind::UserCode => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Fenced => StatusCode::CONFLICT,
            ErrorKind::Limit => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Retry | ErrorKind::Lost => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, detail: error.text() }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self { status: rejection.status(), detail: rejection.body_text() }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        let detail = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                format!("an upload may have {} MiB; build the component without debug information", UPLOAD_BYTES >> 20)
            }
            _ => rejection.body_text(),
        };
        Self { status: rejection.status(), detail }
    }
}

async fn nothing_here() -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        detail: "there is nothing at this path; the API is below /api/v1".to_owned(),
    }
}

async fn overview(State(coordinator): Shared) -> Json<Overview> {
    Json(coordinator.overview())
}

async fn workers(State(coordinator): Shared) -> Json<Vec<WorkerView>> {
    Json(coordinator.workers())
}

async fn artifacts(State(coordinator): Shared) -> Answer<Json<Vec<ArtifactView>>> {
    blocking(move || coordinator.artifacts()).await.map(Json)
}

async fn upload(
    State(coordinator): Shared,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<ArtifactView>)> {
    let body = body?;
    let kept = blocking(move || coordinator.upload(&body)).await?;
    Ok((StatusCode::CREATED, Json(kept)))
}

async fn delete_artifact(State(coordinator): Shared, Path(id): Path<String>) -> Answer<StatusCode> {
    blocking(move || coordinator.delete_artifact(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn jobs(State(coordinator): Shared) -> Json<Vec<JobView>> {
    Json(coordinator.jobs())
}

async fn submit(
    State(coordinator): Shared,
    body: Result<Json<Submission>, JsonRejection>,
) -> Answer<(StatusCode, Json<JobView>)> {
    let Json(submission) = body?;
    let job = blocking(move || coordinator.submit(submission)).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

async fn job(State(coordinator): Shared, Path(id): Path<String>) -> Answer<Json<JobView>> {
    Ok(Json(find(&coordinator, &id)?.view()))
}

async fn cancel(State(coordinator): Shared, Path(id): Path<String>) -> Answer<(StatusCode, Json<JobView>)> {
    let job = find(&coordinator, &id)?;
    job.cancel().map_err(conflict)?;
    Ok((StatusCode::ACCEPTED, Json(job.view())))
}

async fn stop(
    State(coordinator): Shared,
    Path(id): Path<String>,
    body: Result<Json<StopRequest>, JsonRejection>,
) -> Answer<(StatusCode, Json<JobView>)> {
    let job = find(&coordinator, &id)?;
    let Json(request) = body?;
    let stopped = job.clone();
    blocking(move || Ok(stopped.stop(request.savepoint))).await?.map_err(conflict)?;
    Ok((StatusCode::ACCEPTED, Json(job.view())))
}

async fn savepoint(
    State(coordinator): Shared,
    Path(id): Path<String>,
    body: Result<Json<Savepoint>, JsonRejection>,
) -> Answer<(StatusCode, Json<Savepoint>)> {
    let job = find(&coordinator, &id)?;
    let Json(request) = body?;
    let location = blocking(move || Ok(job.savepoint(request.location))).await?.map_err(conflict)?;
    Ok((StatusCode::CREATED, Json(Savepoint { location })))
}

async fn rescale(
    State(coordinator): Shared,
    Path(id): Path<String>,
    body: Result<Json<RescaleRequest>, JsonRejection>,
) -> Answer<(StatusCode, Json<JobView>)> {
    let job = find(&coordinator, &id)?;
    let Json(request) = body?;
    job.rescale(request.parallelism).map_err(conflict)?;
    Ok((StatusCode::ACCEPTED, Json(job.view())))
}

fn find(coordinator: &Coordinator, id: &str) -> Answer<Arc<Job>> {
    let none = || Problem {
        status: StatusCode::NOT_FOUND,
        detail: format!("there is no job '{id}'; GET /api/v1/jobs lists all"),
    };
    coordinator.job(id).ok_or_else(none)
}

/// What can't be done to a job as it is now.
fn conflict(error: Error) -> Problem {
    let problem = Problem::from(error);
    match problem.status {
        StatusCode::UNPROCESSABLE_ENTITY => Problem { status: StatusCode::CONFLICT, ..problem },
        _ => problem,
    }
}

/// What takes the disk or a compiler does not hold up other requests.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|panic| Err(Error::internal(format!("a request ended badly: {panic}"))));
    done.map_err(Problem::from)
}
