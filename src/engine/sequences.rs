//! All sequences of the engine by their ids, which run and which wait. Whoever holds an id finds
//! the sequence as long as it lives, whatever else has come or gone.

use std::collections::{HashMap, VecDeque};
use std::ops::{Index, IndexMut};

use super::request::RequestId;
use super::sequence::{SeqId, Sequence};

#[derive(Debug, Default)]
pub(super) struct Sequences {
    by_id: HashMap<SeqId, Sequence>,
    /// In order of admission.
    running: Vec<SeqId>,
    waiting: VecDeque<SeqId>,
    next_id: u64,
}

impl Index<SeqId> for Sequences {
    type Output = Sequence;

    fn index(&self, id: SeqId) -> &Sequence {
        self.get(id).expect("a sequence of this id; this is a bug")
    }
}

impl IndexMut<SeqId> for Sequences {
    fn index_mut(&mut self, id: SeqId) -> &mut Sequence {
        let sequence = self.by_id.get_mut(&id);
        sequence.expect("a sequence of this id; this is a bug")
    }
}

impl Sequences {
    /// An id that no sequence has had.
    pub fn new_id(&mut self) -> SeqId {
        self.next_id += 1;
        SeqId(self.next_id)
    }

    pub fn get(&self, id: SeqId) -> Option<&Sequence> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: SeqId) -> Option<&mut Sequence> {
        self.by_id.get_mut(&id)
    }

    /// Adds a sequence that waits, behind all others.
    pub fn push_waiting(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence.id);
        self.by_id.insert(sequence.id, sequence);
    }

    /// Adds a sequence that runs, behind all others.
    pub fn push_running(&mut self, sequence: Sequence) {
        self.running.push(sequence.id);
        self.by_id.insert(sequence.id, sequence);
    }

    /// Lets a waiting sequence run.
    pub fn start(&mut self, turn: usize) {
        if let Some(id) = self.waiting.remove(turn) {
            self.running.push(id);
        }
    }

    /// Takes the newest running sequence back to where it waited.
    pub fn unstart(&mut self, turn: usize) {
        if let Some(id) = self.running.pop() {
            self.waiting.insert(turn, id);
        }
    }

    /// Lets a running sequence wait before all others.
    pub fn stop(&mut self, position: usize) {
        let id = self.running.remove(position);
        self.waiting.push_front(id);
    }

    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn running_id(&self, position: usize) -> SeqId {
        self.running[position]
    }

    pub fn running_at(&self, position: usize) -> &Sequence {
        &self[self.running[position]]
    }

    /// Running sequences in order of admission.
    pub fn running(
        &self,
    ) -> impl DoubleEndedIterator<Item = &Sequence> + ExactSizeIterator + Clone {
        self.running.iter().map(|id| &self[*id])
    }

    /// Calls `visit` with each running sequence in order of admission.
    pub fn for_each_running(&mut self, mut visit: impl FnMut(&mut Sequence)) {
        for id in &self.running {
            if let Some(sequence) = self.by_id.get_mut(id) {
                visit(sequence);
            }
        }
    }

    /// Waiting sequences, first come first.
    pub fn waiting(
        &self,
    ) -> impl DoubleEndedIterator<Item = &Sequence> + ExactSizeIterator + Clone {
        self.waiting.iter().map(|id| &self[*id])
    }

    pub fn waiting_id(&self, turn: usize) -> SeqId {
        self.waiting[turn]
    }

    /// Those that run, then those that wait.
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> + Clone {
        self.running().chain(self.waiting())
    }

    pub fn find_running(&self, request: RequestId, index: usize) -> Option<&Sequence> {
        let mut running = self.running();
        running.find(|sequence| sequence.request == request && sequence.index == index)
    }

    /// Removes the sequences for which `is_done` holds, those that run first.
    pub fn extract(&mut self, is_done: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let done: Vec<SeqId> = (self.iter())
            .filter(|sequence| is_done(sequence))
            .map(|sequence| sequence.id)
            .collect();
        if done.is_empty() {
            return Vec::new();
        }
        let taken = done.iter().filter_map(|id| self.by_id.remove(id)).collect();
        let by_id = &self.by_id;
        self.running.retain(|id| by_id.contains_key(id));
        self.waiting.retain(|id| by_id.contains_key(id));
        taken
    }

    /// What breaks the rule that each sequence is in one list, if anything does.
    pub fn misplaced(&self) -> Option<String> {
        let num_listed = self.running.len() + self.waiting.len();
        if num_listed != self.by_id.len() {
            let num_known = self.by_id.len();
            return Some(format!("{num_listed} sequences listed, {num_known} known"));
        }
        let mut all = self.running.iter().chain(&self.waiting);
        let missing = all.find(|id| !self.by_id.contains_key(id));
        missing.map(|id| format!("sequence {} is listed and gone", id.0))
    }
}
