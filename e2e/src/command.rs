//! Runs other programs: output to a log file, and an error that names the program, the log and
//! its last lines. A signal to us ends them (see `interrupt`).

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cache;
use crate::interrupt::{self, Running};

/// cargo, as from a shell. `cargo run` describes this crate in the environment, and build scripts that
/// look there (ring's) would run anew, and with them everything that stands on them.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name.as_ref());
        }
    }
    command
}

/// Runs `command` to its end with its output in `<cache>/logs/<name>.log`.
pub fn run_logged(command: &mut Command, name: &str) -> Result<()> {
    interrupt::check()?;
    let log = log_path(name)?;
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", program(command)))?;
    let running = Running::group(child.id());
    if interrupt::interrupted() {
        running.end();
    }
    let status = child.wait().with_context(|| format!("wait for {}", program(command)))?;
    if status.success() {
        return Ok(());
    }
    interrupt::check()?;
    bail!("{} ended with {status}; read {}\n{}", program(command), log.display(), tail(&log, 15))
}

/// Runs `command` on the user's terminal and fails when it fails.
pub fn run_visible(command: &mut Command) -> Result<()> {
    interrupt::check()?;
    let mut child = command.spawn().with_context(|| format!("start {}", program(command)))?;
    let _running = Running::process(child.id());
    let status = child.wait().with_context(|| format!("wait for {}", program(command)))?;
    if !status.success() {
        interrupt::check()?;
        bail!("{} ended with {status}", program(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed; its errors stand in the error.
///
/// Works after a signal too: what cleans up uses it.
pub fn capture(command: &mut Command) -> Result<String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", program(command)))?;
    let _running = Running::group(child.id());
    let output =
        child.wait_with_output().with_context(|| format!("wait for {}", program(command)))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", program(command), output.status, words.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn log_path(name: &str) -> Result<PathBuf> {
    let folder = cache::directory()?.join("logs");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(format!("{name}.log")))
}

/// The last `lines` lines of `path`, or nothing.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

fn program(command: &Command) -> String {
    let arguments: Vec<_> =
        command.get_args().take(3).map(|argument| argument.to_string_lossy()).collect();
    format!("`{} {}`", command.get_program().to_string_lossy(), arguments.join(" "))
}
