//! What a file is that was taken for a model: people save pages, pointers and archives under a
//! model's name.

/// How a Git LFS pointer begins.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Bytes that are looked at. A Git LFS pointer has fewer than 1024.
const HEAD_BYTES: usize = 1024;

const ARCHIVE: &str = "unpack it and give the model's file inside";
const OLD: &str = "a GGML file of before GGUF: convert it, or fetch the model as GGUF";

/// How files of a kind begin, what the kind is called, and what to do with one.
const KINDS: [(&[u8], &str, &str); 13] = [
    (
        b"PK\x03\x04",
        "a ZIP archive or a PyTorch checkpoint",
        "unpack the archive, or fetch the model as GGUF or safetensors",
    ),
    (b"\x1f\x8b", "a gzip archive", ARCHIVE),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", ARCHIVE),
    (b"BZh", "a bzip2 archive", ARCHIVE),
    (b"\xfd7zXZ\0", "an xz archive", ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", ARCHIVE),
    (
        b"\x80\x02",
        "a Python pickle (a PyTorch checkpoint)",
        "fetch the model as GGUF or safetensors",
    ),
    (
        b"\x89HDF",
        "an HDF5 file",
        "fetch the model as GGUF or safetensors",
    ),
    (b"\x7fELF", "a program", "give the model's file"),
    (b"lmgg", OLD, ""),
    (b"tjgg", OLD, ""),
    (b"fmgg", OLD, ""),
    (
        b"algg",
        "an adapter in GGML's old format",
        "fetch the adapter in PEFT's format",
    ),
];

/// Names what a file holds instead of a model, and what to do; `None` where nothing is known of
/// the bytes. Those of GGUF and safetensors files are none of the kinds.
pub(super) fn mistaken(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    if head.is_empty() {
        return Some("the file is empty: fetch it again".to_owned());
    }
    if let Some(what) = text_in_place_of_a_model(head) {
        return Some(what);
    }
    let kind = KINDS.iter().find(|(begin, ..)| head.starts_with(begin));
    if let Some((_, what, remedy)) = kind {
        return Some(match remedy.is_empty() {
            true => format!("the file is {what}"),
            false => format!("the file is {what}: {remedy}"),
        });
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(format!("the file is a tar archive: {ARCHIVE}"));
    }
    let is_blank = bytes.len() >= HEAD_BYTES && head.iter().all(|byte| *byte == 0);
    is_blank.then(|| {
        "the file begins with zeros: its download did not finish, or it is damaged; fetch it again"
            .to_owned()
    })
}

/// A text that stands where a model or one of its JSON files should be.
pub(super) fn text_in_place_of_a_model(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    if head.starts_with(LFS_POINTER) {
        let size = std::str::from_utf8(head).ok().and_then(|text| {
            let size = text.lines().find_map(|line| line.strip_prefix("size "))?;
            size.trim().parse::<u64>().ok()
        });
        let size = size.map_or_else(String::new, |size| format!(" of {size} bytes"));
        return Some(format!(
            "the file is a Git LFS pointer, a short text in place of the file itself{size}: run \
             `git lfs pull` in its repository, or fetch the model with \
             `ponder pull hf:ORG/REPO/FILE`"
        ));
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text: Vec<u8> = text.trim_ascii_start().to_ascii_lowercase();
    let is_page = [&b"<!doctype html"[..], b"<html", b"<head", b"<?xml"];
    is_page.iter().any(|begin| text.starts_with(begin)).then(|| {
        "the file is a web page that was saved under this name, perhaps one that asks to log in: \
         fetch the file again from its \"download\" link"
            .to_owned()
    })
}

/// The first bytes of a file in words: as text where they are text.
pub(super) fn first_bytes(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(16)];
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t' | b'\r');
    match std::str::from_utf8(head) {
        Ok(text) if head.iter().all(is_text) => format!("the text {text:?}"),
        _ => {
            let hex: Vec<String> = head.iter().take(4).map(|b| format!("{b:02x}")).collect();
            format!("the bytes {}", hex.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_save_as_models_is_told() {
        let pointer =
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 491400064\n";
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 11] = [
            (pointer.as_bytes(), "of 491400064 bytes: run `git lfs pull`"),
            (b"", "empty"),
            (b"\n <!DOCTYPE html><html>", "web page"),
            (b"\xef\xbb\xbf<html lang=\"en\">", "web page"),
            (b"PK\x03\x04rest", "ZIP archive"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"\x80\x02}q", "pickle"),
            (b"tjgg", "before GGUF"),
            (&tar, "tar archive"),
            (&[0; 4096], "begins with zeros"),
        ];
        for (bytes, expected) in cases {
            let told = mistaken(bytes).unwrap_or_default();
            assert!(told.contains(expected), "{told:?} lacks {expected:?}");
        }
        for bytes in [
            &b"GGUF\x03\0\0\0"[..],
            b"\x40\0\0\0\0\0\0\0{\"a\":1}",
            b"0000",
            b"version 2",
        ] {
            assert_eq!(mistaken(bytes), None);
        }
    }

    #[test]
    fn first_bytes_are_shown_as_they_lie_in_the_file() {
        assert_eq!(first_bytes(b"GGML1234"), "the text \"GGML1234\"");
        assert_eq!(first_bytes(&[1, 0xff, 3]), "the bytes 01 ff 03");
        assert_eq!(first_bytes("naïve".as_bytes()), "the bytes 6e 61 c3 af");
    }
}
