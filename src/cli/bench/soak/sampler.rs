//! Looks at the server once a second: its health, its metrics, its process.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::child::locked;
use super::supervisor::{Life, Up, is_alive, up};

const PERIOD: Duration = Duration::from_secs(1);
/// A probe without an answer by then has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
const KIB: u64 = 1024;

/// What the server says of itself; all of it at the time of the sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Metrics {
    pub num_running: f64,
    pub num_waiting: f64,
    /// Share of the KV cache's blocks that requests hold.
    pub blocks_in_use: f64,
    pub num_branches: f64,
    pub num_requests: f64,
    pub body_bytes: f64,
    pub num_connections: f64,
    pub num_trace_readers: f64,
    pub num_violations: f64,
    pub is_stalled: f64,
    pub num_damaged: f64,
    /// Traces that could not be kept.
    pub num_lost_traces: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let sum = |name: &str| sum(text, name, |_| true);
        Self {
            num_running: sum("ponder_num_requests_running"),
            num_waiting: sum("ponder_num_requests_waiting"),
            blocks_in_use: sum("ponder_kv_cache_usage_perc"),
            num_branches: sum("ponder_search_branches_running"),
            num_requests: sum("ponder_http_requests_in_progress"),
            body_bytes: sum("ponder_http_body_bytes"),
            num_connections: sum("ponder_http_connections"),
            num_trace_readers: sum("ponder_trace_readers"),
            num_violations: sum("ponder_invariant_violations_total"),
            is_stalled: sum("ponder_engine_stalled"),
            num_damaged: sum("ponder_trace_damaged_total"),
            num_lost_traces: self::sum(text, "ponder_traces_total", |labels| {
                !labels.contains("result=\"kept\"")
            }),
        }
    }

    /// What is still at work, in words; empty for a server that does nothing but serve readers.
    pub fn at_work(&self) -> Vec<String> {
        let counts = [
            ("running", self.num_running),
            ("waiting", self.num_waiting),
            ("share of blocks", self.blocks_in_use),
            ("branches", self.num_branches),
            ("requests", self.num_requests - self.num_trace_readers),
            ("bytes of bodies", self.body_bytes),
        ];
        let held = counts.iter().filter(|(_, count)| *count > 0.0);
        held.map(|(name, count)| format!("{count} {name}"))
            .collect()
    }
}

/// The values of a metric over all labels that are `wanted`.
fn sum(text: &str, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        wanted(labels).then(|| value.trim().parse::<f64>().ok())?
    });
    values.sum()
}

/// What the system says of a process. All are 0 where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Process {
    pub rss_bytes: u64,
    pub num_threads: u64,
    pub num_descriptors: u64,
    /// Programs of requests.
    pub num_children: u64,
}

impl Process {
    /// `None` where there is no `/proc`.
    pub fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        Some(Self {
            num_descriptors: descriptors.count() as u64,
            num_children: children(pid),
            ..Self::parse(&status)
        })
    }

    fn parse(status: &str) -> Self {
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        Self {
            rss_bytes: number("VmRSS:") * KIB,
            num_threads: number("Threads:"),
            ..Self::default()
        }
    }
}

/// How many processes have this one as their parent.
fn children(pid: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    let is_child = |entry: &std::fs::DirEntry| {
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Some(parent.trim() == pid.to_string())
    };
    let children = entries
        .flatten()
        .filter(|entry| is_child(entry) == Some(true));
    children.count() as u64
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// Since the soak's start.
    pub seconds: f64,
    /// Which life it is of.
    pub life: u64,
    pub health_ms: f64,
    pub metrics: Metrics,
    pub process: Option<Process>,
}

/// All that was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub samples: Vec<Sample>,
    /// Probes that were answered badly or not at all, though the server lived on.
    pub failures: Vec<String>,
}

pub(super) struct Sampler {
    pub lives: watch::Receiver<Life>,
    pub seen: Arc<Mutex<Seen>>,
}

impl Sampler {
    pub async fn run(mut self) {
        let started = Instant::now();
        let http = reqwest::Client::new();
        while let Some(up) = up(&mut self.lives).await {
            let next = Instant::now() + PERIOD;
            let sampled = sample(&http, &up, started).await;
            // Of a life that is over nothing counts.
            if is_alive(&self.lives, up.number) {
                let mut seen = locked(&self.seen);
                match sampled {
                    Ok(sample) => seen.samples.push(sample),
                    Err(error) => {
                        let seconds = started.elapsed().as_secs_f64();
                        seen.failures
                            .push(format!("after {seconds:.0} s: {error:#}"));
                    }
                }
            }
            tokio::time::sleep_until(next.into()).await;
        }
    }
}

/// One look at a server. Its probes come over a connection of their own each, so that none is late
/// for another's sake.
pub(super) async fn sample(
    http: &reqwest::Client,
    up: &Up,
    started: Instant,
) -> anyhow::Result<Sample> {
    let get = |path: &str| {
        let url = format!("http://{}{path}", up.address);
        let request = http.get(url).header("connection", "close");
        request.timeout(PROBE_TIMEOUT).send()
    };
    let asked = Instant::now();
    let response = get("/health").await?;
    let status = response.status();
    let text = response.text().await?;
    anyhow::ensure!(status.is_success(), "/health says {status}: {text}");
    let health_ms = asked.elapsed().as_secs_f64() * 1e3;
    let metrics = get("/metrics").await?.error_for_status()?.text().await?;
    Ok(Sample {
        seconds: started.elapsed().as_secs_f64(),
        life: up.number,
        health_ms,
        metrics: Metrics::parse(&metrics),
        process: Process::of(up.pid),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_sums_over_labels() {
        let text = "# TYPE ponder_num_requests_running gauge\n\
            ponder_num_requests_running{model_name=\"m\"} 2\n\
            ponder_num_requests_running_total{model_name=\"m\"} 9\n\
            ponder_kv_cache_usage_perc{model_name=\"m\"} 0.25\n\
            ponder_http_requests_in_progress 3\n\
            ponder_trace_readers{model_name=\"m\"} 3\n\
            ponder_traces_total{model_name=\"a} b\",result=\"kept\"} 5\n\
            ponder_traces_total{model_name=\"m\",result=\"late\"} 1\n\
            ponder_traces_total{model_name=\"m\",result=\"failed\"} 2\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.num_running, 2.0);
        assert_eq!(metrics.num_lost_traces, 3.0);
        assert_eq!(metrics.at_work(), ["2 running", "0.25 share of blocks"]);
        assert!(Metrics::default().at_work().is_empty());
    }

    #[test]
    fn processes_are_read() {
        let process = Process::parse("Name:\tponder\nVmRSS:\t  2048 kB\nThreads:\t7\n");
        assert_eq!((process.rss_bytes, process.num_threads), (2 << 20, 7));
        #[cfg(target_os = "linux")]
        {
            let own = Process::of(std::process::id()).unwrap();
            assert!(own.rss_bytes > 1 << 20 && own.num_threads > 0 && own.num_descriptors > 2);
        }
        assert_eq!(Process::of(u32::MAX), None);
    }
}
