//! What the scheduler promises, over long random runs and on exact cases.

use super::*;
use crate::engine::kv_sizes::LocalBlocks;
use crate::engine::request::{GenerateRequest, RequestId, SamplingParams};
use crate::model::testing::uniform;

pub(super) fn config(num_blocks: usize, chunked: bool) -> EngineConfig {
    EngineConfig {
        max_model_len: 96,
        max_num_seqs: 6,
        max_num_batched_tokens: 24,
        block_size: 4,
        num_blocks,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: chunked,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: Default::default(),
    }
}

fn sequence(scheduler: &mut Scheduler, request: u64, token_ids: Vec<u32>) -> Sequence {
    let id = RequestId(request);
    let asked = GenerateRequest::new(token_ids, SamplingParams::default());
    Sequence {
        cache_salt: request % 2,
        ..Sequence::new(scheduler.sequences.new_id(), id, asked)
    }
}

pub(super) fn add(scheduler: &mut Scheduler, request: u64, token_ids: Vec<u32>) {
    let sequence = sequence(scheduler, request, token_ids);
    scheduler.add(sequence);
}

pub(super) fn step(scheduler: &mut Scheduler) -> ScheduledBatch {
    let mut batch = ScheduledBatch::default();
    scheduler.schedule(&mut batch);
    batch
}

/// Appends `token_id` where a sequence's rows reached its end, forking as the engine does.
pub(super) fn commit(scheduler: &mut Scheduler, batch: &ScheduledBatch, token_id: u32) {
    for rows in &batch.rows {
        scheduler.commit_rows(*rows);
        if scheduler.sequences[rows.seq].num_uncomputed_tokens() > 0 {
            continue;
        }
        let forks = std::mem::take(&mut scheduler.sequences[rows.seq].num_pending_forks);
        for branch in 1..=forks {
            let id = scheduler.sequences.new_id();
            let sibling = scheduler.sequences[rows.seq].sibling(id, branch);
            scheduler.add_fork(sibling);
            scheduler.sequences[id].token_ids.push(branch as u32);
        }
        scheduler.sequences[rows.seq].token_ids.push(token_id);
    }
}

fn requests(scheduler: &Scheduler) -> Vec<u64> {
    scheduler.sequences.running().map(|s| s.request.0).collect()
}

/// Long random runs over a two-token vocabulary (prefix hits are frequent) and few blocks
/// (preemption is frequent): every step keeps the invariants, and nothing leaks.
#[test]
fn random_runs_keep_the_invariants() {
    for seed in 0..10 {
        let plain = config(24 + 9 * (seed as usize % 6), seed % 2 == 0);
        // The last ones have layers with a window, and room for one sequence or a few.
        let window = 3;
        let num_blocks = plain.fewest_local_blocks(window) + seed as usize % 3;
        let local = (seed >= 6).then_some(LocalBlocks { num_blocks, window });
        let mut scheduler = Scheduler::new(EngineConfig { local, ..plain });
        let mut state = seed;
        let mut roll =
            |limit: usize| ((uniform(&mut state) + 1.0) / 2.0 * limit as f32) as usize % limit;
        for request in 0..3000 {
            if roll(2) == 0 && scheduler.num_waiting() < 12 {
                let tokens = (0..1 + roll(60)).map(|_| roll(2) as u32).collect();
                let mut sequence = sequence(&mut scheduler, request, tokens);
                sequence.num_pending_forks = roll(3);
                sequence.priority = roll(3) as f32 / 2.0;
                scheduler.add(sequence);
            }
            let batch = step(&mut scheduler);
            let num_rows: usize = batch.rows.iter().map(|rows| rows.num_rows).sum();
            assert!(num_rows <= 24 || batch.rows.len() == 1, "the budget holds");
            assert!(scheduler.is_idle() || num_rows > 0, "something always runs");
            commit(&mut scheduler, &batch, roll(2) as u32);
            scheduler.check_invariants().unwrap();
            let unlucky = RequestId(roll(1 + request as usize) as u64);
            let limit = 70 + roll(20);
            scheduler.remove(|s| s.request == unlucky || s.token_ids.len() >= limit);
            scheduler.check_invariants().unwrap();
        }
        assert!(
            scheduler.stats.num_preemptions > 0,
            "the run is tight enough"
        );
        assert!(scheduler.stats.prefix_cache_hits > 0, "prefixes repeat");
        scheduler.remove(|_| true);
        scheduler.check_invariants().unwrap();
        assert_eq!(scheduler.blocks.num_used(), 0, "no block leaks");
        assert_eq!(scheduler.blocks.num_used_locally(), 0, "no place leaks");
    }
}

#[test]
fn the_lowest_priority_gives_way_then_the_newest() {
    let mut scheduler = Scheduler::new(config(9, true));
    for (request, priority) in [(0, 0.4), (1, 0.9), (2, 0.9)] {
        let sequence = sequence(&mut scheduler, request, vec![request as u32; 11]);
        scheduler.add(Sequence {
            priority,
            ..sequence
        });
    }
    let mut left = vec![2, 1, 0];
    for _ in 0..40 {
        let batch = step(&mut scheduler);
        commit(&mut scheduler, &batch, 7);
        scheduler.check_invariants().unwrap();
        let running = requests(&scheduler);
        left.retain(|request| running.contains(request));
        if left.len() == 1 {
            break;
        }
        if left.len() == 2 {
            assert_eq!(left, [2, 1], "the branch of least value went first");
        }
    }
    assert_eq!(left, [1], "of equals the newest went");
}

#[test]
fn a_second_prompt_starts_at_the_known_prefix() {
    let mut scheduler = Scheduler::new(config(30, true));
    add(&mut scheduler, 0, (0..20).collect());
    let batch = step(&mut scheduler);
    commit(&mut scheduler, &batch, 9);
    add(&mut scheduler, 2, (0..20).collect());
    add(&mut scheduler, 1, (0..20).collect());
    let batch = step(&mut scheduler);
    let rows: Vec<usize> = batch.rows.iter().map(|rows| rows.num_rows).collect();
    // The last token is computed again because its logits are needed; request 1 has another salt and sees
    // nothing.
    assert_eq!(rows, [1, 1, 20]);
    assert_eq!(
        scheduler.sequences.running_at(1).num_cached_tokens,
        Some(19)
    );
    assert_eq!(scheduler.sequences.running_at(2).num_cached_tokens, Some(0));
}

#[test]
fn a_branch_starts_where_another_ended_inside_a_block() {
    let mut scheduler = Scheduler::new(config(30, true));
    add(&mut scheduler, 0, (0..9).collect());
    for token_id in [20, 21, 22] {
        let batch = step(&mut scheduler);
        commit(&mut scheduler, &batch, token_id);
    }
    let ended = scheduler.remove(|_| true);
    assert_eq!(ended[0].token_ids[9..], [20, 21, 22]);
    assert_eq!(scheduler.blocks.num_used(), 0);
    // The last token was sampled but never computed; another branch leaves after the first sampled token.
    let longer = [&ended[0].token_ids[..], &[23]].concat();
    let other = [&ended[0].token_ids[..10], &[30, 31]].concat();
    add(&mut scheduler, 2, longer);
    add(&mut scheduler, 4, other);
    let batch = step(&mut scheduler);
    let rows: Vec<usize> = batch.rows.iter().map(|rows| rows.num_rows).collect();
    assert_eq!(rows, [2, 2]);
    assert_eq!(
        scheduler.sequences.running_at(0).num_cached_tokens,
        Some(11)
    );
    assert_eq!(
        scheduler.sequences.running_at(1).num_cached_tokens,
        Some(10)
    );
    assert_eq!(
        batch.block_copies.len(),
        2,
        "what is known is never written to"
    );
    scheduler.check_invariants().unwrap();
}

#[test]
fn a_search_takes_one_turn_for_all_its_branches() {
    let mut scheduler = Scheduler::new(config(90, true));
    for request in 0..12 {
        let search = Group::Search(crate::engine::request::GroupId(99));
        let alone = Group::Request(RequestId(request));
        let sequence = sequence(&mut scheduler, request, vec![request as u32; 3]);
        scheduler.add(Sequence {
            group: if request < 9 { search } else { alone },
            ..sequence
        });
    }
    let batch = step(&mut scheduler);
    commit(&mut scheduler, &batch, 1);
    let running = requests(&scheduler);
    // One branch, then those who wait alone, then branches in the places that nobody else wants.
    assert_eq!(running, [0, 9, 10, 11, 1, 2]);
    assert_eq!(scheduler.snapshot().num_branches_running, 3);
}

#[test]
fn tenants_take_turns_and_leave_places_to_others() {
    let mut scheduler = Scheduler::new(EngineConfig {
        is_shared: true,
        ..config(90, true)
    });
    let add = |scheduler: &mut Scheduler, request, tenant| {
        let sequence = sequence(scheduler, request, vec![request as u32; 3]);
        scheduler.add(Sequence { tenant, ..sequence });
    };
    for request in 0..9 {
        add(&mut scheduler, request, 1);
    }
    let batch = step(&mut scheduler);
    commit(&mut scheduler, &batch, 1);
    // Of six places one tenant leaves one, though nobody else wants it yet.
    assert_eq!(requests(&scheduler), [0, 1, 2, 3, 4]);
    add(&mut scheduler, 9, 2);
    add(&mut scheduler, 10, 2);
    let batch = step(&mut scheduler);
    commit(&mut scheduler, &batch, 2);
    assert_eq!(requests(&scheduler), [0, 1, 2, 3, 4, 9]);
    // The next free place goes to whoever has fewer running, not to whoever has waited longest.
    scheduler.remove(|sequence| sequence.request == RequestId(0));
    let batch = step(&mut scheduler);
    commit(&mut scheduler, &batch, 3);
    assert_eq!(requests(&scheduler), [1, 2, 3, 4, 9, 10]);
}

#[test]
fn siblings_share_blocks_until_they_write() {
    let mut scheduler = Scheduler::new(config(30, true));
    let leader = sequence(&mut scheduler, 0, (0..10).collect());
    scheduler.add(Sequence {
        num_pending_forks: 2,
        ..leader
    });
    let batch = step(&mut scheduler);
    commit(&mut scheduler, &batch, 0);
    assert_eq!(
        scheduler.blocks.num_used(),
        3,
        "three sequences, one set of blocks"
    );
    let batch = step(&mut scheduler);
    // The partial third block is copied twice; the last owner writes in place.
    assert_eq!(batch.block_copies.len(), 2);
    assert_eq!(scheduler.blocks.num_used(), 5);
}

#[test]
fn a_phase_gets_the_blocks_of_rows_that_are_not_run_and_shares_none() {
    use crate::engine::adaptation::Adaptation;
    use crate::model::AdaptationConfig;

    let mut scheduler = Scheduler::new(config(40, true));
    let config = AdaptationConfig {
        window: 40,
        ..AdaptationConfig::router()
    };
    let adapting = sequence(&mut scheduler, 0, vec![1; 90]);
    let id = adapting.id;
    scheduler.add(Sequence {
        adaptation: Some(Adaptation::new(config.into())),
        ..adapting
    });
    // Before the window 49 rows are run, at most 24 a step.
    for num_rows in [24, 24, 1] {
        let batch = step(&mut scheduler);
        assert_eq!(batch.rows[0].num_rows, num_rows);
        commit(&mut scheduler, &batch, 0);
    }
    let batch = step(&mut scheduler);
    assert_eq!(batch.rows[0].num_rows, 41, "whatever a step may run");
    let sequence = &mut scheduler.sequences[id];
    assert_eq!(sequence.tables.len(), 23);
    let adaptation = sequence.adaptation.as_mut().unwrap();
    adaptation.begin(None);
    sequence.num_computed_tokens = 89;
    assert_eq!(step(&mut scheduler).rows.len(), 0, "it runs nothing else");
    scheduler.check_invariants().unwrap();
    scheduler.remove(|_| true);
    // Another finds what was run before the phase, and nothing of what that wrote.
    add(&mut scheduler, 2, vec![1; 90]);
    step(&mut scheduler);
    let found = scheduler.sequences.running().next().unwrap();
    assert_eq!(found.num_cached_tokens, Some(48));
}
