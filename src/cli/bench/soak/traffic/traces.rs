//! Traces of one's own: read, graded, deleted. One client works on a trace at a time.

use serde_json::{Value, json};

use crate::cli::bench::soak::child::locked;
use crate::cli::bench::soak::client::Client;
use crate::cli::bench::soak::request::{Key, Request};
use crate::cli::bench::soak::tally::{Ended, ensure};

const FORMATS: [&str; 5] = ["sft", "step_values", "preferences", "linearised", "groups"];
/// Rows of a stream that does not follow.
const STREAM_LIMIT: usize = 20;

fn borrow(client: &mut Client) -> Option<String> {
    let mut ledger = locked(&client.shared.ledger);
    ledger.borrow(client.key, &mut client.dice)
}

/// Runs with a trace of the client's key, if there is one yet.
macro_rules! with_trace {
    ($client:ident, $work:ident) => {{
        let Some(id) = borrow($client) else {
            return Err(Ended::NotNow);
        };
        let result = $work($client, &id).await;
        locked(&$client.shared.ledger).give_back(&id);
        result
    }};
}

/// Lists, retrieves in a format, streams a few.
pub(super) async fn read(client: &mut Client) -> Result<(), Ended> {
    let list = Request::get("/v1/traces?limit=5&order=asc");
    let list = client.ask(&list).await?.json()?;
    ensure(list["data"].is_array(), || format!("no list: {list}"))?;
    let format = *client.dice.pick(&FORMATS);
    let path = format!("/v1/traces/stream?format={format}&limit={STREAM_LIMIT}");
    let request = client.temper(Request::get(path));
    let rows = client.ask(&request).await?;
    let is_row =
        |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|row| row["error"].is_null());
    let wrong = rows.text.lines().find(|line| !is_row(line));
    let is_cut = !client.is_same_life();
    ensure(wrong.is_none() || is_cut, || {
        format!("{format}: {wrong:?} is no row")
    })?;
    let num_rows = rows.text.lines().count();
    ensure(num_rows <= STREAM_LIMIT, || {
        format!("{num_rows} rows of {STREAM_LIMIT}")
    })?;
    with_trace!(client, retrieve)
}

async fn retrieve(client: &mut Client, id: &str) -> Result<(), Ended> {
    let path = format!("/v1/traces/{id}");
    let record = client.ask(&Request::get(&path)).await?.json()?;
    ensure(record["id"] == id, || format!("{id} is {record}"))?;
    let format = *client.dice.pick(&FORMATS);
    let rows = Request::get(format!("{path}?format={format}"));
    let rows = client.ask(&rows).await?.json()?;
    ensure(rows["data"].is_array(), || {
        format!("{id} as {format}: {rows}")
    })?;
    let foreign = Request::get(path).of(Key::Other).expecting(&[404]);
    client.ask(&foreign).await.map(|_| ())
}

pub(super) async fn outcome(client: &mut Client) -> Result<(), Ended> {
    with_trace!(client, grade)
}

/// Grades the chosen answer, if it is a whole one: the next revision.
async fn grade(client: &mut Client, id: &str) -> Result<(), Ended> {
    let path = format!("/v1/traces/{id}");
    let record = client.ask(&Request::get(&path)).await?.json()?;
    let chosen = record["chosen"][0].as_u64().unwrap_or(0) as usize;
    let end = record["nodes"][chosen]["end"].as_str();
    if !matches!(end, Some("stop" | "length")) {
        return Err(Ended::NotNow);
    }
    let outcome = client.dice.below(2);
    let body = json!({"outcome": outcome});
    let request = client.temper(Request::post(format!("{path}/outcome"), body));
    let told = client.ask(&request).await?.json()?;
    let revision = told["revision"].as_u64().unwrap_or(0);
    locked(&client.shared.ledger).revise(id, revision);
    let is_next = record["revision"].as_u64() == revision.checked_sub(1);
    ensure(
        is_next && told["outcome"].as_f64() == Some(outcome as f64),
        || {
            format!(
                "{id}: revision {} was graded {outcome}: {told}",
                record["revision"]
            )
        },
    )
}

pub(super) async fn delete(client: &mut Client) -> Result<(), Ended> {
    with_trace!(client, delete_it)
}

async fn delete_it(client: &mut Client, id: &str) -> Result<(), Ended> {
    let path = format!("/v1/traces/{id}");
    let foreign = Request::delete(&path).of(Key::Other).expecting(&[404]);
    client.ask(&foreign).await?;
    locked(&client.shared.ledger).will_delete(id);
    client
        .ask(&Request::delete(&path).expecting(&[204]))
        .await?;
    client
        .ask(&Request::get(path).expecting(&[404]))
        .await
        .map(|_| ())
}
