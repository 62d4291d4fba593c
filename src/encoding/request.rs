//! What one request hands to the encoder, and what comes of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::EncodingError;
use super::queue::Texts;
use crate::model::EncoderInput;

/// Tokens of a text or of a pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    pub token_ids: Vec<u32>,
    /// Tokens from here on belong to the second text.
    pub second_from: usize,
}

impl Sequence {
    pub(super) fn input(&self) -> EncoderInput<'_> {
        EncoderInput {
            token_ids: &self.token_ids,
            second_from: self.second_from,
        }
    }

    /// A single text.
    pub fn whole(token_ids: Vec<u32>) -> Self {
        Self {
            second_from: token_ids.len(),
            token_ids,
        }
    }
}

pub(super) type Answer = Result<Vec<Vec<f32>>, EncodingError>;

/// One request's texts and what came of them.
pub(super) struct Request {
    pub sequences: Vec<Sequence>,
    pub results: Mutex<Results>,
}

pub(super) struct Results {
    vectors: Vec<Vec<f32>>,
    pub num_missing: usize,
    /// Taken with the answer.
    sender: Option<oneshot::Sender<Answer>>,
}

/// A request in the queue, with the texts that were not taken yet.
pub(super) struct Waiting {
    pub request: Arc<Request>,
    /// Longest first, so that batches are full.
    pub left: VecDeque<usize>,
}

impl Texts for Waiting {
    fn next_len(&self) -> Option<usize> {
        let next = self.left.front()?;
        Some(self.request.sequences[*next].token_ids.len())
    }

    fn take(&mut self) {
        self.left.pop_front();
    }

    fn num_left(&self) -> usize {
        self.left.len()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    pub fn new(request: Arc<Request>) -> Self {
        let sequences = &request.sequences;
        let mut left: Vec<usize> = (0..sequences.len()).collect();
        left.sort_by_key(|index| std::cmp::Reverse(sequences[*index].token_ids.len()));
        Self {
            left: left.into(),
            request,
        }
    }
}

impl Request {
    pub fn new(sequences: Vec<Sequence>) -> (Arc<Self>, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let results = Mutex::new(Results {
            vectors: vec![Vec::new(); sequences.len()],
            num_missing: sequences.len(),
            sender: Some(sender),
        });
        (Arc::new(Self { sequences, results }), receiver)
    }

    /// Keeps one result; with the last one, or the first error, the request is answered.
    pub fn take(&self, index: usize, result: Result<Vec<f32>, EncodingError>) {
        let results = &mut *lock(&self.results);
        let answer = match result {
            Err(error) => Err(error),
            Ok(vector) => {
                results.vectors[index] = vector;
                results.num_missing -= 1;
                if results.num_missing > 0 {
                    return;
                }
                Ok(std::mem::take(&mut results.vectors))
            }
        };
        if let Some(sender) = results.sender.take() {
            let _ = sender.send(answer);
        }
    }
}
