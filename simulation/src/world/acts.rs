//! What clients do in a run.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use ponder::engine::{Backend, EngineError, ForkParams, RequestStream};
use ponder::model::LoraAdapter;

use super::{Calling, Loading, Searching, World};
use crate::arrivals::Call;
use crate::client::{Client, Fork};
use crate::plan::Plan;
use crate::searching::Ask;

impl World {
    pub(super) fn act(&mut self) -> Result<(), String> {
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
        let call = Call::Submit(Box::new(request));
        self.call(call, Calling::Request(Box::new(plan)));
    }

    /// Makes a call now, or while the next step runs.
    fn call(&mut self, call: Call, calling: Calling) {
        if self.random.one_in(2) {
            self.arrivals.during_next_step(self.calling.len(), call);
            self.calling.push(calling);
        } else if let Some(answer) = call.make(self.engine.handle()) {
            self.answered(calling, answer);
        }
    }

    pub(super) fn answered(
        &mut self,
        calling: Calling,
        answer: Result<RequestStream, EngineError>,
    ) {
        let Ok(stream) = answer else {
            self.report.num_refused += 1;
            return;
        };
        match calling {
            Calling::Request(plan) => {
                self.report.num_requests += 1;
                let mut client = Client::new(*plan, stream);
                let adapter = client.plan.as_ref().and_then(|plan| plan.request.adapter);
                // It may have been given up since the request was made.
                client.may_lack_adapter = adapter.is_some_and(|id| !self.adapters.contains(&id));
                self.clients.push(client);
            }
            Calling::Fork(fork, n) => {
                self.report.num_forks += 1;
                self.clients.push(Client::forked(*fork, stream, n));
            }
            Calling::Abort => {}
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
        let call = Call::Fork {
            source,
            index,
            fork,
        };
        let fork = Fork {
            parent,
            index,
            params,
        };
        self.call(call, Calling::Fork(Box::new(fork), n));
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
            let id = stream.id();
            let call = match is_all {
                true => Call::Abort(id),
                false => Call::AbortChoice(id, index),
            };
            self.call(call, Calling::Abort);
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

    pub(super) fn unload_adapter(&mut self) {
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
}
