//! Keeps the picture in ARCHITECTURE.md true: which room may import which, and how big a file may be.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room with the rooms it may import. A new edge is a design decision: write it down in
/// ARCHITECTURE.md before adding it here.
const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    (
        "cli",
        &["api", "text", "train", "trace", "reward", "engine", "model"],
    ),
    (
        "api",
        &["text", "search", "trace", "reward", "engine", "model"],
    ),
    ("train", &["trace", "reward", "engine"]),
    ("trace", &[]),
    ("search", &["text", "reward", "engine"]),
    ("text", &["model"]),
    ("reward", &["text", "engine"]),
    ("engine", &["model"]),
    ("model", &[]),
];

/// Lines a source file may have, tests included.
const FILE_LINES_MAX: usize = 600;

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a source folder is readable") {
        let path = entry.expect("a folder entry is readable").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn source_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    rust_files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
        &mut files,
    );
    assert!(!files.is_empty(), "no sources under {folder}");
    files
}

/// The rooms named by `crate::room` in one line of code (grouped imports included).
fn imported_rooms(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices("crate::")
        .flat_map(|(at, prefix)| {
            let rest = &code[at + prefix.len()..];
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap_or_default(),
                None => rest.split([',', ';', ' ']).next().unwrap_or_default(),
            };
            names
                .split(',')
                .filter_map(|name| name.trim().split("::").next())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn rooms_import_only_to_the_right() {
    let rooms: Vec<&str> = ALLOWED_EDGES.iter().map(|(room, _)| *room).collect();
    let mut violations = Vec::new();
    for (room, allowed) in ALLOWED_EDGES {
        for path in source_files(&format!("src/{room}")) {
            let text = fs::read_to_string(&path).expect("a source file is UTF-8");
            for (number, line) in text.lines().enumerate() {
                for imported in imported_rooms(line) {
                    let is_room = rooms.contains(&imported);
                    if is_room && imported != *room && !allowed.contains(&imported) {
                        violations.push(format!("{}:{}: {line}", path.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(
        violations.is_empty(),
        "forbidden edges:\n{}",
        violations.join("\n")
    );
}

#[test]
fn every_room_is_in_the_table() {
    let lib = include_str!("../../src/lib.rs");
    for line in lib.lines() {
        if let Some(room) = line.strip_prefix("pub mod ") {
            let room = room.trim_end_matches(';');
            assert!(
                ALLOWED_EDGES.iter().any(|(known, _)| *known == room),
                "room {room} is missing from ALLOWED_EDGES"
            );
        }
    }
}

#[test]
fn files_stay_readable() {
    let mut too_long = Vec::new();
    for path in source_files("src")
        .into_iter()
        .chain(source_files("kernels/src"))
    {
        let lines = fs::read_to_string(&path)
            .expect("a source file is UTF-8")
            .lines()
            .count();
        if lines > FILE_LINES_MAX {
            too_long.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(
        too_long.is_empty(),
        "split these files:\n{}",
        too_long.join("\n")
    );
}

#[test]
fn import_scanner_sees_groups_and_paths() {
    assert_eq!(
        imported_rooms("use crate::engine::request::TokenId;"),
        ["engine"]
    );
    assert_eq!(
        imported_rooms("use crate::{api::state, text};"),
        ["api", "text"]
    );
    assert_eq!(imported_rooms("    crate::model::load(files)"), ["model"]);
    assert!(imported_rooms("// crate::api is not for us").is_empty());
}
