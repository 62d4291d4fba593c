//! A loaded model with what answers need beside it.

use std::sync::{Arc, LazyLock};

use crate::engine::{AdaptationConfig, Engine};
use crate::grammar::Grammars;
use crate::model::ModelConfig;
use crate::reward::RewardResources;
use crate::text::{ChatTemplate, OutputFormat, Tokenizer, ToolFormat};
use crate::trace::Identity;

/// A loaded model.
pub struct Served {
    pub engine: Engine,
    /// What adapters must fit; `None` when another backend than the native one reads the model.
    pub model_config: Option<ModelConfig>,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<ChatTemplate>,
    /// Compiles what answers must look like.
    pub grammars: ServedGrammars,
    /// How the model marks its thoughts and calls.
    pub output: OutputFormat,
    pub rewards: RewardResources,
    /// How requests that say nothing of it adapt ([`crate::api::default_adaptation`]).
    pub adaptation: Option<Arc<AdaptationConfig>>,
    /// For traces.
    pub identity: Identity,
}

/// Grammars of the served model, which the server may still be making when it is ready.
pub struct ServedGrammars(LazyLock<Option<Grammars>, Make>);

type Make = Box<dyn FnOnce() -> Option<Grammars> + Send>;

impl ServedGrammars {
    /// `make` gives the grammars when they are first asked for.
    pub fn pending(make: impl FnOnce() -> Option<Grammars> + Send + 'static) -> Self {
        Self(LazyLock::new(Box::new(make)))
    }

    /// `None` where the engine or the tokenizer does not allow constraints. Waits while they are
    /// made.
    pub fn get(&self) -> Option<&Grammars> {
        self.0.as_ref()
    }
}

impl From<Option<Grammars>> for ServedGrammars {
    fn from(grammars: Option<Grammars>) -> Self {
        Self::pending(move || grammars)
    }
}

/// How a model marks its thoughts and calls, by its template. A template that shows no tools gets
/// them in our words, and then in Hermes' format.
pub fn detect_output(template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> OutputFormat {
    let Some(template) = template else {
        return OutputFormat::default();
    };
    let mut output = OutputFormat::detect(template.source(), tokenizer);
    if !template.knows().tools {
        output.tools = Some(ToolFormat::Hermes);
    }
    output
}
