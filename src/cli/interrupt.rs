//! Ctrl-C while a model is fetched: the pull ends, and leaves nothing half done.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Once, mpsc};

use super::signals::Signals;

/// The shell's code for a process that Ctrl-C ended.
pub(super) const EXIT_CODE: u8 = 130;

static STOP: AtomicBool = AtomicBool::new(false);
/// Pulls that hear of a signal.
static PULLS: AtomicUsize = AtomicUsize::new(0);
/// Whether somebody else hears signals outside of pulls.
static HAS_OWNER: AtomicBool = AtomicBool::new(false);

/// Whether a signal asked this process to stop.
pub(super) fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Asks pulls to stop.
pub(super) fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on somebody else hears signals: outside of pulls they do not end the process here.
pub(super) fn leave_signals() {
    HAS_OWNER.store(true, Ordering::Relaxed);
}

/// While it lives, a signal ends the pull in place of the process.
pub(super) struct Pull(());

impl Pull {
    pub(super) fn begin() -> Self {
        static LISTENER: Once = Once::new();
        LISTENER.call_once(|| {
            let (listens, listening) = mpsc::channel();
            let started = std::thread::Builder::new()
                .name("signals".to_owned())
                .spawn(move || listen(&listens));
            // Without the thread a signal ends the process, and the next pull cleans up. With it,
            // nothing is begun that a signal which comes too early would leave behind.
            if started.is_ok() {
                let _ = listening.recv();
            }
        });
        PULLS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        PULLS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn listen(listens: &mpsc::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    let Ok(mut signals) = runtime.block_on(async { Signals::new() }) else {
        return;
    };
    let _ = listens.send(());
    loop {
        runtime.block_on(signals.recv());
        // The second signal does not wait.
        let is_first = !STOP.swap(true, Ordering::Relaxed);
        let ends = match PULLS.load(Ordering::Relaxed) {
            0 => !HAS_OWNER.load(Ordering::Relaxed),
            _ => !is_first,
        };
        if ends {
            std::process::exit(EXIT_CODE.into());
        }
    }
}
