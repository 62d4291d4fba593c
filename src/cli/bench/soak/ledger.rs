//! What the server owes its readers: every trace that it acknowledged, once a revision.

use std::collections::{HashMap, HashSet};

use super::dice::Dice;

/// A trace whose id a client holds.
#[derive(Debug, Clone)]
struct Owed {
    /// The key it belongs to.
    key: usize,
    /// The highest revision that was acknowledged.
    revision: u64,
    /// A client has begun to delete it: it may be there or not.
    may_be_gone: bool,
}

/// What clients were told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    owed: HashMap<String, Owed>,
    /// Ids that nobody works on, by key.
    free: HashMap<usize, Vec<String>>,
}

impl Ledger {
    /// An answer named its trace. False if another answer did so before.
    pub fn acknowledge(&mut self, key: usize, id: &str) -> bool {
        let owed = Owed {
            key,
            revision: 1,
            may_be_gone: false,
        };
        if self.owed.contains_key(id) {
            return false;
        }
        self.owed.insert(id.to_owned(), owed);
        self.free.entry(key).or_default().push(id.to_owned());
        true
    }

    /// A trace of a key for one client alone, until it is given back.
    pub fn borrow(&mut self, key: usize, dice: &mut Dice) -> Option<String> {
        let free = self.free.get_mut(&key).filter(|free| !free.is_empty())?;
        let index = dice.below(free.len());
        Some(free.swap_remove(index))
    }

    pub fn give_back(&mut self, id: &str) {
        if let Some(owed) = self.owed.get(id)
            && !owed.may_be_gone
        {
            self.free.entry(owed.key).or_default().push(id.to_owned());
        }
    }

    /// The server said that a trace has this revision.
    pub fn revise(&mut self, id: &str, revision: u64) {
        if let Some(owed) = self.owed.get_mut(id) {
            owed.revision = owed.revision.max(revision);
        }
    }

    /// From now on the trace may be gone.
    pub fn will_delete(&mut self, id: &str) {
        if let Some(owed) = self.owed.get_mut(id) {
            owed.may_be_gone = true;
        }
    }

    pub fn num_acknowledged(&self) -> usize {
        self.owed.len()
    }

    /// Acknowledged revisions beyond the first ones.
    pub fn num_revisions(&self) -> u64 {
        self.owed.values().map(|owed| owed.revision - 1).sum()
    }
}

/// A row of the stream.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(super) struct Row {
    pub cursor: String,
    pub id: String,
    pub revision: u64,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What one reader has read, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Readings {
    rows: HashSet<(String, u64)>,
    newest: HashMap<String, u64>,
    /// The number of the last write that was read.
    last: u64,
    /// Connections that ended.
    pub num_connections: u64,
    problems: Vec<String>,
    pub num_problems: u64,
}

/// Problems that are kept in full.
const KEPT_PROBLEMS: usize = 8;

impl Readings {
    pub fn problem(&mut self, text: String) {
        self.num_problems += 1;
        if self.problems.len() < KEPT_PROBLEMS {
            self.problems.push(text);
        }
    }

    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Where the stream goes on.
    pub fn cursor(&self) -> Option<String> {
        (self.last > 0).then(|| self.last.to_string())
    }

    pub fn take(&mut self, row: Row) {
        match row.cursor.parse::<u64>() {
            Ok(cursor) if cursor > self.last => self.last = cursor,
            Ok(cursor) => {
                let last = self.last;
                self.problem(format!("{} came at {cursor}, after {last}", row.id));
            }
            Err(_) => self.problem(format!("{:?} is no cursor of a tree", row.cursor)),
        }
        let newest = self.newest.entry(row.id.clone()).or_default();
        let is_older = row.revision < *newest;
        *newest = row.revision.max(*newest);
        if is_older {
            self.problem(format!("{}: revision {} came late", row.id, row.revision));
        }
        let read = (row.id, row.revision);
        if self.rows.contains(&read) {
            self.problem(format!("{} revision {} came twice", read.0, read.1));
        }
        self.rows.insert(read);
    }
}

/// How a ledger and a reader agree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Acknowledged traces that the reader must have.
    pub num_owed: usize,
    pub num_missing: usize,
    /// Read, though another key's.
    pub num_foreign: usize,
    /// Read, though nobody holds their ids: their answers were cut off.
    pub num_unheard: usize,
    /// Everything that is wrong, the first ones in words.
    pub num_problems: u64,
    pub problems: Vec<String>,
}

/// Compares. `scope` is the key whose traces the reader gets, `None` for those of all.
pub(super) fn settle(ledger: &Ledger, readings: &Readings, scope: Option<usize>) -> Settled {
    let mut settled = Settled {
        num_problems: readings.num_problems,
        problems: readings.problems.clone(),
        ..Settled::default()
    };
    let mut is_owed: Vec<(&String, &Owed)> = ledger.owed.iter().collect();
    is_owed.sort_by_key(|(id, _)| id.as_str());
    for (id, owed) in is_owed {
        let newest = readings.newest.get(id).copied();
        if scope.is_some_and(|key| key != owed.key) {
            if newest.is_some() {
                settled.num_foreign += 1;
                settled.note(format!("{id} is another key's"));
            }
            continue;
        }
        if owed.may_be_gone {
            continue;
        }
        settled.num_owed += 1;
        if newest.is_none_or(|newest| newest < owed.revision) {
            settled.num_missing += 1;
            let has = newest.map_or("nothing".to_owned(), |newest| format!("revision {newest}"));
            let revision = owed.revision;
            settled.note(format!("{id}: {has} was read of revision {revision}"));
        }
    }
    let is_unheard = |id: &&String| !ledger.owed.contains_key(*id);
    settled.num_unheard = readings.newest.keys().filter(is_unheard).count();
    settled
}

impl Settled {
    fn note(&mut self, text: String) {
        self.num_problems += 1;
        if self.problems.len() < KEPT_PROBLEMS {
            self.problems.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cursor: u64, id: &str, revision: u64) -> Row {
        Row {
            cursor: cursor.to_string(),
            id: id.to_owned(),
            revision,
            tags: Vec::new(),
        }
    }

    fn read(rows: &[(u64, &str, u64)]) -> Readings {
        let mut readings = Readings::default();
        for (cursor, id, revision) in rows {
            readings.take(row(*cursor, id, *revision));
        }
        readings
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        assert!(ledger.acknowledge(0, "a"));
        assert!(ledger.acknowledge(1, "b"));
        assert!(!ledger.acknowledge(1, "b"));
        ledger
    }

    #[test]
    fn once_each_is_right() {
        let mut ledger = ledger();
        ledger.revise("a", 2);
        let readings = read(&[(1, "a", 1), (2, "b", 1), (4, "a", 2), (5, "cut off", 1)]);
        assert_eq!(readings.cursor().as_deref(), Some("5"));
        let settled = settle(&ledger, &readings, None);
        assert_eq!((settled.num_owed, settled.num_unheard), (2, 1));
        assert_eq!((settled.num_problems, settled.num_missing), (0, 0));
        // The first revision was rewritten before the reader came to it.
        let settled = settle(&ledger, &read(&[(2, "b", 1), (4, "a", 2)]), None);
        assert_eq!(settled.num_problems, 0);
    }

    #[test]
    fn what_is_missing_twice_or_late_is_seen() {
        let mut ledger = ledger();
        ledger.revise("a", 3);
        for (rows, problems) in [
            (vec![(1, "a", 3)], 1),
            (vec![(1, "a", 2), (2, "b", 1)], 1),
            (vec![(1, "a", 3), (2, "b", 1), (3, "b", 1)], 1),
            (vec![(2, "a", 3), (1, "b", 1)], 1),
            (vec![(1, "a", 3), (2, "b", 2), (3, "b", 1)], 1),
            (vec![], 2),
        ] {
            let settled = settle(&ledger, &read(&rows), None);
            assert_eq!(settled.num_problems, problems, "{rows:?}: {settled:?}");
            assert_eq!(settled.problems.len() as u64, problems);
        }
    }

    #[test]
    fn keys_read_their_own_and_deleted_ones_are_owed_to_nobody() {
        let mut ledger = ledger();
        let settled = settle(&ledger, &read(&[(1, "a", 1)]), Some(0));
        assert_eq!((settled.num_owed, settled.num_problems), (1, 0));
        let settled = settle(&ledger, &read(&[(1, "a", 1), (2, "b", 1)]), Some(0));
        assert_eq!((settled.num_foreign, settled.num_problems), (1, 1));
        ledger.will_delete("a");
        let settled = settle(&ledger, &read(&[]), Some(0));
        assert_eq!((settled.num_owed, settled.num_problems), (0, 0));
        let mut dice = Dice::new(1, 1);
        let borrowed = ledger.borrow(0, &mut dice);
        ledger.give_back(borrowed.as_deref().unwrap());
        assert_eq!(ledger.borrow(0, &mut dice), None, "it may be gone");
        assert_eq!(ledger.borrow(1, &mut dice).as_deref(), Some("b"));
        assert_eq!(ledger.borrow(1, &mut dice), None, "it is borrowed");
        ledger.give_back("b");
        assert_eq!(ledger.borrow(1, &mut dice).as_deref(), Some("b"));
    }

    #[test]
    fn many_problems_are_counted_and_few_are_told() {
        let mut ledger = Ledger::default();
        for index in 0..100 {
            ledger.acknowledge(0, &format!("trace-{index}"));
        }
        let settled = settle(&ledger, &Readings::default(), None);
        assert_eq!((settled.num_missing, settled.num_problems), (100, 100));
        assert_eq!(settled.problems.len(), KEPT_PROBLEMS);
    }
}
