//! Search over a model's answers: a client of the engine. Strategies are pure logic over a
//! [`Tree`], one a file and a row of [`STRATEGIES`]; they reach the model through a [`Policy`] and
//! values through a [`crate::reward::Scorer`].

mod auto;
mod beam;
mod best_of_n;
mod branch_constraint;
mod calling;
mod confidence;
mod context;
mod cut;
mod deepconf;
mod dvts;
mod engine_policy;
mod engine_running;
mod engine_text;
mod event;
mod frontier;
mod improvement;
mod inserted;
mod mcts;
mod outcome;
mod particle_filtering;
mod policy;
mod rebase;
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
mod tree_checks;
mod vm_mcts;
mod vote;
mod weights;

pub use branch_constraint::BranchConstraint;
pub use calling::{Calling, CodeEvent, Insertion, Prefix};
pub use confidence::{ConfidenceRequest, ConfidenceRule, ConfidenceSpec};
pub use context::Search;
pub use engine_policy::EnginePolicy;
pub use event::SearchEvent;
pub use inserted::{Inserted, Piece, num_inserted, own_tokens, pieces};
pub use outcome::{Ranked, SearchError, SearchOutcome, SearchStats, Stopped};
pub use policy::{Continuation, End, Expansion, Finished, Policy, Running, StepEnd};
pub use recording::{RecordedNode, Recording, ReplayPolicy};
pub use spec::{BudgetSpec, OneOrMany, SearchRequest, SearchSpec, SpecError, StepSpec};
pub(crate) use spec::{MAX_DELIMITER_BYTES, MAX_STEP_TOKENS, MAX_TAGS};
pub use step::StepRule;
pub use strategy::{Defaults, PLAIN, STRATEGIES, Strategy, StrategyName, find};
pub use text_rules::TextRules;
pub use tree::{Node, NodeId, Tree};
