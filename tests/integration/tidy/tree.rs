//! The files of a crate as a graph: which file needs what another one defines.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use super::source::{Binding, Module, Named, Source};

/// Imports of imports that are followed.
const DEPTH_MAX: usize = 16;

/// A file with its place in the crate.
pub struct File {
    /// From the crate's `src`.
    pub path: PathBuf,
    pub source: Source,
    /// Whether only tests have it.
    pub is_test: bool,
}

/// The files of a crate.
#[derive(Default)]
pub struct Tree {
    pub files: Vec<File>,
    /// The file that has the body of a module.
    modules: HashMap<Module, usize>,
    /// What modules import: names with the module and path that they are bound to.
    imports: HashMap<(Module, String), Vec<String>>,
    globs: HashMap<Module, Vec<Vec<String>>>,
}

/// The module of a file: `api/wire/mod.rs` is `api::wire`, `lib.rs` the crate.
fn module_of(path: &Path) -> Module {
    let names = path.with_extension("");
    let mut names: Module = names
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let is_root = matches!(
        names.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    );
    if is_root {
        names.pop();
    }
    names
}

impl Tree {
    /// Parses files; paths are from the crate's `src`.
    pub fn new(texts: impl IntoIterator<Item = (PathBuf, String)>) -> Result<Self, String> {
        let mut tree = Self::default();
        for (path, text) in texts {
            let source = Source::parse(module_of(&path), &text);
            let source = source.map_err(|error| format!("{}: {error}", path.display()))?;
            let index = tree.files.len();
            let modules = source.modules.iter();
            tree.modules
                .extend(modules.map(|module| (module.clone(), index)));
            for named in &source.named {
                match &named.binding {
                    Binding::None => {}
                    Binding::Name(name) => {
                        let key = (named.module.clone(), name.clone());
                        tree.imports.insert(key, named.segments.clone());
                    }
                    Binding::Glob => {
                        let globs = tree.globs.entry(named.module.clone()).or_default();
                        globs.push(named.segments.clone());
                    }
                }
            }
            tree.files.push(File {
                path,
                source,
                is_test: false,
            });
        }
        tree.mark_tests();
        Ok(tree)
    }

    fn mark_tests(&mut self) {
        let tests = self.files.iter();
        let tests = tests.flat_map(|file| file.source.test_modules.iter().cloned());
        let tests: HashSet<Module> = tests.collect();
        for file in &mut self.files {
            let module = module_of(&file.path);
            let mut ancestors = (1..=module.len()).map(|len| &module[..len]);
            file.is_test = ancestors.any(|ancestor| tests.contains(ancestor));
        }
    }

    /// Where a path leads that is named in `module`, from the crate's root; none when it leads out
    /// of the crate or begins with a local name.
    pub fn resolve(&self, module: &[String], segments: &[String]) -> Option<Vec<String>> {
        self.resolve_at(module, segments, 0)
    }

    fn resolve_at(
        &self,
        module: &[String],
        segments: &[String],
        depth: usize,
    ) -> Option<Vec<String>> {
        let (first, rest) = segments.split_first()?;
        let mut base = module.to_vec();
        match first.as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop()?;
                let num_more = rest.iter().take_while(|name| *name == "super").count();
                base.truncate(base.len().checked_sub(num_more)?);
                base.extend_from_slice(&rest[num_more..]);
                return Some(base);
            }
            name => {
                base.push(name.to_owned());
                if !self.modules.contains_key(&base) {
                    let import = self.imports.get(&(module.to_vec(), name.to_owned()))?;
                    // `use serde::serde` leads to itself.
                    let is_bounded = depth < DEPTH_MAX && import.first() != Some(first);
                    let resolved = is_bounded.then(|| self.resolve_at(module, import, depth + 1));
                    base = resolved??;
                }
            }
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    /// The file that defines what a path from the root leads to; imports are followed.
    fn file_of(&self, path: &[String], depth: usize) -> Option<usize> {
        let len = (0..=path.len()).rev();
        let mut prefixes = len.map(|len| path.split_at(len));
        let (module, rest) = prefixes.find(|(module, _)| self.modules.contains_key(*module))?;
        let here = self.modules[module];
        let Some((name, inner)) = rest.split_first() else {
            return Some(here);
        };
        if depth >= DEPTH_MAX || self.defines(module, name) {
            return Some(here);
        }
        if let Some(import) = self.imports.get(&(module.to_vec(), name.clone()))
            && let Some(mut target) = self.resolve(module, import)
        {
            target.extend_from_slice(inner);
            return self.file_of(&target, depth + 1);
        }
        for glob in self.globs.get(module).into_iter().flatten() {
            if let Some(target) = self.resolve(module, glob)
                && self.has(&target, name, depth + 1)
            {
                return self.file_of(&[&target, rest].concat(), depth + 1);
            }
        }
        Some(here)
    }

    fn defines(&self, module: &[String], name: &str) -> bool {
        let item = (module.to_vec(), name.to_owned());
        let file = self.modules.get(module);
        file.is_some_and(|file| self.files[*file].source.items.contains(&item))
    }

    /// Whether a module has a name, of its own or by an import.
    fn has(&self, module: &[String], name: &str, depth: usize) -> bool {
        let key = (module.to_vec(), name.to_owned());
        let mut globs = self.globs.get(module).into_iter().flatten();
        self.defines(module, name)
            || self.imports.contains_key(&key)
            || (depth < DEPTH_MAX
                && globs.any(|glob| {
                    let target = self.resolve(module, glob);
                    target.is_some_and(|target| self.has(&target, name, depth + 1))
                }))
    }

    /// What each file of a folder needs of the others there, tests apart, with a line that says so.
    fn edges(&self, folder: &str) -> BTreeMap<usize, BTreeMap<usize, usize>> {
        let is_inside = |file: &File| file.path.starts_with(folder) && !file.is_test;
        let mut edges: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for (index, file) in self.files.iter().enumerate() {
            if !is_inside(file) {
                continue;
            }
            let named = file.source.named.iter();
            for named in named.filter(|named| !named.is_test) {
                let Some(target) = self.target(named) else {
                    continue;
                };
                if target != index && is_inside(&self.files[target]) {
                    let targets = edges.entry(index).or_default();
                    targets.entry(target).or_insert(named.line);
                }
            }
        }
        edges
    }

    fn target(&self, named: &Named) -> Option<usize> {
        let path = self.resolve(&named.module, &named.segments)?;
        self.file_of(&path, 0)
    }

    /// A shortest circle through each file of a folder that is in one, as the files on the way with
    /// the lines that lead on; a circle is told once.
    pub fn circles(&self, folder: &str) -> Vec<String> {
        let edges = self.edges(folder);
        let mut told = BTreeSet::new();
        let mut circles = Vec::new();
        for start in edges.keys() {
            let Some(circle) = shortest_circle(&edges, *start) else {
                continue;
            };
            let mut members = circle.clone();
            members.sort_unstable();
            if !told.insert(members) {
                continue;
            }
            let next = circle.iter().cycle().skip(1);
            let steps = circle.iter().zip(next).map(|(from, to)| {
                let line = edges[from][to];
                format!("{}:{line}", self.files[*from].path.display())
            });
            circles.push(steps.collect::<Vec<_>>().join(" -> "));
        }
        circles
    }
}

fn shortest_circle(
    edges: &BTreeMap<usize, BTreeMap<usize, usize>>,
    start: usize,
) -> Option<Vec<usize>> {
    let mut previous = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for target in edges.get(&file).into_iter().flat_map(BTreeMap::keys) {
            if *target == start {
                let mut circle = vec![file];
                while circle[circle.len() - 1] != start {
                    circle.push(previous[&circle[circle.len() - 1]]);
                }
                circle.reverse();
                return Some(circle);
            }
            if !previous.contains_key(target) {
                previous.insert(*target, file);
                queue.push_back(*target);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let files = files.iter();
        Tree::new(files.map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))).unwrap()
    }

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        tree(files).circles("room")
    }

    #[test]
    fn declarations_and_reexports_of_siblings_make_no_circle() {
        let files = [
            ("room/mod.rs", "mod a;\nmod b;\npub use a::A;"),
            ("room/a.rs", "pub struct A;"),
            // By the parent's re-export, which leads to a.rs.
            ("room/b.rs", "use super::A;\nfn f(_: A) {}"),
        ];
        assert!(circles(&files).is_empty());
    }

    #[test]
    fn a_child_that_needs_its_parent_makes_a_circle_with_a_parent_that_needs_it() {
        let files = [
            ("room/mod.rs", "mod a;\nuse a::A;\npub struct Parent(A);"),
            (
                "room/a.rs",
                "pub struct A;\nfn f() -> super::Parent { todo!() }",
            ),
        ];
        assert_eq!(circles(&files), ["room/mod.rs:2 -> room/a.rs:2"]);
    }

    #[test]
    fn groups_types_expressions_macros_and_attributes_are_seen() {
        for use_of_b in [
            "use super::{b::{self, B as C}, c};",
            "use crate::{room::{b::B}};",
            "fn f(x: crate::room::b::B) {}",
            "fn f() { let _ = crate::room::b::B::new(); }",
            "fn f() { assert!(matches!(x, super::b::B { .. })); }",
            "#[derive(Args)] struct S { #[arg(value_parser = crate::room::b::parse)] x: u8 }",
            "pub use self::super::b::*;",
            "use super::b;\nfn f() { b::run(); }",
        ] {
            let files = [
                ("room/mod.rs", "mod a;\nmod b;\nmod c;"),
                ("room/a.rs", &use_of_b.replace("self::super", "super")),
                ("room/b.rs", "use super::a;\npub struct B;"),
                ("room/c.rs", ""),
            ];
            let found = circles(&files);
            assert_eq!(found.len(), 1, "{use_of_b}: {found:?}");
        }
    }

    #[test]
    fn tests_visibilities_and_other_crates_do_not_count() {
        let files = [
            ("room/mod.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod tests;"),
            (
                "room/a.rs",
                "#[cfg(test)]\nmod tests { use crate::room::b::B; }\nuse serde::de::b;\npub fn a() {}",
            ),
            (
                "room/b.rs",
                "pub(in crate::room::a) struct B;\nuse super::a::a;",
            ),
            ("room/tests.rs", "use super::b;"),
        ];
        assert!(circles(&files).is_empty());
    }

    #[test]
    fn circles_over_several_files_and_globs_are_found() {
        let files = [
            ("room/mod.rs", "mod a;\nmod b;\nmod c;\npub use c::*;"),
            ("room/a.rs", "use super::b::B;\npub struct A;"),
            ("room/b.rs", "use crate::room::C;\npub struct B;"),
            ("room/c.rs", "use super::a::A;\npub struct C;"),
            // Not in it, although it leads there.
            ("room/d/mod.rs", "use super::a::A;"),
        ];
        let expected = "room/a.rs:1 -> room/b.rs:1 -> room/c.rs:1";
        assert_eq!(circles(&files), [expected]);
    }
}
