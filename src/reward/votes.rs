//! Votes: samples that agree on an answer, what they weigh together, and when no other answer can
//! lead any more.

/// Samples that agree on an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub answer: String,
    /// One a vote: equal samples are one node.
    pub nodes: Vec<usize>,
    /// The sum of the votes' weights.
    pub weight: f64,
}

impl Group {
    pub fn num_votes(&self) -> usize {
        self.nodes.len()
    }
}

/// The answers so far, in the order in which they came.
#[derive(Debug, Default)]
pub struct Votes {
    pub groups: Vec<Group>,
}

impl Votes {
    /// A vote for the answer of a node.
    pub fn add(&mut self, answer: String, node: usize, weight: f64) {
        match self.groups.iter_mut().find(|group| group.answer == answer) {
            Some(group) => {
                group.nodes.push(node);
                group.weight += weight;
            }
            None => self.groups.push(Group {
                answer,
                nodes: vec![node],
                weight,
            }),
        }
    }

    /// Weighs all votes anew.
    pub fn reweigh(&mut self, weight: impl Fn(usize) -> f64) {
        for group in &mut self.groups {
            group.weight = group.nodes.iter().map(|id| weight(*id)).sum();
        }
    }

    /// The group of most weight, of equals that of more votes, then the first.
    pub fn leader(&self) -> Option<&Group> {
        let groups = self.groups.iter().rev();
        groups.max_by(|a, b| {
            let by_weight = a.weight.total_cmp(&b.weight);
            by_weight.then(a.num_votes().cmp(&b.num_votes()))
        })
    }

    /// One a vote.
    pub fn nodes(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups
            .iter()
            .flat_map(|group| group.nodes.iter().copied())
    }

    /// Takes back the votes of other nodes. What is left keeps its order, and is to be weighed
    /// anew.
    pub fn retain(&mut self, is_kept: impl Fn(usize) -> bool) {
        for group in &mut self.groups {
            group.nodes.retain(|id| is_kept(*id));
        }
        self.groups.retain(|group| !group.nodes.is_empty());
    }

    pub fn num_votes(&self) -> usize {
        self.groups.iter().map(Group::num_votes).sum()
    }

    /// The leader's part of all weight.
    pub fn leading_share(&self) -> f64 {
        let total: f64 = self.groups.iter().map(|group| group.weight).sum();
        match self.leader() {
            Some(leader) if total > 0.0 => leader.weight / total,
            _ => 0.0,
        }
    }

    /// Votes of the leader and of the other group that has most.
    pub fn first_two(&self) -> (usize, usize) {
        let Some(leader) = self.leader() else {
            return (0, 0);
        };
        let others = self.groups.iter().filter(|group| *group != leader);
        let second = others.map(Group::num_votes).max();
        (leader.num_votes(), second.unwrap_or(0))
    }

    /// Whether the leader's weight stays ahead when each of `num_left` votes has the highest
    /// weight, 1, and goes to one other answer: to the second, or to one that nobody gave yet.
    pub fn cannot_be_caught(&self, num_left: usize) -> bool {
        let mut weights: Vec<f64> = self.groups.iter().map(|group| group.weight).collect();
        weights.sort_unstable_by(|a, b| b.total_cmp(a));
        let second = weights.get(1).copied().unwrap_or(0.0);
        let first = weights.first();
        first.is_some_and(|first| *first > second + num_left as f64)
    }
}

/// The probability that a share with the posterior Beta(first + 1, second + 1) is above one half:
/// the regularised incomplete beta function, which for whole numbers is a sum of binomial terms.
pub fn stays_ahead(first: usize, second: usize) -> f64 {
    let trials = first + second + 1;
    let mut term = 0.5_f64.powi(trials as i32);
    let mut sum = term;
    for k in 1..=first {
        term *= (trials - k + 1) as f64 / k as f64;
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn votes(given: &[(&str, f64)]) -> Votes {
        let mut votes = Votes::default();
        for (node, (answer, weight)) in (1..).zip(given) {
            votes.add((*answer).to_owned(), node, *weight);
        }
        votes
    }

    #[test]
    fn the_posterior_equals_the_beta_distribution() {
        // Values of scipy.stats.beta.sf(0.5, a + 1, b + 1).
        for (first, second, expected) in [
            (0, 0, 0.5),
            (1, 0, 0.75),
            (4, 0, 0.96875),
            (5, 1, 0.9375),
            (7, 2, 0.9453125),
        ] {
            assert!((stays_ahead(first, second) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn weight_leads_and_not_the_number_of_votes() {
        let votes = votes(&[("a", 0.2), ("b", 0.9), ("a", 0.2), ("a", 0.2)]);
        assert_eq!(votes.leader().unwrap().answer, "b");
        assert_eq!(votes.first_two(), (1, 3));
        assert!((votes.leading_share() - 0.9 / 1.5).abs() < 1e-12);
        // 0.9 against 0.6: a single vote of weight 1 turns it.
        assert!(votes.cannot_be_caught(0));
        assert!(!votes.cannot_be_caught(1));
    }

    #[test]
    fn an_answer_that_nobody_gave_may_still_win() {
        let votes = votes(&[("a", 1.0), ("a", 1.0), ("a", 0.5)]);
        assert!(votes.cannot_be_caught(2));
        assert!(!votes.cannot_be_caught(3));
        assert!(!Votes::default().cannot_be_caught(0));
    }

    #[test]
    fn without_weight_the_votes_count() {
        let votes = votes(&[("a", 0.0), ("b", 0.0), ("b", 0.0)]);
        assert_eq!(votes.leader().unwrap().answer, "b");
        assert_eq!(votes.leading_share(), 0.0);
    }
}
