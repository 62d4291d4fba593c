//! Whether answers of chats and completions, whole or streamed, are well formed and add up.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a request asked for, as far as its answer shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub is_chat: bool,
    pub is_search: bool,
    /// Choices of all prompts; a search may have fewer.
    pub num_choices: usize,
    /// Tokens of a choice.
    pub max_tokens: u64,
    pub logprobs: bool,
}

/// An answer without its wrapping.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Read {
    /// By choice.
    pub texts: Vec<String>,
    /// Why the search ended early.
    pub stopped: Option<String>,
    /// The error that ended a stream.
    pub error: Option<Value>,
}

/// Reads a whole answer, or says what is wrong with it.
pub(super) fn whole(body: &Value, asked: Asked) -> Result<Read, String> {
    let choices = body["choices"].as_array().ok_or("there are no choices")?;
    check_number(choices.len(), asked)?;
    let mut texts = Vec::new();
    for (index, choice) in choices.iter().enumerate() {
        if choice["index"] != index {
            return Err(format!("choice {index} has another index"));
        }
        let text = match asked.is_chat {
            true => &choice["message"]["content"],
            false => &choice["text"],
        };
        let text = text.as_str().ok_or("a choice has no text")?;
        check_end(&choice["finish_reason"])?;
        if asked.logprobs {
            check_logprobs(&choice["logprobs"], asked.is_chat, text)?;
        }
        texts.push(text.to_owned());
    }
    check_usage(&body["usage"], asked, &body["search"])?;
    let stopped = stopped(&body["search"]);
    Ok(Read {
        texts,
        stopped,
        error: None,
    })
}

/// Reads the events of a stream to their end, or says what is wrong with them.
pub(super) fn streamed(text: &str, asked: Asked) -> Result<Read, String> {
    let mut read = Read::default();
    let (mut texts, mut ends) = (BTreeMap::<u64, String>::new(), BTreeMap::<u64, u32>::new());
    let (mut usage, mut search, mut is_done) = (Value::Null, Value::Null, false);
    for line in text.lines() {
        let Some(data) = line.strip_prefix("data: ") else {
            if !line.is_empty() && !line.starts_with(':') {
                return Err(format!("{line:?} is no event"));
            }
            continue;
        };
        if is_done || read.error.is_some() {
            return Err(format!("{data} comes after the end"));
        }
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let event: Value =
            serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
        if event["error"].is_object() {
            read.error = Some(event["error"].clone());
            continue;
        }
        for choice in event["choices"].as_array().ok_or("no choices in a chunk")? {
            let index = choice["index"].as_u64().ok_or("a choice has no index")?;
            let part = match asked.is_chat {
                true => &choice["delta"]["content"],
                false => &choice["text"],
            };
            texts
                .entry(index)
                .or_default()
                .push_str(part.as_str().unwrap_or_default());
            if !choice["finish_reason"].is_null() {
                check_end(&choice["finish_reason"])?;
                *ends.entry(index).or_default() += 1;
            }
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
        if event["search"].is_object() {
            search = event["search"].clone();
        }
    }
    if read.error.is_some() {
        return Ok(read);
    }
    if !is_done {
        return Err("the stream ends without [DONE]".to_owned());
    }
    check_number(texts.len(), asked)?;
    if texts.keys().any(|index| ends.get(index) != Some(&1)) {
        return Err(format!("choices end so often: {ends:?} of {}", texts.len()));
    }
    check_usage(&usage, asked, &search)?;
    read.texts = texts.into_values().collect();
    read.stopped = stopped(&search);
    Ok(read)
}

fn check_number(num_choices: usize, asked: Asked) -> Result<(), String> {
    let most = asked.num_choices;
    let is_right = match asked.is_search {
        true => (1..=most).contains(&num_choices),
        false => num_choices == most,
    };
    match is_right {
        true => Ok(()),
        false => Err(format!("{num_choices} choices of {most}")),
    }
}

fn check_end(reason: &Value) -> Result<(), String> {
    match reason.as_str() {
        Some("stop" | "length") => Ok(()),
        _ => Err(format!("a choice ends by {reason}")),
    }
}

fn stopped(search: &Value) -> Option<String> {
    search["stopped"].as_str().map(str::to_owned)
}

fn check_usage(usage: &Value, asked: Asked, search: &Value) -> Result<(), String> {
    let number = |value: &Value| value.as_u64().ok_or(format!("the usage is {usage}"));
    let prompt = number(&usage["prompt_tokens"])?;
    let completion = number(&usage["completion_tokens"])?;
    let total = number(&usage["total_tokens"])?;
    let cached = number(&usage["prompt_tokens_details"]["cached_tokens"])?;
    let reasoning = number(&usage["completion_tokens_details"]["reasoning_tokens"])?;
    let most = asked.max_tokens * asked.num_choices as u64;
    let is_right = prompt > 0
        && total == prompt + completion
        && reasoning <= completion
        && completion - reasoning <= most
        && match asked.is_search {
            true => search["tokens"] == completion,
            false => reasoning == 0 && cached <= prompt,
        };
    match is_right {
        true => Ok(()),
        false => Err(format!(
            "the usage does not add up: {usage}, search {search}"
        )),
    }
}

fn check_logprobs(logprobs: &Value, is_chat: bool, text: &str) -> Result<(), String> {
    let entries = match is_chat {
        true => &logprobs["content"],
        false => &logprobs["token_logprobs"],
    };
    let entries = entries.as_array().ok_or("there are no logprobs")?;
    if entries.is_empty() && !text.is_empty() {
        return Err("the logprobs are empty".to_owned());
    }
    for entry in entries {
        let value = if is_chat { &entry["logprob"] } else { entry };
        // The first token of an echoed prompt has none.
        let is_right = value.as_f64().is_none_or(|value| value <= 1e-3);
        if !is_right || (is_chat && value.is_null()) {
            return Err(format!("a token has the logprob {value}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ASKED: Asked = Asked {
        is_chat: true,
        is_search: false,
        num_choices: 1,
        max_tokens: 8,
        logprobs: false,
    };

    fn usage(prompt: u64, completion: u64, total: u64) -> Value {
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0}})
    }

    fn body(usage: Value) -> Value {
        json!({"usage": usage, "choices": [
            {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]})
    }

    #[test]
    fn whole_answers_add_up() {
        let read = whole(&body(usage(3, 8, 11)), ASKED).unwrap();
        assert_eq!(read.texts, ["Hi"]);
        for wrong in [
            usage(3, 8, 12),
            usage(3, 9, 12),
            usage(0, 8, 8),
            Value::Null,
        ] {
            assert!(whole(&body(wrong.clone()), ASKED).is_err(), "{wrong}");
        }
        let two = Asked {
            num_choices: 2,
            ..ASKED
        };
        assert!(whole(&body(usage(3, 8, 11)), two).is_err());
        let search = Asked {
            is_search: true,
            ..two
        };
        let mut searched = body(usage(3, 8, 11));
        assert!(
            whole(&searched, search).is_err(),
            "it says nothing of its tokens"
        );
        searched["search"] = json!({"tokens": 8, "stopped": "budget"});
        let read = whole(&searched, search).unwrap();
        assert_eq!(read.stopped.as_deref(), Some("budget"));
        let mut endless = body(usage(3, 8, 11));
        endless["choices"][0]["finish_reason"] = Value::Null;
        assert!(whole(&endless, ASKED).is_err());
    }

    #[test]
    fn logprobs_are_numbers_below_zero() {
        let asked = Asked {
            logprobs: true,
            ..ASKED
        };
        let mut answer = body(usage(3, 8, 11));
        assert!(whole(&answer, asked).is_err());
        for (value, is_right) in [
            (json!(-1.5), true),
            (json!(0.5), false),
            (Value::Null, false),
        ] {
            answer["choices"][0]["logprobs"] = json!({"content": [{"logprob": value}]});
            assert_eq!(whole(&answer, asked).is_ok(), is_right, "{value}");
        }
    }

    fn events(events: &[Value], end: &str) -> String {
        let lines = events.iter().map(|event| format!("data: {event}\n\n"));
        lines.collect::<String>() + end
    }

    #[test]
    fn streams_end_once() {
        let part = json!({"choices": [{"index": 0, "delta": {"content": "H"}}]});
        let rest = json!({"choices": [{"index": 0, "delta": {"content": "i"}}]});
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]});
        let last = json!({"choices": [], "usage": usage(2, 2, 4)});
        let done = "data: [DONE]\n\n";
        let all = [part.clone(), rest, end.clone(), last.clone()];
        let read = streamed(&format!(": wait\n\n{}", events(&all, done)), ASKED).unwrap();
        assert_eq!(read.texts, ["Hi"]);
        for (wrong, why) in [
            (events(&all, ""), "[DONE]"),
            (events(&all, &format!("{done}{done}")), "after the end"),
            (events(&[part.clone(), last.clone()], done), "end so often"),
            (
                events(&[part, end.clone(), end, last], done),
                "end so often",
            ),
            (events(&all[..3], done), "usage"),
            (events(&all, "data: {\n\n"), "EOF"),
            (events(&all, "event x\n\n"), "no event"),
        ] {
            let error = streamed(&wrong, ASKED).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let failed = json!({"error": {"type": "timeout_error"}});
        let read = streamed(&events(&[all[0].clone(), failed], ""), ASKED).unwrap();
        assert_eq!(read.error.unwrap()["type"], "timeout_error");
    }
}
