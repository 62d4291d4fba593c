//! Where models and traces lie, and where a server listens.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use super::report::Finding;
use crate::cli::traces::args::StoreArgs;
use crate::model::catalogue::{CATALOGUE, DEFAULT_MODEL, Entry, free_bytes};

/// The folder of models and traces.
pub(super) fn disk(home: &Path) -> Finding {
    let folder = existing(home);
    if let Err(error) = try_write(&folder) {
        return Finding::fault(
            "disk",
            format!("{} takes no files: {error}", home.display()),
            "PONDER_HOME names another folder for models and traces",
        );
    }
    let Some(free) = free_bytes(&folder) else {
        return Finding::ok("disk", home.display().to_string());
    };
    let found = format!("{:.1} GB free for {}", free as f64 / 1e9, home.display());
    // A model in parts lies there twice while it is joined.
    let needed = 2 * Entry::find(DEFAULT_MODEL).map_or(0, |entry| entry.bytes);
    match free < needed {
        true => Finding::warning(
            "disk",
            found,
            format!(
                "fetching {DEFAULT_MODEL} takes {:.1} GB: free some, or name another folder with \
                 PONDER_HOME",
                needed as f64 / 1e9
            ),
        ),
        false => Finding::ok("disk", found),
    }
}

/// The models that are there. `can_fetch`: whether others can be fetched.
pub(super) fn models(can_fetch: bool) -> Finding {
    let cached = CATALOGUE.iter().filter(|entry| entry.is_cached());
    let cached: Vec<&str> = cached.map(|entry| entry.name).collect();
    match (cached.is_empty(), can_fetch) {
        (false, _) => Finding::ok("models", format!("cached: {}", cached.join(", "))),
        (true, true) => Finding::ok(
            "models",
            format!("none cached yet: `ponder serve` fetches {DEFAULT_MODEL} when it starts"),
        ),
        (true, false) => Finding::warning(
            "models",
            "none is cached, and none can be fetched",
            "copy a GGUF file here and serve it: `ponder serve ./model.gguf`",
        ),
    }
}

pub(super) fn traces(args: &StoreArgs) -> Finding {
    let path = args.path();
    let told = path.display();
    let advice = "--trace-db names another file, and --no-traces keeps none";
    let folder = path.parent().map_or_else(PathBuf::new, existing);
    // What is written first goes to files beside it.
    if let Err(error) = try_write(&folder) {
        return Finding::warning(
            "traces",
            format!("{told} cannot be written: {error}"),
            advice,
        );
    }
    if !path.exists() {
        return Finding::ok(
            "traces",
            format!("none yet: {told} comes with the first search"),
        );
    }
    if let Err(error) = File::options().append(true).open(&path) {
        return Finding::warning(
            "traces",
            format!("{told} cannot be written: {error}"),
            advice,
        );
    }
    let totals = args.open().and_then(|store| Ok(store.totals()?));
    match totals {
        Err(error) => Finding::warning("traces", format!("{error:#}"), advice),
        Ok(totals) if totals.num_damaged > 0 => Finding::warning(
            "traces",
            format!("{} traces of {told} are damaged", totals.num_damaged),
            "`ponder traces list` says which; the others are whole (docs/traces.md)",
        ),
        Ok(totals) => Finding::ok("traces", format!("{} in {told}", totals.num_traces)),
    }
}

pub(super) fn port(host: &str, port: u16) -> Finding {
    match TcpListener::bind((host, port)) {
        Ok(_) => Finding::ok("port", format!("{host}:{port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::warning(
            "port",
            format!("{host}:{port} is taken, perhaps by a server of Ponder"),
            "stop what listens there, or serve with --port 0, which takes a free one",
        ),
        Err(error) => Finding::warning(
            "port",
            format!("{host}:{port} cannot be listened on: {error}"),
            "choose others with --host and --port",
        ),
    }
}

/// The folder itself, or the one above it in which it would be made.
fn existing(folder: &Path) -> PathBuf {
    let found = folder.ancestors().find(|folder| folder.exists());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Makes a file and removes it.
fn try_write(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".ponder-doctor-{}", std::process::id()));
    File::options().write(true).create_new(true).open(&path)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Level;

    #[test]
    fn folders_that_are_not_there_yet_are_fine_and_left_so() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("a/b");
        assert_ne!(disk(&home).level, Level::Fault);
        assert!(!folder.path().join("a").exists());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let found = disk(&file.join("home"));
        assert_eq!(found.level, Level::Fault, "{}", found.found);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_store_is_looked_at_and_a_broken_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let trace_db = Some(folder.path().join("traces.db"));
        let args = StoreArgs { trace_db };
        assert_eq!(traces(&args).level, Level::Ok);
        assert!(!args.path().exists());
        fs::write(args.path(), "not a database, although it is long enough").unwrap();
        assert_eq!(traces(&args).level, Level::Warning);
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = taken.local_addr().unwrap().port();
        assert_eq!(port("127.0.0.1", number).level, Level::Warning);
        assert_eq!(port("127.0.0.1", 0).level, Level::Ok);
    }

    #[test]
    fn without_models_and_without_a_way_to_them_nothing_works() {
        // Which of the two it is depends on this machine's cache.
        let is_cached = CATALOGUE.iter().any(|entry| entry.is_cached());
        assert_eq!(models(true).level, Level::Ok);
        assert_eq!(models(false).advice.is_none(), is_cached);
    }
}
