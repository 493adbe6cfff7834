//! Python environments for real clients and reference implementations, made once per list of
//! requirements in the cache. Python never ships: it only proves.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::cache;
use crate::command::run_logged;

/// The environment that needs the messages of TensorFlow, and not TensorFlow.
const TENSORFLOW: &str = "tfserving";

/// The folder of the Python sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// The interpreter of the environment with `requirements-<name>.txt`, made when it is missing.
pub fn interpreter(name: &str) -> Result<PathBuf> {
    let requirements = sources().join(format!("requirements-{name}.txt"));
    let text =
        std::fs::read(&requirements).with_context(|| format!("read {}", requirements.display()))?;
    let digest = Sha256::digest(&text);
    let hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let place = cache::directory()?.join("python").join(format!("{name}-{hash}"));
    let python = place.join("bin/python");
    let finished = place.join("finished");
    if finished.exists() {
        return Ok(python);
    }
    if place.exists() {
        std::fs::remove_dir_all(&place).context("remove an unfinished Python environment")?;
    }
    run_logged(Command::new("python3").args(["-m", "venv"]).arg(&place), &format!("venv-{name}"))?;
    run_logged(
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&requirements),
        &format!("pip-{name}"),
    )?;
    if name == TENSORFLOW {
        let script = sources().join("tensorflow_messages.py");
        run_logged(Command::new(&python).arg(script), "tensorflow-messages")?;
    }
    std::fs::write(&finished, b"")?;
    Ok(python)
}

/// The folder with the example models and their evaluation data, made when it is missing.
pub fn models() -> Result<PathBuf> {
    let script = sources().join("models.py");
    let mut made_of = std::fs::read(&script).context("read models.py")?;
    made_of.extend(std::fs::read(sources().join("requirements-models.txt"))?);
    let key = Sha256::digest(&made_of);
    let hash: String = key.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let place = cache::directory()?.join(format!("models-{hash}"));
    if place.join("finished").exists() {
        return Ok(place);
    }
    let python = interpreter("models")?;
    std::fs::create_dir_all(&place)?;
    run_logged(Command::new(python).arg(&script).arg(&place), "models")?;
    std::fs::write(place.join("finished"), b"")?;
    Ok(place)
}
