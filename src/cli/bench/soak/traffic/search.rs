//! Searches of every strategy, and searches that go on.

use serde_json::{Value, json};

use super::plain::{CHAT, COMPLETIONS, ask, compare};
use super::{prompts, rewards};
use crate::cli::bench::soak::answers::Asked;
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::Request;
use crate::cli::bench::soak::tally::{Ended, ensure};

const MAX_TOKENS: u64 = 24;
/// Tokens that a search may take at most; many end before.
const MOST_TOKENS: usize = 160;

/// The fields of every small search.
fn small(strategy: &str) -> Value {
    json!({
        "strategy": strategy, "n": 4, "branch": 2, "max_depth": 3, "iterations": 3,
        "step": {"max_tokens": 8},
    })
}

fn asked(num_choices: usize, is_chat: bool) -> Asked {
    Asked {
        is_chat,
        is_search: true,
        num_choices,
        max_tokens: MAX_TOKENS,
        logprobs: false,
    }
}

pub(super) async fn search(client: &mut Client, strategy: &'static str) -> Result<(), Ended> {
    if client.dice.chance(0.3) {
        return same(client, strategy).await;
    }
    let mut search = small(strategy);
    search["reward"] = rewards::of_strategy(client, strategy);
    let dice = &mut client.dice;
    match dice.below(4) {
        0 => search["budget"] = json!({"tokens": 16 + dice.below(MOST_TOKENS)}),
        1 => search["budget"] = json!({"ms": 1 + dice.below(1500)}),
        2 => search["budget"] = json!({"scorer_calls": 1 + dice.below(6)}),
        _ => {}
    }
    search["return_tree"] = dice.chance(0.2).into();
    let is_kept = dice.chance(0.8);
    search["trace"] = is_kept.into();
    let n = 1 + dice.below(2);
    let is_chat = dice.chance(0.8);
    let is_streamed = dice.chance(0.4);
    let mut body = json!({"model": client.shared.model, "max_tokens": MAX_TOKENS, "n": n,
        "temperature": 0.9, "metadata": prompts::metadata(client)});
    if is_streamed {
        search["stream_events"] = client.dice.chance(0.5).into();
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
    }
    body["search"] = search;
    let path = match is_chat {
        true => {
            body["messages"] = prompts::messages(client);
            CHAT
        }
        false => {
            body["prompt"] = prompts::question(client).into();
            COMPLETIONS
        }
    };
    ask(client, path, body, asked(n, is_chat)).await.map(|_| ())
}

/// A search whose answer is the same every time, unless a limit of time cut it.
async fn same(client: &mut Client, strategy: &'static str) -> Result<(), Ended> {
    let (name, messages, seed) = prompts::seeded(client, strategy);
    let mut search = small(strategy);
    search["reward"] = json!({"kind": "likelihood"});
    let body = json!({"model": client.shared.model, "max_tokens": MAX_TOKENS, "temperature": 0.9,
        "messages": messages, "seed": seed, "search": search,
        "metadata": prompts::metadata(client)});
    let read = ask(client, CHAT, body, asked(1, true)).await?;
    let is_whole = read.stopped.as_deref() != Some("budget");
    compare(client, is_whole.then_some(name), &read)
}

/// A search that goes on with its own trace is the search that had the larger budget from the start.
pub(super) async fn resume(client: &mut Client) -> Result<(), Ended> {
    let mut body = json!({"model": client.shared.model, "max_tokens": MAX_TOKENS, "temperature": 0.9,
        "messages": prompts::messages(client), "seed": 3, "metadata": prompts::metadata(client),
        "search": {"strategy": "best_of_n", "n": 3, "reward": {"kind": "likelihood"},
            "budget": {"tokens": 24}}});
    let first = client.ask(&Request::post(CHAT, body.clone())).await?;
    let first = first.json()?;
    let id = first["search"]["trace_id"].as_str();
    // Its trace came too late.
    let Some(id) = id else {
        return Err(Ended::NotNow);
    };
    body["search"]["budget"] = json!({"tokens": 200});
    let alone = client.ask(&Request::post(CHAT, body.clone())).await?;
    body["search"]["resume"] = id.into();
    let resumed = client.ask(&Request::post(CHAT, body)).await?;
    let (alone, resumed) = (alone.json()?, resumed.json()?);
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let tokens = |answer: &Value| answer["search"]["tokens"].clone();
    let is_same = text(&alone) == text(&resumed) && tokens(&alone) == tokens(&resumed);
    ensure(is_same, || {
        format!("{resumed} goes on with {first}, but is not {alone}")
    })
}
