//! GPT-2's printable alphabet for bytes.

use std::collections::HashMap;

/// The byte that each character of a byte-level vocabulary stands for.
pub(super) fn alphabet() -> HashMap<char, u8> {
    let mut alphabet = HashMap::new();
    let mut next = 256;
    for byte in 0..=255_u8 {
        let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let character = if is_printable {
            char::from(byte)
        } else {
            let character = char::from_u32(next).expect("256..324 are characters; this is a bug");
            next += 1;
            character
        };
        alphabet.insert(character, byte);
    }
    alphabet
}

/// The bytes of a vocabulary entry; characters outside the alphabet stand for themselves.
pub(super) fn token_bytes(token: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        match alphabet.get(&character) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend(character.to_string().as_bytes()),
        }
    }
    bytes
}
