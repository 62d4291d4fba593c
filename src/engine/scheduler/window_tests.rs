//! What sequences of a model with a sliding window hold, exactly.

use super::tests::{add, commit, config as plain, step};
use super::*;
use crate::engine::config::EngineConfig;
use crate::engine::kv_sizes::LocalBlocks;

/// Blocks of 4 tokens, steps of 24; a sequence keeps 5 + 32 + 4 - 1 = 40 tokens.
fn config(num_local_blocks: usize) -> EngineConfig {
    EngineConfig {
        max_model_len: 200,
        local: Some(LocalBlocks {
            num_blocks: num_local_blocks,
            window: 5,
        }),
        ..plain(120, true)
    }
}

/// Runs a prompt to its first token and ends it; returns the tokens that came from the cache.
fn run(scheduler: &mut Scheduler, token_ids: Vec<u32>) -> usize {
    let len = token_ids.len();
    add(scheduler, 0, token_ids);
    let mut num_cached = 0;
    while scheduler.sequences.iter().any(|s| s.token_ids.len() == len) {
        let batch = step(scheduler);
        commit(scheduler, &batch, 9);
        scheduler.check_invariants().unwrap();
        let running = scheduler.sequences.running().next();
        num_cached = running.unwrap().num_cached_tokens.unwrap();
    }
    scheduler.remove(|_| true);
    scheduler.check_invariants().unwrap();
    assert_eq!(scheduler.blocks.num_used_locally(), 0);
    num_cached
}

/// The first tokens of a text, then others.
fn beginning(len: usize) -> Vec<u32> {
    let own = (0..8).map(|i| 1000 + i);
    (0..len as u32).chain(own).collect()
}

#[test]
fn a_prompt_gives_back_what_its_window_has_passed() {
    let mut scheduler = Scheduler::new(config(30));
    add(&mut scheduler, 0, (0..120).collect());
    // Blocks, and those of them that have places: 40 tokens of them.
    for held in [(6, 6), (12, 10), (18, 10), (24, 10), (30, 10)] {
        let batch = step(&mut scheduler);
        commit(&mut scheduler, &batch, 9);
        scheduler.check_invariants().unwrap();
        let blocks = &scheduler.blocks;
        assert_eq!((blocks.num_used(), blocks.num_used_locally()), held);
    }
    let stats = scheduler.snapshot();
    assert_eq!(stats.num_local_blocks, 30);
    assert_eq!(stats.num_used_local_blocks, 10);
}

#[test]
fn a_hit_is_as_long_as_windows_are_whole() {
    // Of the prompt's thirty blocks the last twenty have places still.
    let mut scheduler = Scheduler::new(config(20));
    assert_eq!(run(&mut scheduler, (0..120).collect()), 0);
    // Behind 119 tokens blocks 19 to 29 are needed. The copy of the last takes block 10's place.
    assert_eq!(run(&mut scheduler, (0..120).collect()), 119);
    // Behind 84 tokens block 11 is the first.
    assert_eq!(run(&mut scheduler, beginning(84)), 84);
    // Behind 40 tokens all ten blocks are needed, and none has a place.
    let mut scheduler = Scheduler::new(config(20));
    assert_eq!(run(&mut scheduler, (0..120).collect()), 0);
    assert_eq!(run(&mut scheduler, beginning(40)), 0);
    assert_eq!(run(&mut scheduler, beginning(40)), 47, "known again");
}

#[test]
fn any_one_sequence_runs_with_the_fewest_places() {
    let fewest = config(0).fewest_local_blocks(5);
    assert_eq!(fewest, (40 + 24) / 4 + 1);
    let mut scheduler = Scheduler::new(config(fewest));
    for request in 0..4 {
        add(&mut scheduler, request, vec![request as u32; 90]);
    }
    for _ in 0..400 {
        let batch = step(&mut scheduler);
        assert!(!batch.rows.is_empty());
        commit(&mut scheduler, &batch, 9);
        scheduler.check_invariants().unwrap();
        scheduler.remove(|sequence| sequence.token_ids.len() >= 150);
        if scheduler.is_idle() {
            break;
        }
    }
    assert!(scheduler.is_idle(), "all came to their ends");
    assert!(scheduler.stats.num_preemptions > 0);
    assert_eq!(scheduler.blocks.num_used_locally(), 0);
}
