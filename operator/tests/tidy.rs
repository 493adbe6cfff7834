//! The rooms keep to themselves: who may talk to the API server, wait, or ask for the time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

/// Files that may name a client: of the API server, and `scrape.rs` one of pods.
const TALK: [&str; 8] = [
    "apply.rs",
    "client.rs",
    "controller.rs",
    "inquire.rs",
    "lease.rs",
    "main.rs",
    "publish.rs",
    "scrape.rs",
];

/// Files that may be asynchronous: those that talk, the watches, the queue that is waited for.
const WAIT: [&str; 11] = [
    "admin.rs",
    "apply.rs",
    "cache.rs",
    "client.rs",
    "controller.rs",
    "inquire.rs",
    "lease.rs",
    "main.rs",
    "publish.rs",
    "queue.rs",
    "scrape.rs",
];

/// Files that may ask for the time; everywhere else it is an argument.
const CLOCK: [&str; 7] =
    ["controller.rs", "inquire.rs", "lease.rs", "pulse.rs", "queue.rs", "scrape.rs", "watch.rs"];

/// Lines of a file without its tests, above which it should be two.
const LINES: usize = 400;

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            found.push((name, text));
        }
    }
    assert!(found.len() > 20);
    found
}

/// The files other than `allowed` with a line of code that `wanted` takes.
fn strangers(allowed: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    sources()
        .into_iter()
        .filter(|(name, _)| !allowed.contains(&name.as_str()))
        .filter(|(_, text)| text.lines().filter(code).any(&wanted))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn only_these_files_name_the_client() {
    let names = |line: &str| line.contains("Client") && !line.contains("Clients");
    assert_eq!(strangers(&TALK, names), Vec::<String>::new());
}

#[test]
fn only_these_files_are_asynchronous() {
    assert_eq!(strangers(&WAIT, |line| line.contains("async fn")), Vec::<String>::new());
}

#[test]
fn only_these_files_ask_for_the_time() {
    let asks = |line: &str| line.contains("::now()") || line.contains(".elapsed()");
    let allowed: Vec<&str> = CLOCK.into_iter().collect();
    assert_eq!(strangers(&allowed, asks), Vec::<String>::new());
}

#[test]
fn files_say_what_they_do_and_stay_short() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} does not say what it does");
        let header = text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!(header <= 5, "{name} says it in {header} lines");
        let lines = text.lines().count();
        assert!(lines <= LINES, "{name} has {lines} lines");
    }
}
