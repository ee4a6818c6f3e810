//! Jobs: submitting them, looking at them, and what is wanted of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Origin, Start};
use tidemill_coordinator::operations::{Done, Wanted};
use tidemill_coordinator::view::{
    CheckpointView, CheckpointsView, ExceptionView, JobState, JobView, PlanView, VertexView,
};
use tidemill_coordinator::{Coordinator, Job, Submission};
use tidemill_core::{Error, ErrorKind};
use tidemill_job::JobDefinition;
use utoipa::ToSchema;

use crate::extract::{Body, Id, blocking};
use crate::operations::{self, Accepted, Operation, OperationKind};
use crate::problem::Problem;
use crate::{Answer, Shared};

/// How often an operation looks whether its job is over; it is woken when it is.
const END_EVERY: Duration = Duration::from_secs(1);

/// What `POST /jobs` takes.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// The component, uploaded before: its SHA-256, in hexadecimal.
    pub artifact: String,
    /// The manifest's text, TOML.
    pub manifest: String,
    /// What the manifest is called in messages; `tidemill.toml` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub manifest_name: Option<PathBuf>,
    /// What the manifest's relative paths are relative to, on the machines of the cluster. Absolute; the root unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub folder: Option<PathBuf>,
    /// What is set over the manifest: `KEY=VALUE`.
    #[serde(default)]
    pub set: Vec<String>,
    /// How many slots, instead of what the manifest says.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub parallelism: Option<u32>,
    /// From where it starts; `recover` unless given.
    #[serde(default)]
    pub from: StartFrom,
    /// Drop state of operators that the job does not have (any more), instead of refusing it.
    #[serde(default)]
    pub allow_non_restored: bool,
}

/// What a job starts from.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    /// From its newest checkpoint if it was interrupted, and else anew.
    #[default]
    Recover,
    /// From its newest checkpoint, however it ended.
    Latest,
    /// With nothing.
    Anew,
    /// From a checkpoint of the job, by its number.
    Checkpoint(u64),
    /// From a savepoint, by its location.
    Savepoint(String),
}

impl From<StartFrom> for Start {
    fn from(from: StartFrom) -> Self {
        match from {
            StartFrom::Recover => Self::Recover,
            StartFrom::Latest => Self::GoOn,
            StartFrom::Anew => Self::Anew,
            StartFrom::Checkpoint(number) => Self::At(Origin::Checkpoint(number)),
            StartFrom::Savepoint(location) => Self::At(Origin::Savepoint(location)),
        }
    }
}

impl From<Start> for StartFrom {
    fn from(start: Start) -> Self {
        match start {
            Start::Recover => Self::Recover,
            Start::GoOn | Start::Again => Self::Latest,
            Start::Anew => Self::Anew,
            Start::At(Origin::Checkpoint(number)) => Self::Checkpoint(number),
            Start::At(Origin::Savepoint(location)) => Self::Savepoint(location),
        }
    }
}

/// What `POST /jobs/{id}/stop` takes.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Where a savepoint is to be: an absolute folder that is not there yet, or a URL.
    #[serde(default)]
    pub savepoint: Option<String>,
}

/// What `POST /jobs/{id}/savepoints` takes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SavepointRequest {
    /// An absolute folder that is not there yet, or a URL.
    pub location: String,
}

/// What `POST /jobs/{id}/rescale` takes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RescaleRequest {
    /// How many slots.
    #[schema(minimum = 1)]
    pub parallelism: u32,
}

/// The checkpoints of a job.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct JobCheckpoints {
    /// Those of the attempt that runs or ran last, in numbers.
    pub latest: Option<CheckpointsView>,
    /// Those that are kept, the newest first.
    pub kept: Vec<CheckpointView>,
}

/// All jobs, the oldest first; without their operators
#[utoipa::path(get, operation_id = "list_jobs", path = "/jobs", tag = "jobs", responses((status = 200, body = Vec<JobView>)))]
pub async fn list(State(shared): State<Shared>) -> Json<Vec<JobView>> {
    Json(shared.coordinator.summaries())
}

/// Submit a job
///
/// What is wrong with its manifest, or does not fit its component, is answered at once. It then waits until it has slots, or is refused with 503
/// where the coordinator is told so (`when-full`).
#[utoipa::path(post, operation_id = "submit_job", path = "/jobs", tag = "jobs", request_body = SubmitRequest,
    responses((status = 201, description = "It is accepted", body = JobView)))]
pub async fn submit(
    State(shared): State<Shared>,
    Body(request): Body<SubmitRequest>,
) -> Answer<(StatusCode, Json<JobView>)> {
    let unnamed = || PathBuf::from(tidemill_job::manifest::FILE_NAME);
    let definition = JobDefinition {
        artifact: request.artifact,
        manifest: request.manifest,
        manifest_name: request.manifest_name.unwrap_or_else(unnamed),
        folder: request.folder.unwrap_or_else(|| PathBuf::from("/")),
        set: request.set,
    };
    let (parallelism, allow_non_restored) = (request.parallelism, request.allow_non_restored);
    let submission = Submission { definition, parallelism, from: request.from.into(), allow_non_restored };
    let job = blocking(move || shared.coordinator.submit(submission)).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

/// A job: its state, its operators, its checkpoints in numbers, its failures
#[utoipa::path(get, operation_id = "get_job", path = "/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = JobView)))]
pub async fn detail(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<JobView>> {
    Ok(Json(find(&shared.coordinator, &id)?.view()))
}

/// The plan of a job, without the columns that nobody reads
#[utoipa::path(get, operation_id = "get_job_plan", path = "/jobs/{id}/plan", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = PlanView)))]
pub async fn plan(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<PlanView>> {
    let job = find(&shared.coordinator, &id)?;
    let plan = blocking(move || shared.coordinator.plan(&job)).await;
    // Its component was deleted, after it was over.
    plan.map(Json).map_err(|error| match error.kind() {
        ErrorKind::Invalid => Problem::not_found(error.text()),
        _ => error.into(),
    })
}

/// The operators of a job, with what each subtask counted
#[utoipa::path(get, operation_id = "list_job_vertices", path = "/jobs/{id}/vertices", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = Vec<VertexView>)))]
pub async fn vertices(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<Vec<VertexView>>> {
    Ok(Json(find(&shared.coordinator, &id)?.view().vertices))
}

/// The latest failures of a job, the newest last
#[utoipa::path(get, operation_id = "list_job_exceptions", path = "/jobs/{id}/exceptions", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = Vec<ExceptionView>)))]
pub async fn exceptions(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<Vec<ExceptionView>>> {
    Ok(Json(find(&shared.coordinator, &id)?.view().exceptions))
}

/// The checkpoints of a job, with what they keep of each subtask
#[utoipa::path(get, operation_id = "list_job_checkpoints", path = "/jobs/{id}/checkpoints", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = JobCheckpoints)))]
pub async fn checkpoints(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<JobCheckpoints>> {
    let job = find(&shared.coordinator, &id)?;
    let latest = job.view().checkpoints;
    let kept = blocking(move || shared.coordinator.checkpoints(&job)).await?;
    Ok(Json(JobCheckpoints { latest, kept }))
}

/// End a job at once; nothing more is written or committed
///
/// One that is FAILED_TO_RECOVER is taken off the list, and its `reason` says so; what is kept of it, its checkpoints too, stays.
#[utoipa::path(post, operation_id = "cancel_job", path = "/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 202, description = "It is being cancelled", body = JobView)))]
pub async fn cancel(State(shared): State<Shared>, Id(id): Id) -> Answer<(StatusCode, Json<JobView>)> {
    let job = find(&shared.coordinator, &id)?;
    let cancelled = blocking(move || shared.coordinator.cancel(&job)).await.map_err(conflict)?;
    Ok((StatusCode::ACCEPTED, Json(cancelled)))
}

/// Stop a job with all that it read processed and committed; with a savepoint, if a location is given
#[utoipa::path(post, operation_id = "stop_job", path = "/jobs/{id}/stop", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), request_body = StopRequest,
    responses((status = 202, description = "An operation, which is complete when the job is over", body = Operation)))]
pub async fn stop(State(shared): State<Shared>, Id(id): Id, Body(request): Body<StopRequest>) -> Answer<Accepted> {
    let job = find(&shared.coordinator, &id)?;
    if let Some(location) = &request.savepoint {
        can_save(&job, location)?;
    }
    job.check_runs("stopped").map_err(conflict)?;
    let wanted = Wanted { savepoint: request.savepoint.clone(), ..Wanted::default() };
    let work = move |job: &Job| {
        let location = match request.savepoint {
            Some(location) => Some(job.stop_with_savepoint(location)?.wait()?),
            None => {
                job.stop()?;
                None
            }
        };
        let ended = loop {
            let view = job.wait(END_EVERY);
            if view.state.is_final() {
                break view;
            }
        };
        match ended.state {
            JobState::Finished => Ok(Done { location, ..Done::default() }),
            state => {
                let why = ended.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                Err(Error::new(ErrorKind::Retry, format!("the job ended as {state}{why}")))
            }
        }
    };
    begin(&shared, OperationKind::Stop, job, wanted, work).await
}

/// Take a checkpoint of a job before the next one is due
#[utoipa::path(post, operation_id = "checkpoint_job", path = "/jobs/{id}/checkpoints", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 202, description = "An operation, which is complete when the checkpoint is", body = Operation)))]
pub async fn checkpoint(State(shared): State<Shared>, Id(id): Id) -> Answer<Accepted> {
    let job = find(&shared.coordinator, &id)?;
    job.check_checkpoints("told to take one").map_err(conflict)?;
    job.check_runs("told to take a checkpoint").map_err(conflict)?;
    let work = |job: &Job| {
        let checkpoint = Some(job.checkpoint()?.wait()?);
        Ok(Done { checkpoint, ..Done::default() })
    };
    begin(&shared, OperationKind::Checkpoint, job, Wanted::default(), work).await
}

/// Take a savepoint of a job, which goes on
#[utoipa::path(post, operation_id = "save_job", path = "/jobs/{id}/savepoints", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), request_body = SavepointRequest,
    responses((status = 202, description = "An operation, which is complete when the savepoint is there", body = Operation)))]
pub async fn savepoint(
    State(shared): State<Shared>,
    Id(id): Id,
    Body(request): Body<SavepointRequest>,
) -> Answer<Accepted> {
    let job = find(&shared.coordinator, &id)?;
    can_save(&job, &request.location)?;
    job.check_runs("saved").map_err(conflict)?;
    let wanted = Wanted { savepoint: Some(request.location.clone()), ..Wanted::default() };
    let work = move |job: &Job| {
        let location = Some(job.savepoint(request.location)?.wait()?);
        Ok(Done { location, ..Done::default() })
    };
    begin(&shared, OperationKind::Savepoint, job, wanted, work).await
}

/// Give a job another number of slots: it stops with a checkpoint, and goes on from there
#[utoipa::path(post, operation_id = "rescale_job", path = "/jobs/{id}/rescale", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")), request_body = RescaleRequest,
    responses((status = 202, description = "An operation, which is complete when the job runs so", body = Operation)))]
pub async fn rescale(
    State(shared): State<Shared>,
    Id(id): Id,
    Body(request): Body<RescaleRequest>,
) -> Answer<Accepted> {
    let job = find(&shared.coordinator, &id)?;
    let parallelism = request.parallelism;
    shared.coordinator.has_room(parallelism, job.summary().parallelism)?;
    let wanted = Wanted { parallelism: Some(parallelism), ..Wanted::default() };
    let begun = operations::begin(&shared, OperationKind::Rescale, job.id(), wanted).await?;
    // What is wanted is kept by the job at once; the operation only looks on.
    if let Err(error) = blocking(move || job.rescale(parallelism)).await {
        operations::forget(&shared, &begun.operation.id).await;
        return Err(conflict(error));
    }
    let operation = begun.operation.clone();
    operations::follow(&shared, begun);
    Ok(Accepted(operation))
}

/// Begins an operation whose work waits on a thread of its own.
async fn begin(
    shared: &Shared,
    kind: OperationKind,
    job: Arc<Job>,
    wanted: Wanted,
    work: impl FnOnce(&Job) -> Result<Done, Error> + Send + 'static,
) -> Answer<Accepted> {
    let operation = operations::begin(shared, kind, job.id(), wanted).await?.operation;
    let (shared, begun) = (shared.clone(), operation.clone());
    tokio::spawn(async move { operations::end(&shared, &begun, blocking(move || work(&job)).await).await });
    Ok(Accepted(operation))
}

pub(crate) fn find(coordinator: &Coordinator, id: &str) -> Answer<Arc<Job>> {
    let none = || Problem::not_found(format!("there is no job '{id}'\n  mend: GET /api/v1/jobs lists all."));
    coordinator.job(id).ok_or_else(none)
}

/// A savepoint is a checkpoint of a job that takes some, at a place that means the same wherever it is read.
fn can_save(job: &Job, location: &str) -> Answer<()> {
    if !location.contains("://") && !Path::new(location).is_absolute() {
        let detail = format!(
            "the location '{location}' is neither absolute nor a URL\n  mend: Name a folder from the root, or s3://BUCKET/PREFIX."
        );
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    job.check_checkpoints("saved").map_err(conflict)
}

/// What can't be done to a job as it is now.
fn conflict(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::Invalid => Problem::conflict(error.text()),
        _ => error.into(),
    }
}
