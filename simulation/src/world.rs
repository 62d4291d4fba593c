//! One run: an engine, its clients, and time that passes when the run says so.

mod acts;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::engine::stepped::SteppedEngine;
use ponder::engine::{AdapterId, Backend, EngineError, EngineStats, GroupId, TokenBudget, TokenId};

use crate::arrivals::{Arrivals, Interrupted};
use crate::client::{Client, Fork};
use crate::plan::Plan;
use crate::random::Random;
use crate::searching::{Ask, Outcome, Running};
use crate::setup::{Setup, VOCAB_SIZE};

/// Steps after the last request within which all must have ended.
const MOST_STEPS_TO_DRAIN: usize = 20_000;
const MOST_ELAPSED_MS: usize = 20;

type Loading = BoxFuture<'static, Result<AdapterId, EngineError>>;

/// What a run did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub stats: EngineStats,
    pub num_requests: usize,
    pub num_refused: usize,
    pub num_forks: usize,
    pub num_searches: usize,
    /// Requests that ended because their constraint failed.
    pub num_failed_constraints: usize,
}

/// Whoever made a call, and what it asked.
enum Calling {
    Request(Box<Plan>),
    Fork(Box<Fork>, usize),
    Abort,
}

/// A search that runs, until it ends or is left.
struct Searching {
    ask: Ask,
    running: Option<Running>,
    outcome: Option<Outcome>,
}

pub struct World {
    random: Random,
    setup: Setup,
    engine: SteppedEngine,
    arrivals: Arrivals,
    /// Clients whose call is made while the next step runs.
    calling: Vec<Calling>,
    clients: Vec<Client>,
    searches: Vec<Searching>,
    /// Texts that prompts begin with.
    bases: Vec<Vec<TokenId>>,
    adapters: Vec<AdapterId>,
    loading: Vec<Loading>,
    groups: Vec<GroupId>,
    budgets: Vec<Arc<TokenBudget>>,
    report: Report,
}

impl World {
    /// # Errors
    /// The engine does not start.
    pub fn new(seed: u64) -> Result<Self, String> {
        let mut random = Random::new(seed);
        let setup = Setup::random(&mut random);
        let arrivals = Arrivals::default();
        let executor = Interrupted {
            inner: setup.executor(),
            arrivals: arrivals.clone(),
        };
        let engine = SteppedEngine::new(
            Box::new(executor),
            setup.draft_executor(),
            setup.config.clone(),
        );
        let engine = engine.map_err(|error| error.to_string())?;
        arrivals.open(engine.handle().clone());
        let mut base = |_| -> Vec<TokenId> {
            let few = random.between(2, VOCAB_SIZE);
            let len = random.between(1, setup.config.max_model_len);
            (0..len).map(|_| random.below(few) as TokenId).collect()
        };
        let bases = (0..3).map(&mut base).collect();
        let groups = (0..3).map(|_| engine.handle().new_group()).collect();
        let budgets = (0..2).map(|_| Arc::new(TokenBudget::new(random.below(60) as u64)));
        Ok(Self {
            budgets: budgets.collect(),
            random,
            setup,
            engine,
            arrivals,
            calling: Vec::new(),
            clients: Vec::new(),
            searches: Vec::new(),
            bases,
            adapters: Vec::new(),
            loading: Vec::new(),
            groups,
            report: Report::default(),
        })
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub async fn run(mut self) -> Result<Report, String> {
        let num_steps = self.random.between(10, 200);
        for _ in 0..num_steps {
            if self.random.one_in(2) {
                self.act()?;
            }
            self.step().await?;
        }
        for _ in 0..MOST_STEPS_TO_DRAIN {
            let is_over = self.clients.iter().all(Client::is_over)
                && self.searches.iter().all(|search| search.running.is_none());
            if self.engine.is_idle() && is_over {
                break;
            }
            self.step().await?;
        }
        let mut searches = self.searches.iter();
        if let Some(search) = searches.find(|search| search.running.is_some()) {
            let (engine, ask) = (self.engine.describe(), &search.ask);
            return Err(format!("a search never ends: {engine}, {ask:?}"));
        }
        if !self.engine.is_idle() {
            return Err(format!(
                "it never comes to rest: {}",
                self.engine.describe()
            ));
        }
        self.clean_up()?;
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            client
                .check(&self.setup)
                .map_err(|wrong| format!("client {index}: {wrong}\n{:#?}", client.plan))?;
        }
        for (index, search) in self.searches.iter().enumerate() {
            let Some(outcome) = &search.outcome else {
                continue;
            };
            let alone = search.ask.alone(&self.setup).await?;
            if *outcome != Outcome::Overloaded && *outcome != alone {
                let ask = &search.ask;
                return Err(format!(
                    "search {index}: {outcome:?} is not what it gets alone: {alone:?}\n{ask:?}"
                ));
            }
        }
        let failed =
            |client: &&Client| matches!(client.answer.error, Some(EngineError::Constraint(_)));
        self.report.num_failed_constraints = self.clients.iter().filter(failed).count();
        self.report.stats = self.engine.handle().stats();
        Ok(self.report)
    }

    async fn step(&mut self) -> Result<(), String> {
        let elapsed = Duration::from_millis(self.random.below(MOST_ELAPSED_MS) as u64);
        self.engine.turn(elapsed)?;
        for (number, answer) in self.arrivals.settle() {
            let calling = std::mem::replace(&mut self.calling[number], Calling::Abort);
            self.answered(calling, answer);
        }
        self.calling.clear();
        tokio::time::advance(elapsed).await;
        for search in &mut self.searches {
            let outcome = search
                .running
                .as_mut()
                .and_then(|running| running.now_or_never());
            if outcome.is_some() {
                search.running = None;
                search.outcome = outcome;
            }
        }
        for index in 0..self.clients.len() {
            self.clients[index]
                .read()
                .map_err(|wrong| format!("client {index}: {wrong}"))?;
            self.settle_fork(index);
        }
        let adapters = &mut self.adapters;
        self.loading
            .retain_mut(|loading| match loading.now_or_never() {
                None => true,
                Some(loaded) => {
                    adapters.extend(loaded.ok());
                    false
                }
            });
        Ok(())
    }

    /// A fork's first event tells where it began.
    fn settle_fork(&mut self, index: usize) {
        let client = &self.clients[index];
        let (Some(fork), None, Some(num_tokens)) =
            (&client.fork, &client.plan, client.answer.num_prompt_tokens)
        else {
            return;
        };
        let parent = &self.clients[fork.parent];
        let Some(plan) = &parent.plan else {
            return;
        };
        let num_output = num_tokens - plan.request.prompt_token_ids.len();
        let output = parent.answer.choices[fork.index].token_ids();
        let n = client.answer.choices.len();
        // The parent may have been left since: then its newest tokens are unknown.
        if let Some(output) = output.get(..num_output) {
            let plan = plan.forked(fork.index, output, n, fork.params.clone());
            self.clients[index].plan = Some(plan);
        }
    }

    /// Gives everything back and sees that nothing is left.
    fn clean_up(&mut self) -> Result<(), String> {
        // Adapters that are on their way have nobody to wait for them any more.
        self.loading.clear();
        while !self.adapters.is_empty() {
            self.unload_adapter();
        }
        for _ in 0..3 {
            self.engine.turn(Duration::ZERO)?;
        }
        match self.engine.leftovers() {
            Some(left) => Err(format!("something is left: {left}")),
            None => Ok(()),
        }
    }
}
