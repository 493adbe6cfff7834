//! Moves the process into an empty directory: the runtime opens external data relative to the
//! working directory, and should a mark of it ever get past the loader, there is nothing to open.

use std::path::{Path, PathBuf};

/// Makes an empty directory and enters it; it is removed when the guard is dropped.
// No other thread looks yet: this is the first thing a trial does.
#[allow(clippy::disallowed_methods)]
pub fn enter_empty_directory() -> std::io::Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    std::env::set_current_dir(directory.path())?;
    Ok(directory)
}

/// `path` independent of the working directory.
pub fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}
