//! The grammars of a served model.

use std::thread;

use ponder_kernels::return_freed_memory;

use crate::api::ServedGrammars;
use crate::grammar::Grammars;
use crate::text::Tokenizer;
use crate::work::lower_priority;

/// Added to the niceness of the thread that makes the tree: where the weights load on all cores, it
/// takes a tenth of one.
const NICENESS: i32 = 10;

/// The vocabulary's tree takes half a second: a thread makes it while the weights load and the
/// first requests come. Where it cannot be made, requests that ask for a grammar are refused.
pub(super) fn begin(tokenizer: &Tokenizer, vocab_size: usize) -> ServedGrammars {
    let tokenizer = tokenizer.clone();
    let making = thread::spawn(move || {
        lower_priority(NICENESS);
        let made = Grammars::new(&tokenizer, vocab_size);
        return_freed_memory();
        match made {
            Ok(grammars) => Some(grammars),
            Err(error) => {
                tracing::warn!("structured output is off: {error}");
                None
            }
        }
    });
    ServedGrammars::pending(move || {
        making.join().unwrap_or_else(|_| {
            tracing::warn!("structured output is off: its thread panicked, which is a bug");
            None
        })
    })
}
