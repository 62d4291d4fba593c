//! What holds of every tree.

use std::collections::HashSet;

use super::inserted::num_inserted;
use super::tree::Tree;

impl Tree {
    /// Panics unless parents, children, depths and token counts fit together, and no two samples
    /// have one key.
    pub fn check_invariants(&self) {
        let mut paths = HashSet::new();
        for node in self.nodes.iter().skip(1) {
            for path in std::iter::once(&node.branch_path).chain(&node.duplicate_paths) {
                // A roll-out that was cut into its first step and the rest has the key of both.
                let is_new = paths.insert((path, node.is_rollout));
                assert!(is_new, "two samples have the branch path {path:?}");
            }
        }
        for (id, node) in self.nodes.iter().enumerate() {
            match node.parent {
                None => assert_eq!(id, Self::ROOT, "only the root has no parent"),
                Some(parent) => {
                    assert!(parent < id, "parents come first");
                    let above = &self.nodes[parent];
                    assert!(above.children.contains(&id), "a parent knows its children");
                    assert!(above.end.is_none(), "an ended node has no children");
                    assert_eq!(node.depth, above.depth + 1);
                    let own = node.token_ids.len() - num_inserted(&node.inserted);
                    assert_eq!(node.num_tokens, above.num_tokens + own);
                    for it in &node.inserted {
                        assert!(node.text.get(it.text.clone()).is_some(), "{it:?}");
                        assert!(node.token_ids.get(it.tokens.clone()).is_some(), "{it:?}");
                    }
                }
            }
            assert!((0.0..=1.0).contains(&node.value), "values lie in 0..=1");
        }
    }
}
