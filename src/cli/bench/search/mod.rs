//! `ponder bench search`: what searches are worth on a running server, in right answers per second and per token.

mod ask;
mod report;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::chat::first_model;
use crate::cli::progress::Counter;
use ask::{Answer, Server};

/// Fewest tokens that `--budget` gives a search.
const MIN_BUDGET: u64 = 64;
/// The arm without a search.
const GREEDY: &str = "greedy";

#[derive(Debug, Clone, Args)]
pub struct BenchSearchArgs {
    /// JSON lines: {"messages", "grade"} and perhaps {"reward"}; a grade and a reward are rewards as in the API
    #[arg(long, value_name = "FILE")]
    pub problems: PathBuf,
    /// What to compare: greedy, a strategy, or a search object as JSON
    #[arg(
        long,
        value_name = "SEARCH",
        num_args = 1..,
        default_values = [GREEDY, "best_of_n", "mcts", "vm_mcts"]
    )]
    pub search: Vec<String>,
    /// Tokens of each search, in multiples of the greedy answer's to the same problem [default: no limit]
    #[arg(long, value_name = "FACTOR")]
    pub budget: Option<f64>,
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Name of the model [default: the server's first]
    #[arg(long)]
    pub model: Option<String>,
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Only the first problems
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Problems asked at once
    #[arg(long, default_value_t = 1)]
    pub concurrency: usize,
    #[arg(long, default_value_t = 768)]
    pub max_tokens: usize,
    /// Of searches; the greedy arm has 0
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// A question, how a search may judge its answers, and how the benchmark does.
#[derive(Debug, Clone, Deserialize)]
struct Problem {
    messages: Vec<Value>,
    #[serde(default)]
    reward: Option<Value>,
    grade: Value,
}

/// One way to ask.
#[derive(Debug, Clone)]
struct Arm {
    name: String,
    /// Absent for the greedy answer.
    search: Option<Value>,
}

/// An arm's answers to all problems, and how long they took together.
struct Measured {
    arm: Arm,
    answers: Vec<Answer>,
    seconds: f64,
}

pub(in crate::cli) fn run(args: &BenchSearchArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let problems = read_problems(args)?;
    let arms = args.search.iter().map(|text| Arm::parse(text));
    let arms: Vec<Arm> = arms.collect::<anyhow::Result<_>>()?;
    tokio::runtime::Runtime::new()?.block_on(measure(args, &problems, arms))
}

fn read_problems(args: &BenchSearchArgs) -> anyhow::Result<Vec<Problem>> {
    let path = args.problems.display();
    let text = std::fs::read_to_string(&args.problems).with_context(|| format!("{path}"))?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let problems: Vec<Problem> = lines
        .take(args.limit.unwrap_or(usize::MAX))
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("{path}, line {}", number + 1))
        })
        .collect::<anyhow::Result<_>>()?;
    ensure!(!problems.is_empty(), "{path} has no problems");
    Ok(problems)
}

impl Arm {
    fn parse(text: &str) -> anyhow::Result<Self> {
        if text == GREEDY {
            return Ok(Self {
                name: GREEDY.to_owned(),
                search: None,
            });
        }
        let search: Value = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).with_context(|| format!("--search {text}"))?,
            false => serde_json::json!({"strategy": text}),
        };
        let strategy = search["strategy"].as_str();
        let strategy = strategy.with_context(|| format!("--search {text} has no strategy"))?;
        let mut name = strategy.to_owned();
        for part in ["n", "branch"] {
            if let Some(number) = search[part].as_u64() {
                name.push_str(&format!(" {part}={number}"));
            }
        }
        if let Some(kind) = search["reward"]["kind"].as_str() {
            name.push_str(&format!(", {kind}"));
        }
        Ok(Self {
            name,
            search: Some(search),
        })
    }

    /// The search of one problem: the problem's reward where the arm names none, and the budget.
    fn search_of(&self, problem: &Problem, tokens: Option<u64>) -> Option<Value> {
        let mut search = self.search.clone()?;
        if search["reward"].is_null()
            && let Some(reward) = &problem.reward
        {
            search["reward"] = reward.clone();
        }
        if let Some(tokens) = tokens {
            search["budget"]["tokens"] = tokens.into();
        }
        Some(search)
    }
}

async fn measure(
    args: &BenchSearchArgs,
    problems: &[Problem],
    mut arms: Vec<Arm>,
) -> anyhow::Result<()> {
    let url = args.url.trim_end_matches('/').trim_end_matches("/v1");
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(url, args.api_key.as_deref()).await?,
    };
    let server = Server::new(url, model, args);
    // Budgets are counted in greedy answers, so these come first.
    arms.sort_by_key(|arm| arm.search.is_some());
    let needs_greedy = args.budget.is_some() && arms.iter().all(|arm| arm.search.is_some());
    if needs_greedy {
        arms.insert(0, Arm::parse(GREEDY)?);
    }
    let mut measured: Vec<Measured> = Vec::new();
    for arm in arms {
        let greedy = measured.first().filter(|first| first.arm.search.is_none());
        let tokens = |index: usize| -> Option<u64> {
            let factor = args.budget?;
            let greedy = greedy?.answers[index].num_tokens as f64;
            Some(((factor * greedy) as u64).max(MIN_BUDGET))
        };
        let searches = problems.iter().enumerate();
        let searches: Vec<Option<Value>> = searches
            .map(|(index, problem)| arm.search_of(problem, tokens(index)))
            .collect();
        measured.push(run_arm(&server, problems, arm, searches, args.concurrency).await);
    }
    report::print(args, &server.model, &measured)
}

async fn run_arm(
    server: &Server,
    problems: &[Problem],
    arm: Arm,
    searches: Vec<Option<Value>>,
    concurrency: usize,
) -> Measured {
    let bar = Counter::new(&arm.name, problems.len() as u64);
    let started = std::time::Instant::now();
    let asked = problems.iter().zip(searches);
    let asked = asked.map(|(problem, search)| async {
        let answer = server.ask(problem, search).await;
        bar.advance();
        answer
    });
    let asked = futures::stream::iter(asked).buffered(concurrency.max(1));
    let mut answers: Vec<Answer> = asked.collect().await;
    let seconds = started.elapsed().as_secs_f64();
    drop(bar);
    // Grading is not what is measured.
    let bar = Counter::new("grading", problems.len() as u64);
    for (problem, answer) in problems.iter().zip(&mut answers) {
        server.grade(problem, answer).await;
        bar.advance();
    }
    Measured {
        arm,
        answers,
        seconds,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_arm_keeps_its_own_reward_and_takes_the_problems_otherwise() {
        let problem = Problem {
            messages: Vec::new(),
            reward: Some(json!({"kind": "majority"})),
            grade: json!({"kind": "likelihood"}),
        };
        let plain = Arm::parse("best_of_n").unwrap();
        assert_eq!(
            plain.search_of(&problem, Some(9)).unwrap(),
            json!({"strategy": "best_of_n", "reward": {"kind": "majority"}, "budget": {"tokens": 9}})
        );
        let own = r#"{"strategy": "beam", "n": 4, "reward": {"kind": "prm"}}"#;
        let own = Arm::parse(own).unwrap();
        assert_eq!(own.name, "beam n=4, prm");
        let search = own.search_of(&problem, None).unwrap();
        assert_eq!(search["reward"], json!({"kind": "prm"}));
        let greedy = Arm::parse(GREEDY).unwrap();
        assert!(greedy.search_of(&problem, Some(9)).is_none());
        assert!(Arm::parse("{}").is_err());
    }
}
