//! A checked request to generate.

use std::sync::Arc;

use serde_json::Value;

use super::adapters::registry::TargetModel;
use super::answer::reader::ReadingRules;
use super::deadline::Deadline;
use super::openai::params::SharedParams;
use super::openai::speculation::Speculation;
use super::tenant::Tenant;
use super::wire::Wire;
use crate::engine::{AdaptationConfig, Media, SamplingParams};
use crate::search::{BranchConstraint, SearchRequest};
use crate::tool::CodeTool;

/// A checked request, whatever format it came in.
pub(super) struct Generation {
    pub prompts: Vec<Vec<u32>>,
    /// What the one prompt of a chat shows.
    pub media: Option<Arc<Media>>,
    /// `max_tokens` of 0 reads the prompts and samples nothing.
    pub params: SamplingParams,
    pub stops: Vec<String>,
    pub speculation: Speculation,
    pub adaptation: Option<Arc<AdaptationConfig>>,
    pub shared: SharedParams,
    pub shape: Shape,
    /// Runs the Python that the answers have.
    pub code: Option<CodeUse>,
    pub search: Option<SearchRequest>,
    /// The prompts' texts when they are to be echoed.
    pub echo: Vec<String>,
    /// The format of the answer.
    pub wire: Wire,
    /// What is asked, for rewards that read it.
    pub question: String,
    pub target: TargetModel,
    /// The request's messages and tools; null for completions.
    pub source: Value,
    pub tenant: Tenant,
    pub deadline: Deadline,
}

/// How a request's answers call code.
#[derive(Debug)]
pub(super) struct CodeUse {
    pub tool: Arc<CodeTool>,
    /// By prompt: its text, where the answer goes on with it. A block may begin there.
    pub before: Vec<String>,
}

/// What an answer must look like, and how its text is read.
#[derive(Debug, Default)]
pub(super) struct Shape {
    pub constraint: Option<BranchConstraint>,
    /// The field that asks for the constraint, for errors of it.
    pub field: Option<String>,
    /// What the request says of it: a search goes on only under the same. Null when it says
    /// nothing.
    pub asked: Value,
    pub reading: ReadingRules,
    /// See [`super::wire::envelope::Head::is_legacy`].
    pub is_legacy: bool,
}
