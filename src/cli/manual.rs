//! `ponder completions` and `ponder man`: what a packager installs beside the binary.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Cli;

const NAME: &str = "ponder";

/// Prints the completions of a shell.
pub(super) fn completions(shell: Shell) -> anyhow::Result<()> {
    print(&script(shell))
}

/// Prints the manual's first page, or writes the pages of all commands into a folder.
pub(super) fn man(folder: Option<&Path>) -> anyhow::Result<()> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        return print(&page);
    };
    let failed = || format!("--out {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(failed)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    script
}

/// Whoever reads it may have enough (`head`).
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, ValueEnum};

    use super::*;

    /// The names of a command and its commands, as pages of the manual have them.
    fn pages(command: &Command, name: &str, names: &mut Vec<String>) {
        names.push(format!("{name}.1"));
        for sub in command.get_subcommands() {
            pages(sub, &format!("{name}-{}", sub.get_name()), names);
        }
    }

    #[test]
    fn completions_of_all_shells_know_all_commands() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell} does not know {name}");
            }
            assert!(script.contains("max-num-seqs"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("man1");
        man(Some(&out)).unwrap();
        let mut names = Vec::new();
        pages(&Cli::command(), NAME, &mut names);
        assert!(names.contains(&"ponder-traces-export.1".to_owned()));
        for name in &names {
            let page = std::fs::read_to_string(out.join(name));
            let page = page.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(page.contains(".SH NAME"), "{name}");
        }
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), names.len());
        let first = std::fs::read_to_string(out.join("ponder.1")).unwrap();
        for command in Cli::command().get_subcommands() {
            // Hyphens are escaped in a page.
            let name = command.get_name().replace('-', "\\-");
            assert!(first.contains(&name), "{name}");
        }
    }
}
