//! What the process gives up before it touches a model: core dumps and the runtime's telemetry.

use std::io;
use std::path::PathBuf;

use crate::runtime::ENV_LIBRARY;

/// An absolute path, so that it still leads there from another working directory.
///
/// # Errors
/// When `text` is empty.
pub fn absolute(text: &str) -> io::Result<PathBuf> {
    std::path::absolute(text)
}

/// Forbids core dumps, which would hold models and requests, and switches the runtime's telemetry
/// off. Must be called before any thread starts.
#[allow(unsafe_code)]
pub fn harden() {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        eprintln!("lithe-worker: core dumps stay on: {error}");
    }
    let library = std::env::var_os(ENV_LIBRARY).and_then(|path| std::path::absolute(path).ok());
    // SAFETY: the process has one thread until `main` builds a runtime, so nobody reads the
    // environment while it changes.
    unsafe {
        std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
        if let Some(library) = library {
            std::env::set_var(ENV_LIBRARY, library);
        }
    }
}
