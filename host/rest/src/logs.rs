//! What was logged of a job: the newest of it, or what follows, waited for.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidemill_coordinator::view::LogsView;
use tidemill_coordinator::{Job, LogFilter};
use tidemill_core::Error;
use tokio::time::{Instant, timeout_at};
use utoipa::IntoParams;

use crate::extract::{Id, Query, blocking};
use crate::jobs::find;
use crate::{Answer, Shared};

/// No answer has more entries.
const MOST: u32 = 1_000;
/// Nobody waits longer for one: less than what is between may take a connection for dead.
const LONGEST_WAIT_MS: u32 = 30_000;

/// What `GET /jobs/{id}/logs` may be asked.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// The entries after this one, the oldest of them first: `next` of the answer before. Without it, the newest
    after: Option<u64>,
    /// At most so many; 1000 unless given
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only those of an operator, by its name, its uid or its number in the plan, or of one of its subtasks: `OPERATOR/SUBTASK`
    task: Option<String>,
    /// So long an answer waits for entries, in milliseconds, if there are none yet and the job is not over
    #[param(maximum = 30000)]
    wait_ms: Option<u32>,
}

/// What was logged of a job, by its code and by the engine
///
/// The newest are in the coordinator's memory; what is new is written to the storage every few seconds, where as much of each job
/// is kept as the coordinator's `logs-size` and `logs-age` say, also for the coordinators after it.
#[utoipa::path(get, operation_id = "list_job_logs", path = "/jobs/{id}/logs", tag = "jobs",
    params(("id" = String, Path, description = "The job's id"), LogsQuery),
    responses((status = 200, body = LogsView)))]
pub async fn list(State(shared): State<Shared>, Id(id): Id, Query(query): Query<LogsQuery>) -> Answer<Json<LogsView>> {
    let limit = between("limit", query.limit.unwrap_or(MOST), 1, MOST)? as usize;
    let wait = between("wait_ms", query.wait_ms.unwrap_or(0), 0, LONGEST_WAIT_MS)?;
    let job = find(&shared.coordinator, &id)?;
    let filter = query.task.as_deref().map(|task| job.log_filter(task)).transpose()?.unwrap_or_default();
    Ok(Json(read(&job, query.after, limit, &filter, Duration::from_millis(wait.into())).await?))
}

/// What there is, or what comes in this time.
async fn read(
    job: &Arc<Job>,
    mut after: Option<u64>,
    limit: usize,
    filter: &LogFilter,
    wait: Duration,
) -> Result<LogsView, Error> {
    let until = Instant::now() + wait;
    loop {
        let mut news = pin!(job.log().news());
        // From here on none is missed.
        news.as_mut().enable();
        let (of, filter) = (job.clone(), filter.clone());
        let found = blocking(move || Ok(of.logs(after, limit, &filter))).await?;
        if !found.entries.is_empty() || found.over || Instant::now() >= until {
            return Ok(found);
        }
        after = Some(found.next);
        // When the time is over, what there is is the answer.
        _ = timeout_at(until, news).await;
    }
}

fn between(name: &str, value: u32, least: u32, most: u32) -> Result<u32, Error> {
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(Error::invalid(format!("'{name}' is {value}")).mend(format!("Give {least} to {most}."))),
    }
}
