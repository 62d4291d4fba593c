//! `POST /v1/responses`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::deliver;
use super::echo::echo;
use super::names::renamed;
use super::prepare::{Prepared, prepare};
use super::request::ResponsesRequest;
use super::run::Answering;
use super::stored::{self, Keeper};
use crate::api::admission::quota::Hold;
use crate::api::answer::producer::Producer;
use crate::api::body::SizedBody;
use crate::api::causes::Causes;
use crate::api::clock::unix_time;
use crate::api::deadline::Deadline;
use crate::api::error::ApiError;
use crate::api::generation::Generation;
use crate::api::state::AppState;
use crate::api::tenant::Tenant;
use crate::api::wire::responses::{ResponseHead, ResponseWriter};

/// Answers a conversation with a response.
#[utoipa::path(post, path = "/v1/responses", tag = "openai", request_body = ResponsesRequest,
    responses((status = 200, description = "A response, or server-sent events with stream")))]
pub async fn create(
    State(state): State<AppState>,
    Extension(tenant): Extension<Tenant>,
    deadline: Deadline,
    SizedBody(request, num_bytes): SizedBody<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let work = Causes {
        tenant,
        deadline,
        num_bytes,
    };
    let is_kept = is_kept(&state, &request)?;
    let hex = uuid::Uuid::new_v4().simple().to_string();
    let Prepared {
        request,
        generation,
        input,
    } = prepare(&state, request, &hex, work).await?;
    let head = ResponseHead {
        hex,
        created: unix_time(),
        echo: echo(&request, &generation.target.name, is_kept),
        is_background: request.is_background(),
        is_streamed: request.is_streamed(),
        summarises: request.summarises(),
        encrypts: request.includes_encrypted(),
        obfuscates: request.obfuscates(),
    };
    let keeper = is_kept.then(|| Keeper {
        state: state.clone(),
        tenant,
        input: Arc::new(input),
        num_bytes,
    });
    answer(&state, generation, head, keeper).await
}

/// Whether the response is to be kept.
fn is_kept(state: &AppState, request: &ResponsesRequest) -> Result<bool, ApiError> {
    let has_store = stored::store(state).is_some();
    if request.store == Some(true) && !has_store {
        return Err(stored::no_store("store"));
    }
    let is_kept = has_store && request.store != Some(false);
    if request.is_background() && !is_kept {
        return Err(match has_store {
            true => ApiError::invalid(
                "background",
                "background needs store: what nobody keeps cannot be asked for later",
            ),
            false => stored::no_store("background"),
        });
    }
    Ok(is_kept)
}

/// Makes the response as the client asked.
async fn answer(
    state: &AppState,
    generation: Generation,
    head: ResponseHead,
    keeper: Option<Keeper>,
) -> Result<Response, ApiError> {
    let (is_background, is_streamed) = (head.is_background, head.is_streamed);
    let id = head.id();
    let answering = Answering {
        writer: ResponseWriter::new(head),
        keeper,
    };
    let tenant = generation.tenant;
    if !is_background {
        let producer = start(state, generation).await?;
        if is_streamed {
            return Ok(deliver::live(answering, producer));
        }
        let response = answering.whole(producer).await?;
        return Ok(Json(response).into_response());
    }
    let held = held(state, tenant, answering.keeper.as_ref())?;
    let response = answering.writer.queued();
    let background = state.background();
    let seat = background.start(&id, tenant, response.clone(), is_streamed)?;
    let producer = start(state, generation).await?;
    if let Some(keeper) = &answering.keeper {
        keeper.keep(&response).await?;
    }
    let running = Arc::clone(&seat.running);
    tokio::spawn(async move {
        answering.background(producer, seat).await;
        drop(held);
    });
    match is_streamed {
        true => Ok(deliver::replayed(running, None)),
        false => Ok(Json(response).into_response()),
    }
}

async fn start(state: &AppState, generation: Generation) -> Result<Producer, ApiError> {
    let started = Producer::start(state, generation).await;
    started.map_err(|error| renamed(error, &[]))
}

/// The room for the input of a background response, which is kept until the response is there.
fn held(state: &AppState, tenant: Tenant, keeper: Option<&Keeper>) -> Result<Hold, ApiError> {
    let num_bytes = keeper.map_or(0, |keeper| keeper.num_bytes);
    let held = state.admission().body_bytes.take(tenant.0, num_bytes);
    held.map_err(|_| {
        ApiError::overloaded(
            "the inputs of other requests leave no room for this one in the background (--max-inflight-body-bytes)",
        )
    })
}
