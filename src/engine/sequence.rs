//! One continuation of one request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::adaptation::Adaptation;
use super::block_tables::BlockTables;
use super::constrained::Constrained;
use super::executor::SampleSpec;
use super::prefix_cache::PrefixHash;
use super::request::{
    ConstraintError, FinishReason, GenerateRequest, GroupId, PoolingParams, RequestId,
    SamplingParams, TokenBudget, TokenId, TokenLogprobs, TokenWatcher, Watch,
};
use super::rng;
use super::sampler::has_penalties;
use super::speculative::Draft;
use crate::model::{AdapterId, Steering};

/// Sequences that count as one when waiting sequences take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Request(RequestId),
    Search(GroupId),
}

/// Identifies a sequence for its whole life; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SeqId(pub u64);

/// What came of a sampled token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Appended {
    /// It is the sequence's newest token; `is_tapped`: the state that it was sampled from is asked for.
    Token { is_tapped: bool },
    /// The budget has no token left.
    OutOfBudget,
    /// The constraint does not allow it, though its mask did: it cannot go on, or it breaks its own
    /// rules.
    Refused(Option<ConstraintError>),
}

/// Tokens, their place in the KV cache, and what is needed to sample the next one.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub id: SeqId,
    pub request: RequestId,
    /// The choice's index within the request.
    pub index: usize,
    pub params: Arc<SamplingParams>,
    /// Key of the random generator beside the seed: the forks that led here.
    pub branch_path: Vec<u32>,
    /// Prompt, then output.
    pub token_ids: Vec<TokenId>,
    pub num_prompt_tokens: usize,
    /// Tokens whose KV is in the cache.
    pub num_computed_tokens: usize,
    /// Rows of the step that is being scheduled; 0 at any other time.
    pub num_scheduled_rows: usize,
    pub tables: BlockTables,
    /// Hash of each full, computed block; the next block's parent is the last.
    pub block_hashes: Vec<PrefixHash>,
    /// The client's, and the adapter's: KV of other weights is other KV.
    pub cache_salt: PrefixHash,
    pub adapter: Option<AdapterId>,
    pub adaptation: Option<Adaptation>,
    /// What its tokens are computed under, from `steering_from` on.
    pub steering: Option<Arc<Steering>>,
    pub steering_from: usize,
    /// Siblings to fork once the prompt is computed.
    pub num_pending_forks: usize,
    pub prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub pooling: Option<Arc<PoolingParams>>,
    /// Positions of `pooling` that were reported.
    pub num_pooled: usize,
    /// The sum of their hidden states, for [`PoolingParams::mean`].
    pub pooled_sum: Vec<f64>,
    /// Tokens found in the prefix cache when the sequence was first admitted.
    pub num_cached_tokens: Option<usize>,
    /// See [`super::request::GenerateRequest::priority`].
    pub priority: f32,
    /// What it shares its turn with: [`super::request::GenerateRequest::group`], or its request alone.
    pub group: Group,
    /// See [`super::request::GenerateRequest::tenant`].
    pub tenant: u64,
    pub deadline: Option<Instant>,
    pub watcher: Option<Box<dyn TokenWatcher>>,
    /// Away while a step's masks are made.
    pub constraint: Option<Constrained>,
    pub budget: Option<Arc<TokenBudget>>,
    /// What it is expected to go on with.
    pub draft: Draft,
    /// Why it ended before the tokens say so: its watcher or its budget.
    pub ended: Option<FinishReason>,
}

impl Sequence {
    /// The first continuation of a request: nothing computed, nothing drafted, of the client's own salt.
    pub(super) fn new(id: SeqId, request_id: RequestId, request: GenerateRequest) -> Self {
        Self {
            id,
            request: request_id,
            index: 0,
            params: Arc::new(request.params),
            branch_path: [request.branch_path.as_slice(), &[0]].concat(),
            num_prompt_tokens: request.prompt_token_ids.len(),
            token_ids: request.prompt_token_ids,
            num_computed_tokens: 0,
            num_scheduled_rows: 0,
            tables: BlockTables::default(),
            block_hashes: Vec::new(),
            cache_salt: request.cache_salt,
            adapter: request.adapter,
            adaptation: None,
            steering: request.steering,
            steering_from: request.steering_from,
            num_pending_forks: 0,
            prompt_logprobs: Vec::new(),
            pooling: request.pooling.map(Arc::new),
            num_pooled: 0,
            pooled_sum: Vec::new(),
            num_cached_tokens: None,
            priority: request.priority,
            group: (request.group).map_or(Group::Request(request_id), Group::Search),
            tenant: request.tenant,
            deadline: request.deadline,
            watcher: request.watcher,
            constraint: request.constraint.map(Constrained::new),
            budget: request.budget,
            draft: Draft::default(),
            ended: None,
        }
    }

    /// This continuation's sibling number `index`.
    pub(super) fn sibling(&self, id: SeqId, index: usize) -> Self {
        let mut sibling = self.clone();
        sibling.id = id;
        sibling.index = index;
        if let Some(last) = sibling.branch_path.last_mut() {
            *last = index as u32;
        }
        sibling
    }

    /// How the token after `drafted`, which follow the sequence's newest, is drawn from logits row `row`.
    pub(super) fn sample_spec(&self, row: u32, drafted: &[TokenId]) -> SampleSpec {
        let params = &self.params;
        let position = self.token_ids.len() + drafted.len();
        SampleSpec {
            row,
            after: None,
            uniform: match params.temperature > 0.0 {
                true => rng::uniform(params.seed, &self.branch_path, position),
                false => 0.0,
            },
            masks_ends: position - self.num_prompt_tokens < params.min_tokens,
            counts: match has_penalties(params) {
                true => self.token_counts(drafted),
                false => Vec::new(),
            },
            mask: None,
            num_logprobs: params.logprobs,
            hidden_state: params.hidden_state,
            num_alternatives: None,
            params: Arc::clone(params),
        }
    }

    /// [`Self::sample_spec`] for the sibling number `index`, which is still to be forked.
    pub(super) fn sibling_spec(&self, row: u32, index: usize) -> SampleSpec {
        let mut spec = self.sample_spec(row, &[]);
        if spec.params.temperature > 0.0 {
            let mut path = self.branch_path.clone();
            if let Some(last) = path.last_mut() {
                *last = index as u32;
            }
            spec.uniform = rng::uniform(spec.params.seed, &path, self.token_ids.len());
        }
        spec
    }

    /// The distinct tokens of the sequence and of `drafted`, and how often they were generated.
    fn token_counts(&self, drafted: &[TokenId]) -> Vec<(TokenId, u32)> {
        let (prompt, output) = self.token_ids.split_at(self.num_prompt_tokens);
        let mut counts: HashMap<TokenId, u32> = HashMap::new();
        for token_id in prompt {
            counts.entry(*token_id).or_default();
        }
        for token_id in output.iter().chain(drafted) {
            *counts.entry(*token_id).or_default() += 1;
        }
        counts.into_iter().collect()
    }

    /// Takes a sampled token, shows it to the watcher and says what came of it.
    pub(super) fn append(
        &mut self,
        token_id: TokenId,
        logprobs: Option<&TokenLogprobs>,
        max_model_len: usize,
    ) -> Appended {
        if self.budget.as_ref().is_some_and(|budget| !budget.take()) {
            self.ended = Some(FinishReason::Budget);
            return Appended::OutOfBudget;
        }
        if let Some(constraint) = &mut self.constraint
            && !constraint.accept(token_id)
        {
            return Appended::Refused(constraint.failure());
        }
        self.token_ids.push(token_id);
        let watcher = self.watcher.as_mut();
        let watch = watcher.map_or(Watch::Continue, |watcher| watcher.push(token_id, logprobs));
        if watch == Watch::End {
            self.ended = Some(FinishReason::Watcher);
        }
        let is_tapped = self.params.hidden_state
            && (watch == Watch::Tap || self.finish_reason(max_model_len).is_some());
        Appended::Token { is_tapped }
    }

    /// Whether its constraint takes a token that may be taken back.
    pub(super) fn accept(&mut self, token_id: TokenId) -> bool {
        let constraint = self.constraint.as_mut();
        constraint.is_none_or(|constraint| constraint.accept(token_id))
    }

    /// Takes back tokens that its constraint accepted.
    pub(super) fn rollback(&mut self, num_tokens: usize) {
        if let Some(constraint) = &mut self.constraint {
            constraint.rollback(num_tokens);
        }
    }

    pub(super) fn num_output_tokens(&self) -> usize {
        self.token_ids.len() - self.num_prompt_tokens
    }

    pub(super) fn num_uncomputed_tokens(&self) -> usize {
        self.token_ids.len() - self.num_computed_tokens
    }

    /// The token at an index of the sequence, its draft and the draft's leaves, one after the other, and its position.
    pub(super) fn token_at(&self, index: usize) -> (TokenId, usize) {
        let Some(offset) = index.checked_sub(self.token_ids.len()) else {
            return (self.token_ids[index], index);
        };
        match offset.checked_sub(self.draft.token_ids.len()) {
            None => (self.draft.token_ids[offset], index),
            Some(leaf) => {
                let leaf = self.draft.leaves[leaf];
                (leaf.token_id, self.token_ids.len() + leaf.depth)
            }
        }
    }

    /// All that is left to run is the last sampled token, and the one before it where that was a leaf of a draft.
    pub(super) fn is_decoding(&self) -> bool {
        self.num_uncomputed_tokens() <= 2 && self.num_output_tokens() > 0
    }

    /// Whether a phase of adaptation runs.
    pub(super) fn is_adapting(&self) -> bool {
        let adaptation = self.adaptation.as_ref();
        adaptation.is_some_and(|adaptation| adaptation.phase.is_some())
    }

    /// The first token that the phase which is due computes itself; `None` where none is, or where
    /// rows of those tokens say something that is asked for.
    pub(super) fn phase_start(&self) -> Option<usize> {
        let adaptation = self.adaptation.as_ref().filter(|_| !self.is_adapting())?;
        let num_tokens = self.token_ids.len();
        let start = adaptation.window_start(num_tokens);
        let is_wanted = self.wants_prompt_logprobs() || self.pooling.is_some();
        let is_due = adaptation.is_due(num_tokens, self.num_output_tokens());
        (is_due && !is_wanted && self.steering_from <= start).then_some(start)
    }

    /// Forgets all that is computed: its blocks (which are returned), its draft, its phase of adaptation.
    pub(super) fn drop_kv(&mut self) -> BlockTables {
        self.block_hashes.clear();
        self.num_computed_tokens = 0;
        self.draft.clear();
        self.draft.num_computed_tokens = 0;
        if let Some(adaptation) = &mut self.adaptation {
            adaptation.phase = None;
        }
        std::mem::take(&mut self.tables)
    }

    /// The same with nothing computed; its blocks stay whoever's they are.
    pub(super) fn without_kv(mut self) -> Self {
        self.drop_kv();
        self
    }

    /// Whether its keys and values are those of its tokens and its salt alone. What it changes as it goes never is.
    pub(super) fn has_shareable_kv(&self) -> bool {
        let steering = self.steering.as_ref();
        let is_one = self.adaptation.is_none() && self.steering_from == 0;
        is_one || !(self.is_adapting() || steering.is_some_and(|steering| steering.changes_kv()))
    }

    /// Tokens before those that its next rows see that it will still read: a phase of adaptation
    /// computes a window of tokens again.
    pub(super) fn num_more_kept_tokens(&self) -> usize {
        self.adaptation.as_ref().map_or(0, Adaptation::window)
    }

    /// What its next rows are computed under.
    pub(super) fn active_steering(&self) -> Option<&Arc<Steering>> {
        let is_steered = self.num_computed_tokens >= self.steering_from;
        self.steering.as_ref().filter(|_| is_steered)
    }

    /// Sequences that this one stands for: itself and the siblings it will fork.
    pub(super) fn width(&self) -> usize {
        1 + self.num_pending_forks
    }

    /// Whether logits of prompt rows are still wanted.
    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.params.prompt_logprobs.is_some() && self.prompt_logprobs.len() < self.num_prompt_tokens
    }

    /// Positions of a pooling request that are still to be reported.
    pub(super) fn pending_positions(&self) -> &[usize] {
        self.pooling
            .as_ref()
            .map_or(&[], |pooling| &pooling.positions[self.num_pooled..])
    }

    /// Adds the hidden state of one more position to the sum; gives the mean behind the last one.
    pub(super) fn pool_mean(&mut self, hidden_state: &[f32]) -> Option<Vec<f32>> {
        self.pooled_sum.resize(hidden_state.len(), 0.0);
        for (sum, value) in self.pooled_sum.iter_mut().zip(hidden_state) {
            *sum += f64::from(*value);
        }
        self.num_pooled += 1;
        let count = self.num_pooled as f64;
        let mean = || self.pooled_sum.iter().map(|sum| (sum / count) as f32);
        self.pending_positions()
            .is_empty()
            .then(|| mean().collect())
    }

    /// The hash that the first unregistered block continues.
    pub(super) fn parent_hash(&self) -> PrefixHash {
        self.block_hashes.last().copied().unwrap_or(self.cache_salt)
    }

    /// Why the sequence ends with its newest token, if it does.
    pub(super) fn finish_reason(&self, max_model_len: usize) -> Option<FinishReason> {
        if self.num_output_tokens() == 0 {
            return self.ended;
        }
        let token_id = *self.token_ids.last()?;
        let params = &self.params;
        // Under a constraint an end is drawn only where it counts: its masks leave out the others.
        let is_constrained = self.constraint.is_some();
        if is_constrained || self.num_output_tokens() >= params.min_tokens {
            let counts_eos = is_constrained || !params.ignore_eos;
            if counts_eos && params.eos_token_ids.contains(&token_id) {
                return Some(FinishReason::Eos);
            }
            if params.stop_token_ids.contains(&token_id) {
                return Some(FinishReason::StopToken(token_id));
            }
        }
        if self.ended.is_some() {
            return self.ended;
        }
        let is_full = self.token_ids.len() >= max_model_len;
        (self.num_output_tokens() >= params.max_tokens || is_full).then_some(FinishReason::Length)
    }
}
