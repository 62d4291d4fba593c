//! Steps that measure the model, over blocks that no text lies in.

use super::*;
use crate::engine::speculative::skip_search::MATCHNESS_WINDOW;

/// Rows of the largest step whose time is taken.
const MOST_TIMED_ROWS: usize = 64;

/// Blocks of the KV cache beside those of sequences: as many as a measured step writes to, or as the tokens that a skip set is tried
/// on touch when they begin anywhere in a block.
pub(in crate::engine) fn num_scratch_blocks(block_size: usize) -> usize {
    let timed = MOST_TIMED_ROWS.div_ceil(block_size);
    timed.max((MATCHNESS_WINDOW + block_size).div_ceil(block_size))
}

impl Runner {
    /// How many of the newest `window` tokens of a sequence the model without `skip` predicts; at most [`MATCHNESS_WINDOW`], and the
    /// sequence has that many.
    pub(in crate::engine) fn matchness(
        &mut self,
        sequence: &Sequence,
        window: usize,
        skip: &Arc<SkipSet>,
    ) -> Result<f64, ExecutorError> {
        let end = sequence.num_computed_tokens + 1;
        let first_compared = end - 1 - window.min(MATCHNESS_WINDOW);
        let start = first_compared / self.block_size * self.block_size;
        let num_own = (end - start).div_ceil(self.block_size);
        debug_assert!(num_own <= num_scratch_blocks(self.block_size));
        let num_before = start / self.block_size;
        let table = |all: &[BlockId], first_own: usize| -> Vec<BlockId> {
            let own = (first_own..first_own + num_own).map(|block| block as BlockId);
            all[..num_before].iter().copied().chain(own).collect()
        };
        let block_table = table(&sequence.tables.blocks, self.first_scratch_block);
        let first_local = self.first_local_scratch_block;
        let local = first_local.map(|first| table(&sequence.tables.local, first));
        let window = Window {
            token_ids: &sequence.token_ids[..end],
            start,
            first_compared,
            block_table: &block_table,
            local_table: local.as_deref(),
            block_size: self.block_size,
        };
        matchness(&mut *self.executor, &window, Some(skip))
    }

    /// How long a step of `rows` decoded tokens takes; `None` when it fails or there is no room.
    pub(in crate::engine) fn time_rows(
        &mut self,
        rows: usize,
        skip: Option<&Arc<SkipSet>>,
    ) -> Option<Duration> {
        if rows > self.max_model_len.min(MOST_TIMED_ROWS) {
            return None;
        }
        let scratch = Scratch {
            first_block: self.first_scratch_block,
            first_local_block: self.first_local_scratch_block,
            block_size: self.block_size,
        };
        time_rows(&mut *self.executor, rows, skip, scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::block_tables::BlockTables;
    use crate::engine::executor::ModelExecutor;
    use crate::engine::fake_model::{FakeModel, Fault};
    use crate::engine::request::{GenerateRequest, RequestId, SamplingParams};
    use crate::engine::speculative::SpeculativeConfig;

    /// A skip set is tried on the newest tokens, which begin anywhere in a block; steps of every measured size are timed. The fake
    /// model has no more blocks than it is given, and knows what was never written.
    #[test]
    fn measured_steps_stay_in_their_blocks_at_every_block_size() {
        for block_size in [1, 7, 16, 32, 48, 64, 96, 128, 256] {
            let most = 2 * block_size + MATCHNESS_WINDOW + 2;
            let config = EngineConfig {
                max_model_len: most + 1,
                max_num_seqs: 1,
                max_num_batched_tokens: most,
                block_size,
                num_blocks: most.div_ceil(block_size),
                local: None,
                enable_prefix_caching: true,
                enable_chunked_prefill: true,
                max_num_waiting_seqs: 1,
                is_shared: false,
                speculative: SpeculativeConfig::default(),
            };
            let model = FakeModel::new(50, Fault::None);
            let mut executor = ModelExecutor::new(Box::new(model));
            let num_blocks = config.num_blocks + num_scratch_blocks(block_size);
            executor.allocate(num_blocks, block_size, most).unwrap();
            let mut runner = Runner::new(Box::new(executor), &config);
            let skip = Arc::new(SkipSet::default());
            for num_computed in MATCHNESS_WINDOW + 1..most {
                let prompt = (0..=num_computed as u32).map(|id| id % 50).collect();
                let request = GenerateRequest::new(prompt, SamplingParams::default());
                let mut sequences = Sequences::default();
                let seq = sequences.new_id();
                sequences.push_running(Sequence {
                    num_computed_tokens: num_computed,
                    tables: BlockTables {
                        blocks: (0..config.num_blocks as BlockId).collect(),
                        local: Vec::new(),
                    },
                    ..Sequence::new(seq, RequestId(0), request)
                });
                let rows = DraftRows {
                    seq,
                    start: 0,
                    end: num_computed,
                };
                runner.follow(&[rows], &sequences).unwrap();
                let score = runner.matchness(&sequences[seq], MATCHNESS_WINDOW, &skip);
                assert!((0.0..=1.0).contains(&score.unwrap()), "{block_size}");
            }
            for rows in [1, 17, 32, MOST_TIMED_ROWS] {
                let is_timed = runner.time_rows(rows, None).is_some();
                assert_eq!(is_timed, rows <= config.max_model_len, "{block_size}");
            }
        }
    }
}
