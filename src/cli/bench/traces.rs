//! `ponder bench traces`: how fast the store takes traces and a reader drains them, and how big
//! they are.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::json;
use tokio::net::TcpListener;

use crate::api::{AppState, ServerConfig, serve};
use crate::cli::progress::Counter;
use crate::trace::{Format, StoreOptions, TraceRecord, TraceStore};

/// Traces that wait for their commit at once, as those of so many concurrent requests would.
const CONCURRENCY: usize = 64;

#[derive(Debug, Clone, Args)]
pub struct BenchTracesArgs {
    /// Traces to fill the store with, over and over under new ids: JSON lines, as `ponder traces export --format tree`
    #[arg(long, value_name = "FILE")]
    pub traces: PathBuf,
    #[arg(long, default_value_t = 20_000)]
    pub count: usize,
    /// Formats to drain
    #[arg(long, value_delimiter = ',', value_parser = str::parse::<Format>, default_value = "tree,sft,step_values,preferences,linearised,groups")]
    pub format: Vec<Format>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub(in crate::cli) fn run(args: &BenchTracesArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = std::env::temp_dir().join(format!("ponder-bench-{}", std::process::id()));
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(measure(args, &folder));
    let _ = std::fs::remove_dir_all(&folder);
    result
}

async fn measure(args: &BenchTracesArgs, folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("--traces {}", args.traces.display());
    let text = std::fs::read_to_string(&args.traces).with_context(failed)?;
    let records = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(serde_json::from_str)
        .collect::<Result<Vec<TraceRecord>, _>>()
        .with_context(failed)?;
    ensure!(
        !records.is_empty(),
        "{} has no traces",
        args.traces.display()
    );
    let store = TraceStore::open(&folder.join("traces.db"), StoreOptions::default())?;
    let write_seconds = fill(&store, &records, args.count).await?;
    let totals = store.totals()?;
    let state = AppState::with_store(ServerConfig::default(), Some(store.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1/traces/stream", listener.local_addr()?);
    let server = tokio::spawn(serve(listener, state, std::future::pending()));
    let mut drains = Vec::new();
    for format in &args.format {
        drains.push(drain(&url, *format).await?);
    }
    server.abort();
    store.close();
    let per_thousand = totals.bytes as f64 / totals.num_traces.max(1) as f64 / 1e3;
    let file_bytes = std::fs::metadata(folder.join("traces.db"))?.len();
    let writes = args.count as f64 / write_seconds;
    if args.json {
        let result = json!({
            "traces": args.count, "nodes": totals.num_nodes, "writes_per_second": writes,
            "megabytes_per_1000_traces": per_thousand, "file_bytes": file_bytes,
            "drains": drains.iter().map(Drain::to_json).collect::<Vec<_>>(),
        });
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "{} traces, {:.1} nodes each: {writes:.0} writes/s, {per_thousand:.2} MB per 1,000 traces (file {:.1} MB)",
        args.count,
        totals.num_nodes as f64 / totals.num_traces.max(1) as f64,
        file_bytes as f64 / 1e6,
    );
    println!(
        "{:12} {:>9} {:>10} {:>10} {:>8}",
        "format", "rows", "traces/s", "rows/s", "MB/s"
    );
    for drain in &drains {
        println!(
            "{:12} {:>9} {:>10.0} {:>10.0} {:>8.1}",
            drain.format.name(),
            drain.rows,
            args.count as f64 / drain.seconds,
            drain.rows as f64 / drain.seconds,
            drain.bytes as f64 / drain.seconds / 1e6,
        );
    }
    Ok(())
}

/// Writes the records over and over; returns the seconds until all were committed.
async fn fill(store: &TraceStore, records: &[TraceRecord], count: usize) -> anyhow::Result<f64> {
    let counter = Counter::new("writing", count as u64);
    let started = Instant::now();
    let mut waiting = FuturesUnordered::new();
    for (index, record) in records.iter().cycle().take(count).enumerate() {
        if waiting.len() >= CONCURRENCY {
            waiting.next().await.transpose()?;
            counter.advance();
        }
        let mut record = record.clone();
        record.id = format!("trace-{index}");
        // Not too old to keep.
        record.created = u64::from(u32::MAX);
        waiting.push(store.put(record, 0));
    }
    while waiting.next().await.transpose()?.is_some() {
        counter.advance();
    }
    Ok(started.elapsed().as_secs_f64())
}

struct Drain {
    format: Format,
    rows: usize,
    bytes: usize,
    seconds: f64,
}

impl Drain {
    fn to_json(&self) -> serde_json::Value {
        json!({"format": self.format, "rows": self.rows, "bytes": self.bytes, "seconds": self.seconds})
    }
}

/// Reads a whole stream over HTTP; repeated content counts, since the records do repeat.
async fn drain(url: &str, format: Format) -> anyhow::Result<Drain> {
    let url = format!("{url}?format={}&deduplicate=false", format.name());
    let started = Instant::now();
    let response = reqwest::get(url).await?.error_for_status()?;
    let mut body = response.bytes_stream();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        bytes += chunk.len();
        rows += chunk.iter().filter(|byte| **byte == b'\n').count();
    }
    Ok(Drain {
        format,
        rows,
        bytes,
        seconds: started.elapsed().as_secs_f64(),
    })
}
