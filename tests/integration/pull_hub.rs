//! `ponder pull hf:…` against a hub of a few lines on this machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

/// Files of a repository, and how many bodies the hub has sent.
struct Hub {
    endpoint: String,
    num_sent: Arc<AtomicUsize>,
}

type Files = Vec<(String, Vec<u8>)>;

impl Hub {
    fn start(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let num_sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&num_sent);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &files, &counter);
            }
        });
        Self { endpoint, num_sent }
    }
}

/// One request: `GET /ORG/REPO/resolve/main/FILE` with a range.
fn answer(mut stream: TcpStream, files: &Files, num_sent: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while reader.read_line(&mut head).is_ok_and(|len| len > 2) {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let range = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": bytes=")?;
        name.eq_ignore_ascii_case("range").then(|| value.to_owned())
    });
    let found = files
        .iter()
        .find(|(name, _)| path == format!("/a/b/resolve/main/{name}"));
    let (Some((_, bytes)), Some(range)) = (found, range) else {
        let _ = stream
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
    if to == bytes.len() {
        num_sent.fetch_add(1, Ordering::Relaxed);
    }
    let sum: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"{sum}\"\r\nX-Repo-Commit: c0ffee\r\n\
         Content-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        to - 1,
        bytes.len(),
        to - from
    );
    let _ = stream.write_all(&[head.as_bytes(), &bytes[from..to]].concat());
}

fn pull(hub: &str, home: &Path, file: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    command.args(["pull", &format!("hf:a/b/{file}")]);
    command
        .env("PONDER_HOME", home)
        .env("HF_ENDPOINT", hub)
        .env_remove("HF_HOME");
    command.output().expect("the binary starts")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_in_parts_is_pulled_with_all_of_them_and_checked() {
    let parts = crate::tiny_gguf::model().to_gguf_parts(3, crate::tiny_gguf::put_tokenizer);
    let name = |part: usize| format!("q8/m-{part:05}-of-00003.gguf");
    let files = parts
        .into_iter()
        .enumerate()
        .map(|(i, bytes)| (name(i + 1), bytes));
    let hub = Hub::start(files.collect());
    let home = tempfile::tempdir().unwrap();
    let output = pull(&hub.endpoint, home.path(), &name(1));
    assert!(output.status.success(), "{}", told(&output));
    let path = String::from_utf8(output.stdout).unwrap();
    let path = Path::new(path.trim());
    let files = ponder::model::ModelFiles::open(path).unwrap();
    assert_eq!(files.weight_files().len(), 3);
    drop(files);
    assert_eq!(hub.num_sent.load(Ordering::Relaxed), 3);
    // What is right stays; what is wrong is fetched again.
    let output = pull(&hub.endpoint, home.path(), &name(1));
    assert!(
        told(&output).contains("its bytes are right"),
        "{}",
        told(&output)
    );
    assert_eq!(hub.num_sent.load(Ordering::Relaxed), 3);
    let second = path.with_file_name("m-00002-of-00003.gguf");
    let mut bytes = fs::read(&second).unwrap();
    let good = bytes.clone();
    bytes[9000] ^= 1;
    fs::write(&second, bytes).unwrap();
    let output = pull(&hub.endpoint, home.path(), &name(1));
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("fetched again"), "{}", told(&output));
    assert_eq!(hub.num_sent.load(Ordering::Relaxed), 4);
    assert_eq!(fs::read(&second).unwrap(), good);
}

#[test]
fn a_hub_that_has_no_such_file_or_is_not_there_is_one_line() {
    let hub = Hub::start(vec![("m-00001-of-00002.gguf".to_owned(), b"x".to_vec())]);
    let home = tempfile::tempdir().unwrap();
    for (endpoint, file) in [
        (hub.endpoint.as_str(), "other.gguf"),
        // The second part is not there.
        (&hub.endpoint, "m-00001-of-00002.gguf"),
        ("http://127.0.0.1:9", "m.gguf"),
    ] {
        let output = pull(endpoint, home.path(), file);
        let told = told(&output);
        assert!(!output.status.success());
        assert!(
            told.lines().count() <= 2 && told.contains("the hub does not give a/b/"),
            "{told}"
        );
    }
}
