//! How large grammars may be, and how much work they may cause.

use std::time::Duration;

use llguidance::api::ParserLimits;

use super::GrammarError;

/// Bytes of one grammar: of a schema as JSON, of a grammar's text, of all tools together.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Bytes of one regular expression, also inside a schema.
pub const MAX_REGEX_BYTES: usize = 16 << 10;
/// How deep schemas, groups of a grammar and parts of a structural tag may nest.
pub const MAX_DEPTH: usize = 64;
/// How deep a schema nests with its references followed.
pub const MAX_REFERENCED_DEPTH: usize = 512;
/// Properties of one object.
pub const MAX_PROPERTIES: usize = 2048;
/// Groups of a GBNF grammar inside each other: llguidance's own limit is 30.
pub const MAX_GROUP_DEPTH: usize = 20;
/// Choices of one grammar.
pub const MAX_CHOICES: usize = 4096;
/// Tools of one grammar.
pub const MAX_TOOLS: usize = 128;
/// Structures, triggers and formats of one structural tag.
pub const MAX_TAGS: usize = 256;
/// Names of properties by pattern in one schema: each pair of them is compared.
pub const MAX_PATTERN_PROPERTIES: usize = 16;
/// Schemas inside of a schema that has several names by pattern.
pub const MAX_PATTERNED_SCHEMAS: usize = 1000;
/// Repetitions and lengths that a schema or grammar may count: `maxItems`, `maxLength`, `{m,n}`.
pub const MAX_REPETITIONS: u64 = 10_000;
/// Digits in a row of a number in JSON: each integer of 64 bits that is not negative can be
/// written.
pub const MAX_DIGITS: usize = 19;
/// Digits of a number's exponent.
pub const MAX_EXPONENT_DIGITS: usize = 2;
/// Time to compile one grammar, beside the request's own budget.
pub const MAX_COMPILE_TIME: Duration = Duration::from_secs(10);
/// Time of one mask, or of taking one token, if neither fuel nor items end it before.
pub const MAX_MASK_TIME: Duration = Duration::from_millis(300);
/// Grammars that compile at once.
pub const MAX_COMPILING: usize = 4;
/// Compiled grammars that are kept, and the bytes of all of them.
pub const MAX_CACHED_GRAMMARS: usize = 256;
pub const MAX_CACHED_BYTES: usize = 256 << 20;
/// Bytes of a text that is forced: longer ones are forced piece by piece.
pub const MAX_FORCED_BYTES: usize = 4096;
/// Stack of a thread that compiles: schemas and expressions are walked recursively.
pub const COMPILE_STACK_BYTES: usize = 64 << 20;

/// What llguidance may do for one grammar and one mask. Fuel costs about 20 µs a thousand while a
/// grammar compiles, 70 µs a thousand in a mask; items cost 50 µs a thousand.
pub fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 2_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 30_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Refuses a text that is longer than `max_bytes`.
///
/// # Errors
/// [`GrammarError::TooMuchWork`].
pub fn check_len(what: &str, len: usize, max_bytes: usize) -> Result<(), GrammarError> {
    match len <= max_bytes {
        true => Ok(()),
        false => Err(GrammarError::TooMuchWork(format!(
            "{what} has {len} bytes; at most {max_bytes} are allowed"
        ))),
    }
}
