//! Builds the page of `web/` and lists its files for `src/api/page.rs`. This needs Node and a
//! package registry (or npm's cache). Without them the build goes on with a warning, and the server
//! shows a plain page instead. Nothing is written outside of the build's own folder.

use std::fmt::Write;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

/// Set to anything but 0, the page is not built.
const SKIP: &str = "PONDER_SKIP_WEB";

/// What of `web/` the page is made of.
const SOURCES: [&str; 8] = [
    ".npmrc",
    "build.mjs",
    "icon.svg",
    "index.html",
    "package-lock.json",
    "package.json",
    "src",
    "tsconfig.json",
];

/// What comes of it: the path on the server, the file, its type.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "index.html", "text/html; charset=utf-8"),
    (
        "/assets/app.js",
        "assets/app.js",
        "text/javascript; charset=utf-8",
    ),
    (
        "/assets/app.css",
        "assets/app.css",
        "text/css; charset=utf-8",
    ),
    ("/assets/icon.svg", "assets/icon.svg", "image/svg+xml"),
    (
        "/assets/licences.txt",
        "assets/licences.txt",
        "text/plain; charset=utf-8",
    ),
];

/// A command that takes longer is given up: a registry that never answers must not hold the build.
const PATIENCE: Duration = Duration::from_secs(240);

const NPM: &str = if cfg!(windows) { "npm.cmd" } else { "npm" };

fn main() {
    let folder = |name: &str| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let (out, web) = (folder("OUT_DIR"), folder("CARGO_MANIFEST_DIR").join("web"));
    println!("cargo::rerun-if-env-changed={SKIP}");
    println!("cargo::rerun-if-changed=build.rs");
    let sources = SOURCES.map(|name| web.join(name));
    for source in sources.iter().filter(|source| source.exists()) {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let is_skipped = env::var_os(SKIP).is_some_and(|value| value != "0");
    let listed = match is_skipped || !web.exists() {
        true => "&[]".to_owned(),
        false => build(&web, &out).unwrap_or_else(|error| {
            println!(
                "cargo::warning=the page is not built in: {error} ({SKIP}=1 says that it is not \
                 wanted; after Node is there, touch web/package.json)"
            );
            "&[]".to_owned()
        }),
    };
    fs::write(out.join("page.rs"), listed).expect("the output folder takes a file");
}

/// Builds the page on a copy of its sources and lists its files as Rust.
fn build(web: &Path, out: &Path) -> Result<String, String> {
    let (copy, page) = (out.join("web"), out.join("page"));
    let _ = fs::remove_dir_all(copy.join("src"));
    for name in SOURCES {
        copy_all(&web.join(name), &copy.join(name)).map_err(|error| format!("{name}: {error}"))?;
    }
    install(&copy)?;
    let mut bundle = Command::new("node");
    run(
        bundle
            .current_dir(&copy)
            .arg("build.mjs")
            .arg(&page)
            .arg("--gzip"),
        &copy,
    )?;
    list(&page).map_err(|error| error.to_string())
}

/// Installs what the lock file names, unless that is there already.
fn install(copy: &Path) -> Result<(), String> {
    let read = |name: &str| fs::read(copy.join(name)).ok();
    let stamp = copy.join("installed");
    if stamp.exists() && read("installed") == read("package-lock.json") {
        return Ok(());
    }
    let mut npm = Command::new(NPM);
    npm.current_dir(copy)
        .args(["ci", "--omit=dev", "--ignore-scripts", "--prefer-offline"])
        .args(["--fetch-retries=1", "--fetch-timeout=20000"]);
    run(&mut npm, copy)?;
    let copied = fs::copy(copy.join("package-lock.json"), stamp);
    copied.map(|_| ()).map_err(|error| error.to_string())
}

/// Runs a command to its end; an error has the beginning of what it said.
fn run(command: &mut Command, folder: &Path) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| format!("{name}: {error}");
    let log = folder.join("log");
    let output = File::create(&log).map_err(failed)?;
    let errors = output.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let mut child = command.spawn().map_err(failed)?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{name} took longer than {} s", PATIENCE.as_secs()));
        }
        thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    let said = said.lines().filter(|line| !line.trim().is_empty());
    let first: Vec<&str> = said.take(3).collect();
    Err(format!("{name}: {status}: {}", first.join(" | ")))
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        return fs::copy(from, to).map(|_| ());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_all(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The files as `src/api/page.rs` includes them.
fn list(page: &Path) -> io::Result<String> {
    let mut text = "&[\n".to_owned();
    for (path, name, kind) in FILES {
        let file = page.join(name);
        let packed = page.join(format!("{name}.gz"));
        let mut hasher = DefaultHasher::new();
        fs::read(&file)?.hash(&mut hasher);
        // Weak: the packed file is another one with the same meaning.
        let etag = format!("W/\"{:016x}\"", hasher.finish());
        writeln!(
            text,
            "    File {{ path: {path:?}, kind: {kind:?}, etag: {etag:?}, \
             bytes: include_bytes!({file:?}), gzip: include_bytes!({packed:?}) }},"
        )
        .expect("a string takes it");
    }
    text.push(']');
    Ok(text)
}
