//! `ponder models` and `ponder pull`.

use serde_json::json;

use super::setup;
use crate::model::catalogue::{CATALOGUE, DEFAULT_MODEL};

pub(super) fn pull(model: &str) -> anyhow::Result<()> {
    let path = setup::locate(model)?;
    println!("{}", path.display());
    Ok(())
}

pub(super) fn list(as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let rows: Vec<_> = CATALOGUE
            .iter()
            .map(|entry| {
                json!({
                    "name": entry.name,
                    "cached": entry.is_cached(),
                    "path": entry.path(),
                    "bytes": entry.bytes,
                    "context": entry.context,
                    "chat": entry.is_chat,
                    "embeddings_only": entry.is_encoder(),
                    "licence": entry.licence,
                    "sha256": entry.sha256,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "{:<22} {:>8} {:>8}  {:<6} {:<6} LICENCE",
        "NAME", "SIZE", "CONTEXT", "CHAT", "CACHED"
    );
    for entry in &CATALOGUE {
        println!(
            "{:<22} {:>5} MB {:>8}  {:<6} {:<6} {}{}",
            entry.name,
            entry.bytes / 1_000_000,
            entry.context,
            match (entry.is_encoder(), entry.is_chat) {
                (true, _) => "vector",
                (false, true) => "yes",
                (false, false) => "no",
            },
            if entry.is_cached() { "yes" } else { "no" },
            entry.licence,
            if entry.name == DEFAULT_MODEL {
                " (default)"
            } else {
                ""
            },
        );
    }
    Ok(())
}
