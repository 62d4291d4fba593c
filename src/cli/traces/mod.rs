//! `ponder traces`: the store from the command line.

pub(super) mod args;
mod export;
mod import;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;

use std::io::Write;

use args::{FilterArgs, StoreArgs, TracesCommand};

use crate::trace::{Order, render};

pub(super) fn run(command: &TracesCommand) -> anyhow::Result<()> {
    match command {
        TracesCommand::List {
            store,
            filter,
            limit,
            json,
        } => list(store, filter, *limit, *json),
        TracesCommand::Show { id, store, json } => show(store, id, *json),
        TracesCommand::Stats { store, json } => stats(store, *json),
        TracesCommand::Import { file, store, tag } => import::run(store, file, tag),
        TracesCommand::Export(args) => export::run(args),
    }
}

/// Writes to stdout; whoever read it may have enough (`head`).
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

fn list(args: &StoreArgs, filter: &FilterArgs, limit: usize, json: bool) -> anyhow::Result<()> {
    let store = args.open()?;
    let found = store.list(&filter.filter(), Order::NewestFirst, None, limit)?;
    rows::tell_damaged(found.damaged.iter().copied());
    let found = found.traces;
    if json {
        for summary in found {
            print(&format!("{}\n", serde_json::to_string(&summary)?));
        }
        return Ok(());
    }
    if found.is_empty() {
        eprintln!("no traces in {}", args.path().display());
        return Ok(());
    }
    print(&format!(
        "{:38} {:17} {:20} {:>5} {:>7} {:>6} {:>6}  tags\n",
        "id", "strategy", "model", "nodes", "tokens", "value", "right"
    ));
    for summary in found {
        print(&format!(
            "{:38} {:17} {:20} {:>5} {:>7} {:>6} {:>6}  {}\n",
            summary.id,
            summary.strategy,
            summary.model,
            summary.num_nodes,
            summary.num_tokens,
            number(summary.value),
            number(summary.outcome),
            summary.tags.join(" "),
        ));
    }
    Ok(())
}

fn show(args: &StoreArgs, id: &str, json: bool) -> anyhow::Result<()> {
    let record = args.open()?.get(id, None)?.record()?;
    let text = match json {
        true => format!("{}\n", serde_json::to_string_pretty(&record)?),
        false => render(&record),
    };
    print(&text);
    Ok(())
}

fn stats(args: &StoreArgs, json: bool) -> anyhow::Result<()> {
    let totals = args.open()?.totals()?;
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(&totals)?));
        return Ok(());
    }
    let per_trace = totals.bytes as f64 / totals.num_traces.max(1) as f64 / 1e3;
    print(&format!(
        "{} traces, {} nodes, {} tokens\n{:.1} MB compressed, {per_trace:.1} kB a trace\n{} with an outcome, mean {}\n",
        totals.num_traces,
        totals.num_nodes,
        totals.num_tokens,
        totals.bytes as f64 / 1e6,
        totals.num_with_outcome,
        number(totals.mean_outcome),
    ));
    if totals.num_damaged > 0 {
        print(&format!(
            "{} damaged traces, in none of these numbers\n",
            totals.num_damaged
        ));
    }
    for (strategy, count) in totals.strategies {
        print(&format!("  {strategy:17} {count}\n"));
    }
    Ok(())
}
