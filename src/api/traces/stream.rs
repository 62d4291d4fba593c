//! `/v1/traces/stream`: traces as training data, in the order of their writes, from any place on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::access::store;
use super::query::{Cursor, Pairs, TraceQuery};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::tenant::TraceScope;
use crate::trace::{Exporter, Filter, Format, StoreError, Stored, TraceStore};

/// Streams at once.
const MAX_READERS: usize = 64;
/// Bytes that are handed to the connection at once.
const CHUNK_BYTES: usize = 128 << 10;
/// Chunks that wait for a slow reader.
const BUFFERED_CHUNKS: usize = 2;
const HEARTBEAT: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// One object a line; a heartbeat is an empty line.
    Ndjson,
    /// Server-sent events whose ids are cursors; a heartbeat is a comment.
    Sse,
}

/// Counts a stream while it lives.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(taken: &Arc<AtomicUsize>) -> Result<Self, ApiError> {
        let seat = Self(taken.clone());
        if taken.fetch_add(1, Ordering::AcqRel) >= MAX_READERS {
            let message = format!("{MAX_READERS} readers are connected already");
            return Err(ApiError::overloaded(message));
        }
        Ok(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

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
    ),
    responses((status = 200, description = "NDJSON, or server-sent events with `Accept: text/event-stream`")))]
pub(in crate::api) async fn stream(
    State(state): State<AppState>,
    Extension(scope): Extension<TraceScope>,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let allowed = [
        "format",
        "after",
        "follow",
        "limit",
        "deduplicate",
        "max_per_prompt",
        "min_margin",
        "level",
        "max_wrong_branches",
    ];
    let mut query = TraceQuery::parse(&pairs, scope, &allowed)?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(id) = text(LAST_EVENT_ID) {
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
    let seat = Seat::take(state.trace_readers())?;
    let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
    let reader = Reader::new(store(&state)?.clone(), query, framing, sender);
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
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

type Chunks = mpsc::Sender<Result<Bytes, Infallible>>;

/// One connection's place in the store, and what it remembers.
struct Reader {
    store: TraceStore,
    work: Work,
    is_following: bool,
    sender: Chunks,
}

/// What goes to the thread that may block, and comes back.
struct Work {
    filter: Filter,
    exporter: Exporter,
    format: Format,
    framing: Framing,
    /// The next trace to read.
    from: u64,
    after: Option<Cursor>,
    /// Rows that may still be sent.
    left: u64,
}

/// What became of a page.
enum Page {
    Sent,
    /// Nothing follows for now.
    Empty,
    /// The reader is gone, or has all that it asked for.
    Done,
}

impl Reader {
    fn new(store: TraceStore, query: TraceQuery, framing: Framing, sender: Chunks) -> Self {
        // What was read before decides what repeats and what a prompt may still have: it is read again, unsent.
        let remembers = query.format != Format::Tree
            && (query.options.deduplicate || query.options.max_per_prompt.is_some());
        let from = match query.after {
            Some(_) if remembers => 0,
            Some(after) => after.from(),
            None => 0,
        };
        Self {
            store,
            work: Work {
                filter: query.filter,
                exporter: Exporter::new(query.format, query.options),
                format: query.format,
                framing,
                from,
                after: query.after,
                left: query.limit.unwrap_or(u64::MAX),
            },
            is_following: query.follow,
            sender,
        }
    }

    async fn run(mut self) {
        let mut changes = self.store.changes();
        loop {
            // Before reading: what is written meanwhile is seen as a change.
            let seen = *changes.borrow_and_update();
            let (store, sender, mut work) = (self.store.clone(), self.sender.clone(), self.work);
            let paged = tokio::task::spawn_blocking(move || {
                let page = work.page(&store, &sender);
                (work, page)
            });
            let Ok((work, page)) = paged.await else {
                return;
            };
            self.work = work;
            match page {
                Ok(Page::Sent) => continue,
                Ok(Page::Done) => return,
                Ok(Page::Empty) if !self.is_following => return,
                // What the filters left out is not looked at again.
                Ok(Page::Empty) => self.work.from = self.work.from.max(seen + 1),
                Err(error) => {
                    let body = ApiError::from(error).body().to_string();
                    let mut line = Vec::new();
                    self.work.framing.write(&mut line, None, body.as_bytes());
                    let _ = self.sender.send(Ok(line.into())).await;
                    return;
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.sender.closed() => return,
                () = tokio::time::sleep(HEARTBEAT) => {
                    let beat = self.work.framing.heartbeat(self.work.from);
                    if self.sender.send(Ok(beat)).await.is_err() { return }
                }
            }
        }
    }
}

impl Work {
    /// Reads one page and sends its rows; blocks on the disk and on a slow reader.
    fn page(&mut self, store: &TraceStore, sender: &Chunks) -> Result<Page, StoreError> {
        let page = store.page(&self.filter, self.from)?;
        if page.is_empty() {
            return Ok(Page::Empty);
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        for stored in &page {
            self.from = stored.seq + 1;
            self.write(stored, &mut chunk)?;
            let is_over = self.left == 0;
            if chunk.len() >= CHUNK_BYTES || is_over {
                let chunk = std::mem::take(&mut chunk);
                if sender.blocking_send(Ok(chunk.into())).is_err() || is_over {
                    return Ok(Page::Done);
                }
            }
        }
        if !chunk.is_empty() && sender.blocking_send(Ok(chunk.into())).is_err() {
            return Ok(Page::Done);
        }
        Ok(Page::Sent)
    }

    fn write(&mut self, stored: &Stored, chunk: &mut Vec<u8>) -> Result<(), StoreError> {
        let seq = stored.seq;
        if self.left == 0 {
            return Ok(());
        }
        let is_read = self.after.is_some_and(|after| seq < after.from());
        if self.format == Format::Tree {
            // Stored as it is sent, but for the cursor.
            let json = stored.json()?;
            let cursor = seq.to_string();
            let mut row = format!("{{\"cursor\":\"{cursor}\",").into_bytes();
            row.extend_from_slice(json.strip_prefix(b"{").unwrap_or_default());
            self.framing.write(chunk, Some(&cursor), &row);
            self.left -= 1;
            return Ok(());
        }
        let rows = self.exporter.rows(&stored.record()?);
        let skip = self.after.map_or(0, |after| after.skip(seq));
        if is_read {
            return Ok(());
        }
        for (index, mut row) in rows.into_iter().enumerate().skip(skip) {
            if self.left == 0 {
                break;
            }
            let cursor = format!("{seq}-{index}");
            row.insert("cursor".to_owned(), cursor.clone().into());
            let row = serde_json::to_vec(&row).unwrap_or_default();
            self.framing.write(chunk, Some(&cursor), &row);
            self.left -= 1;
        }
        Ok(())
    }
}

impl Framing {
    fn write(self, chunk: &mut Vec<u8>, cursor: Option<&str>, row: &[u8]) {
        if self == Self::Sse {
            if let Some(cursor) = cursor {
                chunk.extend_from_slice(format!("id: {cursor}\n").as_bytes());
            }
            chunk.extend_from_slice(b"data: ");
        }
        chunk.extend_from_slice(row);
        chunk.extend_from_slice(if self == Self::Sse { b"\n\n" } else { b"\n" });
    }

    /// `from` is the next trace to read: an event's id moves on past what the filters left out.
    fn heartbeat(self, from: u64) -> Bytes {
        match self {
            Self::Ndjson => Bytes::from_static(b"\n"),
            Self::Sse => format!(": waiting\nid: {}\n\n", from.saturating_sub(1)).into(),
        }
    }
}
