//! `ponder bench soak`: mixed traffic on a server of its own that is killed and restarted
//! meanwhile, and what must hold all the same.

mod answers;
mod args;
mod checks;
mod child;
mod client;
mod dice;
mod folder;
mod ledger;
mod reader;
mod report;
mod request;
mod same;
mod sampler;
mod slope;
mod supervisor;
mod tally;
mod traffic;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::cli::chat::first_model;
use crate::cli::progress::Counter;
use crate::cli::setup;
use crate::cli::signals::wait_for_signal;
use checks::Quiet;
use child::{KEYS, SharedLog, locked, temporary};
use client::{Client, Shared};
use dice::Dice;
use folder::Folder;
use ledger::{Readings, settle};
use reader::{Reader, Reads};
use report::Report;
use sampler::{Sampler, Seen, sample};
use supervisor::{Ends, Life, Supervisor, up};
use tally::Tally;
use traffic::{Kind, chosen};

pub use args::BenchSoakArgs;

/// The share of the time in which servers are killed: the rest is one life, whose memory is judged.
const KILLING_SHARE: f64 = 0.5;
/// How long the last requests may take.
const LAST_ANSWERS: Duration = Duration::from_secs(60);
/// How long the server may take until nothing of the traffic is left. Threads that nobody needs any
/// more live for ten seconds.
const CALM: Duration = Duration::from_secs(30);
/// How long readers may take for what is left of the stream.
const LAST_ROWS: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// The last server ends within its own time, or is killed.
const LAST_END: Duration = Duration::from_secs(60);

pub(in crate::cli) fn run(args: &BenchSoakArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kinds = chosen(&args.only)?;
    // The server's own progress bar would not be seen.
    setup::locate(&args.model)?;
    let folder = Folder::new()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = soak(args, &kinds, folder.path()) => report,
            // Whatever is dropped now takes the server with it.
            () = wait_for_signal() => bail!("interrupted"),
        }
    });
    drop(runtime);
    let report = report?;
    report.print(args)?;
    let num_failed = report.num_failed();
    ensure!(num_failed == 0, "{num_failed} checks failed");
    Ok(())
}

/// What goes on beside the clients.
struct Watchers {
    lives: watch::Receiver<Life>,
    log: SharedLog,
    ends: Arc<Mutex<Ends>>,
    seen: Arc<Mutex<Seen>>,
    readers: Vec<(Reads, Arc<Mutex<Readings>>)>,
    stop: Option<oneshot::Sender<()>>,
    /// The supervisor's, the sampler's and the readers'.
    tasks: JoinSet<()>,
}

impl Watchers {
    fn start(args: &BenchSoakArgs, folder: &Path) -> Self {
        let (sender, lives) = watch::channel(Life::Down);
        let (stop, stopped) = oneshot::channel();
        let (log, ends, seen) = Default::default();
        let mut tasks = JoinSet::new();
        let supervisor = Supervisor {
            args: args.clone(),
            folder: folder.to_owned(),
            log: Arc::clone(&log),
            lives: sender,
            ends: Arc::clone(&ends),
            kills_for: args.duration().mul_f64(KILLING_SHARE),
        };
        tasks.spawn(supervisor.run(stopped));
        let sampler = Sampler {
            lives: lives.clone(),
            seen: Arc::clone(&seen),
        };
        tasks.spawn(sampler.run());
        let readers = [Reads::All, Reads::Own(0)].map(|reads| {
            let readings = Arc::<Mutex<Readings>>::default();
            let reader = Reader {
                reads,
                seed: args.seed,
                lives: lives.clone(),
                readings: Arc::clone(&readings),
            };
            tasks.spawn(reader.run());
            (reads, readings)
        });
        Self {
            lives,
            log,
            ends,
            seen,
            readers: readers.into(),
            stop: Some(stop),
            tasks,
        }
    }

    /// Ends the server, and with it everything that watches it.
    async fn end(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_END, ended).await;
        self.tasks.abort_all();
    }
}

async fn soak(
    args: &BenchSoakArgs,
    kinds: &[(Kind, u32)],
    folder: &Path,
) -> anyhow::Result<Report> {
    let mut watchers = Watchers::start(args, folder);
    let Some(first) = up(&mut watchers.lives).await else {
        let problems = locked(&watchers.ends).problems.join("\n");
        bail!("the server does not start: {problems}");
    };
    let url = format!("http://{}", first.address);
    let model = first_model(&url, Some(KEYS[0])).await;
    let shared = Arc::new(Shared {
        model: model.context("the server's model")?,
        has_prm: args.serves_with("--prm"),
        may_run_code: cfg!(target_os = "linux"),
        lives: watchers.lives.clone(),
        ledger: Mutex::default(),
        same: Mutex::default(),
        silence: tokio::sync::Mutex::default(),
    });
    let tallies = kinds.iter().map(|(kind, _)| Tally::new(kind.name()));
    let tallies = Arc::new(Mutex::new(tallies.collect::<Vec<Tally>>()));
    let num_stuck = traffic(args, kinds, &shared, &tallies).await;
    let quiet = calm(&mut watchers, num_stuck).await;
    read_the_rest(&watchers, &shared).await;
    watchers.end().await;
    let tallies = std::mem::take(&mut *locked(&tallies));
    Ok(conclude(args, folder, &watchers, &shared, tallies, &quiet))
}

/// Lets all clients run until the time is over; how many of them had no answer even then.
async fn traffic(
    args: &BenchSoakArgs,
    kinds: &[(Kind, u32)],
    shared: &Arc<Shared>,
    tallies: &Arc<Mutex<Vec<Tally>>>,
) -> usize {
    let end = Instant::now() + args.duration();
    let mut clients = JoinSet::new();
    for index in 0..args.clients {
        let dice = Dice::new(args.seed, index);
        let client = Client::new(Arc::clone(shared), dice, index as usize);
        clients.spawn(ask_until(
            end,
            client,
            kinds.to_owned(),
            Arc::clone(tallies),
        ));
    }
    let bar = Counter::new("soak", args.duration().as_secs());
    let ticking = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bar.advance();
        }
    };
    let all = async { while clients.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = ticking => {}
        () = tokio::time::sleep_until((end + LAST_ANSWERS).into()) => {}
    }
    let num_stuck = clients.len();
    clients.shutdown().await;
    num_stuck
}

async fn ask_until(
    end: Instant,
    mut client: Client,
    kinds: Vec<(Kind, u32)>,
    tallies: Arc<Mutex<Vec<Tally>>>,
) {
    let weights: Vec<u32> = kinds.iter().map(|(_, weight)| *weight).collect();
    while Instant::now() < end {
        let index = client.dice.weighted(&weights);
        // Waiting for a server is no part of what is measured.
        if client.address().await.is_err() {
            return;
        }
        let started = Instant::now();
        let result = kinds[index].0.run(&mut client).await;
        locked(&tallies)[index].count(result, started.elapsed());
    }
}

/// Waits until the server has nothing left to do, and as many descriptors and threads as it began
/// with; or until it has had its time.
async fn calm(watchers: &mut Watchers, num_stuck: usize) -> Quiet {
    let started = Instant::now();
    let http = reqwest::Client::new();
    let mut quiet = Quiet {
        num_stuck,
        ..Quiet::default()
    };
    let mut is_idle = false;
    while started.elapsed() < CALM {
        let Some(up) = up(&mut watchers.lives).await else {
            return quiet;
        };
        let of_life = |sample: &&sampler::Sample| sample.life == up.number;
        let at_start = locked(&watchers.seen).samples.iter().find(of_life).cloned();
        quiet.at_start = at_start.and_then(|sample| sample.process);
        if let Ok(sample) = sample(&http, &up, started).await {
            quiet.metrics = sample.metrics;
            quiet.process = sample.process;
            if !is_idle {
                quiet.seconds = started.elapsed().as_secs_f64();
            }
            is_idle = quiet.metrics.at_work().is_empty();
            let has_failed = |check: &checks::Check| check.verdict == checks::Verdict::Failed;
            if is_idle && !checks::given_back(&quiet).iter().any(has_failed) {
                return quiet;
            }
        }
        tokio::time::sleep(POLL).await;
    }
    quiet
}

/// Waits until the readers have what they are owed, or have had their time.
async fn read_the_rest(watchers: &Watchers, shared: &Shared) {
    let started = Instant::now();
    let is_missing = || {
        let ledger = locked(&shared.ledger);
        let mut readers = watchers.readers.iter();
        readers.any(|(reads, readings)| {
            settle(&ledger, &locked(readings), reads.scope()).num_missing > 0
        })
    };
    while started.elapsed() < LAST_ROWS && is_missing() {
        tokio::time::sleep(POLL).await;
    }
}

fn conclude(
    args: &BenchSoakArgs,
    folder: &Path,
    watchers: &Watchers,
    shared: &Shared,
    tallies: Vec<Tally>,
    quiet: &Quiet,
) -> Report {
    let ledger = locked(&shared.ledger);
    let mut checks = vec![checks::traffic(&tallies, quiet)];
    for (reads, readings) in &watchers.readers {
        let readings = locked(readings);
        let settled = settle(&ledger, &readings, reads.scope());
        checks.push(checks::delivery(&ledger, *reads, &settled, &readings));
    }
    let seen = locked(&watchers.seen);
    checks.push(checks::seeds(&locked(&shared.same)));
    checks.push(checks::health(&seen));
    checks.push(checks::engine(&seen));
    checks.push(checks::idle(quiet));
    checks.extend(checks::given_back(quiet));
    checks.push(checks::memory(&seen));
    let ends = locked(&watchers.ends);
    checks.push(checks::lives(&ends, args.kill_every().is_some()));
    checks.push(checks::leftovers(&temporary(folder)));
    checks.push(checks::log(&locked(&watchers.log)));
    Report {
        model: shared.model.clone(),
        tallies,
        checks,
        samples: seen.samples.clone(),
    }
}
