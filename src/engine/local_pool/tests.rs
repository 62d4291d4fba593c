//! Places over random lives of sequences: none is read once it is given back, and none leaks.

use proptest::prelude::*;

use crate::engine::block_manager::BlockManager;
use crate::engine::block_tables::BlockTables;
use crate::engine::prefix_cache::{PrefixHash, chain};
use crate::model::NO_BLOCK;

/// Blocks of one token each that a row sees, and that a sequence keeps: some may be taken back.
const WINDOW: usize = 3;
const KEPT: usize = WINDOW + 2;

#[derive(Debug, Clone)]
enum Act {
    /// Computes one more token.
    Append {
        sequence: usize,
        token_id: u32,
    },
    Fork {
        sequence: usize,
    },
    /// Takes the newest token back, as a draft that is not accepted.
    TakeBack {
        sequence: usize,
    },
    Free {
        sequence: usize,
    },
    /// Starts where the prefix cache knows most of an old text.
    Start {
        text: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let index = 0..8_usize;
    let act = prop_oneof![
        8 => (index.clone(), 0..2_u32)
            .prop_map(|(sequence, token_id)| Act::Append { sequence, token_id }),
        1 => index.clone().prop_map(|sequence| Act::Fork { sequence }),
        1 => index.clone().prop_map(|sequence| Act::TakeBack { sequence }),
        1 => index.clone().prop_map(|sequence| Act::Free { sequence }),
        2 => index.prop_map(|text| Act::Start { text }),
    ];
    proptest::collection::vec(act, 1..300)
}

#[derive(Debug, Clone, Default)]
struct Text {
    token_ids: Vec<u32>,
    hashes: Vec<PrefixHash>,
    tables: BlockTables,
}

/// A block manager, and what lies in the cache.
struct World {
    blocks: BlockManager,
    /// The prefix whose last token lies in a block, and in a place.
    in_block: Vec<PrefixHash>,
    in_place: Vec<PrefixHash>,
    running: Vec<Text>,
    ended: Vec<Vec<u32>>,
    num_hits: usize,
}

impl World {
    fn new(num_blocks: usize, num_places: usize) -> Self {
        Self {
            blocks: BlockManager::new(num_blocks, 1).with_local_pool(num_places),
            in_block: vec![0; num_blocks],
            in_place: vec![0; num_places],
            running: Vec::new(),
            ended: Vec::new(),
            num_hits: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        let num_running = self.running.len();
        let at = |index: &usize| index % num_running.max(1);
        match act {
            Act::Start { text } => self.start(*text),
            _ if num_running == 0 => {}
            Act::Append { sequence, token_id } => self.append(at(sequence), *token_id),
            Act::Fork { sequence } => {
                let child = self.running[at(sequence)].clone();
                for block in &child.tables.blocks {
                    self.blocks.share(*block);
                }
                for (block, place) in child.tables.needed_places() {
                    assert_eq!(self.blocks.share_place(block), Some(place));
                }
                self.running.push(child);
            }
            Act::TakeBack { sequence } => {
                let text = &mut self.running[at(sequence)];
                // What it sees then must not have been given back.
                let len = text.tables.len();
                if len > WINDOW && !text.tables.has_place(len - 1 - WINDOW) {
                    return;
                }
                if let Some(entry) = text.tables.pop() {
                    self.blocks.release_entry(entry);
                    text.token_ids.pop();
                    text.hashes.pop();
                }
            }
            Act::Free { sequence } => self.free(at(sequence)),
        }
    }

    fn append(&mut self, sequence: usize, token_id: u32) {
        if !self.blocks.can_allocate(1) {
            return self.free(sequence);
        }
        let text = &mut self.running[sequence];
        let block = self.blocks.allocate().unwrap();
        let place = self.blocks.place(block).unwrap();
        let parent = text.hashes.last().copied().unwrap_or(0);
        let hash = chain(parent, &[token_id]);
        self.in_block[block as usize] = hash;
        self.in_place[place as usize] = hash;
        text.tables.push(block, Some(place));
        text.token_ids.push(token_id);
        text.hashes.push(hash);
        self.blocks.register(block, hash, parent, &[token_id]);
        if let Some(passed) = text.tables.len().checked_sub(KEPT + 1)
            && text.tables.has_place(passed)
        {
            self.blocks.release_place(text.tables.blocks[passed]);
            text.tables.local[passed] = NO_BLOCK;
        }
    }

    fn free(&mut self, sequence: usize) {
        let mut text = self.running.swap_remove(sequence);
        self.blocks.release_all(&mut text.tables);
        self.ended.push(text.token_ids);
    }

    fn start(&mut self, text: usize) {
        let mut started = Text::default();
        let old = self.ended.get(text % self.ended.len().max(1));
        let mut known = Vec::new();
        for token_id in old.into_iter().flatten() {
            let parent = started.hashes.last().copied().unwrap_or(0);
            let Some(block) = self.blocks.lookup(parent, &[*token_id]) else {
                break;
            };
            known.push(block);
            started.token_ids.push(*token_id);
            started.hashes.push(chain(parent, &[*token_id]));
        }
        let is_whole = |len: &usize| {
            let window = &known[len.saturating_sub(KEPT)..*len];
            window
                .iter()
                .all(|block| self.blocks.place(*block).is_some())
        };
        let len = (0..=known.len()).rev().find(is_whole).unwrap();
        started.token_ids.truncate(len);
        started.hashes.truncate(len);
        for (index, block) in known[..len].iter().enumerate() {
            self.blocks.share(*block);
            let place = match index + KEPT >= len {
                true => self.blocks.share_place(*block),
                false => Some(NO_BLOCK),
            };
            started.tables.push(*block, place);
        }
        self.num_hits += len;
        self.running.push(started);
    }

    fn check(&self) {
        assert_eq!(self.blocks.miscounted(), None);
        let tables = self.running.iter().map(|text| &text.tables);
        assert_eq!(self.blocks.inconsistency(tables), None);
        for text in &self.running {
            let len = text.tables.len();
            assert_eq!(text.tables.local.len(), len);
            for index in 0..len {
                let expected = text.hashes[index];
                assert_eq!(self.in_block[text.tables.blocks[index] as usize], expected);
                let place = text.tables.local[index];
                let is_seen = index + WINDOW >= len;
                assert!(!is_seen || place != NO_BLOCK, "a window is whole");
                assert!(place == NO_BLOCK || self.in_place[place as usize] == expected);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn places_are_neither_read_when_given_back_nor_lost(
        acts in acts(),
        num_blocks in 4..60_usize,
        num_places in 4..20_usize,
    ) {
        let mut world = World::new(num_blocks, num_places);
        for act in &acts {
            world.act(act);
            world.check();
        }
        while !world.running.is_empty() {
            world.free(0);
            world.check();
        }
        prop_assert_eq!(world.blocks.num_used(), 0);
        prop_assert_eq!(world.blocks.num_used_locally(), 0);
    }
}

/// A known prefix whose places are gone is of no use: whoever computes it again is known instead.
#[test]
fn a_prefix_that_lost_its_places_is_known_again() {
    let mut world = World::new(40, 8);
    world.start(0);
    (0..12).for_each(|token_id| world.append(0, token_id));
    world.free(0);
    // Tokens 4 to 11 have places, and a sequence needs five.
    world.start(0);
    assert_eq!((world.num_hits, world.running[0].token_ids.len()), (12, 12));
    world.free(0);
    world.ended.push((0..8).collect());
    world.start(2);
    assert_eq!(
        world.running[0].token_ids.len(),
        0,
        "tokens 3 to 7 are needed"
    );
    (0..8).for_each(|token_id| world.append(0, token_id));
    world.check();
    world.free(0);
    let used_before = world.blocks.num_available();
    world.start(2);
    assert_eq!(world.running[0].token_ids.len(), 8);
    world.check();
    world.free(0);
    assert_eq!(world.blocks.num_available(), used_before);
}
