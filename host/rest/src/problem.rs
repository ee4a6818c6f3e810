//! Errors as they are answered, also those that handlers never see: paths, methods and bodies that fit nothing.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tidemill_core::{Error, ErrorKind};
use utoipa::ToSchema;

use crate::REQUEST_BYTES;

const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error as it is answered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// What kind of error, in a few words.
    pub title: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong, and the mend.
    pub detail: String,
}

/// The error of a handler.
#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub detail: String,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// It can't be done to the thing as it is now.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error").to_owned();
        let body = ProblemBody { title, status: self.status.as_u16(), detail: self.detail };
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM);
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"tidemill\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Invalid | ErrorKind::UserCode => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Fenced => StatusCode::CONFLICT,
            ErrorKind::Limit => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::Retry | ErrorKind::Lost | ErrorKind::Full => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.text())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let detail = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => format!("a request may have {} KiB", REQUEST_BYTES >> 10),
            _ => format!("{}\n  mend: /docs shows what is taken here.", rejection.body_text()),
        };
        Self::new(rejection.status(), detail)
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// Where no route is.
pub async fn nothing_here(uri: Uri) -> Problem {
    Problem::not_found(format!("there is nothing at {}\n  mend: /docs shows all that there is.", uri.path()))
}

/// Where a route is, but not by this method.
pub async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not answered at {}\n  mend: /docs shows what is.", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// An error that was answered by whoever stands before the handlers, in words or none, is made one of ours.
pub async fn always(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.headers().get(header::CONTENT_TYPE) == Some(&PROBLEM) {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let detail = status.canonical_reason().unwrap_or("the request was refused").to_lowercase();
    let (mut ours, body) = Problem::new(status, detail).into_response().into_parts();
    parts.headers.extend(std::mem::take(&mut ours.headers));
    Response::from_parts(parts, Body::new(body))
}
