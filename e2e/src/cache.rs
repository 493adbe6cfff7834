//! Where things that are made once are kept: outside the checkout, keyed by what they were made of.

use std::fs::{File, TryLockError};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{interrupt, process};

/// `$LITHE_CACHE`, else `$XDG_CACHE_HOME/lithe`, else `~/.cache/lithe`; made when missing.
pub fn directory() -> Result<PathBuf> {
    let under = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let place = under("LITHE_CACHE")
        .or_else(|| under("XDG_CACHE_HOME").map(|cache| cache.join("lithe")))
        .or_else(|| under("HOME").map(|home| home.join(".cache/lithe")))
        .context("set HOME, or LITHE_CACHE to a folder for built components")?;
    std::fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    Ok(place)
}

/// Keeps other `cargo e2e` commands from starting or stopping the cluster until it is dropped.
pub fn lock() -> Result<File> {
    let path = directory()?.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        interrupt::check()?;
        if !told {
            eprintln!("  .. another `cargo e2e` starts or stops the cluster: waiting for it");
            told = true;
        }
        process::pause();
    }
}
