//! The rows of an export.

use serde_json::{Map, Value};

use super::args::ExportArgs;
use crate::cli::progress::Counter;
use crate::trace::{Exporter, TraceStore};

pub(super) type Row = Map<String, Value>;

/// The rows of an export. Two readings give the same ones, whatever is written meanwhile.
pub(super) struct Rows<'a> {
    store: &'a TraceStore,
    args: &'a ExportArgs,
    /// What was written later does not count.
    last: u64,
    num_traces: u64,
}

impl<'a> Rows<'a> {
    pub fn new(store: &'a TraceStore, args: &'a ExportArgs) -> anyhow::Result<Self> {
        Ok(Self {
            store,
            args,
            last: store.last_seq()?,
            num_traces: store.totals()?.num_traces,
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
            let Some(end) = page.last() else {
                return Ok(());
            };
            from = end.seq + 1;
            for stored in page.iter().filter(|stored| stored.seq <= self.last) {
                for row in exporter.rows(&stored.record()?) {
                    each(row)?;
                }
                counter.advance();
            }
            if from > self.last {
                return Ok(());
            }
        }
    }
}
