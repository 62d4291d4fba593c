//! Particle filtering, and with several passes particle Gibbs (arXiv 2502.01618, section 3, and the
//! released code): `n` answers grow step by step, and after each step all are drawn anew in
//! proportion to the odds of their scores. Particles in one place are one node, continued as often
//! as they are many.

use futures::future::{BoxFuture, FutureExt};

use super::beam::check_steps;
use super::context::Search;
use super::cut::Cut;
use super::outcome::SearchError;
use super::policy::End;
use super::spec::{SearchSpec, SpecError};
use super::strategy::{Defaults, Strategy};
use super::tree::{NodeId, Tree};
use super::weights::{choose, exponentials, logit, uniform};
use crate::reward::Weighted;

/// Divides the logits before their softmax (`--softmax-temp` of the released code).
const TEMPERATURE: f64 = 1.0;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct ParticleFiltering;

impl Strategy for ParticleFiltering {
    fn name(&self) -> &'static str {
        "particle_filtering"
    }

    /// One pass; 40 steps at most are the released code's.
    fn defaults(&self) -> Defaults {
        Defaults {
            iterations: 1,
            ..Defaults::COMMON
        }
    }

    fn check(&self, spec: &SearchSpec, scorer: Option<&Weighted>) -> Result<(), SpecError> {
        if spec.iterations > 1 && spec.n == 1 {
            return Err(SpecError {
                param: "n".to_owned(),
                message: "particle_filtering keeps one of its n particles from pass to pass: with \
                          iterations above 1, n must be at least 2"
                    .to_owned(),
            });
        }
        check_steps(self.name(), scorer)
    }

    fn run<'s>(&'s self, search: &'s mut Search<'_>) -> BoxFuture<'s, Result<(), SearchError>> {
        run(search).boxed()
    }
}

async fn run(search: &mut Search<'_>) -> Result<(), SearchError> {
    let mut reference = None;
    for pass in 0..search.spec.iterations {
        let num_free = search.spec.n - usize::from(reference.is_some());
        if num_free == 0 || search.is_over() {
            break;
        }
        let mut particles = filter(search, pass, num_free, reference).await?;
        particles.extend(reference);
        if particles.is_empty() {
            break;
        }
        // No draw within a pass has this place: depths count from 1.
        reference = draw(search, &particles, [pass, 0], 1).pop();
    }
    Ok(())
}

/// One pass: `num_free` particles from the root to their ends, against a reference that keeps its
/// path (conditional sequential Monte Carlo).
async fn filter(
    search: &mut Search<'_>,
    pass: usize,
    num_free: usize,
    reference: Option<NodeId>,
) -> Result<Vec<NodeId>, SearchError> {
    let mut particles = vec![Tree::ROOT; num_free];
    for depth in 1..=search.spec.max_depth {
        particles = advance(search, particles).await?;
        let mut places = particles.clone();
        places.sort_unstable();
        places.dedup();
        search.score(&places).await?;
        let mut open = particles.iter().map(|id| search.tree.node(*id));
        let is_last = depth == search.spec.max_depth || !open.any(|node| node.end.is_none());
        if is_last || search.is_over() || search.must_finish() {
            break;
        }
        // The reference is not drawn anew, but others may be drawn to where it was.
        let place = reference.and_then(|id| at_depth(&search.tree, id, depth));
        particles.extend(place);
        particles = draw(search, &particles, [pass, depth], num_free);
        particles.sort_unstable();
        for id in places {
            if !particles.contains(&id) && Some(id) != place {
                search.prune(id);
            }
        }
        // A later pass begins at the root again.
        if search.spec.iterations == 1 {
            search.agree(&particles);
        }
    }
    Ok(particles)
}

/// Continues the particles that have not ended by one step each.
async fn advance(
    search: &mut Search<'_>,
    mut particles: Vec<NodeId>,
) -> Result<Vec<NodeId>, SearchError> {
    let step = search.spec.step.clone();
    particles.sort_unstable();
    let is_open = |id: &NodeId| search.tree.node(*id).end.is_none();
    let (open, mut next): (Vec<NodeId>, Vec<NodeId>) = particles.into_iter().partition(is_open);
    let requests = open.chunk_by(|a, b| a == b);
    let requests: Vec<(NodeId, usize)> = requests.map(|same| (same[0], same.len())).collect();
    for sample in search.sample(&requests, Cut::AfterStep(&step)).await? {
        // A sample that is cut before its first token says nothing.
        let continuation = &sample.continuation;
        if continuation.token_ids.is_empty() && continuation.end == End::Cut {
            continue;
        }
        let (id, _) = search.add(sample);
        // An earlier pass may have given it up.
        search.tree.nodes[id].is_pruned = false;
        next.push(id);
    }
    Ok(next)
}

/// A node's path as far as `depth` steps; all of it where it is shorter.
fn at_depth(tree: &Tree, id: NodeId, depth: usize) -> Option<NodeId> {
    let mut path = tree.ancestors(id);
    path.find(|id| tree.node(*id).depth <= depth)
}

/// Draws `count` of `particles`, with replacement, in proportion to the odds of their values.
fn draw(
    search: &Search<'_>,
    particles: &[NodeId],
    [pass, depth]: [usize; 2],
    count: usize,
) -> Vec<NodeId> {
    let value = |id: &NodeId| logit(search.tree.node(*id).value);
    let logits: Vec<f64> = particles.iter().map(value).collect();
    let weights = exponentials(&logits, TEMPERATURE);
    let seed = search.policy.seed();
    let draws = (0..count).map(|index| uniform(seed, [pass, depth, index]));
    draws
        .map(|uniform| particles[choose(&weights, uniform)])
        .collect()
}
