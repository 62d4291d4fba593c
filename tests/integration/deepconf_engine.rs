//! DeepConf on an engine: an answer ends with the very token behind which its confidence is too
//! low, also where tokens are drafted.

use ponder::engine::{Backend, EngineHandle, GenerateRequest, Speculative, StreamEvent};
use ponder::search::{ConfidenceSpec, End, EnginePolicy, Node, Search};
use serde_json::json;

use crate::constraint_search::{engine, policy};
use crate::search::spec;

const MAX_TOKENS: usize = 48;

/// Tokens of an answer, and the confidence of each.
type Whole = Vec<(u32, f64)>;

/// The samples of an expansion as nobody ends them.
async fn whole(engine: &EngineHandle, policy: &EnginePolicy, wave: u32, n: usize) -> Vec<Whole> {
    let mut params = policy.params.clone();
    params.logprobs = Some(20);
    let mut stream = engine
        .submit(GenerateRequest {
            n,
            branch_path: vec![wave],
            ..GenerateRequest::new(policy.prompt_token_ids.clone(), params)
        })
        .unwrap();
    let mut samples = vec![Vec::new(); n];
    while let Some(event) = stream.recv().await {
        if let StreamEvent::Token {
            index,
            token_id,
            logprobs,
            ..
        } = event
        {
            let top = logprobs.unwrap().top;
            assert_eq!(top.len(), 20);
            let sum: f64 = top.iter().map(|(_, logprob)| f64::from(*logprob)).sum();
            samples[index].push((token_id, -sum / 20.0));
        }
    }
    samples
}

/// The means over each whole window, each with the tokens up to its end.
fn groups(whole: &Whole, window: usize) -> Vec<(usize, f64)> {
    let groups = whole.windows(window).enumerate();
    let mean = |group: &[(u32, f64)]| group.iter().map(|(_, c)| c).sum::<f64>() / window as f64;
    groups
        .map(|(at, group)| (at + window, mean(group)))
        .collect()
}

/// That of the least confident group; a sample shorter than one is a group.
fn lowest(whole: &Whole, window: usize) -> f64 {
    let groups = groups(whole, window.min(whole.len()));
    let means = groups.iter().map(|(_, mean)| *mean);
    means.fold(f64::INFINITY, f64::min)
}

fn token_ids(whole: &Whole, len: usize) -> Vec<u32> {
    whole[..len].iter().map(|(id, _)| *id).collect()
}

#[tokio::test]
async fn an_answer_ends_with_the_token_that_is_not_confident() {
    let engine = engine();
    let spec = spec(json!({"strategy": "deepconf", "n": 12, "threshold": 1.0,
        "confidence": {"warm_up": 4, "keep": 0.5, "window": 6}}));
    let ConfidenceSpec { window, .. } = spec.confidence.unwrap();
    let alone = policy(&engine, None, Speculative::Off, MAX_TOKENS);
    let warm_up = whole(&engine, &alone, 0, 4).await;
    let mut lows: Vec<f64> = warm_up.iter().map(|it| lowest(it, window)).collect();
    lows.sort_unstable_by(f64::total_cmp);
    let limit = (lows[1] + lows[2]) / 2.0;
    let later = whole(&engine, &alone, 1, 8).await;
    for speculative in [Speculative::Off, Speculative::PromptLookup] {
        let policy = policy(&engine, None, speculative, MAX_TOKENS);
        let outcome = Search::new(&policy, None, &spec, None).run().await.unwrap();
        let node = |wave: u32, at: usize| -> &Node {
            let nodes = &outcome.tree.nodes;
            let path = [wave, at as u32];
            nodes.iter().find(|node| node.branch_path == path).unwrap()
        };
        let mut num_unsure = 0;
        let mut num_tokens = warm_up.iter().map(Vec::len).sum::<usize>();
        for (at, whole) in later.iter().enumerate() {
            let groups = groups(whole, window);
            let below = groups.iter().find(|(_, mean)| *mean < limit);
            let ends = below.map_or(whole.len(), |(end, _)| *end);
            let node = node(1, at);
            assert_eq!(node.token_ids, token_ids(whole, ends), "{at}");
            num_tokens += ends;
            if ends < whole.len() {
                num_unsure += 1;
                assert_eq!(
                    (node.end, node.is_pruned),
                    (Some(End::Unsure), true),
                    "{at}"
                );
                assert!(node.confidence.unwrap() < limit, "{at}");
            } else {
                assert_ne!(node.end, Some(End::Unsure), "{at}");
                assert!(
                    (node.confidence.unwrap() - lowest(whole, window)).abs() < 1e-9,
                    "{at}"
                );
            }
            // What was only measured is not returned.
            assert!(node.logprobs.iter().all(|token| token.top.is_empty()));
        }
        assert!((1..8).contains(&num_unsure), "{num_unsure} of 8");
        assert_eq!(outcome.stats.num_tokens, num_tokens as u64);
        let answers = outcome.answers.iter();
        assert!(answers.clone().all(|answer| answer.end != End::Unsure));
    }
}
