//! `ponder models` and `ponder pull`.

use anyhow::ensure;
use serde_json::json;

use super::interrupt;
use super::progress::Bar;
use crate::model::catalogue::{
    self, CATALOGUE, DEFAULT_MODEL, Entry, Outcome, State, check, resolve,
};

/// Fetches a model, or reads the bytes of the cached one, and prints where it lies.
pub(super) fn pull(model: &str) -> anyhow::Result<()> {
    let source = resolve(model)?;
    let _interruptible = interrupt::Pull::begin();
    let (path, outcome) = {
        let bar = Bar::new("pulling", model);
        catalogue::verify(&source, &bar)?
    };
    match outcome {
        Outcome::OwnFile | Outcome::Fetched => {}
        Outcome::Verified => eprintln!("{model} is cached, and its bytes are right"),
        Outcome::Replaced => {
            eprintln!("the cached bytes of {model} were wrong: it was fetched again")
        }
    }
    println!("{}", path.display());
    Ok(())
}

/// Prints the catalogue. With `verify` the bytes of cached models are read first.
pub(super) fn list(as_json: bool, verify: bool) -> anyhow::Result<()> {
    let mut states = CATALOGUE.each_ref().map(|entry| (entry, entry.state()));
    if verify {
        let _interruptible = interrupt::Pull::begin();
        for (entry, state) in &mut states {
            if *state != State::Absent {
                let bar = Bar::new("checking", entry.name);
                *state = check(entry, &bar)?;
            }
        }
    }
    match as_json {
        true => print_json(&states)?,
        false => print_table(&states),
    }
    let damaged = states.iter().filter(|(_, state)| *state == State::Damaged);
    let damaged: Vec<&str> = damaged.map(|(entry, _)| entry.name).collect();
    ensure!(
        !verify || damaged.is_empty(),
        "damaged: {} (`ponder pull NAME` fetches a model again)",
        damaged.join(", ")
    );
    Ok(())
}

fn print_json(states: &[(&Entry, State)]) -> anyhow::Result<()> {
    let rows: Vec<_> = (states.iter())
        .map(|(entry, state)| {
            json!({
                "name": entry.name,
                "cached": entry.is_cached(),
                "state": state.name(),
                "path": entry.path(),
                "bytes": entry.bytes,
                "context": entry.context,
                "chat": entry.is_chat,
                "embeddings_only": entry.is_encoder(),
                "licence": entry.licence,
                "sha256": entry.sha256,
                "default": entry.name == DEFAULT_MODEL,
            })
        })
        .collect();
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

fn print_table(states: &[(&Entry, State)]) {
    println!(
        "{:<22} {:>8} {:>8}  {:<6} {:<10} LICENCE",
        "NAME", "SIZE", "CONTEXT", "CHAT", "CACHED"
    );
    for (entry, state) in states {
        println!(
            "{:<22} {:>5} MB {:>8}  {:<6} {:<10} {}{}",
            entry.name,
            entry.bytes / 1_000_000,
            entry.context,
            match (entry.is_encoder(), entry.is_chat) {
                (true, _) => "vector",
                (false, true) => "yes",
                (false, false) => "no",
            },
            match state {
                State::Absent => "no",
                State::Verified => "yes",
                state => state.name(),
            },
            entry.licence,
            if entry.name == DEFAULT_MODEL {
                " (default)"
            } else {
                ""
            },
        );
    }
}
