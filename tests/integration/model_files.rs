//! Files that are no models, or not whole ones, given to the real binary: each ends it with one
//! line that says what the file is and what to do.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ponder::model::testing::GgufWriter;
use ponder::model::{LoadOptions, ModelFiles, load};
use serde_json::json;

use crate::process::Process;
use crate::support::install_tls;
use crate::{tiny, tiny_gguf};

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 491400064\n";

fn serve(path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    let command = command.arg("serve").arg(path).args(["--port", "0"]);
    // The log cannot open its store there, and says so.
    let command = command.env("PONDER_HOME", "/dev/null/none");
    command.output().expect("the binary starts")
}

/// The last line of the binary's words, which must be its only error.
fn refusal(path: &Path) -> String {
    let output = serve(path);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains('\x1b'), "colours in a pipe: {text}");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("ponder: "))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(text.lines().last(), Some(lines[0]), "{text}");
    lines[0].to_owned()
}

#[test]
fn what_is_no_model_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny_gguf::write(&path);
    let good = fs::read(&path).unwrap();
    let tokenizer = b"\x20\0\0\0\0\0\0\0{\"a\":1}".to_vec();
    let cases: [(Vec<u8>, &str); 8] = [
        (
            POINTER.into(),
            "Git LFS pointer, a short text in place of the file itself of 491400064 bytes: run `git lfs pull`",
        ),
        ("<!doctype html>\n<html>".into(), "web page"),
        (Vec::new(), "empty"),
        (
            good[..good.len() - 1000].to_vec(),
            "incomplete: the last 1000 of",
        ),
        (good[..500].to_vec(), "incomplete"),
        (tokenizer, "give the folder that holds it"),
        (b"PK\x03\x04....".to_vec(), "ZIP archive"),
        (b"\x1f\x8b\x08....".to_vec(), "gzip archive"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let told = refusal(&path);
        assert!(told.contains(expected), "{told:?} lacks {expected:?}");
        assert!(told.contains("model.gguf"), "{told:?} names no file");
    }
    // A number that is none, far behind the header.
    let mut damaged = good;
    let at = damaged.len() - 4000;
    damaged[at..at + 256].fill(0xff);
    fs::write(&path, damaged).unwrap();
    let told = refusal(&path);
    assert!(told.contains("model.gguf may be damaged"), "{told}");
}

#[test]
fn a_model_in_parts_is_served_by_any_of_them() {
    install_tls();
    let folder = tempfile::tempdir().unwrap();
    let parts = tiny_gguf::model().to_gguf_parts(3, tiny_gguf::put_tokenizer);
    let path = |part: usize| folder.path().join(format!("tiny-{part:05}-of-00003.gguf"));
    for (index, bytes) in parts.iter().enumerate() {
        fs::write(path(index + 1), bytes).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    let command = command
        .arg("serve")
        .arg(path(2))
        .args(["--kv-cache-memory", "64M"]);
    let server = Process::start_as(command, folder.path(), &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let models = runtime.block_on(async {
        let response = reqwest::get(format!("{}/models", server.base_url))
            .await
            .unwrap();
        response.json::<serde_json::Value>().await.unwrap()
    });
    assert_eq!(models["data"][0]["id"], "tiny");
    drop(server);
    fs::remove_file(path(3)).unwrap();
    let told = refusal(&path(1));
    assert!(
        told.contains("tiny-00003-of-00003.gguf is missing"),
        "{told}"
    );
}

/// A folder with a model of random weights in two shards.
fn sharded(folder: &Path) {
    drop(tiny::model_files(folder));
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let data = [0_u8; 16];
    let shard = |name: &str, number: usize| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], &data);
        let file = folder.join(format!("model-{number:05}-of-00002.safetensors"));
        safetensors::serialize_to_file([(name, view.unwrap())], None, &file).unwrap();
    };
    shard("a", 1);
    shard("b", 2);
}

fn refused(folder: &Path) -> String {
    ModelFiles::open(folder).unwrap_err().to_string()
}

#[test]
fn shards_that_are_missing_or_damaged_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sharded(folder);
    let second = folder.join("model-00002-of-00002.safetensors");
    let good = fs::read(&second).unwrap();
    assert_eq!(ModelFiles::open(folder).unwrap().weight_files().len(), 2);
    fs::write(&second, &good[..good.len() - 3]).unwrap();
    let told = refused(folder);
    assert!(
        told.contains("00002-of-00002.safetensors: the file is incomplete: the last 3 of"),
        "{told}"
    );
    for (bytes, expected) in [
        (POINTER.as_bytes(), "Git LFS"),
        (b"", "empty"),
        (b"GGUF\x03\0\0\0", "GGUF file"),
    ] {
        fs::write(&second, bytes).unwrap();
        let told = refused(folder);
        assert!(
            told.contains("00002-of-00002") && told.contains(expected),
            "{told}"
        );
    }
    fs::remove_file(&second).unwrap();
    // Known by the other's name, and by the index.
    assert!(refused(folder).contains("model-00002-of-00002.safetensors is missing"));
    let index = folder.join("model.safetensors.index.json");
    let write = |map: serde_json::Value| fs::write(&index, json!({"weight_map": map}).to_string());
    write(json!({"a": "model-00001-of-00002.safetensors", "b": "other.safetensors"})).unwrap();
    assert!(refused(folder).contains("other.safetensors is missing"));
    write(json!({"a": "../../etc/passwd"})).unwrap();
    assert!(refused(folder).contains("is not the name of a file"));
    write(json!({"a": "model-00001-of-00002.safetensors"})).unwrap();
    assert_eq!(ModelFiles::open(folder).unwrap().weight_files().len(), 1);
    fs::write(&index, POINTER).unwrap();
    assert!(refused(folder).contains("Git LFS"));
}

#[test]
fn folders_that_hold_something_else_say_what() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(refused(folder).contains("no config.json"));
    fs::write(folder.join("model.gguf"), GgufWriter::new().finish()).unwrap();
    assert!(refused(folder).contains("give the path of the GGUF file in it"));
    fs::remove_file(folder.join("model.gguf")).unwrap();
    fs::write(folder.join("config.json"), POINTER).unwrap();
    assert!(refused(folder).contains("Git LFS"));
    fs::write(folder.join("config.json"), "{}").unwrap();
    fs::write(folder.join("pytorch_model.bin"), "").unwrap();
    assert!(refused(folder).contains("PyTorch checkpoint"));
    let file = folder.join("model.safetensors");
    fs::write(&file, "").unwrap();
    assert!(refused(&file).contains("give the folder"));
}

#[test]
fn a_tokenizer_that_is_a_pointer_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let files = tiny::model_files(folder.path());
    fs::write(folder.path().join("tokenizer.json"), POINTER).unwrap();
    let told = ponder::text::Tokenizer::from_files(&files)
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("tokenizer.json") && told.contains("git lfs pull"),
        "{told}"
    );
}

#[test]
fn parts_load_as_the_whole_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_gguf::model();
    let whole = folder.path().join("whole.gguf");
    fs::write(&whole, model.to_gguf()).unwrap();
    for (index, bytes) in model.to_gguf_parts(4, |_| {}).iter().enumerate() {
        let name = format!("p-{:05}-of-00004.gguf", index + 1);
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let info = |path: &Path| {
        let files = ModelFiles::open(path).unwrap();
        let loaded = load(&files, LoadOptions::default()).unwrap();
        (files.weight_files().len(), loaded.info().vocab_size)
    };
    assert_eq!(info(&whole), (1, 260));
    assert_eq!(info(&folder.path().join("p-00001-of-00004.gguf")), (4, 260));
}
