//! A few seconds of the simulation. `cargo run --release -p ponder-simulation -- --seconds 600`
//! looks further.

use ponder::engine::Drafter;

const RUNS: u64 = 300;

#[test]
fn random_engines_serve_random_clients() {
    let (mut num_preemptions, mut num_accepted, mut num_hits) = (0, 0, 0);
    let (mut num_forced, mut num_failed) = (0, 0);
    for seed in 0..RUNS {
        let report = ponder_simulation::run(seed);
        let report = report.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        num_preemptions += report.stats.num_preemptions;
        num_hits += report.stats.prefix_cache_hits;
        num_failed += report.num_failed_constraints;
        num_forced += report.stats.drafts[Drafter::Forced as usize].num_accepted_tokens;
        num_accepted += report
            .stats
            .drafts
            .iter()
            .map(|d| d.num_accepted_tokens)
            .sum::<u64>();
    }
    assert!(
        num_preemptions > 0 && num_accepted > 0 && num_hits > 0,
        "runs are tight enough"
    );
    assert!(
        num_forced > 0 && num_failed > 0,
        "constraints do all they can"
    );
}
