//! Search over a model's answers: a client of the engine. Strategies are pure logic over a [`Tree`], one a file and a row
//! of [`STRATEGIES`]; they reach the model through a [`Policy`] and values through a [`crate::reward::Scorer`].

mod beam;
mod best_of_n;
mod branch_constraint;
mod calling;
mod context;
mod dvts;
mod engine_policy;
mod engine_running;
mod engine_text;
mod event;
mod inserted;
mod mcts;
mod outcome;
mod policy;
mod recording;
mod samples;
mod scoring;
#[doc(hidden)]
pub mod scripted;
mod self_consistency;
mod spec;
mod step;
mod strategy;
mod text_hash;
mod text_rules;
mod tree;
mod vm_mcts;

pub use branch_constraint::BranchConstraint;
pub use calling::{Calling, CodeEvent, Insertion, Prefix};
pub use context::Search;
pub use engine_policy::EnginePolicy;
pub use event::SearchEvent;
pub use inserted::{Inserted, Piece, num_inserted, own_tokens, pieces};
pub use outcome::{Ranked, SearchError, SearchOutcome, SearchStats, Stopped};
pub use policy::{Continuation, End, Expansion, Finished, FirstStep, Policy, Running};
pub use recording::{RecordedNode, Recording, ReplayPolicy};
pub use spec::{BudgetSpec, OneOrMany, SearchRequest, SearchSpec, SpecError, StepSpec};
pub(crate) use spec::{MAX_DELIMITER_BYTES, MAX_STEP_TOKENS, MAX_TAGS};
pub use step::StepRule;
pub use strategy::{Defaults, PLAIN, STRATEGIES, Strategy, StrategyName, find};
pub use text_rules::TextRules;
pub use tree::{Node, NodeId, Tree};
