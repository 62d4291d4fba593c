//! `/v1/traces/stream`: traces as training data, in the order of their writes, from any place on.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::access::{blocking, read, store};
use super::query::{Cursor, Pairs, STREAM_PARAMETERS, TraceQuery};
use super::work::{Framing, State as Progress, Work};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::{Tenant, TraceScope};
use crate::trace::TraceStore;
use crate::work::WorkPool;

/// Chunks that wait for a slow reader.
const BUFFERED_CHUNKS: usize = 2;
const HEARTBEAT: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "last-event-id";
/// Damaged traces that are known when a stream begins, of all keys.
const DAMAGED_HEADER: HeaderName = HeaderName::from_static("x-ponder-damaged-traces");

/// Streams traces as rows of a format.
#[utoipa::path(get, path = "/v1/traces/stream", tag = "traces",
    params(
        ("format" = Option<String>, Query, description = "tree, sft, step_values, preferences, linearised or groups"),
        ("after" = Option<String>, Query, description = "`cursor` of the last row that was read (or `Last-Event-ID`)"),
        ("follow" = Option<bool>, Query, description = "wait for what comes"),
        ("limit" = Option<u64>, Query, description = "rows, then the stream ends"),
        ("model" = Option<String>, Query), ("strategy" = Option<String>, Query), ("tag" = Option<String>, Query),
        ("min_value" = Option<f64>, Query), ("min_outcome" = Option<f64>, Query), ("has_outcome" = Option<bool>, Query),
        ("created_from" = Option<u64>, Query), ("created_before" = Option<u64>, Query),
        ("deduplicate" = Option<bool>, Query, description = "leave out rows that were streamed before with the same content (default true)"),
        ("max_per_prompt" = Option<u64>, Query, description = "rows of one prompt"),
        ("min_margin" = Option<f64>, Query, description = "least gap of a pair, 0.3 by default"),
        ("level" = Option<String>, Query, description = "pairs of whole answers (answer) or of sibling steps (step)"),
        ("max_wrong_branches" = Option<u64>, Query, description = "detours of a linearised walk, 2 by default"),
        ("skipped" = Option<bool>, Query, description = "rows (events `skipped`) with the numbers of damaged traces that were left out"),
    ),
    responses((status = 200, description = "NDJSON, or server-sent events with `Accept: text/event-stream`"),
        (status = 410, description = "The cursor is of another store")))]
pub(in crate::api) async fn stream(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    Extension(tenant): Extension<Tenant>,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let mut query = TraceQuery::parse(&pairs, scope, &STREAM_PARAMETERS)?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mut name = "after";
    if let Some(id) = text(LAST_EVENT_ID) {
        name = "Last-Event-ID";
        // A browser's reconnect repeats the URL: what it saw since counts.
        let cursor = Cursor::parse(id);
        let cursor = cursor
            .ok_or_else(|| ApiError::invalid("Last-Event-ID", format!("{id:?} is not a cursor")))?;
        query.after = Some(cursor);
    }
    let wants_events =
        text(header::ACCEPT.as_str()).is_some_and(|a| a.contains("text/event-stream"));
    let (framing, content_type) = match wants_events {
        true => (Framing::Sse, "text/event-stream"),
        false => (Framing::Ndjson, "application/x-ndjson"),
    };
    let has_keys = !state.api_keys().is_empty();
    let seat = state.trace_readers().take(scope, has_keys)?;
    if let Some(after) = query.after {
        let largest = read(&state, tenant, |store, _| store.largest_seq()).await?;
        if after.seq > largest {
            return Err(ApiError::unknown_cursor(name, after.seq, largest));
        }
    }
    let store = store(&state)?.clone();
    let num_damaged = store.num_damaged();
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let reader = Reader {
        is_following: query.follow,
        work: Work::new(query, framing),
        store,
        pool: state.work().clone(),
        framing,
        tenant,
        sender,
    };
    tokio::spawn(async move {
        let _seat = seat;
        tokio::select! {
            () = reader.run() => {}
            // A stream that follows never ends by itself.
            () = state.drained() => {}
        }
    });
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let mut response = (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response();
    if num_damaged > 0 {
        let value = HeaderValue::from(num_damaged);
        response.headers_mut().insert(DAMAGED_HEADER, value);
    }
    Ok(response)
}

type Chunks = mpsc::Sender<Result<Bytes, Infallible>>;

/// One connection. Its work is done a step at a time where it keeps nobody waiting, and what a step made leaves before
/// the next one begins: a slow reader holds one chunk, and no thread.
struct Reader {
    store: TraceStore,
    pool: WorkPool,
    work: Work,
    framing: Framing,
    tenant: Tenant,
    is_following: bool,
    sender: Chunks,
}

impl Reader {
    async fn run(mut self) {
        let mut changes = self.store.changes();
        loop {
            let (store, mut work) = (self.store.clone(), self.work);
            let stepped = blocking(&self.pool, self.tenant, move |_| {
                let step = work.step(&store);
                (work, step)
            });
            let (work, step) = match stepped.await {
                Ok(stepped) => stepped,
                Err(error) => return fail(&self.sender, self.framing, error).await,
            };
            self.work = work;
            let step = match step {
                Ok(step) => step,
                Err(error) => return fail(&self.sender, self.framing, error.into()).await,
            };
            let has_rows = !step.chunk.is_empty();
            if has_rows && self.sender.send(Ok(step.chunk.into())).await.is_err() {
                return;
            }
            match step.state {
                Progress::More if self.sender.is_closed() => return,
                Progress::More => continue,
                Progress::Done => return,
                Progress::Empty if !self.is_following => return,
                Progress::Empty => {}
            }
            // What was written after the last page was read is read before anything is waited for.
            if *changes.borrow_and_update() != self.work.seen() {
                continue;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.sender.closed() => return,
                () = tokio::time::sleep(HEARTBEAT) => {
                    let beat = self.work.heartbeat();
                    if self.sender.send(Ok(beat)).await.is_err() { return }
                }
            }
        }
    }
}

/// Says in the stream why it ends.
async fn fail(sender: &Chunks, framing: Framing, error: ApiError) {
    let mut line = Vec::new();
    framing.write(&mut line, None, error.body().to_string().as_bytes());
    let _ = sender.send(Ok(line.into())).await;
}
