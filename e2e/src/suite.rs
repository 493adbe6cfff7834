//! `cargo e2e test`: every test there is, from unit tests to the real cluster.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::clients::{self, Likeness};
use crate::cluster::{self, Cluster};
use crate::command::{self, run_visible};
use crate::{demo, images, progress, python, volumes};

/// Runs everything; a cluster that was down before is down after, whatever happens.
pub fn test() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let runtime = images::runtime_library()?;
    let cargo = || {
        let mut command = command::cargo();
        command.current_dir(&root).env("ORT_DYLIB_PATH", &runtime);
        command
    };
    progress::headline("form");
    run_visible(cargo().args(["fmt", "--check"]))?;
    run_visible(cargo().args([
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--features",
        "lithe/crd",
        "--",
        "-D",
        "warnings",
    ]))?;
    progress::headline("unit, golden and socket tests");
    run_visible(cargo().args([
        "test",
        "--locked",
        "--workspace",
        "--exclude",
        "lithe-e2e",
        "--features",
        "lithe/crd",
    ]))?;

    clients::references()?;

    progress::headline("tests on a real cluster");
    let found = cluster::embedded().is_ok_and(|cluster| cluster::healthy(&cluster));
    let cluster = cluster::up()?;
    let result = on_cluster(&cluster, &root, cargo);
    if !found {
        cluster::down()?;
    }
    result
}

fn on_cluster(cluster: &Cluster, root: &Path, cargo: impl Fn() -> Command) -> Result<()> {
    // One that a demo left would work on what the tests declare, beside the tests' own.
    demo::uninstall(cluster)?;
    let images = images::load(cluster)?;
    cluster.apply(&std::fs::read_to_string(root.join("crds/modeldeployments.yaml"))?)?;
    let operator = images::binaries()?.join("lithe-operator");
    let tests = |name: &str| -> Result<Command> {
        let mut command = cargo();
        command
            .env("LITHE_E2E_KUBECONFIG", &cluster.kubeconfig)
            .env("LITHE_OPERATOR", &operator)
            .env("LITHE_HELM", cluster.components.path("helm")?)
            .env("LITHE_KUBECTL", cluster.components.path("kubectl")?)
            .env("LITHE_VOLUMES", volumes::folder("")?)
            .env("LITHE_MODEL", python::models()?.join("magika.onnx"))
            .env("LITHE_WORKER_IMAGE", &images.worker)
            .env("LITHE_REGISTRY_IMAGE", &images.registry)
            .args(["test", "--locked", "--package", "lithe-e2e", "--test", name, "--"]);
        Ok(command)
    };
    run_visible(&mut tests("chart")?)?;
    run_visible(&mut tests("operator")?)?;

    progress::headline("the whole job through the chart, with real models");
    demo::tell(cluster)?;
    for example in demo::EXAMPLES {
        let served = clients::artifact(cluster, example)?;
        let like = (served.as_path(), Likeness::Exact);
        clients::predict(cluster, (example, example), like, &clients::OPEN_INFERENCE)?;
    }
    original(cluster)?;
    // One after the other: each has the node for itself.
    run_visible(tests("story")?.arg("--test-threads=1"))?;
    run_visible(tests("scaling")?.args(["--test-threads=1", "--nocapture"]))
}

/// A model that is served as it is, asked by clients of every protocol.
fn original(cluster: &Cluster) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: lithe.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: original, namespace: {}}}
spec:
  model: {{uri: pvc://models/magika.onnx}}
  runtime:
    protocols: [OpenInference, TensorFlowServing, KServeV1]
    resources: {{requests: {{cpu: 100m}}, limits: {{cpu: \"1\", memory: 512Mi}}}}
",
        demo::NAMESPACE
    ))?;
    demo::until_served(cluster, "original")?;
    let file = python::models()?.join("magika.onnx");
    let like = (file.as_path(), Likeness::Close);
    clients::predict(cluster, ("original", "magika"), like, &clients::ALL)
}
