//! Inputs of several parts, with a zero byte between them: it is in no JSON and in few other texts.

const BETWEEN: u8 = 0;

pub fn split(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == BETWEEN)
}

pub fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.join(&BETWEEN)
}

/// The first `N` parts, the last of them with all that follows; those that are missing are empty.
pub fn first<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |byte| *byte == BETWEEN);
    std::array::from_fn(|_| parts.next().unwrap_or(&[]))
}

/// A part as text, if it is one.
pub fn text(part: &[u8]) -> Option<&str> {
    std::str::from_utf8(part).ok()
}
