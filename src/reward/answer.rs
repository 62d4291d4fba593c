//! What two answers must share to count as the same.

use super::verifier::{extract, math};

/// The canonical form of the final answer of `text`, for votes; of the whole text when it names none.
pub fn answer_key(text: &str) -> String {
    match extract::final_answer(text) {
        Some(answer) => math::normalize(&answer),
        None => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}
