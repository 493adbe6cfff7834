//! `cargo e2e demo`: Lithe's whole job on a real cluster with real models, told as it happens.
//!
//! The cluster stays up afterwards, so that the user can look around.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cluster::{self, Cluster};
use crate::command::{capture, run_logged, run_visible};
use crate::images::Images;
use crate::{images, progress, python, volumes};

/// Where Lithe itself runs.
pub const SYSTEM: &str = "lithe-system";
/// Where the examples run.
pub const NAMESPACE: &str = "lithe-demo";
/// The examples of the story.
pub const EXAMPLES: [&str; 2] = ["magika", "minilm"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Tells the whole story.
pub fn demo() -> Result<()> {
    progress::headline("a real Kubernetes on this machine");
    let cluster = cluster::up()?;
    let told = tell(&cluster);
    println!(
        "\nThe cluster stays up. Look around with:\n  export KUBECONFIG={}\n  {} get all -n {NAMESPACE}\nStop it with `cargo e2e down`.",
        cluster.kubeconfig.display(),
        cluster.components.path("kubectl")?.display(),
    );
    told
}

/// Takes Lithe away again, but for the CRD and what users declared.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    run_logged(
        cluster.helm()?.args([
            "uninstall",
            "lithe",
            "--namespace",
            SYSTEM,
            "--ignore-not-found",
            "--wait",
        ]),
        "helm-uninstall",
    )
}

/// The story on a cluster that is up.
pub fn tell(cluster: &Cluster) -> Result<()> {
    let images = images::load(cluster)?;
    progress::headline("Lithe, installed by Helm");
    install(cluster, &images)?;
    progress::headline("two models and their evaluation data, from Python packages");
    provide_models(cluster)?;
    progress::headline("kubectl apply");
    for example in EXAMPLES {
        let file = root().join("crds/examples").join(format!("{example}.yaml"));
        run_visible(cluster.kubectl()?.args(["apply", "-n", NAMESPACE, "-f"]).arg(file))?;
    }
    let mut failed = Vec::new();
    for example in EXAMPLES {
        progress::headline(&format!("{example}: Job, gates, rollout, prediction"));
        if let Err(error) = story(cluster, example) {
            eprintln!("  {error:#}");
            failed.push(example);
        }
    }
    progress::headline("kubectl get md");
    run_visible(cluster.kubectl()?.args(["get", "md", "-n", NAMESPACE, "-o", "wide"]))?;
    progress::headline("kubectl describe md");
    run_visible(cluster.kubectl()?.args(["describe", "md", "-n", NAMESPACE]))?;
    if !failed.is_empty() {
        bail!("not served: {}; `kubectl describe md` above says why", failed.join(", "));
    }
    Ok(())
}

/// Installs the chart with `images`, or upgrades it.
pub fn install(cluster: &Cluster, images: &Images) -> Result<()> {
    let step = progress::step("helm upgrade --install lithe charts/lithe");
    let mut helm = cluster.helm()?;
    helm.args(["upgrade", "--install", "lithe"])
        .arg(root().join("charts/lithe"))
        .args(["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "180s"])
        // The tests put the CRD there before; the chart may have it.
        .arg("--take-ownership")
        .args(["--set", "operator.replicas=1"]);
    let named = [
        ("operator.image", &images.operator),
        ("worker.image", &images.worker),
        ("registry.image", &images.registry),
    ];
    for (value, reference) in named {
        let (repository, tag) = reference.rsplit_once(':').context("an image without a tag")?;
        helm.arg("--set-string").arg(format!("{value}.repository={repository},{value}.tag={tag}"));
    }
    run_logged(&mut helm, "helm-install")?;
    step.done();
    Ok(())
}

fn provide_models(cluster: &Cluster) -> Result<()> {
    let step = progress::step("make magika and minilm with data from files of this machine");
    let made = python::models()?;
    for example in EXAMPLES {
        for kind in ["onnx", "npz"] {
            let file = format!("{example}.{kind}");
            volumes::place(volumes::MODELS, &made.join(&file), &file)?;
        }
    }
    cluster.apply(&format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: models, namespace: {NAMESPACE}}}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: lithe-local
  resources: {{requests: {{storage: 1Gi}}}}
  selector: {{matchLabels: {{lithe.dev/volume: {}}}}}
",
        volumes::MODELS
    ))?;
    step.done();
    Ok(())
}

/// Waits until `example` is served, then asks it something.
fn story(cluster: &Cluster, example: &str) -> Result<()> {
    let step = progress::step("wait until it is served");
    until_served(cluster, example)?;
    step.done();
    let events = format!("involvedObject.name={example}");
    run_visible(cluster.kubectl()?.args([
        "get",
        "events",
        "-n",
        NAMESPACE,
        "--field-selector",
        &events,
        "-o",
        "custom-columns=REASON:.reason,MESSAGE:.message",
    ]))?;
    let address = capture(cluster.kubectl()?.args([
        "get",
        "service",
        example,
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]))?;
    let mut client = Command::new(python::interpreter("models")?);
    client.arg(python::sources().join("predict.py")).args([
        "--http",
        &format!("{address}:80"),
        "--model",
        example,
    ]);
    run_visible(&mut client)
}

/// Waits until `example` is served; fails at once, with the operator's words, when it cannot be.
pub fn until_served(cluster: &Cluster, example: &str) -> Result<()> {
    const STATE: &str =
        "jsonpath={.status.phase} {.status.conditions[?(@.type=='Ready')].message}{\"\\n\"}";
    let mut watch = cluster
        .kubectl()?
        .args(["get", "md", example, "-n", NAMESPACE, "--watch", "-o", STATE])
        .args(["--request-timeout=300s"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = watch.stdout.take().context("the watch's output")?;
    let mut end = Err(anyhow::anyhow!("{example} was neither served nor refused within 300 s"));
    for line in BufReader::new(output).lines() {
        let line = line?;
        let (phase, words) = line.split_once(' ').unwrap_or((&line, ""));
        match phase {
            "Serving" => end = Ok(()),
            "Failed" => end = Err(anyhow::anyhow!("{example}: {words}")),
            _ => continue,
        }
        break;
    }
    watch.kill()?;
    watch.wait()?;
    end
}
