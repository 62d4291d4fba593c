//! A server whose model writes what the last user message says. Where the message has several
//! texts, divided by [`OR`], it samples one of them.

use std::sync::Arc;

use ponder::api::{Served, ServerConfig};
use ponder::engine::{Engine, EngineConfig, EngineHandle, Speculative, SpeculativeConfig};
use ponder::grammar::Grammars;
use ponder::model::{BlockId, CausalLm, ForwardBatch, ForwardError, ModelInfo};
use ponder::reward::RewardResources;
use ponder::text::{ChatTemplate, OutputFormat, ReasoningFormat, Tokenizer, ToolFormat};
use serde_json::{Value, json};

use crate::server::{Server, start_served};
use crate::tiny::tokenizer_json;

/// Between texts of which the model writes one.
pub const OR: &str = "<|or|>";
/// Here the model stops for good: without it, each text ends the answer.
pub const MORE: [&str; 8] = [
    "<|im_start|>",
    "<|im_end|>",
    OR,
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|unused|>",
];
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function.name }}\n{% endfor %}\
    <|im_end|>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if opens %}<think>\n{% endif %}{% if enable_thinking is defined and not enable_thinking %}\
    <think>\n\n</think>\n\n{% endif %}{% endif %}";

/// See the module's documentation.
struct ScriptedModel {
    info: ModelInfo,
    tokenizer: Tokenizer,
    block_size: usize,
    slots: Vec<u32>,
}

impl ScriptedModel {
    fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            info: ModelInfo {
                vocab_size: tokenizer.vocab_size(),
                max_position_embeddings: 8192,
                num_layers: 1,
                hidden_size: 1,
                kv_bytes_per_token: 4,
                weight_bytes: 0,
                architecture: "scripted".to_owned(),
                num_experts: None,
                is_differentiable: false,
                local: None,
            },
            tokenizer: tokenizer.clone(),
            block_size: 0,
            slots: Vec::new(),
        }
    }

    /// Logits behind these tokens.
    fn logits(&self, token_ids: &[u32]) -> Vec<f32> {
        let encode = |text: &str| self.tokenizer.encode(text, false, true).unwrap();
        let find = |mark: &str| {
            let mark = encode(mark);
            let found = token_ids.windows(mark.len()).rposition(|it| it == mark);
            found.map(|at| (at, at + mark.len()))
        };
        let mut logits = vec![-1e9; self.info.vocab_size];
        let written = find("<|im_start|>assistant\n").map_or(token_ids.len(), |(_, end)| end);
        let script = match find("<|im_start|>user\n") {
            // A completion's prompt is its own script.
            None => token_ids,
            Some((_, start)) => {
                let end = encode("<|im_end|>")[0];
                let len = token_ids[start..].iter().position(|id| *id == end);
                &token_ids[start..start + len.unwrap_or(0)]
            }
        };
        let mut written = &token_ids[written..];
        for opened in ["<think>\n\n</think>\n\n", "<think>\n"] {
            let opened = encode(opened);
            if let Some(rest) = written.strip_prefix(opened.as_slice()) {
                written = rest;
                break;
            }
        }
        let or = encode(OR)[0];
        let eos = encode("<|im_end|>")[0];
        let mut knows = false;
        for text in script.split(|id| *id == or) {
            if let Some(rest) = text.strip_prefix(written) {
                let next = rest.first().copied().unwrap_or(eos);
                logits[next as usize] = 0.0;
                knows = true;
            }
        }
        if !knows {
            // A grammar has led away from the script: what ends most things soonest.
            for (id, logit) in logits.iter_mut().enumerate() {
                *logit = -100.0 - id as f32;
            }
            for (token, logit) in [
                (eos, -1.0),
                (34, -10.0),
                (125, -11.0),
                (93, -12.0),
                (48, -13.0),
            ] {
                logits[token as usize] = logit;
            }
        } else {
            for (id, logit) in logits.iter_mut().enumerate() {
                *logit = logit.max(-1000.0 - id as f32);
            }
        }
        // It begins to think only where the script says so.
        let think = encode("<think>")[0] as usize;
        if logits[think] < 0.0 {
            logits[think] = -1e9;
        }
        logits
    }
}

impl CausalLm for ScriptedModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn allocate_kv_cache(
        &mut self,
        num_blocks: usize,
        block_size: usize,
        _: usize,
    ) -> Result<(), ForwardError> {
        self.block_size = block_size;
        self.slots = vec![0; num_blocks * block_size];
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        for (source, target) in copies {
            let from = *source as usize * self.block_size;
            let to = *target as usize * self.block_size;
            self.slots.copy_within(from..from + self.block_size, to);
        }
        Ok(())
    }

    fn forward(
        &mut self,
        batch: &ForwardBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ForwardError> {
        for (token_id, slot) in batch.token_ids.iter().zip(batch.slot_mapping) {
            self.slots[*slot as usize] = *token_id;
        }
        logits.clear();
        let mut row = 0_u32;
        let mut wanted = batch.logits_rows.iter().peekable();
        for sequence in batch.sequences {
            let first = sequence.context_len - sequence.num_rows;
            let at = |position: usize| {
                let block = sequence.block_table[position / self.block_size] as usize;
                self.slots[block * self.block_size + position % self.block_size]
            };
            let token_ids: Vec<u32> = (0..sequence.context_len).map(at).collect();
            for position in first..sequence.context_len {
                if wanted.next_if(|wanted| **wanted == row).is_some() {
                    logits.extend(self.logits(&token_ids[..=position]));
                }
                row += 1;
            }
        }
        Ok(())
    }

    fn hidden_state(&self, _: usize) -> Option<Vec<f32>> {
        None
    }
}

/// The marks that a scripted model may use.
pub fn thinking_hermes() -> OutputFormat {
    OutputFormat {
        tools: Some(ToolFormat::Hermes),
        reasoning: Some(ReasoningFormat {
            start: "<think>".to_owned(),
            end: "</think>".to_owned(),
        }),
    }
}

/// Its tokens are bytes.
pub fn tokenizer() -> Tokenizer {
    let json = tokenizer_json(&MORE).to_string();
    Tokenizer::from_json(json.as_bytes()).unwrap()
}

/// A server of a scripted model.
pub fn start(output: OutputFormat, config: ServerConfig) -> Server {
    start_with(output, config, RewardResources::default())
}

/// The same with what rewards and code need.
pub fn start_with(output: OutputFormat, config: ServerConfig, rewards: RewardResources) -> Server {
    let tokenizer = tokenizer();
    let eos = tokenizer.token_text(257);
    let template = ChatTemplate::new(TEMPLATE.to_owned(), String::new(), eos).unwrap();
    let engine = engine(&tokenizer);
    start_served(config, || Served {
        grammars: Grammars::new(&tokenizer, tokenizer.vocab_size())
            .ok()
            .into(),
        output,
        engine,
        model_config: None,
        tokenizer,
        chat_template: Some(template),
        rewards,
        adaptation: None,
        identity: Default::default(),
    })
}

/// The scripted model's engine.
pub fn engine(tokenizer: &Tokenizer) -> Engine {
    let engine_config = EngineConfig {
        max_model_len: 4096,
        max_num_seqs: 8,
        max_num_batched_tokens: 256,
        block_size: 16,
        num_blocks: 2000,
        local: None,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        max_num_waiting_seqs: 100,
        is_shared: false,
        speculative: SpeculativeConfig {
            default: Speculative::Off,
            ..SpeculativeConfig::default()
        },
    };
    let model = Box::new(ScriptedModel::new(tokenizer));
    Arc::new(EngineHandle::start(model, engine_config).unwrap())
}

/// A request whose answer is `text`.
pub fn say(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "m", "temperature": 0,
        "messages": [{"role": "user", "content": text}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}
