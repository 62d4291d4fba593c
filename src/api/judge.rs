//! The served model as a judge of answers.

use futures::future::{BoxFuture, FutureExt, try_join_all};
use serde_json::json;

use crate::engine::{
    EngineError, EngineHandle, GenerateRequest, SamplingParams, StreamEvent, TokenLogprobs,
};
use crate::reward::{Judge, ScorerError};
use crate::text::{ChatTemplate, Tokenizer};

/// Alternatives looked at for a yes or a no.
const NUM_TOP: usize = 20;

/// Asks the served model itself.
pub struct ModelJudge {
    pub engine: EngineHandle,
    pub tokenizer: Tokenizer,
    pub chat_template: ChatTemplate,
}

impl ModelJudge {
    async fn ask(&self, prompt: &str, cache_salt: u64) -> Result<f64, String> {
        let messages = [json!({"role": "user", "content": prompt})];
        let text = self
            .chat_template
            .render(&messages, None, true, &serde_json::Map::new())
            .map_err(|error| error.to_string())?;
        let token_ids = self.tokenizer.encode(&text, false, true);
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: 1,
            logprobs: Some(NUM_TOP),
            ..SamplingParams::default()
        };
        let token_ids = token_ids.map_err(|error| error.to_string())?;
        let explain = |error: EngineError| error.to_string();
        let mut stream = self
            .engine
            .submit(GenerateRequest {
                cache_salt,
                ..GenerateRequest::new(token_ids, params)
            })
            .map_err(explain)?;
        while let Some(event) = stream.recv().await {
            match event {
                StreamEvent::Token {
                    logprobs: Some(logprobs),
                    ..
                } => return Ok(self.probability(&logprobs)),
                StreamEvent::Error(error) => return Err(error.to_string()),
                _ => {}
            }
        }
        Err("the model gave no token".to_owned())
    }

    /// P(yes) of P(yes) and P(no) over the spellings among the likeliest tokens; one half without any.
    fn probability(&self, logprobs: &TokenLogprobs) -> f64 {
        let (mut yes, mut no) = (0.0, 0.0);
        for (id, logprob) in &logprobs.top {
            let probability = f64::from(*logprob).exp();
            match self
                .tokenizer
                .token_text(*id)
                .trim()
                .to_lowercase()
                .as_str()
            {
                "yes" => yes += probability,
                "no" => no += probability,
                _ => {}
            }
        }
        if yes + no > 0.0 {
            yes / (yes + no)
        } else {
            0.5
        }
    }
}

impl Judge for ModelJudge {
    fn probability_of_yes<'a>(
        &'a self,
        prompts: Vec<String>,
        cache_salt: u64,
    ) -> BoxFuture<'a, Result<Vec<f64>, ScorerError>> {
        async move {
            let asked = prompts.iter().map(|prompt| async move {
                self.ask(prompt, cache_salt)
                    .await
                    .map_err(|message| ScorerError {
                        kind: "judge",
                        message,
                    })
            });
            try_join_all(asked).await
        }
        .boxed()
    }
}
