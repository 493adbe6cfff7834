//! Clients that are not ours, and reference implementations, against what Lithe serves and makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::command::{capture, run_visible};
use crate::demo::NAMESPACE;
use crate::{host, images, progress, python, volumes};

/// The tests of one client library: its environment, since they cannot share a process, and the
/// file.
type Suite = (&'static str, &'static str);

/// Clients of the protocol that is served by default.
pub const OPEN_INFERENCE: [Suite; 2] = [("triton", "test_triton.py"), ("kserve", "test_kserve.py")];
/// Clients of every protocol.
pub const ALL: [Suite; 4] = [
    OPEN_INFERENCE[0],
    OPEN_INFERENCE[1],
    ("kserve", "test_kserve_v1.py"),
    ("tfserving", "test_tfserving.py"),
];

/// Whether an answer must equal ONNX Runtime's on the same file bit for bit, or within 1e-5.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    Exact,
    Close,
}

/// What clients ask, and what they compare with.
pub struct Target<'a> {
    /// HOST:PORT of the REST protocols.
    pub http: String,
    /// HOST:PORT of the gRPC protocols.
    pub grpc: String,
    /// The model's name.
    pub model: &'a str,
    /// The example whose samples are sent.
    pub example: &'a str,
    /// The file that ONNX Runtime in Python answers from.
    pub reference: &'a Path,
    /// How alike the answers must be.
    pub likeness: Likeness,
}

/// Lets the clients of `suites` predict against the Service of `model`; the samples are those of
/// `example`.
pub fn predict(
    cluster: &Cluster,
    (model, example): (&str, &str),
    (reference, likeness): (&Path, Likeness),
    suites: &[Suite],
) -> Result<()> {
    let address = field(cluster, "service", model, "{.spec.clusterIP}")?;
    let (http, grpc) = (format!("{address}:80"), format!("{address}:8081"));
    ask(&Target { http, grpc, model, example, reference, likeness }, suites)
}

/// Lets the clients of `suites` predict against `target`, and compares with ONNX Runtime in Python.
pub fn ask(target: &Target<'_>, suites: &[Suite]) -> Result<()> {
    let Target { http, grpc, model, example, reference, likeness } = target;
    for (client, file) in suites {
        progress::headline(&format!("{file}: {model}, {}", reference.display()));
        let mut pytest = Command::new(python::interpreter(client)?);
        pytest
            .current_dir(python::sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("LITHE_HTTP", http)
            .env("LITHE_GRPC", grpc)
            .env("LITHE_MODEL", model)
            .env("LITHE_REFERENCE", reference)
            .env("LITHE_DATA", python::models()?.join(format!("{example}.npz")))
            .env("LITHE_EXACT", if *likeness == Likeness::Exact { "1" } else { "0" })
            // The examples limit their pods to one processor, and the worker takes a thread for it.
            .env("LITHE_THREADS", "1")
            .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", file]);
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
            .args(["test_reference.py", "test_prune.py", "test_static.py", "test_weights.py"])
            .args(["test_backend.py", "test_batch_norm.py", "test_determinism.py"])
            .arg("test_savers.py")
            .arg("test_judging.py"),
    )
}

fn field(cluster: &Cluster, kind: &str, name: &str, path: &str) -> Result<String> {
    let path = format!("jsonpath={path}");
    capture(cluster.kubectl()?.args(["get", kind, name, "-n", NAMESPACE, "-o", &path]))
}
