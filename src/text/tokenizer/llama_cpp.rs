//! Token ids against those of llama.cpp, for whoever has its vocabularies:
//! `benches/peers/tokens.py`.

use std::path::{Path, PathBuf};

use super::*;

/// The folder that `tokens.py` wrote; without it there is nothing to compare with.
const FOLDER: &str = "PONDER_VOCABULARIES";
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn read(path: &Path, end: &str) -> Option<String> {
    let path = PathBuf::from(format!("{}.{end}", path.display()));
    path.exists()
        .then(|| std::fs::read_to_string(path).unwrap())
}

fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

/// What is different for the vocabulary at `path`, and how many texts there are.
fn differences(path: &Path) -> (Vec<String>, usize) {
    let files = ModelFiles::open(path).unwrap();
    let tokenizer = match Tokenizer::from_files(&files) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return (vec![error.to_string()], 0),
    };
    let mut different = Vec::new();
    let (texts, lines) = (read(path, "inp"), read(path, "out"));
    let (texts, lines) = (texts.unwrap_or_default(), lines.unwrap_or_default());
    let mut num = 0;
    for (text, line) in texts.split(SEPARATOR).zip(lines.lines()) {
        num += 1;
        let (ids, expected) = (tokenizer.encode(text, false, false).unwrap(), numbers(line));
        if ids != expected {
            let words = |ids: &[u32]| -> Vec<String> {
                ids.iter().map(|id| tokenizer.token_text(*id)).collect()
            };
            different.push(format!(
                "{text:?}: {:?}, {:?}",
                words(&ids),
                words(&expected)
            ));
        }
    }
    if let Some(ends) = read(path, "ends") {
        let lines: Vec<Vec<u32>> = ends.lines().map(numbers).collect();
        if tokenizer.end_of_generation_ids() != lines[0] {
            let own = tokenizer.end_of_generation_ids();
            different.push(format!("ends: {own:?}, {:?}", lines[0]));
        }
        let adds = [tokenizer.inner.add_bos, tokenizer.inner.add_eos].map(u32::from);
        if adds[..] != lines[1] {
            different.push(format!("adds BOS, EOS: {adds:?}, {:?}", lines[1]));
        }
    }
    (different, num)
}

#[test]
fn ids_are_those_of_llama_cpp() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        eprintln!("{FOLDER} is not set: nothing is compared");
        return;
    };
    let files = std::fs::read_dir(folder).unwrap();
    let mut vocabularies: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    vocabularies.retain(|path| path.extension().is_some_and(|end| end == "gguf"));
    vocabularies.sort();
    assert!(!vocabularies.is_empty(), "{FOLDER} has no vocabularies");
    let mut num_different = 0;
    for path in vocabularies {
        let (different, num) = differences(&path);
        eprintln!("{}: {} of {num}", path.display(), different.len());
        for one in different.iter().take(3) {
            eprintln!("    {one}");
        }
        num_different += different.len();
    }
    assert_eq!(num_different, 0);
}
