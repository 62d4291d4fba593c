//! An opened model: one GGUF file, or the parts that together are one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ponder_kernels::MappedFile;

use super::split::{self, Split};
use super::{GgufError, Metadata, TensorInfo, not_gguf, parse};
use crate::model::read_ahead::{Maps, ReadAhead};

/// One mapped file with what its header says.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub map: MappedFile,
    pub metadata: Metadata,
    pub tensors: HashMap<String, TensorInfo>,
}

impl Part {
    /// Maps the file and checks its directory.
    pub(super) fn open(path: &Path) -> Result<Self, GgufError> {
        // Devices and pipes would be waited for.
        if !std::fs::metadata(path)?.is_file() {
            return Err(GgufError::NoFile);
        }
        let map = MappedFile::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => not_gguf(&[]),
            _ => GgufError::Io(error),
        })?;
        let (metadata, tensors) = parse(&map)?;
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            tensors,
        })
    }
}

/// A tensor's place: which part holds it, and where.
#[derive(Debug)]
struct Place {
    part: usize,
    info: TensorInfo,
}

/// An opened GGUF model.
#[derive(Debug)]
pub struct GgufFile {
    paths: Vec<PathBuf>,
    maps: Maps,
    metadata: Metadata,
    tensors: HashMap<String, Place>,
}

impl GgufFile {
    /// Maps the file and checks its directory. A file that is one part of several opens them all.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let part = Part::open(path)?;
        match Split::of(&part.metadata)? {
            Some(split) if split.count > 1 => Self::of_parts(split::open_all(part, split)?),
            _ => Self::of_parts(vec![part]),
        }
    }

    /// The first part's metadata, and the tensors of all.
    fn of_parts(parts: Vec<Part>) -> Result<Self, GgufError> {
        let mut all = Self {
            paths: Vec::with_capacity(parts.len()),
            maps: Maps::new(Vec::new()),
            metadata: Metadata::default(),
            tensors: HashMap::new(),
        };
        let mut maps = Vec::with_capacity(parts.len());
        for (index, part) in parts.into_iter().enumerate() {
            if index == 0 {
                all.metadata = part.metadata;
            }
            for (name, info) in part.tensors {
                let place = Place { part: index, info };
                if all.tensors.insert(name.clone(), place).is_some() {
                    let what = format!("tensor {name:?} is in another part already");
                    let path = part.path;
                    return Err(GgufError::OtherModel { path, what });
                }
            }
            all.paths.push(part.path);
            maps.push(part.map);
        }
        all.maps = Maps::new(maps);
        Ok(all)
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The file, or all parts in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let Place { part, info } = self.tensors.get(name)?;
        Some((info, self.maps.bytes(*part, info.start, info.len)))
    }

    pub fn num_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Reads the weights before they are asked for, as long as the result lives.
    pub fn read_ahead(&self) -> ReadAhead {
        self.maps.read_ahead()
    }

    /// Lets the operating system drop a tensor's pages; they are read again when they are asked
    /// for.
    pub fn release(&self, name: &str) {
        if let Some(Place { part, info }) = self.tensors.get(name) {
            self.maps.release(*part, info.start, info.len);
        }
    }
}
