//! From the fields about an answer's form to what the engine and the reader of its text are told.

use serde_json::{Value, json};

use super::params::SharedParams;
use super::reasoning::ReasoningPlan;
use super::restrict::restricted;
use super::structured::{Structured, compile};
use super::tools::{Calls, ToolPlan};
use crate::api::answer::reader::ReadingRules;
use crate::api::error::ApiError;
use crate::api::generation::Shape;
use crate::api::served::Served;
use crate::engine::TokenConstraint;
use crate::grammar::{Grammar, ToolGrammar, either, prefixed, with_mark};
use crate::search::BranchConstraint;
use crate::text::{OutputFormat, ToolFormat};
use crate::work::Budget;

/// The shape of a completion: its text is sent as it is.
pub(super) fn of_completion(
    served: &Served,
    shared: &SharedParams,
    structured: Option<Structured>,
    budget: &Budget,
) -> Result<Shape, ApiError> {
    let field = structured
        .as_ref()
        .map(|structured| structured.field.clone());
    let compiled = structured.map(|structured| {
        let compiled = compile(served, &structured.grammar, &structured.field, budget);
        compiled.map(|constraint| (constraint, structured.asked))
    });
    let (constraint, asked) = compiled.transpose()?.unzip();
    let constraint = restricted(shared, served, constraint, budget)?;
    Ok(Shape {
        constraint: constraint.map(BranchConstraint::new),
        field,
        asked: restrictions(asked.unwrap_or_default(), shared),
        ..Shape::default()
    })
}

/// The shape of a chat's answer to `prompt`.
pub(super) fn of_chat(
    (served, shared): (&Served, &SharedParams),
    prompt: &str,
    (structured, tools, reasoning): (Option<Structured>, ToolPlan, &ReasoningPlan),
    budget: &Budget,
) -> Result<Shape, ApiError> {
    let calls = tools.calls;
    let field = field(structured.as_ref(), calls.as_ref(), reasoning);
    let asked = asked(structured.as_ref(), calls.as_ref(), reasoning);
    let asked = restrictions(asked, shared);
    let has_form = structured.is_some();
    let rest = constraint(served, structured, calls.as_ref(), budget)?;
    let format = OutputFormat {
        tools: calls.as_ref().map(|calls| calls.grammar.format),
        reasoning: served.output.reasoning.clone(),
    };
    let may_call_again = |calls: &Calls| calls.grammar.is_parallel;
    let constraint = reasoning.constraint(served, prompt, rest)?;
    let constraint = restricted(shared, served, constraint, budget)?;
    Ok(Shape {
        constraint: constraint.map(BranchConstraint::new),
        field,
        asked,
        reading: ReadingRules {
            is_thinking: served.output.opens_thought(prompt),
            shows_reasoning: reasoning.is_shown,
            max_calls: match calls.as_ref().is_none_or(may_call_again) {
                true => usize::MAX,
                false => 1,
            },
            tools: tools.shown.unwrap_or_default().into(),
            reads_unmarked: !has_form,
            is_named: calls.as_ref().is_some_and(|calls| calls.is_named),
            ..ReadingRules::of(format, &served.tokenizer)
        },
        is_legacy: tools.is_legacy,
    })
}

/// What the answer must look like once the model has thought.
fn constraint(
    served: &Served,
    structured: Option<Structured>,
    calls: Option<&Calls>,
    budget: &Budget,
) -> Result<Option<Box<dyn TokenConstraint>>, ApiError> {
    let compile_calls = |calls: &Calls, grammar: ToolGrammar| {
        compile(served, &Grammar::Tools(grammar), calls.field, budget)
    };
    match (structured, calls) {
        (None, None) => Ok(None),
        // A call is not the text that the format is for.
        (_, Some(calls)) if calls.grammar.is_required => {
            compile_calls(calls, calls.grammar.clone()).map(Some)
        }
        (None, Some(calls)) if calls.is_enforced => {
            let constraint = compile_calls(calls, calls.grammar.clone())?;
            unmarked(served, calls, constraint, budget).map(Some)
        }
        (None, Some(_)) => Ok(None),
        (Some(structured), calls) => {
            let text = compile(served, &structured.grammar, &structured.field, budget)?;
            let text = match served.output.before_answer() {
                "" => text,
                before => {
                    let before = served.tokenizer.encode(before, false, true)?;
                    prefixed(before, text, served.engine.model_info().vocab_size)
                }
            };
            let Some(calls) = calls else {
                return Ok(Some(text));
            };
            // The model chooses between a call and an answer in its form.
            let grammar = ToolGrammar {
                is_required: true,
                ..calls.grammar.clone()
            };
            Ok(Some(either(compile_calls(calls, grammar)?, text)))
        }
    }
}

/// Small models leave the mark of Hermes' calls out, and a grammar sees text there. So an answer
/// that begins with an object is a call, too, and one that begins with what else stands for the
/// mark is not allowed.
fn unmarked(
    served: &Served,
    calls: &Calls,
    constraint: Box<dyn TokenConstraint>,
    budget: &Budget,
) -> Result<Box<dyn TokenConstraint>, ApiError> {
    if calls.grammar.format != ToolFormat::Hermes {
        return Ok(constraint);
    }
    let vocab_size = served.engine.model_info().vocab_size;
    let marked = with_mark(constraint, "<tool_call>", &served.tokenizer, vocab_size);
    let Some(schema) = object_of_call(&calls.grammar) else {
        return Ok(marked);
    };
    let strict = calls.grammar.tools.iter().any(|tool| tool.strict);
    let grammar = Grammar::JsonSchema { schema, strict };
    let object = compile(served, &grammar, calls.field, budget)?;
    Ok(either(marked, object))
}

/// The schema of one call without its mark. `None` where a tool's schema refers to its own root.
fn object_of_call(grammar: &ToolGrammar) -> Option<Value> {
    let tools = grammar.tools.iter().map(|tool| {
        let arguments = match &tool.parameters {
            Value::Null => json!({"type": "object"}),
            parameters => parameters.clone(),
        };
        json!({"type": "object", "properties": {"name": {"const": tool.name}, "arguments": arguments},
            "required": ["name", "arguments"], "additionalProperties": false})
    });
    let schema = json!({"anyOf": tools.collect::<Vec<_>>()});
    (!schema.to_string().contains("\"$ref\"")).then_some(schema)
}

/// The field that asks for a constraint.
fn field(
    structured: Option<&Structured>,
    calls: Option<&Calls>,
    reasoning: &ReasoningPlan,
) -> Option<String> {
    let structured = structured.map(|structured| structured.field.clone());
    let calls = calls.filter(|calls| calls.is_enforced);
    let calls = calls.map(|calls| calls.field.to_owned());
    let budget = reasoning.budget.map(|(_, field)| field.to_owned());
    structured.or(calls).or(budget)
}

/// What a resumed search must ask for again, with the restrictions of tokens.
fn restrictions(mut asked: Value, shared: &SharedParams) -> Value {
    if let Some(token_ids) = &shared.allowed_token_ids {
        asked["allowed_token_ids"] = json!(token_ids);
    }
    if let Some(words) = shared.bad_words.as_ref().filter(|words| !words.is_empty()) {
        asked["bad_words"] = json!(words);
    }
    asked
}

/// What a resumed search must ask for again.
fn asked(
    structured: Option<&Structured>,
    calls: Option<&Calls>,
    reasoning: &ReasoningPlan,
) -> Value {
    let mut asked = structured.map_or(Value::Null, |structured| structured.asked.clone());
    if let Some(calls) = calls.filter(|calls| calls.is_enforced) {
        let grammar = &calls.grammar;
        let names: Vec<&str> = grammar
            .tools
            .iter()
            .map(|tool| tool.name.as_str())
            .collect();
        asked["calls"] = json!({"tools": names, "is_required": grammar.is_required,
            "is_parallel": grammar.is_parallel});
    }
    if let Some((tokens, _)) = reasoning.budget {
        asked["thinking_token_budget"] = tokens.into();
    }
    if reasoning.is_off {
        asked["is_thinking"] = false.into();
    }
    asked
}
