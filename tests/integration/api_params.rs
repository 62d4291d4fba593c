//! Fields of requests do what they say. Over the fake model.

use ponder::api::{CHAT, COMPLETIONS};
use serde_json::{Value, json};

use crate::api::sse;
use crate::api_fields::{refused, with};
use crate::offline::{Offline, chat, completion};

/// A completion request with more fields than [`completion`] has.
fn more_of(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The text of a completion's first choice.
fn text(offline: &Offline, more: Value) -> String {
    let answer = offline.ask(COMPLETIONS, completion(more));
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn tokens_are_allowed_and_forbidden() {
    let offline = Offline::start();
    for route in [CHAT, COMPLETIONS] {
        for more in [json!({}), json!({"n": 3}), json!({"stream": true})] {
            let body = more_of(with(route, "allowed_token_ids", &json!([97, 98])), &more);
            let (status, told) = offline.server.post_with(route, body.to_string(), &[]);
            assert_eq!(status, 200, "{told}");
            let bodies = match told.starts_with("data") {
                true => sse(&told),
                false => vec![serde_json::from_str(&told).unwrap()],
            };
            let choices = bodies
                .iter()
                .flat_map(|body| body["choices"].as_array().unwrap());
            let texts = choices.flat_map(|choice| {
                [
                    &choice["text"],
                    &choice["message"]["content"],
                    &choice["delta"]["content"],
                ]
                .map(|text| text.as_str().unwrap_or_default().to_owned())
            });
            let text: String = texts.collect();
            assert!(
                !text.is_empty() && text.chars().all(|c| "ab".contains(c)),
                "{text}"
            );
        }
    }
    // A word of one token never comes, one of several is never finished.
    let allowed = json!({"allowed_token_ids": [97, 98, 99], "max_tokens": 60});
    let with_words = |words: Value| {
        let mut more = allowed.clone();
        more["bad_words"] = words;
        text(&offline, more)
    };
    let free = text(&offline, allowed.clone());
    assert!(free.contains('c') && free.contains("ab"), "{free}");
    assert!(!with_words(json!(["c"])).contains('c'));
    let spelled = with_words(json!(["ab", "ba"]));
    assert!(
        !spelled.contains("ab") && !spelled.contains("ba"),
        "{spelled}"
    );
    // Nothing is left.
    let none = completion(json!({"allowed_token_ids": [97], "bad_words": ["a"]}));
    let (status, error) = offline.post(COMPLETIONS, none);
    assert_eq!(
        (status, &error["error"]["code"]),
        (400, &json!("nothing_allowed"))
    );
    offline.server.wait_until_free();
}

#[test]
fn prompts_are_scored_without_an_answer() {
    let offline = Offline::start();
    let body = |more: Value| {
        more_of(
            completion(json!({"prompt": ["Say it:", "é!"], "max_tokens": 0})),
            &more,
        )
    };
    let told = offline.ask(
        COMPLETIONS,
        body(json!({"echo": true, "logprobs": 1, "n": 2})),
    );
    let choices = told["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (choice, text) in choices.iter().zip(["Say it:", "Say it:", "é!", "é!"]) {
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(text), &json!("length"))
        );
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), text.len());
        assert_eq!(logprobs["token_logprobs"][0], Value::Null);
        assert!(logprobs["token_logprobs"][1].as_f64().unwrap() < 0.0);
        assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 1);
    }
    assert_eq!(choices[2]["logprobs"]["text_offset"], json!([0, 0, 1]));
    assert_eq!(told["usage"]["completion_tokens"], 0);
    assert_eq!(told["usage"]["prompt_tokens"], 10);
    // As longer answers score it.
    let long = completion(json!({"echo": true, "logprobs": 1, "max_tokens": 3}));
    let long = offline.ask(COMPLETIONS, long);
    let own = |told: &Value| {
        let values = told["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap();
        values[..7].to_vec()
    };
    assert_eq!(own(&long), own(&told));
    // The stream says the same.
    let streamed = body(json!({"echo": true, "logprobs": 1, "n": 2, "stream": true}));
    let chunks = sse(&offline
        .server
        .post_with(COMPLETIONS, streamed.to_string(), &[])
        .1);
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let whole = &choices[choice["index"].as_u64().unwrap() as usize];
        for part in ["text", "logprobs", "finish_reason"] {
            assert_eq!(choice[part], whole[part]);
        }
    }
    assert_eq!(chunks.len(), 4);
    // Without an echo there is nothing to say; a search, a session and a chat need an answer.
    let silent = offline.ask(COMPLETIONS, body(json!({})));
    assert_eq!(silent["choices"][0]["text"], "");
    let search = completion(json!({"max_tokens": 0, "search": "best_of_n"}));
    refused(&offline, COMPLETIONS, search, "max_tokens");
    refused(&offline, CHAT, chat(json!({"max_tokens": 0})), "max_tokens");
    let session = completion(json!({"max_tokens": 0}));
    refused(&offline, "/v1/branches", session, "max_tokens");
    offline.server.wait_until_free();
}

#[test]
fn offsets_are_characters_of_the_text() {
    let offline = Offline::start();
    let prompt = "😸😸 a b";
    let echo = json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 5});
    let told = offline.ask(COMPLETIONS, completion(echo.clone()));
    let offsets = told["choices"][0]["logprobs"]["text_offset"].clone();
    let characters = prompt.chars().enumerate();
    let mut expected: Vec<usize> = characters
        .flat_map(|(at, character)| vec![at; character.len_utf8()])
        .collect();
    expected.push(prompt.chars().count());
    let own: Vec<usize> = serde_json::from_value(offsets.clone()).unwrap();
    assert_eq!(own[..expected.len()], expected);
    let mut streamed = echo;
    streamed["stream"] = json!(true);
    let streamed = completion(streamed).to_string();
    let chunks = sse(&offline.server.post_with(COMPLETIONS, streamed, &[]).1);
    let lists = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array());
    let lists: Vec<Value> = lists.flatten().cloned().collect();
    assert_eq!(Value::Array(lists), offsets);
    let named = json!({"logprobs": 1, "return_tokens_as_token_ids": true});
    let named = offline.ask(COMPLETIONS, completion(named));
    let name = named["choices"][0]["logprobs"]["tokens"][0]
        .as_str()
        .unwrap();
    assert!(name.starts_with("token_id:"), "{name}");
}

#[test]
fn the_likeliest_samples_are_returned() {
    let offline = Offline::start();
    let ask = |more: Value| offline.ask(COMPLETIONS, completion(more));
    let all = ask(json!({"n": 5, "logprobs": 0, "prompt": ["One", "Two"]}));
    let mean = |choice: &Value| {
        let values = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        values.iter().map(|it| it.as_f64().unwrap()).sum::<f64>() / values.len() as f64
    };
    let best = json!({"n": 2, "best_of": 5, "prompt": ["One", "Two"]});
    let told = ask(best.clone());
    let choices = told["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (prompt, found) in choices.chunks(2).enumerate() {
        let mut own = all["choices"].as_array().unwrap()[5 * prompt..5 * prompt + 5].to_vec();
        own.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        for (own, found) in own.iter().zip(found) {
            assert_eq!(own["text"], found["text"]);
            assert_eq!(found["logprobs"], Value::Null);
        }
    }
    let num_sampled = |told: &Value| told["usage"]["completion_tokens"].clone();
    assert_eq!(num_sampled(&told), num_sampled(&all));
    let mut streamed = best;
    streamed["stream"] = json!(true);
    let streamed = completion(streamed).to_string();
    let chunks = sse(&offline.server.post_with(COMPLETIONS, streamed, &[]).1);
    let texts: Vec<&Value> = chunks.iter().map(|it| &it["choices"][0]["text"]).collect();
    let whole: Vec<&Value> = choices.iter().map(|it| &it["text"]).collect();
    assert_eq!(texts, whole);
    for bad in [
        json!({"best_of": 1, "n": 2}),
        json!({"best_of": 0}),
        json!({"best_of": 1000}),
        json!({"best_of": 3, "search": "best_of_n"}),
    ] {
        refused(&offline, COMPLETIONS, completion(bad), "best_of");
    }
    assert_eq!(
        ask(json!({"best_of": 2, "n": 2}))["choices"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    offline.server.wait_until_free();
}

#[test]
fn greedy_limits_and_names() {
    let offline = Offline::start();
    let greedy = text(&offline, json!({"temperature": 0}));
    for more in [
        json!({"top_p": 0}),
        json!({"top_p": 0, "temperature": 2, "seed": 1}),
        json!({"temperature": 0, "top_p": 0.1, "min_p": 1, "seed": -3}),
    ] {
        assert_eq!(text(&offline, more.clone()), greedy, "{more}");
    }
    let search = completion(json!({"top_p": 0, "search": "best_of_n"}));
    refused(&offline, COMPLETIONS, search, "top_p");
    // Other names of a limit, and none at all.
    let ignore = json!({"ignore_eos": true});
    let num_tokens = |route: &str, name: &str, value: Value| {
        let mut body = with(route, name, &value);
        if name != "max_tokens" {
            body.as_object_mut().unwrap().remove("max_tokens");
        }
        body["ignore_eos"] = ignore["ignore_eos"].clone();
        offline.ask(route, body)["usage"]["completion_tokens"].clone()
    };
    for route in [CHAT, COMPLETIONS] {
        for name in ["max_tokens", "n_predict", "max_completion_tokens"] {
            assert_eq!(num_tokens(route, name, json!(3)), 3, "{route} {name}");
        }
    }
    assert!(
        num_tokens(COMPLETIONS, "n_predict", json!(-1))
            .as_u64()
            .unwrap()
            > 400
    );
    let named = offline.ask(CHAT, chat(json!({"request_id": "mine-1"})));
    assert_eq!(named["id"], "chatcmpl-mine-1");
    // A prefix that is not to be taken from the cache is computed.
    let cached = |more: Value| {
        let body = more_of(completion(json!({"prompt": "x".repeat(100)})), &more);
        let usage = offline.ask(COMPLETIONS, body)["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    cached(json!({}));
    assert!(cached(json!({})) > 0);
    assert_eq!(cached(json!({"cache_prompt": false})), 0);
    assert!(cached(json!({"cache_prompt": true})) > 0);
}

#[test]
fn prompts_are_shortened_and_continued() {
    let offline = Offline::start();
    let prompt = |more: Value| {
        let body = more_of(
            completion(json!({"max_tokens": 0, "echo": true, "prompt": "abcdef"})),
            &more,
        );
        offline.ask(COMPLETIONS, body)["choices"][0]["text"].clone()
    };
    assert_eq!(prompt(json!({"truncate_prompt_tokens": 2})), "ef");
    let right = json!({"truncate_prompt_tokens": 2, "truncation_side": "right"});
    assert_eq!(prompt(right), "ab");
    assert_eq!(prompt(json!({"truncate_prompt_tokens": -1})), "abcdef");
    let ids = json!({"truncate_prompt_tokens": 2, "prompt": [97, 98, 99]});
    assert_eq!(prompt(ids), "bc");
    // What does not fit the context fits once it is shortened, and leaves room for the answer.
    let long = json!({"prompt": "x".repeat(5000), "max_tokens": 12, "ignore_eos": true});
    let long = |cut: Value| {
        let mut body = completion(long.clone());
        body["truncate_prompt_tokens"] = cut;
        offline.post(COMPLETIONS, body)
    };
    assert_eq!(long(Value::Null).0, 400);
    let (status, told) = long(json!(-1));
    assert_eq!(
        (status, &told["usage"]["prompt_tokens"]),
        (200, &json!(500))
    );
    assert_eq!(told["usage"]["completion_tokens"], 12);
    // The last message goes on.
    let messages = json!([{"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "It is "}]);
    let count = |more: Value| {
        let body = more_of(chat(json!({"messages": messages})), &more);
        offline.ask(CHAT, body)["usage"]["prompt_tokens"]
            .as_u64()
            .unwrap()
    };
    // Without `<|im_end|>` and a line break, and without the next turn's beginning.
    let whole = count(json!({"add_generation_prompt": false}));
    assert_eq!(count(json!({"continue_final_message": true})), whole - 2);
    for bad in [
        json!({"continue_final_message": true}),
        json!({"continue_final_message": true, "add_generation_prompt": true, "messages": messages}),
    ] {
        refused(&offline, CHAT, chat(bad), "continue_final_message");
    }
    refused(
        &offline,
        CHAT,
        chat(json!({"documents": [{"text": "x"}]})),
        "documents",
    );
    let suffix = completion(json!({"suffix": "end"}));
    let message = refused(&offline, COMPLETIONS, suffix, "suffix");
    assert!(message.contains("qwen2.5-coder"), "{message}");
}

#[test]
fn answers_tell_their_tokens() {
    let offline = Offline::start();
    for more in [
        json!({"n": 2}),
        json!({"search": "best_of_n"}),
        json!({"best_of": 3}),
    ] {
        for route in [CHAT, COMPLETIONS] {
            if route == CHAT && more.get("best_of").is_some() {
                continue;
            }
            let mut body = more_of(with(route, "return_token_ids", &json!(true)), &more);
            let whole = offline.ask(route, body.clone());
            body["stream"] = json!(true);
            let chunks = sse(&offline.server.post_with(route, body.to_string(), &[]).1);
            for choice in whole["choices"].as_array().unwrap() {
                let own = chunks
                    .iter()
                    .filter(|chunk| chunk["choices"][0]["index"] == choice["index"]);
                let own: Vec<&Value> = own.collect();
                let ids = own
                    .iter()
                    .filter_map(|it| it["choices"][0]["token_ids"].as_array());
                let ids: Vec<Value> = ids.flatten().cloned().collect();
                assert!(!ids.is_empty());
                assert_eq!(choice["token_ids"], Value::Array(ids), "{body}");
                let (told, streamed) = match route {
                    CHAT => (&whole["prompt_token_ids"], &own[0]["prompt_token_ids"]),
                    _ => (
                        &choice["prompt_token_ids"],
                        &own[0]["choices"][0]["prompt_token_ids"],
                    ),
                };
                assert_eq!(told, streamed);
                assert_eq!(
                    told.as_array().unwrap().len(),
                    whole["usage"]["prompt_tokens"]
                );
            }
        }
    }
    // Nobody else sees them.
    let whole = offline.ask(COMPLETIONS, completion(json!({})));
    assert!(whole["choices"][0].get("token_ids").is_none());
}

#[test]
fn searches_keep_to_the_tokens() {
    let offline = Offline::start();
    for strategy in ["best_of_n", "beam", "mcts"] {
        let search = json!({"strategy": strategy, "n": 3, "step": {"max_tokens": 4}});
        let more = json!({"allowed_token_ids": [97, 98, 99], "bad_words": ["ab", "c"],
            "search": search, "max_tokens": 24});
        let text = text(&offline, more);
        assert!(
            !text.is_empty() && !text.contains("ab"),
            "{strategy}: {text}"
        );
        assert!(text.chars().all(|c| "ab".contains(c)), "{strategy}: {text}");
    }
    for name in ["allowed_token_ids", "bad_words"] {
        let session = completion(json!({name: [97]}));
        refused(&offline, "/v1/branches", session, name);
    }
}
