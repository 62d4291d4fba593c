//! What `ponder chat --search` shows while a search runs, and after.

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::api::strategy_names;
use crate::trace::{TraceRecord, render};

/// The flag's help.
pub(super) fn help() -> String {
    let names: Vec<&str> = strategy_names().collect();
    let names = names.join(", ");
    format!("Search for the answer: a strategy ({names}) or a search object as JSON")
}

/// The `search` object for the flag: a strategy's name, or JSON.
pub(super) fn request(flag: &str, wants_tree: bool) -> anyhow::Result<Value> {
    let mut search: Value = if flag.trim_start().starts_with('{') {
        serde_json::from_str(flag).context("--search")?
    } else {
        json!({"strategy": flag})
    };
    search["stream_events"] = true.into();
    search["return_tree"] = wants_tree.into();
    Ok(search)
}

/// A line of progress; silent outside a terminal.
pub(super) struct SearchProgress {
    bar: ProgressBar,
    num_nodes: u64,
    num_tokens: u64,
    best: Option<f64>,
    tree: Option<TraceRecord>,
    summary: Option<Value>,
}

impl SearchProgress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self {
            bar,
            num_nodes: 0,
            num_tokens: 0,
            best: None,
            tree: None,
            summary: None,
        }
    }

    /// Takes what a chunk says of the search.
    pub(super) fn take(&mut self, chunk: &mut Value) {
        let event = &chunk["search_event"];
        match event["event"].as_str() {
            Some("spawn") => {
                self.num_nodes += 1;
                self.num_tokens = event["tokens"].as_u64().unwrap_or(self.num_tokens);
            }
            Some("best") => self.best = event["value"].as_f64(),
            _ => {}
        }
        if let Some(search) = chunk.get_mut("search") {
            let tree = search
                .as_object_mut()
                .and_then(|object| object.remove("tree"));
            self.tree = tree.and_then(|tree| serde_json::from_value(tree).ok());
            self.summary = Some(search.clone());
        }
        let best = self.best.map(|best| format!(", best {best:.2}"));
        let best = best.unwrap_or_default();
        self.bar.set_message(format!(
            "{} nodes, {} tokens{best}",
            self.num_nodes, self.num_tokens
        ));
    }

    /// The answer begins: the line goes.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// What the search was, for the end of the answer.
    pub(super) fn report(&self) -> Option<String> {
        let summary = self.summary.as_ref()?;
        let text = |key: &str| summary[key].as_str().unwrap_or("-").to_owned();
        let stopped = match summary["stopped"].as_str() {
            Some(reason) => format!(", ended by {reason}"),
            None => String::new(),
        };
        let mut report = format!(
            "{}: {} nodes, {} tokens, value {:.2}{stopped}",
            text("strategy"),
            summary["nodes"],
            summary["tokens"],
            summary["value"].as_f64().unwrap_or(0.0),
        );
        if let Some(tree) = &self.tree {
            report.push('\n');
            report.push_str(render(tree).trim_end());
        }
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_an_object_becomes_a_request() {
        let named = request("mcts", false).unwrap();
        assert_eq!(
            named,
            json!({"strategy": "mcts", "stream_events": true, "return_tree": false})
        );
        let object = request(r#"{"strategy": "beam", "n": 8}"#, true).unwrap();
        assert_eq!(
            (&object["n"], &object["return_tree"]),
            (&json!(8), &json!(true))
        );
        assert!(request("{", false).is_err());
    }
}
