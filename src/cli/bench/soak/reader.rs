//! Readers of the stream of traces that come back after every end of the server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

use super::child::{KEYS, TRACE_KEY, locked};
use super::dice::Dice;
use super::ledger::{Readings, Row};
use super::supervisor::{Life, is_alive, up};

/// The streams that readers follow, apart from those of clients.
const STREAM: u64 = u64::MAX - 1;
/// A reader also leaves by itself, now and then.
const SHORTEST_STAY: Duration = Duration::from_secs(3);
const LONGEST_STAY: Duration = Duration::from_secs(40);
/// Before it comes back to a server that refused it.
const PAUSE: Duration = Duration::from_millis(200);

/// How a reader asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// The traces of all keys, as JSON lines.
    All,
    /// Those of one key, as server-sent events.
    Own(usize),
}

impl Reads {
    pub fn scope(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Own(key) => Some(key),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all traces, once (JSON lines)",
            Self::Own(_) => "one key's traces, once (events)",
        }
    }
}

pub(super) struct Reader {
    pub reads: Reads,
    pub seed: u64,
    pub lives: watch::Receiver<Life>,
    pub readings: Arc<Mutex<Readings>>,
}

/// Why a connection ended.
enum Left {
    /// By the reader, or by the server's end.
    Fine,
    /// By the server, which is still there.
    Refused(String),
}

impl Reader {
    /// Follows until nothing comes any more.
    pub async fn run(mut self) {
        let mut dice = Dice::new(
            self.seed,
            STREAM - self.reads.scope().map_or(0, |key| 1 + key as u64),
        );
        while let Some(up) = up(&mut self.lives).await {
            let stay = dice.within(SHORTEST_STAY, LONGEST_STAY);
            let followed = tokio::time::timeout(stay, self.follow(&up.address)).await;
            locked(&self.readings).num_connections += 1;
            let is_same_life = is_alive(&self.lives, up.number);
            match followed {
                Err(_) | Ok(Ok(Left::Fine)) => {}
                Ok(_) if !is_same_life => {}
                Ok(Ok(Left::Refused(why))) => locked(&self.readings).problem(why),
                Ok(Err(error)) => locked(&self.readings).problem(format!("{error:?}")),
            }
            if !is_same_life {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Reads one connection to its end, from where the last one ended.
    async fn follow(&self, address: &str) -> reqwest::Result<Left> {
        let cursor = locked(&self.readings).cursor();
        let mut url = format!("http://{address}/v1/traces/stream?format=tree&follow=true");
        let http = reqwest::Client::new();
        let request = match self.reads {
            Reads::All => {
                if let Some(cursor) = cursor {
                    url = format!("{url}&after={cursor}");
                }
                http.get(url).bearer_auth(TRACE_KEY)
            }
            Reads::Own(key) => {
                let request = http.get(url).bearer_auth(KEYS[key]);
                let request = request.header("accept", "text/event-stream");
                match cursor {
                    Some(cursor) => request.header("last-event-id", cursor),
                    None => request,
                }
            }
        };
        let response = request.send().await?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await?;
            return Ok(match status.as_u16() {
                503 => Left::Fine,
                _ => Left::Refused(format!("{status}: {text}")),
            });
        }
        let mut chunks = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk?);
            self.take_lines(&mut buffer);
        }
        Ok(Left::Refused("a stream that follows has ended".to_owned()))
    }

    /// Takes the whole lines out of what was received.
    fn take_lines(&self, buffer: &mut Vec<u8>) {
        let Some(end) = buffer.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let whole: Vec<u8> = buffer.drain(..=end).collect();
        let mut readings = locked(&self.readings);
        for line in whole.split(|byte| *byte == b'\n') {
            match row(self.reads, line) {
                None => {}
                Some(Ok(row)) => {
                    if let Some(key) = self.reads.scope()
                        && !row.tags.contains(&format!("key:{key}"))
                    {
                        readings.problem(format!("{} has the tags {:?}", row.id, row.tags));
                    }
                    readings.take(row);
                }
                Some(Err(error)) => {
                    let text: String = String::from_utf8_lossy(line).chars().take(300).collect();
                    readings.problem(format!("no row ({error}): {text}"));
                }
            }
        }
    }
}

/// The row of a line; `None` for lines that have none.
fn row(reads: Reads, line: &[u8]) -> Option<serde_json::Result<Row>> {
    let json = match reads {
        Reads::All => line,
        Reads::Own(_) => line.strip_prefix(b"data: ")?,
    };
    let is_empty = json.iter().all(u8::is_ascii_whitespace);
    (!is_empty).then(|| serde_json::from_slice(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_lines_and_as_events() {
        let json = br#"{"cursor":"7","schema":"x","id":"trace-1","revision":2,"tags":["key:0"]}"#;
        let event = [b"data: ".as_slice(), json].concat();
        for (reads, line) in [(Reads::All, json.to_vec()), (Reads::Own(0), event)] {
            let row = row(reads, &line).unwrap().unwrap();
            assert_eq!((row.cursor.as_str(), row.revision), ("7", 2));
            assert_eq!(row.tags, ["key:0"]);
        }
        assert!(row(Reads::All, b"").is_none());
        assert!(row(Reads::Own(0), b": wait").is_none());
        assert!(row(Reads::Own(0), b"id: 7").is_none());
        assert!(row(Reads::All, b"{\"error\": {}}").unwrap().is_err());
    }

    #[test]
    fn half_a_line_waits_for_its_end() {
        let (_, lives) = watch::channel(Life::Down);
        let readings = Arc::<Mutex<Readings>>::default();
        let reader = Reader {
            reads: Reads::Own(0),
            seed: 1,
            lives,
            readings: Arc::clone(&readings),
        };
        let line = |cursor: u64, key: u64| {
            format!(
                "data: {{\"cursor\":\"{cursor}\",\"id\":\"t{cursor}\",\"revision\":1,\"tags\":[\"key:{key}\"]}}\n\n"
            )
        };
        let text = [line(1, 0), line(2, 1), line(3, 0)].concat();
        let mut buffer = Vec::new();
        for byte in text.bytes() {
            buffer.push(byte);
            reader.take_lines(&mut buffer);
        }
        let readings = locked(&readings);
        assert_eq!((readings.num_rows(), readings.num_problems), (3, 1));
        assert_eq!(readings.cursor().as_deref(), Some("3"));
    }
}
