//! What is taken out of requests, with refusals that are problems.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tidemill_core::Error;

use crate::Answer;
use crate::problem::Problem;

/// A body of JSON: an object, with no more than it may have.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        // A list would pass for a struct as well.
        let Json(object): Json<Map<String, Value>> = Json::from_request(request, state).await?;
        let body = serde_json::from_value(Value::Object(object)).map_err(|e| {
            let detail = format!("the body is not what is taken here: {e}\n  mend: /docs shows what is.");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        })?;
        Ok(Self(body))
    }
}

/// The id in a path.
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let Path(id) = Path::from_request_parts(parts, state).await?;
        Ok(Self(id))
    }
}

/// What is behind the question mark, with no more than it may have.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let read = axum::extract::Query::try_from_uri(&parts.uri);
        let axum::extract::Query(query) = read.map_err(|rejection| {
            let detail = format!("{}\n  mend: /docs shows what may be asked here.", rejection.body_text());
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        })?;
        Ok(Self(query))
    }
}

/// What takes the disk or a compiler does not hold up other requests.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(Error::internal(format!("a request ended badly: {panic}"))))
}
