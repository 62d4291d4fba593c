//! A model for tests whose logits are a hash of the tokens read back through the block table: a
//! wrong table, a missing copy or a stale cached block changes its answers, and so does a slot that
//! was written under another adapter or by a draft. Where it has a sliding window, each row also
//! reads the window back through the local block table, and says so where that holds anything else.

use std::collections::BTreeSet;

use crate::model::{
    Adaptable, AdaptationPhase, AdapterId, AdapterStore, BlockId, CausalLm, ForwardBatch,
    ForwardError, LocalCache, LocalKv, LoraAdapter, ModelInfo, NO_BLOCK, Probe, SkipCosts, SkipSet,
    SkipsSubLayers, Steering,
};

/// What happens at a step, for tests of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// `forward` returns an error when this token is in the batch.
    ErrorOn(u32),
    /// `forward` returns an error after which nothing works when this token is in the batch.
    LoseOn(u32),
    /// `forward` panics when this token is in the batch.
    PanicOn(u32),
    /// All logits are NaN when this token is the row's.
    NanOn(u32),
}

/// What a slot of the KV cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    token_id: u32,
    /// Under what the token was computed.
    by: u64,
    /// Without some sub-layers.
    is_draft: bool,
}

/// See the module's documentation.
pub struct FakeModel {
    info: ModelInfo,
    block_size: usize,
    slots: Vec<Option<Slot>>,
    /// Of layers with a sliding window, once they have a pool of their own.
    local_slots: Option<Vec<Option<Slot>>>,
    fault: Fault,
    salt: u64,
    reads_anything: bool,
    adapters: BTreeSet<AdapterId>,
    /// Of the last step's logits.
    hidden: Vec<f32>,
}

impl FakeModel {
    /// A model that says other things.
    pub fn salted(self, salt: u64) -> Self {
        Self { salt, ..self }
    }

    /// A model that drafts: what it has not computed it reads as it is, and is wrong then.
    pub fn drafting(self) -> Self {
        Self {
            reads_anything: true,
            ..self
        }
    }

    /// A model some of whose layers see so many tokens.
    pub fn windowed(mut self, window: usize) -> Self {
        let kv_bytes_per_token = self.info.kv_bytes_per_token / 2;
        self.info.local = Some(LocalKv {
            window,
            kv_bytes_per_token,
        });
        self
    }

    pub fn new(vocab_size: usize, fault: Fault) -> Self {
        Self {
            info: ModelInfo {
                vocab_size,
                max_position_embeddings: 4096,
                num_layers: 4,
                hidden_size: 1,
                kv_bytes_per_token: 4,
                weight_bytes: 0,
                architecture: "fake".to_owned(),
                num_experts: None,
                is_differentiable: false,
                local: None,
            },
            block_size: 0,
            slots: Vec::new(),
            local_slots: None,
            fault,
            salt: 0,
            reads_anything: false,
            adapters: BTreeSet::new(),
            hidden: Vec::new(),
        }
    }

    /// What tells the keys and values of a sequence of this adapter apart.
    fn by(&self, adapter: Option<AdapterId>) -> Result<u64, ForwardError> {
        match adapter {
            Some(id) if !self.adapters.contains(&id) => {
                let message = format!("adapter {} is not loaded", id.0);
                Err(ForwardError::Internal(message))
            }
            Some(id) => Ok(mix(self.salt, u64::from(id.0) + 7)),
            None => Ok(self.salt),
        }
    }

    fn write(&mut self, batch: &ForwardBatch<'_>) -> Result<(), ForwardError> {
        let mut local_rows = batch.local.map(|local| local.slot_mapping.iter());
        let mut rows = batch.token_ids.iter().zip(batch.slot_mapping);
        for (sequence, adapter) in batch.sequences.iter().zip(batch.adapters) {
            let by = self.by(*adapter)?;
            for (token_id, slot) in rows.by_ref().take(sequence.num_rows) {
                match self.fault {
                    Fault::ErrorOn(bad) if bad == *token_id => {
                        return Err(ForwardError::Internal("the fake model fails".to_owned()));
                    }
                    Fault::LoseOn(bad) if bad == *token_id => {
                        return Err(ForwardError::DeviceLost("the fake device".to_owned()));
                    }
                    Fault::PanicOn(bad) => assert_ne!(bad, *token_id, "the fake model panics"),
                    _ => {}
                }
                let written = Some(Slot {
                    token_id: *token_id,
                    by,
                    is_draft: batch.skip.is_some(),
                });
                self.slots[*slot as usize] = written;
                if let Some(local_slots) = &mut self.local_slots {
                    let slot = local_rows.as_mut().and_then(Iterator::next);
                    let slot = slot.ok_or(ForwardError::Lacks("a local slot"))?;
                    local_slots[*slot as usize] = written;
                }
            }
        }
        Ok(())
    }

    /// What position `position` of a sequence holds, as a row of this step sees it.
    fn read(
        &self,
        block_table: &[BlockId],
        position: usize,
        is_draft: bool,
    ) -> Result<(u32, u64), ForwardError> {
        let slot = self.slots[self.place(block_table, position)];
        let unwritten = Slot {
            token_id: 0,
            by: 0,
            is_draft: false,
        };
        let slot = slot.or(self.reads_anything.then_some(unwritten));
        let slot = slot.ok_or_else(|| {
            ForwardError::Internal(format!("position {position} was never written"))
        })?;
        // What a draft wrote must not outlive it.
        let spoilt = u64::from(slot.is_draft && !is_draft) << 63;
        Ok((slot.token_id, slot.by ^ spoilt))
    }

    fn place(&self, block_table: &[BlockId], position: usize) -> usize {
        let block = block_table[position / self.block_size] as usize;
        block * self.block_size + position % self.block_size
    }

    /// Reads what the rows of a sequence see of their windows, where these have a pool of their
    /// own: the same as in the other layers.
    fn check_windows(&self, batch: &ForwardBatch<'_>, index: usize) -> Result<(), ForwardError> {
        let (Some(slots), Some(kv)) = (&self.local_slots, self.info.local) else {
            return Ok(());
        };
        let sequence = &batch.sequences[index];
        let local = batch.local.ok_or(ForwardError::Lacks("local tables"))?;
        let (table, local_table) = (sequence.block_table, local.sequences[index].block_table);
        let num_others = sequence.context_len - sequence.leaves.len();
        for place in sequence.context_len - sequence.num_rows..sequence.context_len {
            let leaf = place.checked_sub(num_others);
            let position = leaf.map_or(place, |leaf| sequence.leaves[leaf] as usize);
            let first = (position + 1).saturating_sub(kv.window);
            for seen in (first..position).chain([place]) {
                if local_table[seen / self.block_size] == NO_BLOCK {
                    let message = format!("the row at {position} sees {seen}, which is given back");
                    return Err(ForwardError::Internal(message));
                }
                if slots[self.place(local_table, seen)] != self.slots[self.place(table, seen)] {
                    let message = format!("the window of the row at {position} differs at {seen}");
                    return Err(ForwardError::Internal(message));
                }
            }
        }
        Ok(())
    }

    /// Logits that follow from a hash.
    fn push_logits(&mut self, hash: u64, is_nan: bool, logits: &mut Vec<f32>) {
        self.hidden.push((hash >> 40) as f32 / (1 << 24) as f32);
        logits.extend((0..self.info.vocab_size as u64).map(|id| {
            let value = (mix(hash, id << 32) >> 40) as f32 / (1 << 21) as f32;
            if is_nan { f32::NAN } else { value }
        }));
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How a steering changes what the head reads.
fn steered(hash: u64, steering: Option<&Steering>) -> u64 {
    let hidden = steering.and_then(|steering| steering.hidden.as_deref());
    let values = hidden.unwrap_or_default().iter();
    values.fold(hash, |hash, value| mix(hash, u64::from(value.to_bits())))
}

impl CausalLm for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        _max_num_rows: usize,
    ) -> Result<(), ForwardError> {
        self.block_size = block_size;
        self.slots = vec![None; num_blocks * block_size];
        if let Some(slots) = &mut self.local_slots {
            *slots = vec![None; slots.len() * block_size];
        }
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        copy(&mut self.slots, self.block_size, copies);
        Ok(())
    }

    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        self.write(batch)?;
        logits.clear();
        self.hidden.clear();
        let is_draft = batch.skip.is_some();
        let mut row = 0_u32;
        let mut wanted = batch.logits_rows.iter().peekable();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let steering = batch.steering.get(index).copied().flatten();
            let first = sequence.context_len - sequence.num_rows;
            let num_others = sequence.context_len - sequence.leaves.len();
            self.check_windows(batch, index)?;
            // The hash of what each position sees, itself left out.
            let mut before = Vec::new();
            let mut hash = self.by(batch.adapters[index])?;
            for position in 0..sequence.context_len {
                let (token_id, by) = self.read(sequence.block_table, position, is_draft)?;
                if let Some(leaf) = position.checked_sub(num_others) {
                    hash = before[sequence.leaves[leaf] as usize];
                }
                before.push(hash);
                hash = mix(mix(hash, u64::from(token_id) + 1), by);
                if position < first {
                    continue;
                }
                if wanted.next_if(|wanted| **wanted == row).is_some() {
                    let seen = steered(hash, steering);
                    // Without its sub-layers it is wrong now and then.
                    let is_wrong = is_draft && hash.is_multiple_of(3);
                    let seen = if is_wrong { mix(seen, 1) } else { seen };
                    let is_nan = self.fault == Fault::NanOn(token_id);
                    self.push_logits(seen, is_nan, logits);
                }
                row += 1;
            }
        }
        Ok(())
    }

    fn hidden_state(&self, index: usize) -> Option<Vec<f32>> {
        self.hidden.get(index).map(|value| vec![*value])
    }

    fn local_cache(&mut self) -> Option<&mut dyn LocalCache> {
        match self.info.local {
            Some(_) => Some(self),
            None => None,
        }
    }

    fn adapters(&mut self) -> Option<&mut dyn AdapterStore> {
        Some(self)
    }

    fn adaptation(&mut self) -> Option<&mut dyn Adaptable> {
        Some(self)
    }

    fn sub_layers(&mut self) -> Option<&mut dyn SkipsSubLayers> {
        Some(self)
    }
}

impl LocalCache for FakeModel {
    fn split(&mut self, num_blocks: usize) {
        self.local_slots = Some(vec![None; num_blocks]);
    }

    fn copy_local_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        let slots = self.local_slots.as_mut();
        copy(
            slots.ok_or(ForwardError::NoKvCache)?,
            self.block_size,
            copies,
        );
        Ok(())
    }
}

fn copy(slots: &mut [Option<Slot>], block_size: usize, copies: &[(BlockId, BlockId)]) {
    for (source, target) in copies {
        let from = *source as usize * block_size;
        slots.copy_within(from..from + block_size, *target as usize * block_size);
    }
}

impl AdapterStore for FakeModel {
    fn load(&mut self, id: AdapterId, _: &LoraAdapter) -> Result<(), ForwardError> {
        self.adapters.insert(id);
        Ok(())
    }

    fn unload(&mut self, id: AdapterId) {
        self.adapters.remove(&id);
    }
}

impl Adaptable for FakeModel {
    /// What is tried next, and how good it is, follow from the window's tokens.
    fn adapt(
        &mut self,
        batch: &ForwardBatch<'_>,
        targets: &[u32],
        phase: &mut AdaptationPhase,
    ) -> Result<(), ForwardError> {
        self.write(batch)?;
        self.check_windows(batch, 0)?;
        let sequence = &batch.sequences[0];
        let mut hash = 0;
        for position in 0..sequence.context_len {
            let (token_id, by) = self.read(sequence.block_table, position, false)?;
            hash = mix(mix(hash, u64::from(token_id)), by);
        }
        let hash = targets
            .iter()
            .fold(hash, |hash, id| mix(hash, u64::from(*id)));
        let loss = (hash >> 40) as f32;
        phase.step_with(loss, |current| {
            let hidden = current.hidden.as_deref().unwrap_or_default();
            let step = hidden.first().copied().unwrap_or_default() + 1.0;
            Steering {
                hidden: Some(vec![step]),
                ..current.clone()
            }
        });
        Ok(())
    }
}

impl SkipsSubLayers for FakeModel {
    fn skip_sets(
        &mut self,
        _: &[Probe<'_>],
        _: SkipCosts,
        _: BlockId,
    ) -> Result<Vec<Option<SkipSet>>, ForwardError> {
        Err(ForwardError::Lacks("a knapsack of sub-layers"))
    }
}
