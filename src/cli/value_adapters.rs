//! `--value-adapter`: value models on the policy's own engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use futures::executor::block_on;

use super::identity::hash;
use crate::api::Served;
use crate::engine::{Capability, Engine};
use crate::model::LoraAdapter;
use crate::reward::{Head, ValueModel, ValueModelParts};

const HEAD_FILE: &str = "value_head.safetensors";
/// What a value model is made of: an adapter as PEFT writes it, and a head.
const FILES: [&str; 3] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    HEAD_FILE,
];
const MAX_NAME_BYTES: usize = 128;

#[derive(Debug, Clone, Args)]
pub struct ValueAdapterArgs {
    /// Value model that scores steps and answers: a folder with a PEFT adapter of the served model
    /// and value_head.safetensors (repeat, or separate by commas; requests use the first unless
    /// they name another) [default NAME: the folder's]
    #[arg(
        long,
        env = "PONDER_VALUE_ADAPTER",
        value_name = "[NAME=]DIR",
        value_parser = parse,
        value_delimiter = ',',
        help_heading = "Search"
    )]
    pub value_adapter: Vec<ValueAdapter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueAdapter {
    pub name: String,
    pub folder: PathBuf,
}

fn parse(text: &str) -> Result<ValueAdapter, String> {
    // What has a slash before its "=" is a path.
    let named = text.split_once('=').filter(|(name, _)| !name.contains('/'));
    let (name, folder) = match named {
        Some((name, folder)) => (name.to_owned(), folder),
        None => {
            // "." and ".." have a name of their own.
            let path = Path::new(text);
            let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let name = path.file_name().unwrap_or_default();
            (name.to_string_lossy().into_owned(), text)
        }
    };
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if folder.is_empty() {
        return Err(format!("{text:?} names no folder"));
    }
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(is_of_name) {
        return Err(format!(
            "{name:?} cannot be a value model's name: use NAME={folder} with 1 to \
             {MAX_NAME_BYTES} letters, digits, \".\", \"_\" and \"-\""
        ));
    }
    Ok(ValueAdapter {
        name,
        folder: folder.into(),
    })
}

/// Loads the value models of a policy that runs.
pub(super) fn load(args: &ValueAdapterArgs, served: &mut Served) -> anyhow::Result<()> {
    for ValueAdapter { name, folder } in &args.value_adapter {
        let flag = || format!("--value-adapter {name}={}", folder.display());
        let loaded = load_one(name, folder, served).with_context(flag)?;
        served.rewards.value_models.push(Arc::new(loaded));
        let hash = hash(&FILES.map(|file| folder.join(file)));
        let hashes = &mut served.identity.value_adapters;
        hashes.insert(name.clone(), hash.with_context(flag)?);
    }
    Ok(())
}

fn load_one(name: &str, folder: &Path, served: &Served) -> anyhow::Result<ValueModel> {
    let engine = &served.engine;
    engine.demand(Capability::Adapters)?;
    engine.demand(Capability::HiddenStates)?;
    let mut others = served.rewards.value_models.iter();
    ensure!(
        others.all(|other| other.name() != name),
        "another value model has the same name: use NAME=DIR"
    );
    let config = served.model_config.as_ref();
    let config = config.context("the model's sizes are not known")?;
    let adapter = LoraAdapter::read(folder, config)?;
    let head = Head::load(&folder.join(HEAD_FILE), config.hidden_size).context(HEAD_FILE)?;
    Ok(ValueModel::new(ValueModelParts {
        name: name.to_owned(),
        engine: Engine::clone(engine),
        tokenizer: served.tokenizer.clone(),
        adapter: block_on(engine.load_adapter(adapter))?,
        head,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_or_the_folders_own() {
        for (text, name, folder) in [
            ("value/math-1.5b", "math-1.5b", "value/math-1.5b"),
            ("math=value/one", "math", "value/one"),
            ("value/one/", "one", "value/one/"),
            ("runs/lr=1/best", "best", "runs/lr=1/best"),
            ("a=b=c", "a", "b=c"),
        ] {
            let expected = ValueAdapter {
                name: name.to_owned(),
                folder: folder.into(),
            };
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let here = std::env::current_dir().unwrap();
        let here = here.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(parse(".").map(|it| it.name), Ok(here));
        let long = format!("{}=x", "n".repeat(MAX_NAME_BYTES + 1));
        for text in ["", "=x", "x=", "a b=x", "a:b=x", "/", "value/ä", &long] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
