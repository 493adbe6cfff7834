//! Clients that are not ours, and reference implementations, against what Lithe serves and makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::command::{capture, run_visible};
use crate::demo::NAMESPACE;
use crate::{host, images, progress, python, volumes};

/// The client libraries; each has its own environment, since they cannot share a process.
const CLIENTS: [&str; 2] = ["triton", "kserve"];

/// Whether an answer must equal ONNX Runtime's on the same file bit for bit, or within 1e-5.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    Exact,
    Close,
}

/// Lets `tritonclient` and the `kserve` SDK predict against the Service of `model`, and compares
/// with ONNX Runtime in Python on the file `reference`; the samples are those of `example`.
pub fn predict(
    cluster: &Cluster,
    model: &str,
    example: &str,
    reference: &Path,
    likeness: Likeness,
) -> Result<()> {
    let address = field(cluster, "service", model, "{.spec.clusterIP}")?;
    for client in CLIENTS {
        progress::headline(&format!("{client} client: {model}, {}", reference.display()));
        let mut pytest = Command::new(python::interpreter(client)?);
        pytest
            .current_dir(python::sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("LITHE_HTTP", format!("{address}:80"))
            .env("LITHE_GRPC", format!("{address}:8081"))
            .env("LITHE_MODEL", model)
            .env("LITHE_REFERENCE", reference)
            .env("LITHE_DATA", python::models()?.join(format!("{example}.npz")))
            .env("LITHE_EXACT", if likeness == Likeness::Exact { "1" } else { "0" })
            // The examples limit their pods to one processor, and the worker takes a thread for it.
            .env("LITHE_THREADS", "1")
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
            .arg(format!("test_{client}.py"));
        run_visible(&mut pytest)?;
    }
    Ok(())
}

/// The file that `model` serves, from the folder of the embedded registry.
pub fn artifact(cluster: &Cluster, model: &str) -> Result<PathBuf> {
    let digest = field(cluster, "md", model, "{.status.artifact.digest}")?;
    let (_, hex) = digest.split_once(':').with_context(|| format!("{model} has no artifact"))?;
    let start = hex.get(..2).context("a digest is too short")?;
    for volume in volumes::names() {
        let blob = volumes::folder(volume)?
            .join("docker/registry/v2/blobs/sha256")
            .join(start)
            .join(hex)
            .join("data");
        if blob.exists() {
            return Ok(blob);
        }
    }
    bail!("no volume of the registry holds {digest}, which {model} serves")
}

/// Compares what `lithe-worker compress` makes with reference implementations in Python.
pub fn references() -> Result<()> {
    progress::headline("lithe-worker compress beside ONNX Runtime, onnx and PyTorch in Python");
    host::prepare_references()?;
    run_visible(
        Command::new(python::interpreter("reference")?)
            .current_dir(python::sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("LITHE_MODELS", python::models()?)
            .env("LITHE_WORKER", images::binaries()?.join("lithe-worker"))
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
            .args(["test_reference.py", "test_prune.py", "test_static.py", "test_weights.py"]),
    )
}

fn field(cluster: &Cluster, kind: &str, name: &str, path: &str) -> Result<String> {
    let path = format!("jsonpath={path}");
    capture(cluster.kubectl()?.args(["get", kind, name, "-n", NAMESPACE, "-o", &path]))
}
