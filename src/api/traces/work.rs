//! What one stream of traces has still to do, a step at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::json;

use super::query::{Cursor, TraceQuery};
use crate::trace::{Exporter, Filter, Format, Made, Pending, StoreError, Stored, TraceStore};

/// Bytes that are handed to the connection at once. One row may be more.
const CHUNK_BYTES: usize = 128 << 10;
/// How long a step takes, but for what one row or one page takes.
const STEP_TIME: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// One object a line; a heartbeat is an empty line.
    Ndjson,
    /// Server-sent events whose ids are cursors; a heartbeat is a comment.
    Sse,
}

/// A stream's place in the store, and what it remembers.
pub(super) struct Work {
    filter: Filter,
    exporter: Exporter,
    format: Format,
    framing: Framing,
    tells_skipped: bool,
    /// The next trace to read.
    from: u64,
    after: Option<Cursor>,
    /// Rows that may still be sent.
    left: u64,
    /// Traces that were read and not begun.
    page: VecDeque<Stored>,
    is_last_page: bool,
    current: Option<Current>,
    /// The latest write when the last page was read.
    seen: u64,
}

/// A trace whose rows are being made.
struct Current {
    seq: u64,
    pending: Pending,
    /// Of the next row.
    index: usize,
}

pub(super) struct Step {
    pub chunk: Vec<u8>,
    pub state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    More,
    /// Nothing follows for now.
    Empty,
    /// The reader has all that it asked for.
    Done,
}

impl Work {
    pub fn new(query: TraceQuery, framing: Framing) -> Self {
        // What was read before decides what repeats and what a prompt may still have: it is read again, unsent.
        let remembers = query.format != Format::Tree
            && (query.options.deduplicate || query.options.max_per_prompt.is_some());
        let from = match query.after {
            Some(_) if remembers => 0,
            Some(after) => after.from(),
            None => 0,
        };
        Self {
            filter: query.filter,
            exporter: Exporter::new(query.format, query.options),
            format: query.format,
            framing,
            tells_skipped: query.tells_skipped,
            from,
            after: query.after,
            left: query.limit.unwrap_or(u64::MAX),
            page: VecDeque::new(),
            is_last_page: false,
            current: None,
            seen: 0,
        }
    }

    /// The latest write when the last page was read.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    pub fn heartbeat(&self) -> Bytes {
        self.framing.heartbeat(self.from)
    }

    /// Goes on until a chunk is full or the step has taken its time. Blocks on the disk.
    pub fn step(&mut self, store: &TraceStore) -> Result<Step, StoreError> {
        let started = Instant::now();
        let mut chunk = Vec::new();
        loop {
            if self.left == 0 {
                let state = State::Done;
                return Ok(Step { chunk, state });
            }
            if chunk.len() >= CHUNK_BYTES || started.elapsed() >= STEP_TIME {
                let state = State::More;
                return Ok(Step { chunk, state });
            }
            if self.current.is_some() {
                self.next_row(&mut chunk);
            } else if let Some(stored) = self.page.pop_front() {
                match self.begin(&stored, &mut chunk) {
                    Err(error @ StoreError::DamagedTrace { .. }) => {
                        store.note_damaged(stored.seq, &error);
                        self.skip(&[stored.seq], &mut chunk);
                    }
                    result => result?,
                }
            } else if std::mem::take(&mut self.is_last_page) {
                // What the filters left out is not looked at again.
                self.from = self.from.max(self.seen.saturating_add(1));
                let state = State::Empty;
                return Ok(Step { chunk, state });
            } else {
                self.read(store, &mut chunk)?;
            }
        }
    }

    /// The next page.
    fn read(&mut self, store: &TraceStore, chunk: &mut Vec<u8>) -> Result<(), StoreError> {
        // Before reading: what is written meanwhile is seen as a change.
        self.seen = *store.changes().borrow();
        let page = store.page(&self.filter, self.from)?;
        let behind_last = page.traces.last().map(|last| last.seq.saturating_add(1));
        self.is_last_page = page.next.is_none();
        self.from = page.next.or(behind_last).unwrap_or(self.from);
        self.skip(&page.damaged, chunk);
        self.page = page.traces.into();
        Ok(())
    }

    fn is_read(&self, seq: u64) -> bool {
        self.after.is_some_and(|after| seq < after.from())
    }

    /// Begins a trace. A tree is sent as it is stored, but for the cursor.
    fn begin(&mut self, stored: &Stored, chunk: &mut Vec<u8>) -> Result<(), StoreError> {
        let seq = stored.seq;
        if self.format != Format::Tree {
            let pending = self.exporter.begin(stored.record()?);
            self.current = Some(Current {
                seq,
                pending,
                index: 0,
            });
            return Ok(());
        }
        let json = stored.json()?;
        let cursor = seq.to_string();
        let mut row = format!("{{\"cursor\":\"{cursor}\",").into_bytes();
        row.extend_from_slice(json.strip_prefix(b"{").unwrap_or_default());
        self.framing.write(chunk, Some(&cursor), &row);
        self.left -= 1;
        Ok(())
    }

    /// Takes a step through the current trace; sends what the reader does not have.
    fn next_row(&mut self, chunk: &mut Vec<u8>) {
        let Some(mut current) = self.current.take() else {
            return;
        };
        match self.exporter.next(&mut current.pending) {
            Made::End => return,
            Made::LeftOut => {}
            Made::Row(mut row) => {
                let Current { seq, index, .. } = current;
                current.index += 1;
                let skip = self.after.map_or(0, |after| after.skip(seq));
                if !self.is_read(seq) && index >= skip {
                    let cursor = format!("{seq}-{index}");
                    row.insert("cursor".to_owned(), cursor.clone().into());
                    let row = serde_json::to_vec(&row).unwrap_or_default();
                    self.framing.write(chunk, Some(&cursor), &row);
                    self.left -= 1;
                }
            }
        }
        self.current = Some(current);
    }

    /// Says which traces are left out because they are damaged, in a way that no reader of rows takes for one.
    fn skip(&self, damaged: &[u64], chunk: &mut Vec<u8>) {
        let damaged: Vec<u64> = damaged
            .iter()
            .copied()
            .filter(|seq| !self.is_read(*seq))
            .collect();
        if !damaged.is_empty() {
            self.framing.skipped(chunk, &damaged, self.tells_skipped);
        }
    }
}

impl Framing {
    pub fn write(self, chunk: &mut Vec<u8>, cursor: Option<&str>, row: &[u8]) {
        if self == Self::Sse {
            if let Some(cursor) = cursor {
                chunk.extend_from_slice(format!("id: {cursor}\n").as_bytes());
            }
            chunk.extend_from_slice(b"data: ");
        }
        chunk.extend_from_slice(row);
        chunk.extend_from_slice(if self == Self::Sse { b"\n\n" } else { b"\n" });
    }

    /// A comment in a stream of events; where rows were asked for, a row (an event of its own name). Lines of JSON have no
    /// comments: without the parameter they say nothing.
    fn skipped(self, chunk: &mut Vec<u8>, damaged: &[u64], as_row: bool) {
        if as_row {
            if self == Self::Sse {
                chunk.extend_from_slice(b"event: skipped\n");
            }
            let row = json!({"skipped": damaged, "reason": "damaged"});
            self.write(chunk, None, row.to_string().as_bytes());
        } else if self == Self::Sse {
            let numbers: Vec<String> = damaged.iter().map(u64::to_string).collect();
            let comment = format!(": skipped {} (damaged)\n\n", numbers.join(" "));
            chunk.extend_from_slice(comment.as_bytes());
        }
    }

    /// `from` is the next trace to read: an event's id moves on past what the filters left out.
    fn heartbeat(self, from: u64) -> Bytes {
        match self {
            Self::Ndjson => Bytes::from_static(b"\n"),
            Self::Sse => format!(": waiting\nid: {}\n\n", from.saturating_sub(1)).into(),
        }
    }
}
