//! What takes long: it is answered at once with an operation, whose outcome is asked for later, of this coordinator or the next.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tidemill_coordinator::operations::{BegunOperation, Done, FoundOperation, Wanted};
use tidemill_core::Error;

use crate::extract::{Id, blocking};
use crate::follow::{Seen, outcome};
use crate::problem::Problem;
use crate::{Answer, Shared};

pub use tidemill_coordinator::operations::{Operation, OperationKind, OperationState};

/// How often an operation looks at its job.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After so long, it is tried again to keep how an operation ended.
const KEEP_AGAIN: Duration = Duration::from_secs(1);

/// A new one, under way and kept.
pub(crate) async fn begin(shared: &Shared, kind: OperationKind, job: &str, wanted: Wanted) -> Answer<BegunOperation> {
    let (coordinator, job, wants) = (shared.coordinator.clone(), job.to_owned(), wanted.clone());
    let begun = blocking(move || coordinator.operations().begin(kind, &job, wants)).await?;
    let operation = begun.ok_or_else(|| {
        let detail = "as many operations as may be are under way\n  mend: Wait until one of them is done.";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
    })?;
    Ok(BegunOperation { operation, wanted })
}

/// It was refused after all.
pub(crate) async fn forget(shared: &Shared, id: &str) {
    let (coordinator, id) = (shared.coordinator.clone(), id.to_owned());
    // Nobody knows its id.
    _ = blocking(move || coordinator.operations().forget(&id)).await;
}

/// It is over, as soon as that is kept.
pub(crate) async fn end(shared: &Shared, operation: &Operation, outcome: Result<Done, Error>) {
    loop {
        let (coordinator, operation, outcome) = (shared.coordinator.clone(), operation.clone(), outcome.clone());
        match blocking(move || coordinator.operations().end(&operation, outcome)).await {
            Ok(()) => return,
            Err(error) => tracing::warn!("how an operation ended could not be kept: {error}"),
        }
        tokio::time::sleep(KEEP_AGAIN).await;
    }
}

/// Ends it when what became of it is to be seen at its job.
pub(crate) fn follow(shared: &Shared, begun: BegunOperation) {
    let shared = shared.clone();
    tokio::spawn(async move {
        let outcome = loop {
            let seen = shared.coordinator.job(&begun.operation.job).map(|job| Seen::of(&job));
            if let Some(outcome) = outcome(&begun, seen.as_ref()) {
                break outcome;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        end(&shared, &begun.operation, outcome).await;
    });
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

/// The operations that are remembered, the oldest first
///
/// They outlive the coordinator. What was under way with one that is gone goes on with the next one where the job was told so for
/// good (a stop, rescaling), and has failed otherwise: ask again.
#[utoipa::path(get, operation_id = "list_operations", path = "/operations", tag = "operations", responses((status = 200, body = Vec<Operation>)))]
pub(crate) async fn list(State(shared): State<Shared>) -> Answer<Json<Vec<Operation>>> {
    Ok(Json(blocking(move || shared.coordinator.operations().list()).await?))
}

/// An operation: how far it is, and what came of it
#[utoipa::path(get, operation_id = "get_operation", path = "/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "The operation's id")),
    responses((status = 200, body = Operation)))]
pub(crate) async fn detail(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<Operation>> {
    let none = format!(
        "there is no operation '{id}'\n  mend: GET /api/v1/operations lists those that are remembered; what one did is to be seen at its job."
    );
    let coordinator = shared.coordinator.clone();
    match blocking(move || coordinator.operations().find(&id)).await? {
        Some(FoundOperation::Known(operation)) => Ok(Json(operation)),
        Some(FoundOperation::OfAnother(begun)) => {
            let operation = begun.operation.clone();
            follow(&shared, begun);
            Ok(Json(operation))
        }
        None => Err(Problem::not_found(none)),
    }
}
