//! SentencePiece's greedy merging by score, as llama.cpp runs it for `llama` vocabularies.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// SentencePiece's visible space.
pub(super) const SPACE: char = '\u{2581}';

pub(super) struct SentencePiece {
    pub ids: HashMap<String, u32>,
    pub scores: Vec<f32>,
    /// The `<0xNN>` tokens.
    pub byte_ids: [Option<u32>; 256],
    pub unknown_id: Option<u32>,
    pub add_space_prefix: bool,
}

/// A run of text; runs form a linked list while they merge.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A possible merge of `left` with `right`, valid while their total length is still `len`.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
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
    /// Appends the ids of a fragment of plain text.
    pub(super) fn encode(&self, fragment: &str, is_after_special: bool, ids: &mut Vec<u32>) {
        let mut text = String::with_capacity(fragment.len() + 4);
        if self.add_space_prefix && is_after_special {
            text.push(SPACE);
        }
        text.extend(fragment.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        let Some(last) = symbols.last_mut() else {
            return;
        };
        last.next = None;
        let mut merges = BinaryHeap::new();
        for left in 0..symbols.len() - 1 {
            self.propose(&text, &symbols, left, left + 1, &mut merges);
        }
        while let Some(merge) = merges.pop() {
            let (left, right) = (merge.left, merge.right);
            let is_stale = symbols[left].len == 0
                || symbols[right].len == 0
                || symbols[left].len + symbols[right].len != merge.len;
            if is_stale {
                continue;
            }
            symbols[left].len = merge.len;
            symbols[right].len = 0;
            symbols[left].next = symbols[right].next;
            if let Some(next) = symbols[right].next {
                symbols[next].previous = Some(left);
                self.propose(&text, &symbols, left, next, &mut merges);
            }
            if let Some(previous) = symbols[left].previous {
                self.propose(&text, &symbols, previous, left, &mut merges);
            }
        }
        let mut at = Some(0);
        while let Some(index) = at {
            let symbol = &symbols[index];
            self.emit(&text[symbol.start..symbol.start + symbol.len], ids);
            at = symbol.next;
        }
    }

    fn propose(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        merges: &mut BinaryHeap<Merge>,
    ) {
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if let Some(id) = self.ids.get(&text[start..start + len]) {
            merges.push(Merge {
                score: self.scores.get(*id as usize).copied().unwrap_or(0.0),
                left,
                right,
                len,
            });
        }
    }

    /// A symbol's own id, or its bytes' ids when it has none.
    fn emit(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some(id) = self.ids.get(symbol) {
            ids.push(*id);
            return;
        }
        for byte in symbol.bytes() {
            ids.extend(self.byte_ids[byte as usize].or(self.unknown_id));
        }
    }
}
