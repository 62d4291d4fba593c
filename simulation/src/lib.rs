//! The whole engine over a fake model, in virtual time, under random clients: one seed is one run,
//! and a run that fails is replayed by its seed. Every step keeps the invariants; at the end every
//! request has ended, every block is free, and every answer is the one that its request gets alone.

mod answer;
mod arrivals;
mod client;
mod constraint;
mod plan;
mod random;
mod searching;
mod setup;
mod text;
mod world;

pub use world::{Report, World};

/// One run.
///
/// # Errors
/// What went wrong, with what the engine was.
pub fn run(seed: u64) -> Result<Report, String> {
    let mut setup = String::new();
    let run = std::panic::AssertUnwindSafe(|| {
        // Time stands still but where the run moves it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let world = World::new(seed)?;
            setup = format!("{:?}", world.setup());
            world.run().await
        })
    });
    match std::panic::catch_unwind(run) {
        Ok(result) => result.map_err(|wrong| format!("{wrong}\n{setup}")),
        Err(_) => Err(format!("it panicked\n{setup}")),
    }
}
