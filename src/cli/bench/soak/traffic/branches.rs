//! Branch sessions: whole ones, and ones that their client forgets.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::prompts;
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::{Answer, Key, Request};
use crate::cli::bench::soak::tally::{Ended, ensure};

/// A session's life without calls; forgotten ones are gone after that.
const LEASE_SECONDS: u64 = 20;

/// An open session. It ends with its server.
struct Session {
    id: String,
    life: u64,
}

async fn call(client: &mut Client, session: &Session, request: Request) -> Result<Answer, Ended> {
    let request = Request {
        path: format!("/v1/branches/{}{}", session.id, request.path),
        ..request
    };
    let answer = client.ask(&request).await;
    match client.life == session.life {
        true => answer,
        false => Err(Ended::Cut),
    }
}

async fn post(
    client: &mut Client,
    session: &Session,
    what: &str,
    body: Value,
) -> Result<Value, Ended> {
    let request = client.temper(Request::post(format!("/{what}"), body));
    call(client, session, request).await?.json()
}

/// Opens a session, grows and scores its tree, and ends it in one of several ways.
pub(super) async fn session(client: &mut Client) -> Result<(), Ended> {
    let body = json!({"model": client.shared.model, "messages": prompts::messages(client),
        "max_tokens": 32, "temperature": 0.9, "lease_seconds": LEASE_SECONDS});
    let opened = client.ask(&Request::post("/v1/branches", body)).await?;
    let opened = opened.json()?;
    let id = opened["id"].as_str().unwrap_or_default().to_owned();
    ensure(!id.is_empty(), || {
        format!("a session without an id: {opened}")
    })?;
    let life = client.life;
    let session = Session { id, life };
    let n = 1 + client.dice.below(3);
    let step = json!({"max_tokens": 1 + client.dice.below(8)});
    let body = json!({"nodes": [0], "n": n, "step": step});
    let grown = post(client, &session, "generate", body).await?;
    let nodes: Vec<Value> = grown["data"].as_array().cloned().unwrap_or_default();
    ensure(nodes.len() == n, || format!("{n} samples are {grown}"))?;
    let ids: BTreeSet<u64> = nodes
        .iter()
        .filter_map(|node| node["node"].as_u64())
        .collect();
    // Who names a node often gets one score of it.
    let times = if client.dice.chance(0.2) { 100 } else { 1 };
    let named: Vec<u64> = std::iter::repeat_n(&ids, times)
        .flatten()
        .copied()
        .collect();
    let body = json!({"nodes": named, "reward": {"kind": "likelihood"}});
    let scored = post(client, &session, "score", body).await?;
    let num_scores = scored["data"].as_array().map_or(0, Vec::len);
    ensure(num_scores == ids.len(), || {
        format!("{ids:?} are scored as {scored}")
    })?;
    let body = json!({"node": 0, "text": "The answer is"});
    let forked = post(client, &session, "fork", body).await?;
    let body = json!({"nodes": [forked["node"]], "n": 1});
    let grown = post(client, &session, "generate", body).await?;
    let last = grown["data"][0]["node"].clone();
    match client.dice.below(4) {
        // Its lease ends it.
        0 => Ok(()),
        1 => delete(client, &session).await,
        2 => {
            // Another key has no such session.
            let foreign = Request::post(
                "/score",
                json!({"nodes": [0], "reward": {"kind": "likelihood"}}),
            );
            let foreign = foreign.of(Key::Other).expecting(&[404]);
            call(client, &session, foreign).await?;
            delete(client, &session).await
        }
        _ => commit(client, &session, last).await,
    }
}

async fn commit(client: &mut Client, session: &Session, node: Value) -> Result<(), Ended> {
    let request = Request::post("/commit", json!({"node": node}));
    let answer = call(client, session, request).await?.json()?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    let is_right = text.is_some_and(|text| text.starts_with("The answer is"));
    ensure(is_right, || format!("committed {answer}"))?;
    let again = Request::post("/commit", json!({"node": 0})).expecting(&[404]);
    call(client, session, again).await.map(|_| ())
}

async fn delete(client: &mut Client, session: &Session) -> Result<(), Ended> {
    let request = Request::delete("").expecting(&[204]);
    call(client, session, request).await?;
    let again = Request::delete("").expecting(&[404]);
    call(client, session, again).await.map(|_| ())
}
