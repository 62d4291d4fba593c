//! The rows of an export.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::args::ExportArgs;
use crate::cli::progress::Counter;
use crate::trace::{Exporter, Made, StoreError, TraceStore};

pub(super) type Row = Map<String, Value>;

/// The rows of an export. Two readings give the same ones, whatever is written meanwhile.
pub(super) struct Rows<'a> {
    store: &'a TraceStore,
    args: &'a ExportArgs,
    /// What was written later does not count.
    last: u64,
    num_traces: u64,
    /// Numbers of the traces that were left out because they are damaged.
    damaged: RefCell<BTreeSet<u64>>,
    num_too_large: Cell<u64>,
}

/// Numbers that a message names.
const MAX_NAMED: usize = 100;

/// Says which traces were left out because they are damaged.
pub(super) fn tell_damaged(damaged: impl ExactSizeIterator<Item = u64>) {
    let num_damaged = damaged.len();
    if num_damaged == 0 {
        return;
    }
    let mut numbers: Vec<String> = damaged.take(MAX_NAMED).map(|seq| seq.to_string()).collect();
    if num_damaged > MAX_NAMED {
        numbers.push("…".to_owned());
    }
    let (traces, were) = match num_damaged {
        1 => ("trace", "was"),
        _ => ("traces", "were"),
    };
    eprintln!(
        "{num_damaged} damaged {traces} {were} skipped: {}",
        numbers.join(", ")
    );
}

impl<'a> Rows<'a> {
    pub fn new(store: &'a TraceStore, args: &'a ExportArgs) -> anyhow::Result<Self> {
        Ok(Self {
            store,
            args,
            last: store.last_seq()?,
            num_traces: store.totals()?.num_traces,
            damaged: RefCell::default(),
            num_too_large: Cell::new(0),
        })
    }

    /// Gives each row to `each`; `what` names the progress bar.
    pub fn each(
        &self,
        what: &str,
        mut each: impl FnMut(Row) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let counter = Counter::new(what, self.num_traces);
        let filter = self.args.filter.filter();
        let mut exporter = Exporter::new(self.args.format, self.args.options());
        let mut from = 0;
        loop {
            let page = self.store.page(&filter, from)?;
            let damaged = page.damaged.iter().filter(|seq| **seq <= self.last);
            self.damaged.borrow_mut().extend(damaged);
            for stored in page.traces.iter().filter(|stored| stored.seq <= self.last) {
                counter.advance();
                let record = match stored.record() {
                    Ok(record) => record,
                    Err(StoreError::DamagedTrace { .. }) => {
                        self.damaged.borrow_mut().insert(stored.seq);
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                let mut pending = exporter.begin(record);
                loop {
                    match exporter.next(&mut pending) {
                        Made::Row(row) => each(row)?,
                        Made::LeftOut => {}
                        Made::End => break,
                    }
                }
            }
            match page.next {
                Some(next) if next <= self.last => from = next,
                _ => break,
            }
        }
        self.num_too_large.set(exporter.num_too_large());
        Ok(())
    }

    /// Says what is missing in the rows.
    pub fn tell_missing(&self) {
        tell_damaged(self.damaged.borrow().iter().copied());
        match self.num_too_large.get() {
            0 => {}
            count => eprintln!("{count} groups of more than 64 MiB were skipped"),
        }
    }
}
