//! Where things that are made once are kept: outside the checkout, keyed by what they were made of.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

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
