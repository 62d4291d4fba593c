//! JSON bodies with errors that name the parameter.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::causes::Causes;
use super::deadline::Deadline;
use super::error::ApiError;
use super::state::AppState;
use super::tenant::Tenant;

/// A request body, whatever its content type says.
pub struct Body<T>(pub T);

/// A request from JSON that was read already.
pub(super) fn parse<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body).map_err(explain)
}

fn explain(error: serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let param = error.path().to_string();
    let message = error.inner().to_string();
    // A field that is missing or there twice is named by the message alone.
    let named = ["missing field `", "duplicate field `"];
    let named = named.iter().find_map(|start| message.strip_prefix(start));
    if let Some((field, _)) = named.and_then(|rest| rest.split_once('`')) {
        let param = match param.as_str() {
            "." => field.to_owned(),
            path if path.ends_with(field) => path.to_owned(),
            path => format!("{path}.{field}"),
        };
        ApiError::invalid(
            &param,
            format!("the body is not a valid request: {message}"),
        )
    } else if param == "." {
        ApiError::bad_body(format!("the body is not a valid request: {message}"))
    } else {
        ApiError::invalid(&param, format!("{param}: {message}"))
    }
}

/// A request body with its length: what it causes depends on that.
pub struct SizedBody<T>(pub T, pub usize);

fn value_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(explain)?;
    deserializer
        .end()
        .map_err(|error| ApiError::bad_body(format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for SizedBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let limit = state.config().max_body_bytes;
        let deadline = Deadline::of(request.headers(), state.config().request_timeout)?;
        let tenant = request.extensions().get::<Tenant>();
        let tenant = tenant.copied().unwrap_or(Tenant(0));
        let read = deadline.limit(Bytes::from_request(request, state)).await?;
        let bytes = read.map_err(|error: BytesRejection| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::body_too_large(limit),
            _ => ApiError::bad_body(error.body_text()),
        })?;
        let num_bytes = bytes.len();
        let work = Causes {
            tenant,
            deadline,
            num_bytes,
        };
        let value = work.run(state, "reading the body", move |_| value_of(&bytes));
        Ok(Self(value.await?, num_bytes))
    }
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let SizedBody(value, _) = SizedBody::from_request(request, state).await?;
        Ok(Self(value))
    }
}
