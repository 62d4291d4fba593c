//! `ponder bench search`: what searches are worth on a running server, in right answers per second
//! and per token.

mod args;
mod arms;
mod ask;
mod report;

use futures::StreamExt;
use serde_json::Value;

use crate::cli::chat::first_model;
use crate::cli::progress::Counter;
use arms::{Arm, GREEDY, Problem, read_problems};
use ask::{Answer, Server};
use report::Measured;

pub use args::BenchSearchArgs;

/// Fewest tokens that `--budget` gives a search.
const MIN_BUDGET: u64 = 64;

pub(in crate::cli) fn run(args: &BenchSearchArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let problems = read_problems(&args.problems, args.limit)?;
    let arms = args.search.iter().map(|text| Arm::parse(text));
    let arms: Vec<Arm> = arms.collect::<anyhow::Result<_>>()?;
    tokio::runtime::Runtime::new()?.block_on(measure(args, &problems, arms))
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
