//! Requests with a seed are asked again and again, over restarts: their answers must not change.

use std::collections::HashMap;

/// First answers, by the name of the request.
#[derive(Debug, Default)]
pub(super) struct SameAnswers {
    first: HashMap<String, Vec<String>>,
    pub num_compared: u64,
    pub differences: Vec<String>,
}

impl SameAnswers {
    /// Keeps the first answer to a request and compares later ones with it. False if it differs.
    pub fn is_same(&mut self, name: String, texts: &[String]) -> bool {
        let Some(first) = self.first.get(&name) else {
            self.first.insert(name, texts.to_vec());
            return true;
        };
        self.num_compared += 1;
        let is_same = first == texts;
        if !is_same {
            self.differences
                .push(format!("{name}: {first:?} and then {texts:?}"));
        }
        is_same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_is_the_same() {
        let mut same = SameAnswers::default();
        let texts = |text: &str| vec![text.to_owned()];
        assert!(same.is_same("a".to_owned(), &texts("x")));
        assert!(same.is_same("b".to_owned(), &texts("y")));
        assert!(same.is_same("a".to_owned(), &texts("x")));
        assert!(!same.is_same("a".to_owned(), &texts("y")));
        assert!(!same.is_same("a".to_owned(), &[]));
        assert_eq!((same.num_compared, same.differences.len()), (3, 2));
    }
}
