//! Lets requests in or turns them away, after their key is known and before their body is read.

use std::sync::{Arc, Mutex};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::body::{BodyError, MeteredBody};
use super::quota::Full;
use super::{Admission, Reason};
use crate::api::auth::is_probe;
use crate::api::connections::Arrival;
use crate::api::error::ApiError;
use crate::api::guarded::GuardedBody;
use crate::api::state::AppState;
use crate::api::tenant::KeyHolder;

/// Of the quotas where nobody has a key.
const WITHOUT_KEY: u64 = 0;

/// The middleware. A request's place is given back with the last byte of its answer, the bytes of
/// its body with the answer's header.
pub(in crate::api) async fn admit(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if is_probe(request.uri().path()) {
        return next.run(request).await;
    }
    let holder = request.extensions().get::<KeyHolder>();
    let key = holder.and_then(|holder| holder.0);
    let arrival = request.extensions().get::<Arrival>();
    if key.is_none() && arrival.is_some_and(|arrival| arrival.is_reserved) {
        return no_connection(&state);
    }
    let admission = state.admission();
    let key = key.unwrap_or(WITHOUT_KEY);
    let place = match admission.requests.take(key, 1) {
        Ok(place) => place,
        Err(_) => return refuse(admission, Reason::KeyShare, too_many(admission)),
    };
    let max_body_bytes = state.config().max_body_bytes;
    let body_bytes = request.body().size_hint().exact().unwrap_or(0);
    let body_bytes = usize::try_from(body_bytes).unwrap_or(usize::MAX);
    if body_bytes > max_body_bytes {
        return ApiError::body_too_large(max_body_bytes).into_response();
    }
    let hold = match admission.body_bytes.take(key, body_bytes) {
        Ok(hold) => Arc::new(Mutex::new(hold)),
        Err(full) => return refuse(admission, Reason::BodyBytes, no_room(full)),
    };
    let timeout = state.config().connections.body_timeout;
    let (parts, body) = request.into_parts();
    let (body, outcome) = MeteredBody::new(body, Arc::clone(&hold), timeout);
    let request = Request::from_parts(parts, Body::new(body));
    let response = next.run(request).await;
    // Whatever the handler made of the body's end.
    let response = match outcome.get() {
        Some(BodyError::Slow) => refuse(admission, Reason::SlowBody, ApiError::slow_body(timeout)),
        Some(BodyError::NoRoom(full)) => refuse(admission, Reason::BodyBytes, no_room(full)),
        Some(BodyError::TooManyValues) => ApiError::too_many_values().into_response(),
        Some(BodyError::Broken) | None => response,
    };
    drop(hold);
    response.map(|body| Body::new(GuardedBody::new(body, place)))
}

fn refuse(admission: &Admission, reason: Reason, error: ApiError) -> Response {
    admission.refused(reason);
    error.into_response()
}

fn no_connection(state: &AppState) -> Response {
    let message = format!(
        "all {} connections are at work (--max-connections)",
        state.places().max_ordinary()
    );
    let error = ApiError::unavailable(message);
    let mut response = refuse(state.admission(), Reason::Connections, error);
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

fn too_many(admission: &Admission) -> ApiError {
    ApiError::overloaded(format!(
        "{} requests of this key are in progress, its share (--max-requests-per-key)",
        admission.requests.max_per_key()
    ))
}

fn no_room(full: Full) -> ApiError {
    ApiError::overloaded(match full {
        Full::ForAll => {
            "the bodies of other requests leave no room for this one (--max-inflight-body-bytes)"
        }
        Full::ForKey => {
            "the bodies of this key's other requests leave no room for this one: a key has a part of --max-inflight-body-bytes"
        }
    })
}
