//! Searches whose answers call code: on the scripted policy, where all is known exactly, and on an
//! engine with a runner that counts.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use ponder::engine::SamplingParams;
use ponder::reward::Likelihood;
use ponder::search::scripted::ScriptedPolicy;
use ponder::search::{
    ConfidenceRule, Continuation, End, EnginePolicy, Expansion, Node, Piece, Policy, ReplayPolicy,
    STRATEGIES, Search, SearchOutcome, StepRule, num_inserted, pieces,
};
use ponder::tool::{CallStatus, CodeLimits, CodeRunner, CodeTool, Program, Ran};
use serde_json::{Value, json};

use crate::scripted::{OR, engine, tokenizer};
use crate::search::{ByText, one, outline, record, run, spec, texts};

const BLOCK: &str = "```py\na\n```";
const OUTPUT: &str = "\n```output\n7\n```\n";

/// One that writes a line, a block, and what it makes of the output. Its block prints a 7; what it
/// would write behind its block is never seen.
fn policy(limit: Option<u64>) -> ScriptedPolicy {
    let policy = ScriptedPolicy::new(limit, |so_far, _, is_whole| {
        if so_far.ends_with(OUTPUT) {
            return ("so 7".to_owned(), true);
        }
        let own = format!("x\n\n{BLOCK}z");
        let rest = &own[so_far.len()..];
        let end = rest.find("\n\n").filter(|_| !is_whole);
        (
            rest[..end.map_or(rest.len(), |at| at + 2)].to_owned(),
            false,
        )
    });
    policy.with_code(1, |code| {
        assert_eq!(code, "a\n");
        "7\n".to_owned()
    })
}

fn answer() -> String {
    format!("x\n\n{BLOCK}{OUTPUT}so 7")
}

/// Each strategy's answer, and what it cost: the policy's own tokens.
#[test]
fn outputs_are_part_of_answers_and_cost_nothing() {
    let scorer = one(Likelihood);
    for strategy in STRATEGIES.iter().map(|strategy| strategy.name()) {
        let request = json!({"strategy": strategy, "n": 2, "branch": 2, "iterations": 4,
            "reward": {"kind": "likelihood"}});
        let spec = spec(request);
        let policy = policy(None);
        let outcome = run(&policy, Some(&scorer), &spec);
        assert_eq!(texts(&outcome)[0], answer(), "{strategy}");
        let best = &outcome.answers[0];
        assert_eq!(
            (best.inserted.len(), best.end),
            (1, End::Stop),
            "{strategy}"
        );
        let parts = pieces(&best.text, &best.inserted, 0);
        let printed = Piece::Inserted {
            text: OUTPUT.to_owned(),
            num_tokens: OUTPUT.len(),
            num_before: "x\n\n".len() + BLOCK.len(),
            call: Arc::clone(&best.inserted[0].call),
        };
        let own = |text: &str| Piece::Own(text.to_owned());
        let expected = [own(&format!("x\n\n{BLOCK}")), printed, own("so 7")];
        assert_eq!(parts, expected, "{strategy}");
        // Each token of the policy has a log-probability of -0.5, whatever its code printed. A vote
        // has no use for it, but for how likely two of two are right.
        let value = match strategy {
            "self_consistency" | "deepconf" | "rebase" => 1.0,
            "auto" => 0.875,
            _ => (-0.5_f64).exp(),
        };
        let distance = (best.value - value).abs();
        assert!(distance < 1e-9, "{strategy}: {}", best.value);
        let own: usize = outcome.tree.nodes.iter().map(own_tokens).sum();
        assert!(outcome.stats.num_tokens >= own as u64, "{strategy}");
        let num_inserted: usize = outcome
            .tree
            .nodes
            .iter()
            .map(|node| num_inserted(&node.inserted))
            .sum();
        assert!(num_inserted >= OUTPUT.len(), "{strategy}");
        // A budget of the answer's own tokens is enough for it.
        let own = best.token_ids.len() - OUTPUT.len();
        if matches!(strategy, "best_of_n" | "self_consistency") {
            let tight = self::policy(Some(own as u64));
            let outcome = run(&tight, Some(&scorer), &spec);
            assert_eq!(texts(&outcome)[0], answer(), "{strategy}");
            assert_eq!(outcome.stats.num_tokens, own as u64);
        }
    }
}

fn own_tokens(node: &Node) -> usize {
    node.token_ids.len() - num_inserted(&node.inserted)
}

/// Steps, with what their code printed.
fn steps(outcome: &SearchOutcome) -> Vec<(Option<usize>, String, bool)> {
    let nodes = outcome.tree.nodes.iter().skip(1);
    let step = |node: &Node| (node.parent, node.text.clone(), !node.inserted.is_empty());
    nodes.map(step).collect()
}

#[test]
fn a_step_ends_with_the_output_of_its_code() {
    let scorer = one(ByText::value_model(|_| 0.5));
    let outcome = run(
        &policy(None),
        Some(&scorer),
        &spec(json!({"strategy": "beam", "n": 2, "branch": 2, "reward": {"kind": "likelihood"}})),
    );
    let step = |parent, text: &str, calls| (Some(parent), text.to_owned(), calls);
    let expected = [
        step(0, "x\n\n", false),
        step(1, &format!("{BLOCK}{OUTPUT}"), true),
        step(2, "so 7", false),
    ];
    assert_eq!(steps(&outcome), expected);
    // Whole answers are cut at their first step; here that is a line, then the block.
    let spec = spec(
        json!({"strategy": "vm_mcts", "n": 2, "branch": 2, "iterations": 2,
        "reward": {"kind": "likelihood"}}),
    );
    let outcome = run(&policy(None), Some(&scorer), &spec);
    let expected = [
        step(0, "x\n", false),
        step(1, &format!("\n{BLOCK}{OUTPUT}so 7"), true),
    ];
    assert_eq!(steps(&outcome)[..2], expected);
    outcome.tree.check_invariants();
    let replayed = ReplayPolicy {
        recording: &record(&outcome.tree),
        policy: &policy(None),
    };
    let search = Search::new(&replayed, Some(&scorer), &spec, None);
    let again = futures::executor::block_on(search.run()).unwrap();
    assert_eq!(outline(&again.tree), outline(&outcome.tree));
    let inserted = |outcome: &SearchOutcome| -> Vec<_> {
        outcome
            .tree
            .nodes
            .iter()
            .map(|node| node.inserted.clone())
            .collect()
    };
    assert_eq!(inserted(&again), inserted(&outcome));
    assert_eq!(again.stats.num_tokens, outcome.stats.num_tokens);
}

/// Answers that begin with the same code and differ behind its output.
fn forked() -> ScriptedPolicy {
    let policy = ScriptedPolicy::new(None, |so_far, path, _| {
        match so_far.ends_with(OUTPUT) {
            // The call is the last part of the key.
            true => (format!("so {}\nend", path[path.len() - 2]), true),
            false => (format!("x\n\n{BLOCK}z"), false),
        }
    });
    policy.with_code(1, |_| "7\n".to_owned())
}

#[test]
fn actions_reach_beyond_the_output_of_code_that_answers_share() {
    let scorer = one(Likelihood);
    let spec = spec(
        json!({"strategy": "vm_mcts", "n": 2, "branch": 2, "iterations": 1,
        "reward": {"kind": "likelihood"}}),
    );
    let outcome = run(&forked(), Some(&scorer), &spec);
    let action = |k| format!("x\n\n{BLOCK}{OUTPUT}so {k}\n");
    let expected = [
        (Some(0), action(0), true),
        (Some(1), "end".to_owned(), false),
        (Some(0), action(1), true),
        (Some(3), "end".to_owned(), false),
    ];
    assert_eq!(steps(&outcome), expected);
    let own = format!("x\n\n{BLOCK}so 0\n").len();
    assert_eq!(outcome.tree.node(1).num_tokens, own);
    let replayed = ReplayPolicy {
        recording: &record(&outcome.tree),
        policy: &forked(),
    };
    let search = Search::new(&replayed, Some(&scorer), &spec, None);
    let again = futures::executor::block_on(search.run()).unwrap();
    assert_eq!(outline(&again.tree), outline(&outcome.tree));
}

#[test]
fn confidence_is_that_of_the_policys_own_tokens() {
    let num_before = "x\n\n".len() + BLOCK.len();
    let policy = policy(None).with_confidence(move |_, at| match at < num_before {
        true => 1.0,
        false => 3.0,
    });
    let num_behind = "so 7".len();
    let spec = spec(json!({"strategy": "deepconf", "n": 2,
        "confidence": {"warm_up": 1, "window": num_before + num_behind}}));
    let outcome = run(&policy, None, &spec);
    let best = outcome.tree.node(outcome.answers[0].node);
    let sum = (num_before + 3 * num_behind) as f64;
    let expected = sum / (num_before + num_behind) as f64;
    assert!((best.confidence.unwrap() - expected).abs() < 1e-9);
}

/// Prints how often it was asked, so that nothing is the same twice.
#[derive(Debug, Default)]
struct Counting(Mutex<Vec<Program>>);

impl CodeRunner for Counting {
    fn run(&self, program: Program) -> BoxFuture<'static, Option<Ran>> {
        let mut programs = self.0.lock().unwrap();
        programs.push(program);
        let ran = Ran {
            stdout: format!("{}\n", programs.len()),
            error: None,
            status: CallStatus::Completed,
        };
        async { Some(ran) }.boxed()
    }
}

/// A model that writes one of these texts.
fn engine_policy(scripts: &[&str], tool: Arc<CodeTool>) -> EnginePolicy {
    let tokenizer = tokenizer();
    let prompt = format!(
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        scripts.join(OR)
    );
    let engine = engine(&tokenizer);
    let prompt_token_ids = tokenizer.encode(&prompt, false, true).unwrap();
    let params = SamplingParams {
        max_tokens: 300,
        seed: 3,
        eos_token_ids: tokenizer.end_of_generation_ids().to_vec(),
        ..SamplingParams::default()
    };
    EnginePolicy {
        code: Some(tool),
        ..EnginePolicy::new(engine, tokenizer, prompt_token_ids, params)
    }
}

async fn search(
    scripts: &[&str],
    request: Value,
    tool: Arc<CodeTool>,
    recording: Option<&ponder::search::Recording>,
) -> SearchOutcome {
    let policy = engine_policy(scripts, tool);
    let scorer = one(Likelihood);
    let spec = spec(request);
    let outcome = match recording {
        None => Search::new(&policy, Some(&scorer), &spec, None).run().await,
        Some(recording) => {
            let policy = ReplayPolicy {
                recording,
                policy: &policy,
            };
            Search::new(&policy, Some(&scorer), &spec, None).run().await
        }
    };
    let outcome = outcome.unwrap();
    outcome.tree.check_invariants();
    outcome
}

fn tool(limits: CodeLimits) -> (Arc<Counting>, Arc<CodeTool>) {
    let runner = Arc::new(Counting::default());
    let tool = CodeTool::new(limits, runner.clone(), 0);
    (runner, Arc::new(tool))
}

#[tokio::test]
async fn equal_code_runs_once_and_later_blocks_see_earlier_ones() {
    let twice = "```python\na\n```\n```output\n1\n```\n```python\nb\n```\n```output\n2\n```\nend";
    for strategy in STRATEGIES.iter().map(|strategy| strategy.name()) {
        let (runner, tool) = tool(CodeLimits::default());
        let request = json!({"strategy": strategy, "n": 4, "branch": 2, "iterations": 3,
            "reward": {"kind": "likelihood"}});
        let outcome = search(&[twice], request.clone(), tool, None).await;
        assert_eq!(outcome.answers[0].text, twice, "{strategy}");
        let programs = runner.0.lock().unwrap().clone();
        let codes: Vec<(Vec<String>, &str)> = programs
            .iter()
            .map(|program| (program.earlier.clone(), program.code.as_str()))
            .collect();
        let expected = [(vec![], "a\n"), (vec!["a\n".to_owned()], "b\n")];
        assert_eq!(codes, expected, "{strategy}");
        // A search that goes on takes outputs from its record, also in samples that it makes anew.
        let (runner, tool) = self::tool(CodeLimits::default());
        let recording = record(&outcome.tree);
        recording.teach(&tool);
        let more = json!({"strategy": strategy, "n": 4, "branch": 2, "iterations": 5,
            "reward": {"kind": "likelihood"}});
        let again = search(&[twice], more, tool, Some(&recording)).await;
        assert_eq!(again.answers[0].text, twice, "{strategy}");
        assert!(runner.0.lock().unwrap().is_empty(), "{strategy}");
    }
}

/// The answer of an expansion of nothing.
async fn sampled(policy: &EnginePolicy, source: &Expansion) -> Continuation {
    let mut running = policy.start(vec![source.clone()]).await.unwrap();
    running.next().await.unwrap().unwrap().continuation
}

#[tokio::test]
async fn steps_and_confidence_go_on_behind_outputs() {
    let steps = [
        "```python\n",
        "a\n",
        "```\n```output\n1\n```\n",
        "```python\n",
        "b\n",
        "```\n```output\n2\n```\n",
        "one\n",
        "end",
    ];
    let text = steps.concat();
    let policy = engine_policy(&[&text], tool(CodeLimits::default()).1);
    let source = Expansion {
        prefix: Vec::new(),
        prefix_text: String::new(),
        inserted: Vec::new(),
        branch_path: vec![0],
        n: 1,
        priority: 0.0,
        step: None,
        noted_step: Some(StepRule::delimiter("\n", 100)),
        confidence: None,
    };
    let sample = sampled(&policy, &source).await;
    assert_eq!((sample.text.as_str(), sample.end), (&*text, End::Stop));
    // Tokens are bytes.
    let mut expected: Vec<usize> = Vec::new();
    for step in &steps[..steps.len() - 1] {
        expected.push(expected.last().unwrap_or(&0) + step.len());
    }
    let ends: Vec<usize> = sample.step_ends.iter().map(|end| end.num_tokens).collect();
    assert_eq!(ends, expected);
    let noted = policy.step_ends(&source, &sample.token_ids, &sample.inserted);
    assert_eq!(noted, expected);
    // A group of more tokens than the first block has.
    let rule = ConfidenceRule {
        window: 20,
        limit: Some(f64::INFINITY),
    };
    let source = Expansion {
        noted_step: None,
        confidence: Some(rule),
        ..source
    };
    let sample = sampled(&policy, &source).await;
    assert_eq!((sample.num_own(), sample.end), (20, End::Unsure));
    assert_eq!(sample.inserted.len(), 1);
}

#[tokio::test]
async fn answers_stop_where_their_limits_are() {
    let text = "```python\na\n```\n```output\n1\n```\n```python\nb\n```\nend";
    let (runner, tool) = tool(CodeLimits {
        max_calls: 1,
        ..CodeLimits::default()
    });
    let request = json!({"strategy": "best_of_n", "n": 1, "reward": {"kind": "likelihood"}});
    let outcome = search(&[text], request.clone(), tool, None).await;
    // The second block is text, and the model goes on by itself.
    assert_eq!(outcome.answers[0].text, text);
    assert_eq!(runner.0.lock().unwrap().len(), 1);
    // Branches that differ run what is theirs.
    let other = text.replace("\na\n", "\nc\n").replace("\n1\n", "\n2\n");
    let (runner, tool) = self::tool(CodeLimits::default());
    let request = json!({"strategy": "best_of_n", "n": 8, "reward": {"kind": "likelihood"}});
    let outcome = search(&[text, &other], request, tool, None).await;
    let codes: Vec<String> = runner
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|it| it.code.clone())
        .collect();
    assert!(codes.iter().any(|code| code == "a\n") && codes.iter().any(|code| code == "c\n"));
    assert!(
        outcome
            .answers
            .iter()
            .all(|it| it.end == End::Stop && !it.inserted.is_empty())
    );
}
