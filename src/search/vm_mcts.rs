//! VM-MCTS of ReST-RL (arXiv 2508.19576 and the released code): the policy always samples whole answers, the
//! first step of each is an action, and every answer is a candidate for the final one.

use futures::future::{BoxFuture, FutureExt};

use super::context::{Cut, Search};
use super::outcome::{SearchError, best_by, is_whole};
use super::policy::{Continuation, End};
use super::samples::Sample;
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};

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
    for _ in 0..search.spec.iterations {
        if search.is_over() {
            break;
        }
        let leaf = select(&search.tree, search.spec.exploration);
        let node = search.tree.node(leaf);
        if node.end.is_some() || node.depth >= search.spec.max_depth {
            let value = node.value;
            back_propagate(&mut search.tree, leaf, value, 1);
            continue;
        }
        let (sum, count) = expand(search, leaf).await?;
        if count == 0 {
            break;
        }
        back_propagate(&mut search.tree, leaf, sum, count);
    }
    Ok(())
}

/// Walks down by `V + c * sqrt((1 + ln N_parent) / (epsilon + N))` over the visible children.
fn select(tree: &Tree, exploration: f64) -> NodeId {
    let mut at = Tree::ROOT;
    loop {
        let parent = tree.node(at).visit_count.max(1) as f64;
        let next = best_by(tree, tree.selectable(at), |child| {
            let bonus = ((1.0 + parent.ln()) / (EPSILON + child.visit_count as f64)).sqrt();
            child.value + exploration * bonus
        });
        match next {
            Some(child) => at = child,
            None => return at,
        }
    }
}

/// Samples whole answers from `leaf`; returns the sum of values and how many they are.
async fn expand(search: &mut Search<'_>, leaf: NodeId) -> Result<(f64, u64), SearchError> {
    let n = search.spec.n;
    let step = search.spec.step.clone();
    let cut = Cut::NoteFirst(&step);
    let mut children: Vec<NodeId> = Vec::new();
    let mut answers: Vec<(NodeId, NodeId)> = Vec::new();
    let mut num_started = 0;
    while num_started < n && !search.is_over() {
        let wave = search.affordable(leaf, n - num_started);
        if wave == 0 && num_started > 0 {
            break;
        }
        let wave = wave.max(1);
        num_started += wave;
        let mut samples = search.start(&[(leaf, wave)], cut).await?;
        while let Some(sample) = search.next(&mut samples).await? {
            if search.is_nothing(&sample.continuation) {
                continue;
            }
            let (child, answer) = add(search, sample);
            if !children.contains(&child) {
                children.push(child);
            }
            answers.push((child, answer));
            if search.decides(answer).await? {
                samples.stop();
                break;
            }
        }
    }
    let mut whole: Vec<NodeId> = answers.iter().map(|(_, answer)| *answer).collect();
    whole.sort_unstable();
    whole.dedup();
    let outcome = if search.scorer.is_some_and(|scorer| scorer.is_value_model()) {
        let mut new: Vec<NodeId> = children.iter().copied().chain(whole).collect();
        new.sort_unstable();
        new.dedup();
        search.score(&new).await?;
        by_value_model(search, &children)
    } else {
        search.score(&whole).await?;
        by_outcome(search, &answers)
    };
    hide(search, &children);
    Ok(outcome)
}

/// Adds a sample's first step and, where more follows, the whole of it as a candidate.
fn add(search: &mut Search<'_>, sample: Sample) -> (NodeId, NodeId) {
    let Some((head, tail)) = split(search, &sample.continuation) else {
        let (child, _) = search.add(sample);
        return (child, child);
    };
    let rest = Sample {
        continuation: tail,
        ..sample.clone()
    };
    let (child, _) = search.add(Sample {
        continuation: head,
        ..sample
    });
    let answer = search.add_rollout(Sample {
        parent: child,
        ..rest
    });
    (child, answer)
}

/// The first step and what follows it; `None` when nothing does.
fn split(search: &Search<'_>, whole: &Continuation) -> Option<(Continuation, Continuation)> {
    let first = whole.first_step.as_ref()?;
    let (head, tail) = whole.token_ids.split_at_checked(first.num_tokens)?;
    let (head_logprobs, tail_logprobs) = whole.logprobs.split_at_checked(first.num_tokens)?;
    // What the policy did not write is known as text.
    let num_inserted = whole
        .inserted
        .iter()
        .take_while(|it| it.tokens.end <= head.len());
    let num_inserted = num_inserted.count();
    let last = whole.inserted[..num_inserted].last();
    let (known_tokens, known_text) = last.map_or((0, 0), |it| (it.tokens.end, it.text.end));
    let own = search.policy.pieces(&head[known_tokens..]).concat();
    let text = whole.text[..known_text].to_owned() + &own;
    let rest = whole.text.strip_prefix(text.as_str())?;
    if tail.is_empty() || rest.is_empty() {
        return None;
    }
    let part = |token_ids: &[_], text: &str, logprobs: &[_], inserted| Continuation {
        token_ids: token_ids.to_vec(),
        text: text.to_owned(),
        inserted,
        logprobs: logprobs.to_vec(),
        first_step: None,
        ..whole.clone()
    };
    let head = Continuation {
        end: End::Step,
        hidden_state: first.hidden_state.clone(),
        ..part(
            head,
            &text,
            head_logprobs,
            whole.inserted[..num_inserted].to_vec(),
        )
    };
    let behind = whole.inserted[num_inserted..].iter();
    let behind = behind.map(|it| it.behind(first.num_tokens, text.len()));
    let behind = behind.collect::<Option<Vec<_>>>()?;
    Some((head, part(tail, rest, tail_logprobs, behind)))
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

/// The rewards of the whole answers count for the children that they begin with.
fn by_outcome(search: &mut Search<'_>, answers: &[(NodeId, NodeId)]) -> (f64, u64) {
    let mut total = 0.0;
    for (child, answer) in answers {
        let value = match search.tree.node(*answer) {
            node if is_whole(node.end) => node.score.unwrap_or(0.0),
            _ => 0.0,
        };
        let node = &mut search.tree.nodes[*child];
        node.visit_count += 1;
        node.value_sum += value;
        node.value = node.value_sum / node.visit_count as f64;
        total += value;
    }
    (total, answers.len() as u64)
}

/// All but the best children are kept but never selected.
fn hide(search: &mut Search<'_>, children: &[NodeId]) {
    let mut order = children.to_vec();
    order.sort_by(|a, b| {
        let value = |id: NodeId| search.tree.node(id).value;
        value(*b).total_cmp(&value(*a)).then(a.cmp(b))
    });
    for id in order.into_iter().skip(search.spec.branch) {
        search.prune(id);
    }
}

/// Adds a sum of values to `leaf` and everything above; a value is the mean.
fn back_propagate(tree: &mut Tree, leaf: NodeId, sum: f64, count: u64) {
    let path: Vec<NodeId> = tree.ancestors(leaf).collect();
    for id in path {
        let node = &mut tree.nodes[id];
        node.visit_count += count;
        node.value_sum += sum;
        node.value = node.value_sum / node.visit_count as f64;
    }
}
