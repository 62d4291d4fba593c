//! GPT-2's printable alphabet for bytes.

/// Characters of the alphabet end before this one.
const END: usize = 324;

/// The byte that each character of a byte-level vocabulary stands for.
pub(super) struct Alphabet {
    bytes: [Option<u8>; END],
}

pub(super) fn alphabet() -> Alphabet {
    let mut bytes = [None; END];
    let mut next = 256;
    for byte in 0..=255_u8 {
        let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let character = if is_printable {
            usize::from(byte)
        } else {
            next += 1;
            next - 1
        };
        bytes[character] = Some(byte);
    }
    Alphabet { bytes }
}

impl Alphabet {
    /// The byte of a character.
    pub(super) fn get(&self, character: char) -> Option<u8> {
        *self.bytes.get(character as usize)?
    }

    /// Characters and their bytes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (char, u8)> {
        let all = (0_u32..).zip(&self.bytes);
        all.filter_map(|(code, byte)| Some((char::from_u32(code)?, (*byte)?)))
    }

    /// Whether a token has no other characters.
    pub(super) fn spells(&self, token: &str) -> bool {
        token.chars().all(|character| self.get(character).is_some())
    }

    /// Appends the bytes of a vocabulary entry; characters outside the alphabet stand for
    /// themselves.
    pub(super) fn write(&self, token: &str, bytes: &mut Vec<u8>) {
        for character in token.chars() {
            match self.get(character) {
                Some(byte) => bytes.push(byte),
                None => {
                    let mut text = [0; 4];
                    bytes.extend_from_slice(character.encode_utf8(&mut text).as_bytes());
                }
            }
        }
    }
}
