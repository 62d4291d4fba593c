//! `ponder traces import`: records from a file into the store.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, ensure};

use super::args::StoreArgs;
use crate::cli::progress::Counter;
use crate::trace::{SCHEMA, StoreError, StoreOptions, TraceRecord, TraceStore};

/// Traces of one commit.
const BATCH: usize = 64;

pub(super) fn run(args: &StoreArgs, file: &Path, tags: &[String]) -> anyhow::Result<()> {
    let failed = || file.display().to_string();
    let num_lines = BufReader::new(File::open(file).with_context(failed)?)
        .lines()
        .count();
    // Old traces are imported to be kept: retention is the server's business.
    let options = StoreOptions {
        max_age: std::time::Duration::from_secs(u64::MAX),
        max_bytes: u64::MAX,
        ..StoreOptions::default()
    };
    let store = TraceStore::open(&args.path(), options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let counter = Counter::new("importing", num_lines as u64);
    let (mut batch, mut num_new, mut num_known) = (Vec::new(), 0, 0);
    let mut num_twice = 0;
    let mut write = |batch: &mut Vec<TraceRecord>| -> Result<(), StoreError> {
        let mut puts = Vec::new();
        for record in batch.drain(..) {
            match store.get(&record.id, None) {
                Ok(_) => num_known += 1,
                Err(StoreError::NotFound(_)) => puts.push(store.put(record, 0)),
                // What was exported before the damage takes its place.
                Err(StoreError::DamagedTrace { .. }) => {
                    runtime.block_on(store.delete(&record.id, None))?;
                    puts.push(store.put(record, 0));
                }
                Err(error) => return Err(error),
            }
        }
        num_new += puts.len();
        runtime.block_on(futures::future::try_join_all(puts))?;
        Ok(())
    };
    for (number, line) in BufReader::new(File::open(file).with_context(failed)?)
        .lines()
        .enumerate()
    {
        let at = || format!("{}:{}", file.display(), number + 1);
        let line = line.with_context(at)?;
        counter.advance();
        if line.trim().is_empty() {
            continue;
        }
        let mut record: TraceRecord = serde_json::from_str(&line).with_context(at)?;
        ensure!(
            record.schema == SCHEMA && record.is_tree() && !record.id.is_empty(),
            "{}: not a tree of schema {SCHEMA} with an id",
            at()
        );
        if batch
            .iter()
            .any(|other: &TraceRecord| other.id == record.id)
        {
            num_twice += 1;
            continue;
        }
        record.tags.extend(tags.iter().cloned());
        record.infer();
        batch.push(record);
        if batch.len() == BATCH {
            write(&mut batch)?;
        }
    }
    write(&mut batch)?;
    store.close();
    let num_known = num_known + num_twice;
    eprintln!("{num_new} traces imported, {num_known} were there already");
    Ok(())
}
