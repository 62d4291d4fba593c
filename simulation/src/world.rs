//! One run: an engine, its clients, and time that passes when the run says so.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::engine::stepped::SteppedEngine;
use ponder::engine::{
    AdapterId, Backend, EngineError, EngineStats, ForkParams, GroupId, TokenBudget, TokenId,
};
use ponder::model::LoraAdapter;

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
        let engine = SteppedEngine::new(
            setup.executor(),
            setup.draft_executor(),
            setup.config.clone(),
        );
        let engine = engine.map_err(|error| error.to_string())?;
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
            return Err(format!("a search never ends: {:?}", search.ask));
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
        self.report.stats = self.engine.handle().stats();
        Ok(self.report)
    }

    async fn step(&mut self) -> Result<(), String> {
        let elapsed = Duration::from_millis(self.random.below(MOST_ELAPSED_MS) as u64);
        self.engine.turn(elapsed)?;
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

    fn act(&mut self) -> Result<(), String> {
        match self.random.below(24) {
            20..23 => return self.search(),
            23 => self.leave_search(),
            0..11 => self.submit(),
            11 | 12 => self.fork(),
            13 => self.hang_up(),
            14 => self.abort(),
            15 | 16 => self.load_adapter(),
            17 => self.unload_adapter(),
            18 => drop(self.loading.pop()),
            _ => {
                for _ in 0..self.random.between(2, 6) {
                    self.submit();
                }
            }
        }
        Ok(())
    }

    fn search(&mut self) -> Result<(), String> {
        let ask = Ask::random(&mut self.random, &self.setup, &self.bases)?;
        let running = ask.start(self.engine.handle())?;
        self.report.num_searches += 1;
        self.searches.push(Searching {
            ask,
            running: Some(running),
            outcome: None,
        });
        Ok(())
    }

    /// Dropping a search's future ends all that it asked of the engine.
    fn leave_search(&mut self) {
        if !self.searches.is_empty() {
            let at = self.random.below(self.searches.len());
            self.searches[at].running = None;
        }
    }

    fn submit(&mut self) {
        let random = &mut self.random;
        let adapter = match self.adapters.is_empty() || random.one_in(2) {
            true => None,
            false => Some(*random.choose(&self.adapters)),
        };
        let plan = Plan::random(random, &self.setup, &self.bases, adapter);
        let mut request = plan.request.clone();
        if random.one_in(4) {
            request.group = Some(*random.choose(&self.groups));
        }
        if random.one_in(6) && request.pooling.is_none() {
            request.budget = Some(Arc::clone(random.choose(&self.budgets)));
        }
        if random.one_in(6) {
            let left = Duration::from_millis(random.below(400) as u64);
            request.deadline = self.engine.clock().now().checked_add(left);
        }
        match self.engine.handle().submit(request) {
            Ok(stream) => {
                self.report.num_requests += 1;
                self.clients.push(Client::new(plan, stream));
            }
            Err(_) => self.report.num_refused += 1,
        }
    }

    /// A client that still reads, and one of its choices that has tokens and goes on.
    fn some_running(&mut self) -> Option<(usize, usize)> {
        let running: Vec<(usize, usize)> = (self.clients.iter().enumerate())
            .filter(|(_, client)| !client.is_over())
            .flat_map(|(at, client)| {
                let choices = client.answer.choices.iter().enumerate();
                let going = choices.filter(|(_, c)| c.reason.is_none() && !c.tokens.is_empty());
                going.map(move |(index, _)| (at, index))
            })
            .collect();
        (!running.is_empty()).then(|| *self.random.choose(&running))
    }

    fn fork(&mut self) {
        let Some((parent, index)) = self.some_running() else {
            return;
        };
        let is_adapted = |plan: &Plan| plan.request.adaptation.is_some();
        let plan = self.clients[parent].plan.as_ref();
        if plan.is_none_or(is_adapted) {
            return;
        }
        let Some(stream) = &self.clients[parent].stream else {
            return;
        };
        let source = stream.id();
        let template = Plan::random(&mut self.random, &self.setup, &self.bases, None);
        let mut params = template.request.params;
        // A fork's prompt is computed already.
        params.prompt_logprobs = None;
        params.max_tokens = params.max_tokens.max(1);
        let n = self
            .random
            .between(1, self.setup.config.max_num_seqs.min(3));
        let fork = ForkParams {
            n,
            params: params.clone(),
            deadline: None,
        };
        if let Ok(stream) = self.engine.handle().fork(source, index, fork) {
            self.report.num_forks += 1;
            let fork = Fork {
                parent,
                index,
                params,
            };
            self.clients.push(Client::forked(fork, stream, n));
        }
    }

    fn hang_up(&mut self) {
        if !self.clients.is_empty() {
            let at = self.random.below(self.clients.len());
            self.clients[at].stream = None;
        }
    }

    fn abort(&mut self) {
        let is_all = self.random.one_in(3);
        if let Some((at, index)) = self.some_running()
            && let Some(stream) = &self.clients[at].stream
        {
            let handle = self.engine.handle();
            match is_all {
                true => handle.abort(stream.id()),
                false => handle.abort_choice(stream.id(), index),
            }
        }
    }

    fn load_adapter(&mut self) {
        let handle = self.engine.handle().clone();
        let mut loading: Loading = Box::pin(async move {
            let adapter = LoraAdapter { layers: Vec::new() };
            handle.load_adapter(adapter).await
        });
        // The first poll sends the command.
        if (&mut loading).now_or_never().is_none() {
            self.loading.push(loading);
        }
    }

    fn unload_adapter(&mut self) {
        if !self.adapters.is_empty() {
            let at = self.random.below(self.adapters.len());
            let id = self.adapters.swap_remove(at);
            self.engine.handle().unload_adapter(id);
            for client in &mut self.clients {
                let adapter = client.plan.as_ref().and_then(|plan| plan.request.adapter);
                client.may_lack_adapter |= adapter == Some(id);
            }
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
