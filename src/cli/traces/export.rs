//! `ponder traces export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};

use super::args::ExportArgs;
#[cfg(feature = "parquet")]
use super::parquet;
use super::rows::Rows;
#[cfg(feature = "parquet")]
use crate::trace::Format;

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let store = args.store.open()?;
    let rows = Rows::new(&store, args)?;
    let failed = || format!("--out {}", args.out.display());
    let extension = args
        .out
        .extension()
        .and_then(|extension| extension.to_str());
    let count = match extension {
        _ if args.out == Path::new("-") => write_lines(&rows, std::io::stdout().lock())?,
        Some("parquet") => write_parquet(&rows, args)?,
        Some("jsonl" | "ndjson" | "json") => {
            let file = File::create(&args.out).with_context(failed)?;
            write_lines(&rows, BufWriter::new(file)).with_context(failed)?
        }
        _ => bail!("--out must end in .parquet or .jsonl, or be -"),
    };
    eprintln!("{count} rows");
    rows.tell_missing();
    Ok(())
}

#[cfg(feature = "parquet")]
fn write_parquet(rows: &Rows, args: &ExportArgs) -> anyhow::Result<u64> {
    parquet::write(rows, &args.out, args.format == Format::Tree)
}

#[cfg(not(feature = "parquet"))]
fn write_parquet(_: &Rows, args: &ExportArgs) -> anyhow::Result<u64> {
    bail!(
        "--out {}: this build writes no Parquet files; write .jsonl, or build Ponder with \
         `--features parquet`",
        args.out.display()
    )
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
