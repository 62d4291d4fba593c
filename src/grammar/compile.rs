//! Compiling grammars: on a thread with a large stack, a few at once, within a budget.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};

use super::constraint::{GrammarConstraint, explain};
use super::limits::{COMPILE_STACK_BYTES, MAX_COMPILE_TIME, MAX_COMPILING};
use super::numbers::NumberScope;
use super::source::source;
use super::vocabulary::Vocabulary;
use super::{Grammar, GrammarError};
use crate::work::Budget;

/// How often a waiting compilation looks at its budget.
const TICK: Duration = Duration::from_millis(2);
/// What the grammar of one compiled byte of text weighs in the cache, beside its lexer.
const BYTES_PER_BYTE: usize = 64;

/// What llguidance compiles.
pub(super) struct Source {
    pub(super) grammar: TopLevelGrammar,
    pub(super) numbers: NumberScope,
    /// Bytes of the grammar's text.
    pub(super) num_bytes: usize,
}

/// A compiled grammar at the beginning of a text.
pub(super) struct Compiled {
    /// Nobody moves it; constraints are copies.
    matcher: Mutex<Matcher>,
    numbers: Arc<NumberScope>,
    has_special: bool,
    pub(super) num_bytes: usize,
}

impl Compiled {
    /// A copy with lexer caches of its own: requests do not wait for each other, and none of them
    /// pays for the states that another one has made.
    pub(super) fn constraint(&self, vocabulary: &Arc<Vocabulary>) -> GrammarConstraint {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        let matcher = matcher.deep_clone();
        GrammarConstraint::new(
            matcher,
            Arc::clone(vocabulary),
            &self.numbers,
            self.has_special,
        )
    }
}

/// Threads that compile.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    num_running: Arc<AtomicUsize>,
}

/// Held while a thread compiles, also after everybody has stopped waiting for the thread.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Slots {
    fn take(&self) -> Option<Slot> {
        let add = |num: usize| (num < MAX_COMPILING).then_some(num + 1);
        let taken = self
            .num_running
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        taken.ok().map(|_| Slot(Arc::clone(&self.num_running)))
    }
}

/// Compiles on a thread of its own. The thread cannot be stopped: fuel bounds what it does, and a
/// thread that nobody waits for holds its slot until it is done.
pub(super) fn compile(
    grammar: &Grammar,
    vocabulary: &Arc<Vocabulary>,
    factory: &Arc<ParserFactory>,
    slots: &Slots,
    budget: &Budget,
) -> Result<Compiled, GrammarError> {
    let start = Instant::now();
    let slot = loop {
        check(start, budget)?;
        match slots.take() {
            Some(slot) => break slot,
            None => std::thread::sleep(TICK),
        }
    };
    let (sender, receiver) = sync_channel(1);
    let (grammar, vocabulary, factory) =
        (grammar.clone(), Arc::clone(vocabulary), Arc::clone(factory));
    let work = move || {
        let _slot = slot;
        let done = catch_unwind(AssertUnwindSafe(|| {
            build(source(&grammar, &vocabulary)?, &factory)
        }));
        let done = done.unwrap_or_else(|_| Err(broken()));
        let _ = sender.send(done);
    };
    std::thread::Builder::new()
        .name("ponder-grammar".to_owned())
        .stack_size(COMPILE_STACK_BYTES)
        .spawn(work)
        .map_err(|error| {
            GrammarError::TooMuchWork(format!("no thread for the grammar: {error}"))
        })?;
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => check(start, budget)?,
            Err(RecvTimeoutError::Disconnected) => return Err(broken()),
        }
    }
}

fn broken() -> GrammarError {
    GrammarError::Invalid("the grammar cannot be compiled".to_owned())
}

fn check(start: Instant, budget: &Budget) -> Result<(), GrammarError> {
    if budget.may_go_on() && start.elapsed() < MAX_COMPILE_TIME {
        return Ok(());
    }
    Err(GrammarError::TooMuchWork(format!(
        "the grammar was not compiled after {:.1} s; make it smaller or simpler",
        start.elapsed().as_secs_f32()
    )))
}

fn build(source: Source, factory: &ParserFactory) -> Result<Compiled, GrammarError> {
    let refuse = |error: anyhow::Error| refusal(&format!("{error:#}"));
    let parser = factory.create_parser(source.grammar).map_err(refuse)?;
    let spec = parser.parser.grammar().lexer_spec();
    let has_special = spec.special_token_rx.is_some();
    // A draft is taken back, which llguidance cannot do with these.
    if !spec.can_rollback() {
        return Err(GrammarError::Invalid(
            "max_tokens= and stop= are not supported in grammars; use suffix= or lazy".to_owned(),
        ));
    }
    let num_bytes = parser.parser.lexer_stats().num_bytes;
    let mut matcher = Matcher::new(Ok(parser));
    // The first mask shows whether there is any text at all, and warms the lexer.
    matcher.compute_mask_or_eos().map_err(refuse)?;
    Ok(Compiled {
        matcher: Mutex::new(matcher),
        numbers: Arc::new(source.numbers),
        has_special,
        num_bytes: num_bytes + source.num_bytes * BYTES_PER_BYTE,
    })
}

/// llguidance's reason as an error.
fn refusal(message: &str) -> GrammarError {
    const TOO_LARGE: [&str; 5] = [
        "too big",
        "too large",
        "fuel",
        "too much work",
        "stack level",
    ];
    let message = explain(message);
    match TOO_LARGE.iter().any(|words| message.contains(words)) {
        true => GrammarError::TooMuchWork(format!("the grammar is too complex: {message}")),
        false => GrammarError::Invalid(message),
    }
}
