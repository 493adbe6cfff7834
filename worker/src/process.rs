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
// One thread, as below: what the runtime reads must stand in the environment.
#[allow(unsafe_code, clippy::disallowed_methods)]
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

/// Ends the process with `code`, without running the destructors of loaded libraries: ONNX
/// Runtime's crash when another thread is still inside it, while it loads or while a kernel runs.
#[allow(unsafe_code)]
pub fn end(code: i32) -> ! {
    use std::io::Write as _;
    // Standard error is not buffered, standard output is.
    let _ = std::io::stdout().flush();
    // SAFETY: nothing of ours waits for a destructor: files are synced where they are written.
    unsafe { nix::libc::_exit(code) }
}
