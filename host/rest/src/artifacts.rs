//! Components: uploads, what they are, and their end.

use std::time::Duration;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use tidemill_coordinator::view::{ArtifactDetail, ArtifactView};
use tokio::time::timeout;

use crate::extract::{Id, blocking};
use crate::problem::Problem;
use crate::{Answer, Shared, UPLOAD_BYTES};

/// An upload holds a place in memory for no longer.
const UPLOAD_WITHIN: Duration = Duration::from_secs(300);

/// The `.wasm` file.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "only described")]
pub struct Wasm(Vec<u8>);

/// All components
#[utoipa::path(get, operation_id = "list_artifacts", path = "/artifacts", tag = "artifacts", responses((status = 200, body = Vec<ArtifactView>)))]
pub async fn list(State(shared): State<Shared>) -> Answer<Json<Vec<ArtifactView>>> {
    let artifacts = blocking(move || shared.coordinator.artifacts()).await?;
    Ok(Json(artifacts))
}

/// Upload a component
///
/// The body is the `.wasm` file, at most 64 MiB. It is checked (imports, contract, plan) and compiled before it is kept;
/// uploading what is there already changes nothing.
#[utoipa::path(post, operation_id = "upload_artifact", path = "/artifacts", tag = "artifacts",
    request_body(content = Wasm, content_type = "application/octet-stream"),
    responses((status = 201, description = "It is kept", body = ArtifactView)))]
pub async fn upload(State(shared): State<Shared>, request: Request) -> Answer<(StatusCode, Json<ArtifactView>)> {
    let large = || {
        let limit = UPLOAD_BYTES >> 20;
        let detail = format!("an upload may have {limit} MiB\n  mend: Build the component without debug information.");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    let (parts, body) = request.into_parts();
    let told = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|bytes| bytes > UPLOAD_BYTES as u64) {
        return Err(large());
    }
    let closed = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the coordinator is ending");
    let place = shared.uploads.clone().acquire_owned().await.map_err(closed)?;
    let bytes = timeout(UPLOAD_WITHIN, to_bytes(body, UPLOAD_BYTES)).await.map_err(|_| {
        let detail = format!("the upload did not arrive within {} s", UPLOAD_WITHIN.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    })?;
    let bytes = bytes.map_err(|e| match too_long(&e) {
        true => large(),
        false => Problem::new(StatusCode::BAD_REQUEST, format!("the upload broke off: {e}")),
    })?;
    let kept = blocking(move || {
        let kept = shared.coordinator.upload(&bytes);
        drop(place);
        kept
    });
    Ok((StatusCode::CREATED, Json(kept.await?)))
}

/// Whether a body was longer than allowed, rather than broken.
fn too_long(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string() == "length limit exceeded" {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a component is: its plan, its imports, its sizes
#[utoipa::path(get, operation_id = "get_artifact", path = "/artifacts/{id}", tag = "artifacts",
    params(("id" = String, Path, description = "The component's SHA-256, in hexadecimal")),
    responses((status = 200, body = ArtifactDetail)))]
pub async fn detail(State(shared): State<Shared>, Id(id): Id) -> Answer<Json<ArtifactDetail>> {
    let asked = id.clone();
    let found = blocking(move || shared.coordinator.artifact(&asked)).await?;
    found.map(Json).ok_or_else(|| none(&id))
}

/// Delete a component that no job needs
#[utoipa::path(delete, operation_id = "delete_artifact", path = "/artifacts/{id}", tag = "artifacts",
    params(("id" = String, Path, description = "The component's SHA-256, in hexadecimal")),
    responses((status = 204, description = "It is gone"),
        (status = 409, description = "A job needs it", body = crate::ProblemBody,
            content_type = "application/problem+json")))]
pub async fn delete(State(shared): State<Shared>, Id(id): Id) -> Answer<StatusCode> {
    let asked = id.clone();
    match blocking(move || shared.coordinator.delete_artifact(&asked)).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(none(&id)),
        Err(error) if error.kind() == tidemill_core::ErrorKind::Invalid => Err(Problem::conflict(error.text())),
        Err(error) => Err(error.into()),
    }
}

fn none(id: &str) -> Problem {
    Problem::not_found(format!("there is no artifact '{id}'\n  mend: GET /api/v1/artifacts lists all."))
}
