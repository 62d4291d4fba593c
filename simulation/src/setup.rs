//! The engine of a run: every limit from the tightest that is legal to a comfortable one.

use ponder::engine::fake_model::{FakeModel, Fault};
use ponder::engine::{
    EngineConfig, Executor, LocalBlocks, ModelExecutor, Speculative, SpeculativeConfig,
};

use crate::random::Random;

pub const VOCAB_SIZE: usize = 24;

/// What a run's engine is.
#[derive(Debug, Clone)]
pub struct Setup {
    pub config: EngineConfig,
    pub has_draft_model: bool,
    /// Tokens that some of the model's layers see.
    window: Option<usize>,
    /// How often the draft model is wrong.
    draft_salt: u64,
}

impl Setup {
    pub fn random(random: &mut Random) -> Self {
        let max_model_len = random.between(8, 150);
        let block_size = *random.choose(&[1, 2, 3, 4, 5, 8, 16, 17, 32, 64, 96]);
        let max_num_seqs = *random.choose(&[1, 2, 3, 4, 8, 16]);
        let fitting = max_model_len.div_ceil(block_size);
        let num_blocks = match random.below(4) {
            // One sequence of full length and not a block more.
            0 => fitting,
            1 => fitting + random.between(1, 3),
            2 => fitting * random.between(1, max_num_seqs),
            _ => fitting * max_num_seqs,
        };
        let defaults = [
            Speculative::Off,
            Speculative::PromptLookup,
            Speculative::Swift,
        ];
        let mut setup = Self {
            config: EngineConfig {
                max_model_len,
                max_num_seqs,
                max_num_batched_tokens: max_num_seqs + random.below(40),
                block_size,
                num_blocks,
                local: None,
                enable_prefix_caching: !random.one_in(5),
                enable_chunked_prefill: !random.one_in(3),
                max_num_waiting_seqs: random.between(1, 40),
                is_shared: random.one_in(2),
                speculative: SpeculativeConfig {
                    default: *random.choose(&defaults),
                    num_speculative_tokens: random.between(1, 20),
                    prompt_lookup_min: random.between(1, 3),
                    // Costs are times, which differ from run to run.
                    ignores_costs: true,
                    ..SpeculativeConfig::default()
                },
            },
            has_draft_model: random.one_in(3),
            window: None,
            draft_salt: random.below(2) as u64,
        };
        if random.one_in(2) {
            setup.add_window(random);
        }
        setup
    }

    /// Gives the model layers with a sliding window, and these a pool of their own: of the fewest
    /// blocks that are legal, or of more.
    fn add_window(&mut self, random: &mut Random) {
        let window = random.between(1, 24);
        let fewest = self.config.fewest_local_blocks(window);
        let num_blocks = match random.below(3) {
            0 => fewest,
            1 => fewest + random.between(1, 3),
            _ => random.between(fewest, fewest.max(self.config.num_blocks)),
        };
        self.window = Some(window);
        self.config.local = Some(LocalBlocks { num_blocks, window });
    }

    /// The same model with room for everything, where nothing is shared, guessed or cut.
    pub fn alone(&self) -> Self {
        let config = EngineConfig {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            block_size: 16,
            num_blocks: 64 * self.config.max_model_len.div_ceil(16),
            local: None,
            enable_prefix_caching: false,
            enable_chunked_prefill: true,
            max_num_waiting_seqs: 100,
            is_shared: false,
            speculative: SpeculativeConfig::default(),
            ..self.config.clone()
        };
        Self {
            config,
            has_draft_model: false,
            window: self.window,
            draft_salt: 0,
        }
    }

    pub fn executor(&self) -> Box<dyn Executor> {
        let model = FakeModel::new(VOCAB_SIZE, Fault::None);
        let model = match self.window {
            Some(window) => model.windowed(window),
            None => model,
        };
        Box::new(ModelExecutor::new(Box::new(model)))
    }

    pub fn draft_executor(&self) -> Option<Box<dyn Executor>> {
        let salt = self.draft_salt;
        let model = || {
            FakeModel::new(VOCAB_SIZE, Fault::None)
                .salted(salt)
                .drafting()
        };
        let executor = || -> Box<dyn Executor> { Box::new(ModelExecutor::new(Box::new(model()))) };
        self.has_draft_model.then(executor)
    }
}
