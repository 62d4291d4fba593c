//! Models in several GGUF files, as llama.cpp's `gguf-split` writes them: each part says how many
//! there are and which one it is, and the first has the metadata.

use std::path::{Path, PathBuf};

use super::file::Part;
use super::{GgufError, Metadata};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const NUM_TENSORS: &str = "split.tensors.count";
/// Parts of a model. The largest ones have a hundred.
const MAX_PARTS: usize = 1000;
/// Names in an error, of parts that are missing.
const MAX_NAMED: usize = 3;

/// The name of a part: `PREFIX-00002-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// What is before the numbers, folders included.
    pub prefix: String,
    /// From 1.
    pub part: usize,
    pub count: usize,
}

impl PartName {
    /// Reads a file's name; `None` when the name is not a part's.
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, part) = rest.rsplit_once('-')?;
        let number = |text: &str| {
            let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse::<usize>().ok()).flatten()
        };
        let (part, count) = (number(part)?, number(count)?);
        (1..=count.min(MAX_PARTS)).contains(&part).then(|| Self {
            prefix: prefix.to_owned(),
            part,
            count,
        })
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> Vec<String> {
        let count = self.count.min(MAX_PARTS);
        (1..=count).map(|part| self.name_of(part)).collect()
    }

    fn name_of(&self, part: usize) -> String {
        format!("{}-{part:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// What a part says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// From 0, as in the file.
    number: usize,
    pub count: usize,
    /// Of all parts together.
    num_tensors: Option<usize>,
}

impl Split {
    /// `None` for a file that is whole.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<Self>, GgufError> {
        let size = |key: &'static str| match metadata.get(key) {
            None => Ok(None),
            Some(value) => match metadata.get_u64(key).and_then(|n| usize::try_from(n).ok()) {
                Some(size) => Ok(Some(size)),
                None => Err(bad(key, format!("{value:?}"))),
            },
        };
        let Some(count) = size(COUNT)? else {
            return Ok(None);
        };
        let number = size(NUMBER)?.unwrap_or(0);
        if count > MAX_PARTS {
            return Err(bad(
                COUNT,
                format!("{count} (at most {MAX_PARTS} are read)"),
            ));
        }
        if number >= count.max(1) {
            return Err(bad(NUMBER, format!("{number} of {count}")));
        }
        Ok(Some(Self {
            number,
            count,
            num_tensors: size(NUM_TENSORS)?,
        }))
    }
}

fn bad(key: &'static str, value: String) -> GgufError {
    GgufError::BadSplit { key, value }
}

/// Where each part lies. A link may have another name than the part that it leads to.
fn paths_of(path: &Path, split: Split) -> Result<Vec<PathBuf>, GgufError> {
    let named = |path: &Path| {
        let name = PartName::parse(path.file_name()?.to_str()?)?;
        let fits = name.count == split.count && name.part == split.number + 1;
        fits.then(|| {
            let names = name.all().into_iter();
            names.map(|name| path.with_file_name(name)).collect()
        })
    };
    let linked = || named(&std::fs::canonicalize(path).ok()?);
    named(path).or_else(linked).ok_or(GgufError::PartName {
        part: split.number + 1,
        count: split.count,
    })
}

/// Opens the parts beside the one that is open already.
pub(super) fn open_all(own: Part, split: Split) -> Result<Vec<Part>, GgufError> {
    let paths = paths_of(&own.path, split)?;
    let missing: Vec<&PathBuf> = paths.iter().filter(|path| !path.exists()).collect();
    if !missing.is_empty() {
        return Err(GgufError::MissingParts {
            count: split.count,
            missing: list(&missing),
        });
    }
    let mut own = Some(own);
    let mut parts = Vec::with_capacity(paths.len());
    for (index, path) in paths.into_iter().enumerate() {
        let part = match own.take_if(|_| index == split.number) {
            Some(part) => part,
            None => Part::open(&path).map_err(|source| GgufError::Part {
                path,
                source: Box::new(source),
            })?,
        };
        check(&part, index, split, parts.first())?;
        parts.push(part);
    }
    let num_tensors: usize = parts.iter().map(|part| part.tensors.len()).sum();
    match (split.num_tensors, parts.pop()) {
        (Some(expected), Some(last)) if expected != num_tensors => Err(GgufError::OtherModel {
            path: last.path,
            what: format!(
                "the {} parts hold {num_tensors} tensors together and should hold {expected}: \
                 they are parts of different models, or damaged",
                split.count
            ),
        }),
        (_, last) => {
            parts.extend(last);
            Ok(parts)
        }
    }
}

fn list(missing: &[&PathBuf]) -> String {
    let names = missing.iter().take(MAX_NAMED);
    let names: Vec<String> = names.map(|path| path.display().to_string()).collect();
    let more = missing.len() - names.len();
    let names = names.join(", ");
    match (missing.len(), more) {
        (1, _) => format!("{names} is"),
        (_, 0) => format!("{names} are"),
        (_, more) => format!("{names} and {more} more are"),
    }
}

/// A part must say that it belongs to the others.
fn check(part: &Part, index: usize, split: Split, first: Option<&Part>) -> Result<(), GgufError> {
    let other = |what: String| GgufError::OtherModel {
        path: part.path.clone(),
        what: format!("{what}: it is a part of another model"),
    };
    let own = Split::of(&part.metadata)?
        .ok_or_else(|| other("it says not that it is a part".to_owned()))?;
    let expected = Split {
        number: index,
        ..split
    };
    if own != expected {
        return Err(other(format!(
            "it says that it is part {} of {} with {} tensors in all, not part {} of {} with {}",
            own.number + 1,
            own.count,
            own.num_tensors.map_or("?".to_owned(), |n| n.to_string()),
            index + 1,
            split.count,
            split.num_tensors.map_or("?".to_owned(), |n| n.to_string()),
        )));
    }
    let Some(first) = first else { return Ok(()) };
    let own = part.metadata.keys().filter(|key| *key != NUMBER);
    let differs = |key: &&str| {
        let there = first.metadata.get(key);
        there.is_some() && there != part.metadata.get(key)
    };
    match own.into_iter().find(differs) {
        Some(key) => Err(other(format!("its {key} is not that of the first part"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::gguf::GgufFile;
    use crate::model::testing::{GgufWriter, TinyModel};

    fn name(part: usize, count: usize) -> String {
        format!("m-{part:05}-of-{count:05}.gguf")
    }

    /// Writes a model's parts and returns their paths.
    fn parts(folder: &Path, count: usize, seed: u64) -> Vec<PathBuf> {
        let parts = TinyModel::random("llama", seed).to_gguf_parts(count, |_| {});
        let written = parts.iter().enumerate().map(|(index, bytes)| {
            let path = folder.join(name(index + 1, count));
            fs::write(&path, bytes).unwrap();
            path
        });
        written.collect()
    }

    #[test]
    fn names_of_parts_are_read_and_made() {
        let part = PartName::parse("dir/q4-00002-of-00003.gguf").unwrap();
        assert_eq!(
            (part.prefix.as_str(), part.part, part.count),
            ("dir/q4", 2, 3)
        );
        assert_eq!(part.all()[2], "dir/q4-00003-of-00003.gguf");
        for other in [
            "model.gguf",
            "m-00002-of-00001.gguf",
            "m-00000-of-00001.gguf",
            "m-1-of-3.gguf",
            "m-00001-of-00003.safetensors",
            "m-+0001-of-00003.gguf",
            "m00001of00003.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
        // The list of a hostile name has a bound.
        assert!(
            PartName::parse("m-00001-of-99999.gguf")
                .unwrap()
                .all()
                .len()
                <= MAX_PARTS
        );
    }

    #[test]
    fn any_part_opens_the_whole_model() {
        let folder = tempfile::tempdir().unwrap();
        let model = TinyModel::random("llama", 1);
        for path in parts(folder.path(), 3, 1) {
            let file = GgufFile::open(&path).unwrap();
            assert_eq!(file.num_tensors(), model.tensors.len());
            assert_eq!(
                file.metadata().get_str("general.architecture"),
                Some("llama")
            );
            assert_eq!(file.paths().len(), 3);
            for (name, (_, values)) in &model.tensors {
                let (_, bytes) = file.tensor(name).unwrap();
                let expected: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                assert_eq!(bytes, expected, "{name}");
                file.release(name);
            }
        }
    }

    fn refused(path: &Path) -> String {
        GgufFile::open(path).unwrap_err().to_string()
    }

    #[test]
    fn a_missing_part_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let paths = parts(folder.path(), 6, 1);
        fs::remove_file(&paths[1]).unwrap();
        let told = refused(&paths[0]);
        assert!(told.contains("m-00002-of-00006.gguf is missing"), "{told}");
        for path in &paths[2..6] {
            fs::remove_file(path).unwrap();
        }
        let told = refused(&paths[0]);
        assert!(
            told.contains("m-00004-of-00006.gguf and 2 more are missing"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1);
        let renamed = folder.path().join("renamed.gguf");
        fs::rename(&paths[0], &renamed).unwrap();
        let told = refused(&renamed);
        assert!(
            told.contains("is part 1 of 6, but is not named NAME-00001-of-00006.gguf"),
            "{told}"
        );
    }

    #[test]
    fn parts_of_different_models_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let paths = parts(folder.path(), 3, 1);
        let good = fs::read(&paths[1]).unwrap();
        // Another one's number, as of a copy under a wrong name.
        fs::copy(&paths[2], &paths[1]).unwrap();
        assert!(refused(&paths[0]).contains("part 3 of 3"));
        // A part of a model that is cut elsewhere.
        let cut = parts(other.path(), 4, 1);
        fs::copy(&cut[1], &paths[1]).unwrap();
        assert!(refused(&paths[0]).contains("part 2 of 4"));
        // A whole model, one with fewer tensors, and one with other tensors.
        fs::write(&paths[1], TinyModel::random("llama", 1).to_gguf()).unwrap();
        assert!(refused(&paths[0]).contains("another model"));
        let part = |names: &[&str], extra: &dyn Fn(&mut GgufWriter)| {
            let mut writer = GgufWriter::new();
            writer.u16("split.no", 1);
            writer.u16("split.count", 3);
            let all = TinyModel::random("llama", 1).tensors.len();
            writer.i32("split.tensors.count", all as i32);
            extra(&mut writer);
            names
                .iter()
                .for_each(|name| writer.f32_tensor(name, &[1], &[0.0]));
            fs::write(&paths[1], writer.finish()).unwrap();
        };
        part(&["x"], &|_| {});
        assert!(refused(&paths[0]).contains("parts of different models"));
        part(&["output.weight"], &|_| {});
        assert!(refused(&paths[0]).contains("parts of different models"));
        part(&[], &|writer| {
            writer.string("general.architecture", "qwen2")
        });
        assert!(refused(&paths[0]).contains("general.architecture is not that"));
        // Half of a part.
        fs::write(&paths[1], &good[..good.len() - 100]).unwrap();
        let told = refused(&paths[0]);
        assert!(
            told.contains("m-00002-of-00003.gguf: the file is incomplete: the last 100 of"),
            "{told}"
        );
        fs::write(&paths[1], &good).unwrap();
        assert!(GgufFile::open(&paths[0]).is_ok());
    }

    #[test]
    fn hostile_numbers_of_parts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(1, 3));
        let write = |metadata: &dyn Fn(&mut GgufWriter)| {
            let mut writer = GgufWriter::new();
            metadata(&mut writer);
            fs::write(&path, writer.finish()).unwrap();
            refused(&path)
        };
        assert!(write(&|w| w.i32("split.count", -1)).contains("split.count"));
        assert!(write(&|w| w.string("split.count", "3")).contains("split.count"));
        assert!(write(&|w| w.u32("split.count", u32::MAX)).contains("split.count"));
        let beyond = write(&|w| {
            w.u16("split.count", 3);
            w.u16("split.no", 3);
        });
        assert!(beyond.contains("split.no"), "{beyond}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_part_finds_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let paths = parts(folder.path(), 2, 1);
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("model.gguf");
        std::os::unix::fs::symlink(&paths[0], &link).unwrap();
        assert_eq!(GgufFile::open(&link).unwrap().paths().len(), 2);
    }
}
