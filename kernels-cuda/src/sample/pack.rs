//! What a step asks for as words of 32 bits: specs, then masks, then what changes logits.

use std::collections::HashSet;

use super::read::Wanted;
use super::{GROUP, MAX_TOP, SampleBuffers, SampleRow, SampleShape, ScoreRow, SlotSpec};

/// As `SlotSpec` in kernels/sample.cuh.
const SPEC_WORDS: usize = 16;
const FLAG_DRAW: u32 = 1;
const FLAG_RAW: u32 = 2;
const FLAG_FILTERED: u32 = 4;
const NOWHERE: u32 = u32::MAX;

/// Biases, counts and ends: in this order they change a group's logits.
const NUM_KINDS: usize = 3;
/// A token, and its bias or count.
const CHANGE_WORDS: usize = 2;
/// Words for changes in a step, for each slot and at least. A row that has no room left is the
/// host's.
const CHANGE_WORDS_PER_SLOT: usize = 4096;
const MIN_CHANGE_WORDS: usize = 1 << 16;
const MAX_CHANGE_WORDS: usize = 1 << 20;

/// Words of the whole input.
pub(super) fn capacity(max_slots: usize, vocab: usize) -> usize {
    let changes = max_slots * CHANGE_WORDS_PER_SLOT;
    let changes = changes.clamp(MIN_CHANGE_WORDS, MAX_CHANGE_WORDS);
    max_slots * (SPEC_WORDS + mask_words(vocab)) + changes
}

fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(u32::BITS as usize)
}

/// Reused memory.
#[derive(Debug, Default)]
pub(super) struct Packer {
    /// Where each mask lies.
    masks: Vec<Option<u32>>,
    /// Where the next change of a group and kind goes.
    places: Vec<u32>,
    seen: HashSet<u32>,
}

impl SampleBuffers {
    /// Fills `words` and `wanted`. Masks are those of the step; rows are known to be there.
    pub(super) fn pack(
        &mut self,
        specs: &[SlotSpec<'_>],
        masks: &[&[u32]],
        num_slots: usize,
    ) -> SampleShape {
        self.words.clear();
        self.words.resize(num_slots * SPEC_WORDS, 0);
        self.wanted.clear();
        self.packer.masks.clear();
        self.packer.masks.resize(masks.len(), None);
        let mut shape = SampleShape {
            num_slots,
            ..SampleShape::default()
        };
        let masked = specs.iter().filter_map(|spec| match spec {
            SlotSpec::Sample(row) => row.mask,
            SlotSpec::Score(_) => None,
        });
        for index in masked {
            self.push_mask(index as usize, masks);
        }
        for (slot, spec) in specs.iter().enumerate() {
            let (words, wanted) = match spec {
                SlotSpec::Sample(row) => self.sample_words(row),
                SlotSpec::Score(row) => score_words(row),
            };
            self.words[slot * SPEC_WORDS..][..SPEC_WORDS].copy_from_slice(&words);
            self.wanted.push(wanted);
            let flags = words[1];
            let is_drawn = flags & FLAG_DRAW != 0 && f32::from_bits(words[2]) > 0.0;
            shape.has_raw |= flags & FLAG_RAW != 0;
            shape.has_weights |= is_drawn || flags & FLAG_RAW != 0;
        }
        shape
    }

    fn push_mask(&mut self, index: usize, masks: &[&[u32]]) {
        if self.packer.masks[index].is_some() {
            return;
        }
        let start = self.words.len();
        let count = mask_words(self.vocab);
        let mask = masks[index];
        self.words.extend_from_slice(&mask[..count.min(mask.len())]);
        // What a mask does not speak of is allowed.
        self.words.resize(start + count, u32::MAX);
        self.packer.masks[index] = Some(start as u32);
    }

    fn sample_words(&mut self, row: &SampleRow<'_>) -> ([u32; SPEC_WORDS], Wanted) {
        let alternatives = row.num_alternatives.map(|count| count.saturating_add(1));
        let num_top = row.num_logprobs.max(alternatives).unwrap_or(0);
        let on_host = ([0; SPEC_WORDS], Wanted::Host);
        if num_top > MAX_TOP || self.has_double_bias(row) {
            return on_host;
        }
        let has_changes = !row.logit_bias.is_empty()
            || !row.counts.is_empty()
            || row.ends.iter().any(|ends| !ends.is_empty());
        let changes = match has_changes {
            true => self.push_changes(row),
            false => Some(NOWHERE),
        };
        let Some(changes) = changes else {
            return on_host;
        };
        let is_raw = row.num_logprobs.is_some() || row.num_alternatives.is_some();
        let is_filtered = row.top_k != 0 || row.top_p < 1.0 || row.min_p > 0.0;
        let flags = FLAG_DRAW
            | if is_raw { FLAG_RAW } else { 0 }
            | if is_filtered { FLAG_FILTERED } else { 0 };
        let mask = row.mask.and_then(|index| self.packer.masks[index as usize]);
        let uniform = row.uniform.to_bits();
        let words = [
            row.row,
            flags,
            row.temperature.to_bits(),
            row.top_p.to_bits(),
            row.min_p.to_bits(),
            u32::try_from(row.top_k).unwrap_or(u32::MAX),
            num_top as u32,
            NOWHERE,
            uniform as u32,
            (uniform >> 32) as u32,
            mask.unwrap_or(NOWHERE),
            changes,
            row.repetition_penalty.to_bits(),
            row.presence_penalty.to_bits(),
            row.frequency_penalty.to_bits(),
            0,
        ];
        let wanted = Wanted::Sample {
            num_logprobs: row.num_logprobs,
            num_alternatives: row.num_alternatives,
        };
        (words, wanted)
    }

    /// Biases of one token are added one after the other, and a device's threads know no order.
    fn has_double_bias(&mut self, row: &SampleRow<'_>) -> bool {
        // Most lists come in order.
        if row.logit_bias.is_sorted_by(|a, b| a.0 < b.0) {
            return false;
        }
        let seen = &mut self.packer.seen;
        seen.clear();
        let mut ids = row.logit_bias.iter().map(|(token_id, _)| *token_id);
        !ids.all(|token_id| seen.insert(token_id))
    }

    /// Where the row's changes begin: a table of where each group's biases, counts and ends do,
    /// then the changes. `None` without room for them.
    fn push_changes(&mut self, row: &SampleRow<'_>) -> Option<u32> {
        let vocab = self.vocab;
        let biases = (row.logit_bias.iter()).map(|(token_id, bias)| (0, *token_id, bias.to_bits()));
        let counts = (row.counts.iter()).map(|(token_id, count)| (1, *token_id, *count));
        let ends = row.ends.iter().copied().flatten();
        let ends = ends.map(|token_id| (2, *token_id, 0));
        let all = biases.chain(counts).chain(ends);
        let all = all.filter(|(_, token_id, _)| (*token_id as usize) < vocab);
        let place = |kind: usize, token_id: u32| token_id as usize / GROUP * NUM_KINDS + kind;

        let table = vocab.div_ceil(GROUP) * NUM_KINDS;
        let places = &mut self.packer.places;
        places.clear();
        places.resize(table + 1, 0);
        for (kind, token_id, _) in all.clone() {
            places[place(kind, token_id) + 1] += 1;
        }
        for index in 0..table {
            places[index + 1] += places[index];
        }
        // Pairs lie at even words.
        let start = self.words.len().next_multiple_of(CHANGE_WORDS);
        let first = start + (table + 1).next_multiple_of(CHANGE_WORDS);
        let end = first + places[table] as usize * CHANGE_WORDS;
        if end > self.input.len() {
            return None;
        }
        self.words.resize(end, 0);
        self.words[start..start + table + 1].copy_from_slice(places);
        for (kind, token_id, value) in all {
            let next = &mut places[place(kind, token_id)];
            let at = first + *next as usize * CHANGE_WORDS;
            self.words[at..at + CHANGE_WORDS].copy_from_slice(&[token_id, value]);
            *next += 1;
        }
        Some(start as u32)
    }
}

fn score_words(row: &ScoreRow) -> ([u32; SPEC_WORDS], Wanted) {
    if row.num_top > MAX_TOP {
        return ([0; SPEC_WORDS], Wanted::Host);
    }
    let mut words = [0; SPEC_WORDS];
    words[..2].copy_from_slice(&[row.row, FLAG_RAW]);
    words[6..8].copy_from_slice(&[row.num_top as u32, row.token_id]);
    words[10..12].fill(NOWHERE);
    let wanted = Wanted::Score {
        token_id: row.token_id,
        num_top: row.num_top,
    };
    (words, wanted)
}
