//! What bounds one call of the tokenizer: the room for tokens, and whether somebody still waits.

use super::TokenizerError;

/// Bytes of work between two looks at the limit and at who waits.
pub(super) const PIECE_BYTES: usize = 32 * 1024;

/// The budget of one encoding.
pub(super) struct Watch<'a> {
    max_tokens: usize,
    /// Of the whole text; errors say it.
    num_bytes: usize,
    is_wanted: &'a dyn Fn() -> bool,
    piece_bytes: usize,
    left_in_piece: usize,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        num_bytes: usize,
        max_tokens: usize,
        is_wanted: &'a dyn Fn() -> bool,
        piece_bytes: usize,
    ) -> Self {
        Self {
            max_tokens,
            num_bytes,
            is_wanted,
            piece_bytes,
            left_in_piece: piece_bytes,
        }
    }

    /// Counts work on about `num_bytes` of text; asks once a piece whether somebody still waits.
    pub(super) fn spend(&mut self, num_bytes: usize) -> Result<(), TokenizerError> {
        match self.left_in_piece.checked_sub(num_bytes) {
            Some(left) => self.left_in_piece = left,
            None => {
                self.left_in_piece = self.piece_bytes;
                self.ask()?;
            }
        }
        Ok(())
    }

    pub(super) fn ask(&self) -> Result<(), TokenizerError> {
        match (self.is_wanted)() {
            true => Ok(()),
            false => Err(TokenizerError::Stopped),
        }
    }

    /// Refuses when there are more tokens than asked for.
    pub(super) fn check_room(&self, num_tokens: usize) -> Result<(), TokenizerError> {
        match num_tokens <= self.max_tokens {
            true => Ok(()),
            false => Err(self.too_long()),
        }
    }

    pub(super) fn too_long(&self) -> TokenizerError {
        TokenizerError::TooLong {
            max_tokens: self.max_tokens,
            num_bytes: self.num_bytes,
        }
    }
}
