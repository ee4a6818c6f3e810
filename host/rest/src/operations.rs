//! What takes long: it is answered at once with an operation, whose outcome is asked for later.
//!
//! Operations are of this process: a coordinator that is started again knows none of those before it. What they did is
//! to be seen at their jobs. The history is bounded; who asks for one that was forgotten is told that there is none.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tidemill_core::Error;
use tidemill_core::time::{Clock as _, SystemClock};
use utoipa::ToSchema;

use crate::extract::Id;
use crate::problem::Problem;
use crate::{Answer, Shared};

/// So many may be under way: each may hold a thread.
const UNDER_WAY: usize = 64;
/// So many are remembered: some kilobytes each at most, and more than anyone polls.
const REMEMBERED: usize = 1_000;

/// Something that was asked for and takes long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Names it, at `/api/v1/operations/{id}`.
    pub id: String,
    /// What was asked for.
    pub kind: OperationKind,
    /// The job's id.
    pub job: String,
    /// How far it is.
    pub state: OperationState,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// When it ended, likewise.
    pub ended_ms: Option<i64>,
    /// The number of the checkpoint, if one was asked for.
    pub checkpoint: Option<u64>,
    /// Where the savepoint is, if one was taken.
    pub location: Option<String>,
    /// How many slots the job has, if that was asked for.
    pub parallelism: Option<u32>,
    /// Why it failed, and the mend.
    pub failure: Option<String>,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum OperationKind {
    /// Take a checkpoint.
    Checkpoint,
    /// Take a savepoint.
    Savepoint,
    /// Stop the job.
    Stop,
    /// Give the job another number of slots.
    Rescale,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum OperationState {
    /// It is under way.
    Running,
    /// It is done.
    Completed,
    /// It was given up.
    Failed,
}

/// What came of an operation.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub checkpoint: Option<u64>,
    pub location: Option<String>,
    pub parallelism: Option<u32>,
}

/// The operations of this process, the oldest first.
#[derive(Default)]
pub(crate) struct Operations {
    all: Mutex<VecDeque<Operation>>,
}

impl Operations {
    /// A new one, under way.
    pub(crate) fn begin(&self, kind: OperationKind, job: &str) -> Answer<Operation> {
        let mut all = self.all();
        if all.iter().filter(|of| of.state == OperationState::Running).count() >= UNDER_WAY {
            let detail = format!("{UNDER_WAY} operations are under way\n  mend: Wait until one of them is done.");
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail));
        }
        // Those that are over go first; not all that are remembered can be under way.
        while all.len() >= REMEMBERED {
            let Some(oldest) = all.iter().position(|of| of.state != OperationState::Running) else { break };
            all.remove(oldest);
        }
        let started_ms = SystemClock.now().0;
        // Unique also over coordinators that come after each other.
        let mut id = format!("{started_ms:x}-0");
        for number in 1_u64.. {
            if all.iter().all(|of| of.id != id) {
                break;
            }
            id = format!("{started_ms:x}-{number}");
        }
        let (state, job) = (OperationState::Running, job.to_owned());
        let (ended_ms, checkpoint, location, parallelism, failure) = Default::default();
        let operation =
            Operation { id, kind, job, state, started_ms, ended_ms, checkpoint, location, parallelism, failure };
        all.push_back(operation.clone());
        Ok(operation)
    }

    /// It is over.
    pub(crate) fn end(&self, id: &str, outcome: Result<Done, Error>) {
        let mut all = self.all();
        let Some(operation) = all.iter_mut().find(|of| of.id == id) else { return };
        operation.ended_ms = Some(SystemClock.now().0);
        match outcome {
            Ok(Done { checkpoint, location, parallelism }) => {
                operation.state = OperationState::Completed;
                (operation.checkpoint, operation.location, operation.parallelism) = (checkpoint, location, parallelism);
            }
            Err(error) => {
                operation.state = OperationState::Failed;
                operation.failure = Some(error.text());
            }
        }
    }

    /// It was refused after all.
    pub(crate) fn forget(&self, id: &str) {
        self.all().retain(|of| of.id != id);
    }

    /// Whether the same was asked for of its job after it.
    pub(crate) fn is_superseded(&self, id: &str) -> bool {
        let all = self.all();
        let mut from_it = all.iter().skip_while(|of| of.id != id);
        let Some(this) = from_it.next() else { return true };
        from_it.any(|of| of.job == this.job && of.kind == this.kind)
    }

    fn find(&self, id: &str) -> Option<Operation> {
        self.all().iter().find(|of| of.id == id).cloned()
    }

    fn all(&self) -> MutexGuard<'_, VecDeque<Operation>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to what takes long.
pub(crate) struct Accepted(pub Operation);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let at = HeaderValue::from_str(&format!("/api/v1/operations/{}", self.0.id));
        let mut response = (StatusCode::ACCEPTED, Json(self.0)).into_response();
        at.into_iter().for_each(|at| _ = response.headers_mut().insert(header::LOCATION, at));
        response
    }
}

/// The operations of this coordinator that are remembered, the oldest first
#[utoipa::path(get, operation_id = "list_operations", path = "/operations", tag = "operations", responses((status = 200, body = Vec<Operation>)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Json<Vec<Operation>> {
    Json(shared.operations.all().iter().cloned().collect())
}

/// An operation: how far it is, and what came of it
#[utoipa::path(get, operation_id = "get_operation", path = "/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "The operation's id")),
    responses((status = 200, body = Operation)))]
pub(crate) async fn detail(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<Operation>> {
    let none = || {
        let mend = "GET /api/v1/operations lists those of this coordinator; what one did is to be seen at its job.";
        Problem::not_found(format!("there is no operation '{id}'\n  mend: {mend}"))
    };
    shared.operations.find(&id).map(Json).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(operations: &Operations, job: &str) -> Operation {
        operations.begin(OperationKind::Rescale, job).unwrap()
    }

    #[test]
    fn so_many_are_under_way_and_so_many_are_remembered() {
        let operations = Operations::default();
        let first = begin(&operations, "a");
        for _ in 1..UNDER_WAY {
            begin(&operations, "a");
        }
        let refused = operations.begin(OperationKind::Stop, "a").unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        operations.end(&first.id, Ok(Done::default()));
        for _ in 0..2 * REMEMBERED {
            let id = begin(&operations, "b").id;
            operations.end(&id, Ok(Done::default()));
        }
        assert_eq!(operations.all().len(), REMEMBERED);
        assert_eq!(operations.find(&first.id), None);
        let running = operations.all().iter().filter(|of| of.state == OperationState::Running).count();
        assert_eq!(running, UNDER_WAY - 1, "none that is under way is forgotten");
    }

    #[test]
    fn ids_are_unique() {
        let operations = Operations::default();
        let ids: std::collections::BTreeSet<String> = (0..50).map(|_| begin(&operations, "a").id).collect();
        assert_eq!(ids.len(), 50);
    }

    #[test]
    fn only_the_same_of_the_same_job_supersedes() {
        let operations = Operations::default();
        let first = begin(&operations, "a").id;
        begin(&operations, "b");
        operations.begin(OperationKind::Savepoint, "a").unwrap();
        assert!(!operations.is_superseded(&first));
        let second = begin(&operations, "a").id;
        assert!(operations.is_superseded(&first) && !operations.is_superseded(&second));
    }
}
