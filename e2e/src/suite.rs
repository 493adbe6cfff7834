//! `cargo e2e test`: every test there is, from unit tests to the real cluster.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::cluster::{self, Cluster};
use crate::command::run_visible;
use crate::{images, progress};

/// Runs everything; a cluster that was down before is down after, whatever happens.
pub fn test() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let runtime = images::runtime_library()?;
    let cargo = || {
        let mut command = Command::new("cargo");
        command.current_dir(&root).env("ORT_DYLIB_PATH", &runtime);
        command
    };
    progress::headline("form");
    run_visible(cargo().args(["fmt", "--check"]))?;
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

    progress::headline("tests on a real cluster");
    let found = cluster::embedded().is_ok_and(|cluster| cluster::healthy(&cluster));
    let cluster = cluster::up()?;
    let result = on_cluster(&cluster, &root, &mut cargo());
    if !found {
        cluster::down()?;
    }
    result
}

fn on_cluster(cluster: &Cluster, root: &Path, cargo: &mut Command) -> Result<()> {
    cluster.apply(&std::fs::read_to_string(root.join("crds/modeldeployments.yaml"))?)?;
    let operator = images::binaries()?.join("lithe-operator");
    run_visible(
        cargo
            .env("LITHE_E2E_KUBECONFIG", &cluster.kubeconfig)
            .env("LITHE_OPERATOR", operator)
            .env("LITHE_HELM", cluster.components.path("helm")?)
            .args(["test", "--locked", "--package", "lithe-e2e", "--tests"]),
    )
}
