//! Keeps the picture in ARCHITECTURE.md true: which room may import which, which rooms have no
//! circle of files, and how long files and functions may be.

mod lengths;
mod source;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use tree::Tree;

/// Each room with the rooms it may import. A new edge is a design decision: write it down in
/// ARCHITECTURE.md before adding it here.
const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "api", "text", "train", "trace", "reward", "grammar", "encoding", "engine", "model",
            "work",
        ],
    ),
    (
        "api",
        &[
            "text", "tool", "search", "trace", "reward", "grammar", "encoding", "engine", "model",
            "work",
        ],
    ),
    ("grammar", &["text", "engine", "work"]),
    ("encoding", &["text", "model"]),
    ("train", &["trace", "reward", "engine"]),
    ("trace", &[]),
    ("search", &["text", "tool", "reward", "engine"]),
    ("tool", &["reward", "work"]),
    ("text", &["model"]),
    ("reward", &["text", "engine", "work"]),
    ("work", &[]),
    ("engine", &["model"]),
    ("model", &[]),
];

/// Rooms whose files need each other in one direction only. A room that gets there is added.
const ROOMS_WITHOUT_CIRCLES: &[&str] = &["api", "cli"];

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

/// The files under a folder of the repository, with their paths from there.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    rust_files(&folder, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no sources under {}", folder.display());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file is UTF-8");
        let path = path.strip_prefix(&folder).expect("it lies there");
        (path.to_owned(), text)
    };
    files.into_iter().map(read).collect()
}

/// Rooms that files import although the table does not allow it.
fn forbidden_edges(tree: &Tree, table: &[(&str, &[&str])]) -> Vec<String> {
    let mut violations = Vec::new();
    for (room, allowed) in table {
        for file in tree.files.iter().filter(|file| file.path.starts_with(room)) {
            for named in &file.source.named {
                let path = tree.resolve(&named.module, &named.segments);
                let Some(imported) = path.and_then(|path| path.into_iter().next()) else {
                    continue;
                };
                let is_room = table.iter().any(|(known, _)| *known == imported);
                if is_room && imported != *room && !allowed.contains(&imported.as_str()) {
                    let (path, line) = (file.path.display(), named.line);
                    violations.push(format!("src/{path}:{line}: {}", named.segments.join("::")));
                }
            }
        }
    }
    violations
}

#[test]
fn rooms_import_only_to_the_right() {
    let tree = Tree::new(sources("src")).expect("the sources parse");
    let violations = forbidden_edges(&tree, ALLOWED_EDGES);
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
fn rooms_have_no_circles_of_files() {
    let tree = Tree::new(sources("src")).expect("the sources parse");
    let circles = |room: &&str| tree.circles(room);
    let circles: Vec<String> = ROOMS_WITHOUT_CIRCLES.iter().flat_map(circles).collect();
    assert!(
        circles.is_empty(),
        "circles of files:\n{}",
        circles.join("\n")
    );
}

#[test]
fn the_room_test_sees_every_way_to_import() {
    let table: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &[])];
    for (text, is_forbidden) in [
        ("use crate::{b, a::{self, X}};", true),
        ("pub use crate::a::X as Y;", true),
        ("use super::super::a;", true),
        ("fn f(x: &crate::a::X) {}", true),
        ("fn f() { println!(\"{}\", crate::a::X); }", true),
        ("mod inner { use super::super::super::a::X; }", true),
        ("use super::super::b::Y;", false),
        ("use a::X; // another crate's", false),
        ("// crate::a is not for us", false),
        ("/// [`crate::a`]\nfn f() {}", false),
        ("const TEXT: &str = \"crate::a::X\";", false),
    ] {
        let files = [
            ("b/mod.rs", "mod inner;"),
            ("b/inner.rs", text),
            ("a/mod.rs", "use crate::b;\npub struct X;"),
        ];
        let files = files.map(|(path, text)| (PathBuf::from(path), text.to_owned()));
        let tree = Tree::new(files).expect("it parses");
        let found = forbidden_edges(&tree, table);
        assert_eq!(!found.is_empty(), is_forbidden, "{text}: {found:?}");
    }
}
