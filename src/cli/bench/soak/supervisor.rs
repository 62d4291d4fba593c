//! Ends the server at seeded times and starts it again over the same traces.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::args::BenchSoakArgs;
use super::child::{Server, SharedLog, locked};
use super::dice::Dice;

/// The share of ends that are SIGTERM; the others are SIGKILL.
const GENTLE_SHARE: f64 = 0.25;
/// The choices of kills, apart from those of all clients.
const STREAM: u64 = u64::MAX;
/// How often a server that does not start is started again.
const MAX_ATTEMPTS: usize = 3;
const RETRY: Duration = Duration::from_millis(500);
/// Servers that may end by themselves before the soak gives up.
const MAX_CRASHES: usize = 20;

/// Whom to ask. A life is over before the signal that ends it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    Down,
    Up(Up),
    /// Nothing comes any more.
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Up {
    /// Counts lives from 1.
    pub number: u64,
    pub pid: u32,
    pub address: String,
}

/// How lives began and ended.
#[derive(Debug, Default, Clone)]
pub(super) struct Ends {
    pub num_kills: u64,
    pub num_terminations: u64,
    /// From the signal to the end of the process, at most.
    pub slowest_termination: Duration,
    /// From the start of the process to its banner, at most.
    pub slowest_start: Duration,
    /// Servers that ended unasked, and how.
    pub crashes: Vec<String>,
    /// What else went wrong.
    pub problems: Vec<String>,
}

pub(super) struct Supervisor {
    pub args: BenchSoakArgs,
    pub folder: PathBuf,
    pub log: SharedLog,
    pub lives: watch::Sender<Life>,
    pub ends: Arc<Mutex<Ends>>,
    /// No kills so long after the first start.
    pub kills_for: Duration,
}

/// Why a life is over.
enum End {
    Kill,
    Crash(String),
    Stop,
}

impl Supervisor {
    /// Runs until it is stopped; the last server ends by SIGTERM.
    pub async fn run(self, mut stop: oneshot::Receiver<()>) {
        let mut dice = Dice::new(self.args.seed, STREAM);
        let (mut port, mut kills_until) = (0, None);
        for number in 1.. {
            let Some(mut server) = self.start(port).await else {
                break;
            };
            port = server.port();
            let last_kill = *kills_until.get_or_insert_with(|| Instant::now() + self.kills_for);
            let up = Up {
                number,
                pid: server.pid,
                address: server.address.clone(),
            };
            self.lives.send_replace(Life::Up(up));
            let next_kill = self.next_kill(number, last_kill, &mut dice);
            let end = tokio::select! {
                status = server.ended() => End::Crash(format!("{status:?}")),
                () = until(next_kill) => End::Kill,
                _ = &mut stop => End::Stop,
            };
            let is_over = matches!(end, End::Stop) || self.has_crashed_too_often();
            let life = if is_over { Life::Over } else { Life::Down };
            self.lives.send_replace(life);
            self.end(&mut server, end, &mut dice).await;
            if is_over {
                break;
            }
        }
        self.lives.send_replace(Life::Over);
    }

    fn has_crashed_too_often(&self) -> bool {
        locked(&self.ends).crashes.len() >= MAX_CRASHES
    }

    /// On the same port, or on another one if that is taken meanwhile.
    async fn start(&self, port: u16) -> Option<Server> {
        for attempt in 1..=MAX_ATTEMPTS {
            let port = if attempt < MAX_ATTEMPTS { port } else { 0 };
            let started = Server::start(&self.args, &self.folder, port, &self.log).await;
            match started {
                Ok(server) => {
                    let mut ends = locked(&self.ends);
                    ends.slowest_start = ends.slowest_start.max(server.started_in);
                    return Some(server);
                }
                Err(error) => locked(&self.ends).problems.push(format!("{error:#}")),
            }
            tokio::time::sleep(RETRY).await;
        }
        None
    }

    /// The first server is always killed, if any is.
    fn next_kill(&self, number: u64, last_kill: Instant, dice: &mut Dice) -> Option<Instant> {
        let mean = self.args.kill_every()?;
        let next = Instant::now() + dice.within(mean.mul_f64(0.5), mean.mul_f64(1.5));
        match number {
            1 => Some(next.min(last_kill)),
            _ => Some(next).filter(|next| *next <= last_kill),
        }
    }

    async fn end(&self, server: &mut Server, end: End, dice: &mut Dice) {
        let is_gentle = match end {
            End::Crash(status) => {
                let tail = locked(&self.log).tail();
                let text = format!("{status}; its last words:\n{tail}");
                return locked(&self.ends).crashes.push(text);
            }
            End::Kill => dice.chance(GENTLE_SHARE),
            End::Stop => true,
        };
        let ended = match is_gentle {
            true => server.terminate().await,
            false => server.kill().await.map(|()| Duration::ZERO),
        };
        let mut ends = locked(&self.ends);
        match ended {
            Ok(took) if is_gentle => {
                ends.num_terminations += 1;
                ends.slowest_termination = ends.slowest_termination.max(took);
            }
            Ok(_) => ends.num_kills += 1,
            Err(error) => ends.problems.push(format!("{error:#}")),
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a server; `None` when none comes any more.
pub(super) async fn up(lives: &mut watch::Receiver<Life>) -> Option<Up> {
    let life = lives.wait_for(|life| !matches!(life, Life::Down)).await;
    match &*life.ok()? {
        Life::Up(up) => Some(up.clone()),
        Life::Down | Life::Over => None,
    }
}

/// Whether a life is still the present one.
pub(super) fn is_alive(lives: &watch::Receiver<Life>, number: u64) -> bool {
    matches!(&*lives.borrow(), Life::Up(up) if up.number == number)
}
