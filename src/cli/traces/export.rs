//! `ponder traces export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::args::ExportArgs;
use super::{open, parquet};
use crate::cli::progress::Counter;
use crate::trace::{Exporter, Format, TraceStore};

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
    fn new(store: &'a TraceStore, args: &'a ExportArgs) -> anyhow::Result<Self> {
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

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let store = open(&args.store)?;
    let rows = Rows::new(&store, args)?;
    let failed = || format!("--out {}", args.out.display());
    let extension = args
        .out
        .extension()
        .and_then(|extension| extension.to_str());
    let count = match extension {
        _ if args.out == Path::new("-") => write_lines(&rows, std::io::stdout().lock())?,
        Some("parquet") => parquet::write(&rows, &args.out, args.format == Format::Tree)?,
        Some("jsonl" | "ndjson" | "json") => {
            let file = File::create(&args.out).with_context(failed)?;
            write_lines(&rows, BufWriter::new(file)).with_context(failed)?
        }
        _ => bail!("--out must end in .parquet or .jsonl, or be -"),
    };
    eprintln!("{count} rows");
    Ok(())
}

fn write_lines(rows: &Rows, mut out: impl Write) -> anyhow::Result<u64> {
    let mut count = 0;
    rows.each("exporting", |row| {
        serde_json::to_writer(&mut out, &row)?;
        out.write_all(b"\n")?;
        count += 1;
        Ok(())
    })?;
    out.flush()?;
    Ok(count)
}
