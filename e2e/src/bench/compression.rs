//! The compression engine beside its peers, on real models: size, likeness, speed, time and memory.
//! The work is done by `python/bench_compression.py`, since the peers are Python.

use std::process::Command;

use anyhow::Result;

use crate::command::run_visible;
use crate::{host, images, python};

/// Measures and prints.
pub fn bench(json: bool) -> Result<()> {
    host::prepare_bench()?;
    run_visible(
        Command::new(python::interpreter("bench")?)
            .current_dir(python::sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("ORT_DYLIB_PATH", images::runtime_library()?)
            .env("LITHE_MODELS", python::models()?)
            .env("LITHE_WORKER", images::binaries()?.join("lithe-worker"))
            .arg("bench_compression.py")
            .args(json.then_some("--json")),
    )
}
