//! Byte-pair merging of one word, with memory of a few words a byte and a watch over long ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::TokenizerError;
use super::super::vocabulary::{PairMap, Vocabulary};
use super::super::watch::Watch;

/// No symbol before or after.
const NONE: u32 = u32::MAX;

/// A token of the word as it grows; symbols form a linked list while they merge.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
    is_alive: bool,
}

/// A possible merge: its rank, where its left symbol is, and the token that it makes. Lower ranks go first, then
/// lower places.
type Proposal = Reverse<(u32, u32, u32)>;

/// Memory that words take turns to use.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    proposals: BinaryHeap<Proposal>,
}

/// What two tokens merge into, and how early: `(left, right)` to `(rank, merged)`.
pub(super) struct Merges {
    pairs: PairMap<(u32, u32)>,
}

impl Merges {
    /// `merges` in the order of their rank; their tokens and results must be in `vocabulary`.
    pub(super) fn new<'a>(
        merges: impl Iterator<Item = (&'a str, &'a str)>,
        vocabulary: &Vocabulary,
    ) -> Result<Self, TokenizerError> {
        let id_of = |token: &str| {
            vocabulary.get(token).ok_or_else(|| {
                TokenizerError::Invalid(format!("a merge needs token {token:?}, which is missing"))
            })
        };
        let mut pairs = PairMap::default();
        pairs.reserve(merges.size_hint().0);
        let mut merged = String::new();
        for (rank, (left, right)) in merges.enumerate() {
            let rank = u32::try_from(rank)
                .map_err(|_| TokenizerError::Invalid("too many merges".to_owned()))?;
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            let merged = id_of(&merged)?;
            pairs.insert((id_of(left)?, id_of(right)?), (rank, merged));
        }
        Ok(Self { pairs })
    }

    fn propose(&self, scratch: &mut Scratch, left: u32) {
        let symbol = scratch.symbols[left as usize];
        if symbol.next == NONE {
            return;
        }
        let next = scratch.symbols[symbol.next as usize];
        if let Some((rank, merged)) = self.pairs.get(&(symbol.id, next.id)) {
            scratch.proposals.push(Reverse((*rank, left, *merged)));
        }
    }

    /// Appends the tokens of a word that begins as one token a byte. A word has fewer than `u32::MAX` bytes.
    pub(super) fn apply(
        &self,
        word: impl Iterator<Item = u32>,
        scratch: &mut Scratch,
        watch: &mut Watch<'_>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        scratch.symbols.clear();
        scratch.proposals.clear();
        for (index, id) in word.enumerate() {
            let index = index as u32;
            scratch.symbols.push(Symbol {
                id,
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
                is_alive: true,
            });
        }
        let Some(last) = scratch.symbols.last_mut() else {
            return Ok(());
        };
        last.next = NONE;
        for left in 0..scratch.symbols.len() as u32 {
            watch.spend(1)?;
            self.propose(scratch, left);
        }
        while let Some(Reverse((_, left, merged))) = scratch.proposals.pop() {
            watch.spend(1)?;
            let symbol = scratch.symbols[left as usize];
            if !symbol.is_alive || symbol.next == NONE {
                continue;
            }
            let right = scratch.symbols[symbol.next as usize];
            // Whoever merged meanwhile left a proposal behind that no longer fits.
            let now = self.pairs.get(&(symbol.id, right.id));
            if now.is_none_or(|(_, now)| *now != merged) {
                continue;
            }
            scratch.symbols[symbol.next as usize].is_alive = false;
            scratch.symbols[left as usize].id = merged;
            scratch.symbols[left as usize].next = right.next;
            if right.next != NONE {
                scratch.symbols[right.next as usize].previous = left;
            }
            if symbol.previous != NONE {
                self.propose(scratch, symbol.previous);
            }
            self.propose(scratch, left);
        }
        let alive = scratch.symbols.iter().filter(|symbol| symbol.is_alive);
        ids.extend(alive.map(|symbol| symbol.id));
        Ok(())
    }
}

impl Scratch {
    /// Gives back what a giant word needed.
    pub(super) fn shrink(&mut self, num_symbols: usize) {
        self.symbols.clear();
        self.proposals.clear();
        self.symbols.shrink_to(num_symbols);
        self.proposals.shrink_to(num_symbols);
    }
}
