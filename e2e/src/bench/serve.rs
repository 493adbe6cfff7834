//! Serving: Lithe beside bare ONNX Runtime on four models, alone, together and overloaded.
//!
//! The measuring is done by `worker/benches/serve`, which runs the same library as the worker; here
//! the models, the binary and the library are brought together.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::cargo;
use crate::{images, python};

/// Length of the open dimension of MiniLM: tokens of a sentence.
const TOKENS: usize = 64;

/// Measures and prints.
pub fn bench(json: bool) -> Result<()> {
    let binary = images::binaries()?.join("lithe-worker");
    let library = images::runtime_library()?;
    let models = python::models()?;
    let made = tempfile::tempdir()?;
    let script = python::sources().join("perceptrons.py");
    let wrote = Command::new(python::interpreter("reference")?)
        .arg(script)
        .arg(made.path())
        .status()
        .context("write the perceptrons")?;
    ensure!(wrote.success(), "the perceptrons were not written");
    let mut bench = cargo();
    bench.current_dir(images::root()).env("ORT_DYLIB_PATH", library);
    bench.args(["bench", "--locked", "--package", "lithe-worker", "--bench", "serve", "--"]);
    bench.arg("--worker").arg(binary);
    for (name, file, length) in [
        ("tiny-mlp", made.path().join("tiny.onnx"), 1),
        ("wide-mlp", made.path().join("wide.onnx"), 1),
        ("magika", models.join("magika.onnx"), 1),
        ("minilm", models.join("minilm.onnx"), TOKENS),
    ] {
        bench.args(["--model", &format!("{name}={}:{length}", file.display())]);
    }
    if json {
        bench.arg("--json");
    }
    let measured = bench.status().context("start the measurement")?;
    ensure!(measured.success(), "the measurement failed: {measured}");
    Ok(())
}
