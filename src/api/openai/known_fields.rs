//! The fields that other servers document, and what becomes of each. A field that would change an
//! answer elsewhere has its effect or is refused, unless its value asks for what happens anyway;
//! those that change no answer (`user`) are taken. Names that nobody documents are ignored.

use serde_json::{Map, Value};

use super::field_rules::{CHAT, COMPLETIONS, KnownField, Rule, Same};
use crate::api::error::ApiError;

const BOTH: &[&str] = &[CHAT, COMPLETIONS];
const IN_CHAT: &[&str] = &[CHAT];
const IN_COMPLETIONS: &[&str] = &[COMPLETIONS];

const fn row(name: &'static str, routes: &'static [&'static str], rule: Rule) -> KnownField {
    KnownField { name, routes, rule }
}

/// The request struct has the field.
const fn has(name: &'static str, routes: &'static [&'static str]) -> KnownField {
    row(name, routes, Rule::Effect)
}

/// Of OpenAI's reference (the Python package `openai` 3.57.0).
#[rustfmt::skip]
pub(super) const OPENAI: &[KnownField] = &[
    has("messages", IN_CHAT),
    has("max_completion_tokens", IN_CHAT),
    has("top_logprobs", IN_CHAT),
    has("response_format", IN_CHAT),
    has("tools", IN_CHAT),
    has("tool_choice", IN_CHAT),
    has("functions", IN_CHAT),
    has("function_call", IN_CHAT),
    has("parallel_tool_calls", IN_CHAT),
    has("prediction", IN_CHAT),
    has("reasoning_effort", IN_CHAT),
    has("store", IN_CHAT),
    has("metadata", IN_CHAT),
    has("prompt", IN_COMPLETIONS),
    has("echo", IN_COMPLETIONS),
    has("suffix", IN_COMPLETIONS),
    has("best_of", IN_COMPLETIONS),
    has("model", BOTH),
    has("frequency_penalty", BOTH),
    has("logit_bias", BOTH),
    has("logprobs", BOTH),
    has("max_tokens", BOTH),
    has("n", BOTH),
    has("presence_penalty", BOTH),
    has("seed", BOTH),
    has("stop", BOTH),
    has("stream", BOTH),
    has("stream_options", BOTH),
    has("temperature", BOTH),
    has("top_p", BOTH),
    row("user", BOTH, Rule::Only(&[Same::AnyText], "the server keeps no statistics of users")),
    row("safety_identifier", IN_CHAT, Rule::Only(&[Same::AnyText], "the server keeps no statistics of users")),
    row("prompt_cache_key", IN_CHAT, Rule::Only(&[Same::AnyText], "every prefix is cached; cache_salt separates caches")),
    row("prompt_cache_retention", IN_CHAT, Rule::Only(&[Same::Text("in_memory")], "cached prefixes stay in memory until others need the room")),
    row("prompt_cache_options", IN_CHAT, Rule::Only(&[Same::Empty], "every prefix is cached; leave prompt_cache_options out")),
    row("service_tier", IN_CHAT, Rule::Only(&[Same::Text("auto"), Same::Text("default")], "there is one tier")),
    row("modalities", IN_CHAT, Rule::Only(&[Same::ListOf("text")], "the model answers with text")),
    row("audio", IN_CHAT, Rule::Only(&[], "the model answers with text; leave audio out")),
    row("verbosity", IN_CHAT, Rule::Only(&[Same::Text("medium")], "say in a message how long the answer should be, or set max_tokens")),
    row("web_search_options", IN_CHAT, Rule::Only(&[], "the server searches nothing; offer your own search in tools")),
    row("moderation", IN_CHAT, Rule::Only(&[], "the server moderates nothing; leave moderation out")),
];

/// Of vLLM's requests and sampling parameters, with the names of older releases.
#[rustfmt::skip]
pub(super) const VLLM: &[KnownField] = &[
    has("top_k", BOTH),
    has("min_p", BOTH),
    has("repetition_penalty", BOTH),
    has("stop_token_ids", BOTH),
    has("include_stop_str_in_output", BOTH),
    has("ignore_eos", BOTH),
    has("min_tokens", BOTH),
    has("skip_special_tokens", BOTH),
    has("prompt_logprobs", BOTH),
    has("allowed_token_ids", BOTH),
    has("bad_words", BOTH),
    has("truncate_prompt_tokens", BOTH),
    has("truncation_side", BOTH),
    has("add_special_tokens", BOTH),
    has("return_tokens_as_token_ids", BOTH),
    has("return_token_ids", BOTH),
    has("request_id", BOTH),
    has("cache_salt", BOTH),
    has("add_generation_prompt", IN_CHAT),
    has("continue_final_message", IN_CHAT),
    has("chat_template_kwargs", IN_CHAT),
    has("documents", IN_CHAT),
    has("include_reasoning", IN_CHAT),
    has("structured_outputs", BOTH),
    has("guided_json", BOTH),
    has("guided_regex", BOTH),
    has("guided_choice", BOTH),
    has("guided_grammar", BOTH),
    has("guided_decoding_backend", BOTH),
    has("guided_whitespace_pattern", BOTH),
    has("response_format", IN_COMPLETIONS),
    has("guided_json_object", BOTH),
    has("thinking_token_budget", IN_CHAT),
    row("thinking_token_budget", IN_COMPLETIONS, Rule::Only(&[Same::Number(-1.0)], "use /v1/chat/completions, which knows thoughts")),
    row("structural_tag", BOTH, Rule::Only(&[], "use structured_outputs: {\"structural_tag\": …}")),
    row("use_beam_search", BOTH, Rule::Only(&[Same::Is(false)], "use search: {\"strategy\": \"beam\"}")),
    row("length_penalty", BOTH, Rule::Only(&[Same::Number(1.0)], "only beam search has a length penalty; use search: {\"strategy\": \"beam\"}")),
    row("best_of", IN_CHAT, Rule::Only(&[Same::Number(1.0)], "use search: {\"strategy\": \"best_of_n\"}, or /v1/completions")),
    row("watermarking", BOTH, Rule::Only(&[Same::Is(false)], "the server marks no text")),
    row("spaces_between_special_tokens", BOTH, Rule::Only(&[Same::AnyBool], "tokens are joined by their bytes, which have their own spaces")),
    row("detokenize", BOTH, Rule::Only(&[Same::Is(true)], "answers are text; return_token_ids gives the tokens too")),
    row("logits_processors", BOTH, Rule::Only(&[Same::Empty], "use logit_bias, bad_words, allowed_token_ids or structured_outputs")),
    row("logprob_token_ids", BOTH, Rule::Only(&[], "use logprobs with top_logprobs")),
    row("repetition_detection", BOTH, Rule::Only(&[], "use stop, max_tokens or repetition_penalty")),
    row("priority", BOTH, Rule::Only(&[Same::Number(0.0)], "requests take turns by key; leave priority out")),
    row("session_id", BOTH, Rule::Only(&[Same::AnyText], "there is one engine, so that sessions need no routing")),
    row("stream_interval", BOTH, Rule::Only(&[Same::Number(1.0)], "each step of the engine is sent as it comes")),
    row("return_token_offsets", BOTH, Rule::Only(&[Same::Is(false)], "use echo and logprobs, whose text_offset says where tokens begin")),
    row("return_prompt_text", IN_CHAT, Rule::Only(&[Same::Is(false)], "use /tokenize and /detokenize")),
    row("return_mm_kwargs", BOTH, Rule::Only(&[Same::AnyBool], "no route renders without an answer")),
    row("routed_experts_prompt_start", BOTH, Rule::Only(&[Same::Number(0.0)], "answers do not tell the experts")),
    row("kv_transfer_params", BOTH, Rule::Only(&[Same::Empty], "the server does not split prefill from decoding")),
    row("ec_transfer_params", BOTH, Rule::Only(&[Same::Empty], "the server does not split prefill from decoding")),
    row("vllm_xargs", BOTH, Rule::Only(&[Same::Empty], "the server has no such extensions")),
    row("media_io_kwargs", IN_CHAT, Rule::Only(&[Same::Empty], "images are read as the model needs them")),
    row("mm_processor_kwargs", IN_CHAT, Rule::Only(&[Same::Empty], "images are read as the model needs them")),
    row("echo", IN_CHAT, Rule::Only(&[Same::Is(false)], "use continue_final_message, and put its text before the answer")),
    row("chat_template", IN_CHAT, Rule::Only(&[], "start the server with --chat-template, or render the prompt and use /v1/completions")),
    row("chat_template_content_format", IN_CHAT, Rule::Only(&[Same::Text("auto"), Same::Text("string")], "parts of a message reach the template as one text")),
    row("prompt_embeds", IN_COMPLETIONS, Rule::Only(&[], "send text or token ids as prompt")),
];

/// Of llama.cpp's server, whose chat and completions take the options of `/completion` too.
#[rustfmt::skip]
pub(super) const LLAMA_CPP: &[KnownField] = &[
    has("grammar", BOTH),
    has("json_schema", BOTH),
    has("cache_prompt", BOTH),
    has("max_completion_tokens", IN_COMPLETIONS),
    row("reasoning_budget_tokens", IN_CHAT, Rule::Alias("thinking_token_budget")),
    row("thinking_budget_tokens", IN_CHAT, Rule::Alias("thinking_token_budget")),
    row("reasoning_format", IN_CHAT, Rule::Only(&[Same::Text("auto"), Same::Text("deepseek")], "use include_reasoning")),
    row("parse_tool_calls", IN_CHAT, Rule::Only(&[Same::Is(true)], "leave tools out")),
    row("n_predict", BOTH, Rule::Alias("max_tokens")),
    row("n_cmpl", BOTH, Rule::Alias("n")),
    row("repeat_penalty", BOTH, Rule::Alias("repetition_penalty")),
    row("repeat_last_n", BOTH, Rule::Only(&[Same::Number(-1.0)], "penalties look at all tokens")),
    row("dynatemp_range", BOTH, Rule::Only(&[Same::Number(0.0)], "use temperature")),
    row("typical_p", BOTH, Rule::Only(&[Same::AtLeast(1.0)], "use top_p or min_p")),
    row("top_n_sigma", BOTH, Rule::Only(&[Same::AtMost(0.0)], "use top_p or min_p")),
    row("xtc_probability", BOTH, Rule::Only(&[Same::Number(0.0)], "use temperature")),
    row("mirostat", BOTH, Rule::Only(&[Same::Number(0.0)], "use temperature with top_p or min_p")),
    row("dry_multiplier", BOTH, Rule::Only(&[Same::Number(0.0)], "use repetition_penalty or frequency_penalty")),
    row("adaptive_target", BOTH, Rule::Only(&[Same::AtMost(0.0)], "use temperature")),
    row("dynatemp_exponent", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where dynatemp_range is above 0")),
    row("xtc_threshold", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where xtc_probability is above 0")),
    row("mirostat_tau", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where mirostat is above 0")),
    row("mirostat_eta", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where mirostat is above 0")),
    row("dry_base", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where dry_multiplier is above 0")),
    row("dry_allowed_length", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where dry_multiplier is above 0")),
    row("dry_penalty_last_n", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where dry_multiplier is above 0")),
    row("dry_sequence_breakers", BOTH, Rule::Only(&[Same::AnyList], "it matters only where dry_multiplier is above 0")),
    row("adaptive_decay", BOTH, Rule::Only(&[Same::AnyNumber], "it matters only where adaptive_target is above 0")),
    row("samplers", BOTH, Rule::Only(&[Same::Empty], "temperature, top_k, top_p and min_p apply in this order")),
    row("min_keep", BOTH, Rule::Only(&[Same::AtMost(1.0)], "one token is always kept")),
    row("n_probs", BOTH, Rule::Only(&[Same::Number(0.0)], "use logprobs (chat: with top_logprobs)")),
    row("post_sampling_probs", BOTH, Rule::Only(&[Same::Is(false)], "log-probabilities are those of the model itself")),
    row("n_indent", BOTH, Rule::Only(&[Same::Number(0.0)], "leave the field out")),
    row("n_discard", BOTH, Rule::Only(&[Same::Number(0.0)], "leave the field out")),
    row("n_cache_reuse", BOTH, Rule::Only(&[Same::Number(0.0)], "leave the field out")),
    row("n_keep", BOTH, Rule::Only(&[Same::Number(0.0), Same::Number(-1.0)], "a prompt is never shortened while it is answered; see truncate_prompt_tokens")),
    row("t_max_predict_ms", BOTH, Rule::Only(&[Same::AtMost(0.0)], "set the time in the header Request-Timeout-Ms")),
    row("id_slot", BOTH, Rule::Only(&[Same::Number(-1.0)], "the server has no slots: equal prefixes share a cache by themselves")),
    row("return_tokens", BOTH, Rule::Only(&[Same::Is(false)], "use return_token_ids")),
    row("timings_per_token", BOTH, Rule::Only(&[Same::Is(false)], "use /metrics")),
    row("return_progress", BOTH, Rule::Only(&[Same::Is(false)], "use /metrics")),
    row("verbose", BOTH, Rule::Only(&[Same::Is(false)], "use /metrics")),
    row("sse_ping_interval", BOTH, Rule::Only(&[], "a silent stream gets a comment every 15 seconds")),
    row("response_fields", BOTH, Rule::Only(&[Same::Empty], "answers have all their fields")),
    row("lora", BOTH, Rule::Only(&[Same::Empty], "load an adapter (/v1/load_lora_adapter), and name it as model")),
    row("backend_sampling", BOTH, Rule::Only(&[Same::AnyBool], "where tokens are sampled does not change them")),
    row("grammar_lazy", BOTH, Rule::Only(&[Same::Is(false)], "a grammar counts from the first token; use tools for one that begins later")),
    row("grammar_triggers", BOTH, Rule::Only(&[Same::Empty], "use tools")),
    row("preserved_tokens", BOTH, Rule::Only(&[Same::Empty], "use tools")),
    row("chat_format", IN_CHAT, Rule::Only(&[], "the server knows the format from the chat template")),
    row("chat_parser", IN_CHAT, Rule::Only(&[], "the server knows the format from the chat template")),
    row("generation_prompt", IN_CHAT, Rule::Only(&[], "the server knows the format from the chat template")),
    row("thinking_forced_open", IN_CHAT, Rule::Only(&[Same::Is(false)], "the server knows from the chat template whether a thought is open")),
    row("reasoning_control", IN_CHAT, Rule::Only(&[Same::Is(false)], "use thinking_token_budget")),
    row("reasoning_budget_start_tag", IN_CHAT, Rule::Only(&[], "use thinking_token_budget; the tags are those of the chat template")),
    row("reasoning_budget_end_tag", IN_CHAT, Rule::Only(&[], "use thinking_token_budget; the tags are those of the chat template")),
    row("reasoning_budget_end_tags", IN_CHAT, Rule::Only(&[], "use thinking_token_budget; the tags are those of the chat template")),
    row("reasoning_budget_message", IN_CHAT, Rule::Only(&[], "use thinking_token_budget; the tags are those of the chat template")),
];

/// All fields that other servers document, each once a route.
pub fn known_fields() -> impl Iterator<Item = &'static KnownField> {
    OPENAI.iter().chain(VLLM).chain(LLAMA_CPP)
}

/// Checks what a request of `route` carries beside the fields of its struct.
pub(super) fn check_others(route: &str, others: &Map<String, Value>) -> Result<(), ApiError> {
    if others.is_empty() {
        return Ok(());
    }
    let known = known_fields().filter(|field| field.routes.contains(&route));
    let mut carried = known.filter_map(|field| Some((field, others.get(field.name)?)));
    carried.try_for_each(|(field, value)| field.check(value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_has_one_rule_a_route() {
        let mut seen = BTreeSet::new();
        for field in known_fields() {
            assert!(!field.routes.is_empty(), "{}", field.name);
            for route in field.routes {
                assert!(seen.insert((field.name, route)), "{} twice", field.name);
            }
        }
    }

    #[test]
    fn values_that_change_nothing_pass() {
        let check = |name: &str, value: Value| {
            let others = Map::from_iter([(name.to_owned(), value)]);
            check_others(CHAT, &others)
        };
        for (name, value) in [
            ("use_beam_search", json!(false)),
            ("use_beam_search", Value::Null),
            ("service_tier", json!("auto")),
            ("modalities", json!(["text"])),
            ("length_penalty", json!(1)),
            ("typical_p", json!(1.0)),
            ("mirostat_tau", json!(5)),
            ("user", json!("anybody")),
            ("vllm_xargs", json!({})),
            ("nobody_documents_this", json!({"a": [1]})),
        ] {
            assert!(check(name, value.clone()).is_ok(), "{name} {value}");
        }
        for (name, value, says) in [
            ("use_beam_search", json!(true), "search"),
            ("use_beam_search", json!("no"), "false"),
            ("service_tier", json!("flex"), "\"auto\" or \"default\""),
            ("modalities", json!(["text", "audio"]), "[\"text\"]"),
            ("user", json!(5), "a string"),
            ("chat_template", json!("{{ messages }}"), "--chat-template"),
            ("mirostat", json!(2), "0"),
        ] {
            let error = check(name, value.clone()).expect_err(name);
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains(says), "{value}: {}", error.message);
        }
    }
}
