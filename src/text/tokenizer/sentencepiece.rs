//! SentencePiece's greedy merging by score, as llama.cpp runs it for `llama` vocabularies.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::TokenizerError;
use super::vocabulary::Vocabulary;
use super::watch::Watch;
use super::weights::ByteWeights;

/// SentencePiece's visible space.
pub(super) const SPACE: char = '\u{2581}';

pub(super) struct SentencePiece {
    pub ids: Arc<Vocabulary>,
    pub scores: Vec<f32>,
    /// The `<0xNN>` tokens.
    pub byte_ids: [Option<u32>; 256],
    pub unknown_id: Option<u32>,
    pub add_space_prefix: bool,
    pub weights: ByteWeights,
}

/// No symbol before or after.
const NONE: u32 = u32::MAX;

/// A run of text; runs form a linked list while they merge. Places are bytes of a text below 4 GiB.
struct Symbol {
    start: u32,
    len: u32,
    previous: u32,
    next: u32,
}

/// A possible merge of `left` with `right`, valid while their total length is still `len`.
struct Merge {
    score: f32,
    left: u32,
    right: u32,
    len: u32,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        // The best score first, then the leftmost.
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl SentencePiece {
    /// Byte weights of a vocabulary whose unknown characters become the tokens of their bytes.
    pub(super) fn weights(
        ids: &Vocabulary,
        byte_ids: &[Option<u32>; 256],
        unknown_id: Option<u32>,
    ) -> ByteWeights {
        let mut weights = ByteWeights::new(ids.iter().map(|(token, _)| token), |byte| {
            byte_ids[usize::from(byte)].or(unknown_id).is_none()
        });
        weights.set_spelling(b' ', SPACE.encode_utf8(&mut [0; 4]).as_bytes());
        weights
    }

    /// Appends the ids of a fragment of plain text.
    pub(super) fn encode(
        &self,
        fragment: &str,
        is_after_special: bool,
        watch: &mut Watch<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        watch.check_room(ids.len().saturating_add(self.weights.min_tokens(fragment)))?;
        let mut text = String::with_capacity(fragment.len() + 4);
        if self.add_space_prefix && is_after_special {
            text.push(SPACE);
        }
        text.extend(fragment.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start: start as u32,
                len: character.len_utf8() as u32,
                previous: (index as u32).checked_sub(1).unwrap_or(NONE),
                next: index as u32 + 1,
            })
            .collect();
        let Some(last) = symbols.last_mut() else {
            return Ok(());
        };
        last.next = NONE;
        self.merge(&text, &mut symbols, watch)?;
        let mut at = 0;
        while at != NONE {
            let symbol = &symbols[at as usize];
            let start = symbol.start as usize;
            self.emit(&text[start..start + symbol.len as usize], ids);
            watch.check_room(ids.len())?;
            at = symbol.next;
        }
        Ok(())
    }

    fn merge(
        &self,
        text: &str,
        symbols: &mut [Symbol],
        watch: &mut Watch<'_>,
    ) -> Result<(), TokenizerError> {
        let mut merges = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            watch.spend(1)?;
            self.propose(text, symbols, right - 1, right, &mut merges);
        }
        while let Some(merge) = merges.pop() {
            watch.spend(1)?;
            let (left, right) = (merge.left as usize, merge.right as usize);
            let is_stale = symbols[left].len == 0
                || symbols[right].len == 0
                || symbols[left].len + symbols[right].len != merge.len;
            if is_stale {
                continue;
            }
            symbols[left].len = merge.len;
            symbols[right].len = 0;
            let next = symbols[right].next;
            symbols[left].next = next;
            if next != NONE {
                symbols[next as usize].previous = merge.left;
                self.propose(text, symbols, merge.left, next, &mut merges);
            }
            let previous = symbols[left].previous;
            if previous != NONE {
                self.propose(text, symbols, previous, merge.left, &mut merges);
            }
        }
        Ok(())
    }

    fn propose(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        right: u32,
        merges: &mut BinaryHeap<Merge>,
    ) {
        let first = &symbols[left as usize];
        let len = first.len + symbols[right as usize].len;
        let start = first.start as usize;
        if len as usize > self.weights.longest() {
            return;
        }
        if let Some(id) = self.ids.get(&text[start..start + len as usize]) {
            merges.push(Merge {
                score: self.scores.get(id as usize).copied().unwrap_or(0.0),
                left,
                right,
                len,
            });
        }
    }

    /// A symbol's own id, or its bytes' ids when it has none.
    fn emit(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some(id) = self.ids.get(symbol) {
            ids.push(id);
            return;
        }
        for byte in symbol.bytes() {
            ids.extend(self.byte_ids[byte as usize].or(self.unknown_id));
        }
    }
}
