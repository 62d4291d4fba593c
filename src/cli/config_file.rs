//! The optional TOML file: its values become the defaults of the flags with their names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgMatches, Command, CommandFactory, Error};

use super::args::Cli;

/// Parses arguments over the environment over the file named by `--config` or `PONDER_CONFIG`.
pub(super) fn matches(args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = Cli::command();
    if let Some(path) = config_path(&args) {
        command = with_file(command, &path)?;
    }
    command.try_get_matches_from(args)
}

fn config_path(args: &[OsString]) -> Option<PathBuf> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_str().unwrap_or_default();
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
        if text == "--config" {
            return rest.next().map(PathBuf::from);
        }
    }
    std::env::var_os("PONDER_CONFIG").map(PathBuf::from)
}

fn with_file(mut command: Command, path: &Path) -> Result<Command, Error> {
    let fail = |command: &mut Command, message: String| {
        Err(command.error(
            ErrorKind::InvalidValue,
            format!("{}: {message}", path.display()),
        ))
    };
    let table = match std::fs::read_to_string(path) {
        Ok(text) => match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => return fail(&mut command, error.to_string()),
        },
        Err(error) => return fail(&mut command, error.to_string()),
    };
    for (key, value) in table {
        let id = key.replace('-', "_");
        let Some(values) = values_of(&value) else {
            return fail(
                &mut command,
                format!("{key} must be a value or a list of values"),
            );
        };
        // No value would be no key, where the key is a secret.
        if values.is_empty() {
            let message = format!("{key} is an empty list: give it a value, or leave it out");
            return fail(&mut command, message);
        }
        let mut is_known = false;
        command = set_defaults(command, &id, &values, &mut is_known);
        if !is_known {
            return fail(
                &mut command,
                format!("there is no flag --{}", key.replace('_', "-")),
            );
        }
    }
    Ok(command)
}

fn values_of(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Float(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(flag) => Some(vec![flag.to_string()]),
        toml::Value::Array(items) => items
            .iter()
            .map(values_of)
            .collect::<Option<Vec<_>>>()
            .map(|v| v.concat()),
        _ => None,
    }
}

/// Sets the default of every argument `id` in a command and its subcommands.
fn set_defaults(command: Command, id: &str, values: &[String], is_known: &mut bool) -> Command {
    let has_arg = command.get_arguments().any(|arg| arg.get_id() == id);
    let mut command = command;
    if has_arg {
        *is_known = true;
        command = command.mut_arg(id, |arg| arg.default_values(values.to_vec()));
    }
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, |sub| set_defaults(sub, id, values, is_known));
    }
    command
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::FromArgMatches;

    use super::*;
    use crate::cli::args;

    fn serve(text: &str, flags: &[&str]) -> Result<args::ServeArgs, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let mut args = vec!["ponder", "serve", "--config", path];
        args.extend(flags);
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        let cli = Cli::from_arg_matches(&matches(args)?)?;
        match cli.command {
            args::Command::Serve(args) => Ok(*args),
            other => panic!("not serve: {other:?}"),
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "port = 9000\nmax-num-seqs = 8\napi_key = [\"a\", \"b\"]\nno-enable-prefix-caching = true";
        let args = serve(text, &["--port", "9001"]).unwrap();
        assert_eq!((args.port, args.engine.max_num_seqs), (9001, 8));
        assert_eq!(args.api_key, ["a", "b"]);
        assert!(args.engine.no_enable_prefix_caching);
        assert_eq!(args.host, "127.0.0.1");
    }

    #[test]
    fn unknown_keys_and_bad_files_are_errors() {
        let error = serve("prot = 1", &[]).unwrap_err().to_string();
        assert!(error.contains("--prot"), "{error}");
        assert!(serve("port = [", &[]).is_err());
        assert!(serve("port = \"x\"", &[]).is_err());
    }
}
