//! VM-MCTS of ReST-RL (arXiv 2508.19576 and the released code): the policy always samples whole
//! answers, the first step of each is an action, and every answer is a candidate for the final one.
//! Unlike there, an action reaches to where the answers of its expansion differ, an answer counts
//! for every node that it passes, what has ended or failed is not selected again, and more children
//! can be selected as visits grow ([`Frontier`]).

use futures::future::{BoxFuture, FutureExt};

use super::context::Search;
use super::cut::Cut;
use super::frontier::{Frontier, most_children, steps};
use super::inserted::Inserted;
use super::outcome::{SearchError, is_whole};
use super::policy::{Continuation, End, StepEnd};
use super::samples::Sample;
use super::step::MAX_NOTED_STEPS;
use super::strategy::{Defaults, Strategy};
use super::tree::{Node, NodeId, Tree};

/// Keeps the bound of an unvisited child finite.
const EPSILON: f64 = 0.1;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct VmMcts;

impl Strategy for VmMcts {
    fn name(&self) -> &'static str {
        "vm_mcts"
    }

    /// The released code's: samples of an expansion, exploration constant; a step is a line.
    fn defaults(&self) -> Defaults {
        Defaults {
            n: 5,
            branch: 3,
            exploration: 0.2,
            iterations: 10,
            delimiter: "\n",
            ..Defaults::COMMON
        }
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let exploration = search.spec.exploration;
    let mut frontier = Frontier::new(search);
    for _ in 0..search.spec.iterations {
        if search.is_over() {
            break;
        }
        let leaf = frontier.select(&search.tree, |parent, child| {
            bound(parent, child, exploration)
        });
        let Some(expanded) = expand(search, leaf).await? else {
            break;
        };
        back_propagate(&mut search.tree, leaf, expanded.sum, expanded.count);
        frontier.update(&search.tree, leaf);
        let path: Vec<NodeId> = search.tree.ancestors(leaf).collect();
        for id in path {
            show(search, &frontier, id, &expanded.children);
        }
    }
    Ok(())
}

/// `V + c * sqrt((1 + ln N_parent) / (epsilon + N))`.
fn bound(parent: &Node, child: &Node, exploration: f64) -> f64 {
    let num_visits = parent.visit_count.max(1) as f64;
    let bonus = ((1.0 + num_visits.ln()) / (EPSILON + child.visit_count as f64)).sqrt();
    child.value + exploration * bonus
}

/// A whole answer and the child that it begins with.
struct Placed {
    child: NodeId,
    answer: NodeId,
    /// The nodes that it passes, the child among them.
    passed: Vec<NodeId>,
}

/// What came of an expansion.
struct Expanded {
    /// Those that are new.
    children: Vec<NodeId>,
    /// Of the values that count for the leaf, and how many they are.
    sum: f64,
    count: u64,
}

/// Samples whole answers from `leaf`; nothing when no sample came.
async fn expand(search: &mut Search<'_>, leaf: NodeId) -> Result<Option<Expanded>, SearchError> {
    let earlier = answers_through(&search.tree, leaf);
    let samples = sample(search, leaf).await?;
    if samples.is_empty() {
        return Ok(None);
    }
    let num_shared = num_shared_steps(search, &samples);
    let first_new = search.tree.nodes.len();
    let placed: Vec<Placed> = samples
        .into_iter()
        .map(|sample| place(search, sample, num_shared))
        .collect();
    let mut children: Vec<NodeId> = placed.iter().map(|placed| placed.child).collect();
    children.retain(|child| *child >= first_new);
    children.sort_unstable();
    children.dedup();
    let mut whole: Vec<NodeId> = placed.iter().map(|placed| placed.answer).collect();
    whole.sort_unstable();
    whole.dedup();
    let (sum, count) = if search.scorer.is_some_and(|scorer| scorer.is_value_model()) {
        whole.extend(&children);
        whole.sort_unstable();
        whole.dedup();
        search.score(&whole).await?;
        by_value_model(search, &children)
    } else {
        search.score(&whole).await?;
        for child in &children {
            inherit(&mut search.tree, *child, &earlier);
        }
        by_outcome(search, &placed)
    };
    Ok(Some(Expanded {
        children,
        sum,
        count,
    }))
}

/// Whole answers from `leaf` in the order in which they ended, until one decides the search.
async fn sample(search: &mut Search<'_>, leaf: NodeId) -> Result<Vec<Sample>, SearchError> {
    let n = search.spec.n;
    let step = search.spec.step.clone();
    let mut ended: Vec<Sample> = Vec::new();
    let mut num_started = 0;
    while num_started < n && !search.is_over() {
        let wave = search.affordable_beside(leaf, n - num_started, &ended);
        if wave == 0 && num_started > 0 {
            break;
        }
        let wave = wave.max(1);
        num_started += wave;
        let mut samples = search.start(&[(leaf, wave)], Cut::NoteSteps(&step)).await?;
        while let Some(sample) = search.next(&mut samples).await? {
            if search.is_nothing(&sample.continuation) {
                continue;
            }
            let decides = search.would_decide(&sample).await?;
            ended.push(sample);
            if decides {
                samples.stop();
                break;
            }
        }
    }
    Ok(ended)
}

/// With how many whole steps all samples begin: on code often the line that opens a fence. None
/// where they do not differ at all, which one sample alone never does.
fn num_shared_steps(search: &Search<'_>, samples: &[Sample]) -> usize {
    let Some((first, others)) = samples.split_first() else {
        return 0;
    };
    let text = |sample: &Sample| sample.continuation.text.trim_end().to_owned();
    let whole = text(first);
    if others.iter().all(|other| text(other) == whole) {
        return 0;
    }
    let beginnings = |sample: &Sample| -> Vec<String> {
        let whole = &sample.continuation;
        let ends = whole.step_ends.iter();
        ends.map(|end| beginning(search, whole, end.num_tokens))
            .collect()
    };
    let first = beginnings(first);
    let others: Vec<Vec<String>> = others.iter().map(beginnings).collect();
    let is_shared = |(at, text): &(usize, &String)| {
        let mut same = others.iter().map(|other| other.get(*at));
        same.all(|other| other.is_some_and(|other| other.trim_end() == text.trim_end()))
    };
    let shared = first.iter().enumerate().take_while(is_shared).count();
    // Of the last end that is noted nobody knows what follows.
    shared.min(MAX_NOTED_STEPS - 1)
}

/// Adds a sample's action, the shared steps and the one after them, and, where more follows, the
/// whole of it as a candidate.
fn place(search: &mut Search<'_>, sample: Sample, num_shared: usize) -> Placed {
    let (leaf, text) = (sample.parent, sample.continuation.text.clone());
    let end = sample.continuation.step_ends.get(num_shared).cloned();
    let parts = end.and_then(|end| split(search, &sample.continuation, end));
    let (child, answer, tail) = match parts {
        None => {
            let (child, _) = search.add(sample);
            (child, child, String::new())
        }
        Some((head, tail)) => {
            let rest = tail.text.clone();
            let tail = Sample {
                continuation: tail,
                ..sample
            };
            let (child, _) = search.add(Sample {
                continuation: head,
                ..tail.clone()
            });
            let answer = search.add_rollout(Sample {
                parent: child,
                ..tail
            });
            (child, answer, rest)
        }
    };
    let mut passed = Vec::new();
    collect_passed(&search.tree, leaf, &text, &mut passed);
    // A child into which it was merged may differ from it in white space.
    if !passed.contains(&child) {
        passed.push(child);
        collect_passed(&search.tree, child, &tail, &mut passed);
    }
    Placed {
        child,
        answer,
        passed,
    }
}

/// The text of an answer's first tokens; what the policy did not write is known as text.
fn beginning(search: &Search<'_>, whole: &Continuation, num_tokens: usize) -> String {
    let inserted = whole.inserted.iter();
    let last = inserted.take_while(|it| it.tokens.end <= num_tokens).last();
    let (tokens, text) = last.map_or((0, 0), |it| (it.tokens.end, it.text.end));
    let own = search.policy.pieces(&whole.token_ids[tokens..num_tokens]);
    whole.text[..text].to_owned() + &own.concat()
}

/// The steps up to `end` and what follows them; `None` when nothing does.
fn split(
    search: &Search<'_>,
    whole: &Continuation,
    end: StepEnd,
) -> Option<(Continuation, Continuation)> {
    let (head, tail) = whole.token_ids.split_at_checked(end.num_tokens)?;
    let (head_logprobs, tail_logprobs) = whole.logprobs.split_at_checked(end.num_tokens)?;
    let text = beginning(search, whole, end.num_tokens);
    let rest = whole.text.strip_prefix(text.as_str())?;
    if tail.is_empty() || rest.is_empty() {
        return None;
    }
    let is_before = |it: &Inserted| it.tokens.end <= head.len();
    let num_before = whole.inserted.partition_point(is_before);
    let (before, behind) = whole.inserted.split_at(num_before);
    let behind = behind.iter().map(|it| it.behind(head.len(), text.len()));
    let behind = behind.collect::<Option<Vec<_>>>()?;
    let part = |token_ids: &[_], text: &str, logprobs: &[_], inserted| Continuation {
        token_ids: token_ids.to_vec(),
        text: text.to_owned(),
        inserted,
        logprobs: logprobs.to_vec(),
        step_ends: Vec::new(),
        ..whole.clone()
    };
    let head = Continuation {
        end: End::Step,
        hidden_state: end.hidden_state,
        ..part(head, &text, head_logprobs, before.to_vec())
    };
    Some((head, part(tail, rest, tail_logprobs, behind)))
}

/// Whether an answer that goes on with `rest` comes through a step.
fn passes(step: &Node, rest: &str) -> bool {
    match step.end {
        Some(_) => rest == step.text,
        None => !step.text.is_empty() && rest.starts_with(&step.text),
    }
}

/// The nodes below `from` that an answer comes through which goes on from there with `rest`.
fn collect_passed(tree: &Tree, from: NodeId, rest: &str, passed: &mut Vec<NodeId>) {
    for child in steps(tree, from) {
        let step = tree.node(child);
        if passes(step, rest) && !passed.contains(&child) {
            passed.push(child);
            collect_passed(tree, child, &rest[step.text.len()..], passed);
        }
    }
}

/// The whole answers that came through `leaf`: what follows it, and their scores.
fn answers_through(tree: &Tree, leaf: NodeId) -> Vec<(String, f64)> {
    let mut answers = Vec::new();
    let mut collect = |from: NodeId, before: &str, through: &str| {
        let children = tree.node(from).children.iter().map(|id| tree.node(*id));
        for answer in children.filter(|child| child.is_rollout) {
            let text = format!("{before}{}", answer.text);
            if let Some(rest) = text.strip_prefix(through) {
                answers.push((rest.to_owned(), worth(answer)));
            }
        }
    };
    let mut through = String::new();
    for above in tree.ancestors(leaf) {
        collect(above, "", &through);
        through.insert_str(0, &tree.node(above).text);
    }
    for child in steps(tree, leaf) {
        collect(child, &tree.node(child).text, "");
    }
    answers
}

/// Counts the answers for a new child of a node that came through both before it was one.
fn inherit(tree: &mut Tree, child: NodeId, earlier: &[(String, f64)]) {
    let node = &mut tree.nodes[child];
    for (rest, value) in earlier {
        if passes(node, rest) {
            node.visit_count += 1;
            node.value_sum += value;
        }
    }
}

/// A value model's word counts as one visit of each child.
fn by_value_model(search: &mut Search<'_>, children: &[NodeId]) -> (f64, u64) {
    let mut sum = 0.0;
    for id in children {
        let node = &mut search.tree.nodes[*id];
        node.visit_count = 1;
        node.value_sum = node.value;
        sum += node.value;
    }
    (sum, children.len() as u64)
}

fn worth(answer: &Node) -> f64 {
    match is_whole(answer.end) {
        true => answer.score.unwrap_or(0.0),
        false => 0.0,
    }
}

/// The rewards of the whole answers count for the nodes that they pass.
fn by_outcome(search: &mut Search<'_>, placed: &[Placed]) -> (f64, u64) {
    let mut total = 0.0;
    for Placed { answer, passed, .. } in placed {
        let value = worth(search.tree.node(*answer));
        for id in passed {
            let node = &mut search.tree.nodes[*id];
            node.visit_count += 1;
            node.value_sum += value;
            node.value = node.value_sum / node.visit_count as f64;
        }
        total += value;
    }
    (total, placed.len() as u64)
}

/// Of a node's children the best can be selected: `branch`, more as its visits grow, and more where
/// all of these are closed (progressive unpruning, Chaslot et al. 2008). The others are hidden.
fn show(search: &mut Search<'_>, frontier: &Frontier, id: NodeId, new: &[NodeId]) {
    let tree = &search.tree;
    let most = most_children(tree.node(id)).max(search.spec.branch);
    let (mut hidden, shown): (Vec<NodeId>, Vec<NodeId>) =
        steps(tree, id).partition(|child| tree.node(*child).is_pruned || new.contains(child));
    hidden.sort_by(|a, b| {
        let value = |id: NodeId| tree.node(id).value;
        value(*b).total_cmp(&value(*a)).then(a.cmp(b))
    });
    let mut num_shown = shown.len();
    let mut has_open = shown.into_iter().any(|child| frontier.is_open(child));
    for child in hidden {
        if num_shown < most || !has_open {
            search.tree.nodes[child].is_pruned = false;
            num_shown += 1;
            has_open |= frontier.is_open(child);
        } else if new.contains(&child) {
            search.prune(child);
        }
    }
}

/// Adds a sum of values to `leaf` and everything above; a value is the mean.
fn back_propagate(tree: &mut Tree, leaf: NodeId, sum: f64, count: u64) {
    let path: Vec<NodeId> = tree.ancestors(leaf).collect();
    for id in path {
        let node = &mut tree.nodes[id];
        node.visit_count += count;
        node.value_sum += sum;
        node.value = node.value_sum / node.visit_count.max(1) as f64;
    }
}
