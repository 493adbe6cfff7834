//! `cargo e2e demo`: Lithe's whole job on a real cluster with real models, told as it happens.
//!
//! The embedded cluster stays up afterwards, so that the user can look around; a cluster of the
//! user's keeps what was installed.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cluster::{self, Cluster};
use crate::command::{run_logged, run_visible};
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

/// On which cluster the story is told.
#[derive(clap::Args)]
pub struct Where {
    /// A context of your kubeconfig: use its cluster instead of the embedded one.
    #[arg(long, value_name = "NAME", requires = "registry")]
    context: Option<String>,
    /// Where that cluster's nodes can pull images from: they are pushed to HOST[:PORT]/PREFIX.
    #[arg(long, value_name = "PREFIX", requires = "context")]
    registry: Option<String>,
    /// An image with a shell, whose pod puts the models on a volume of that cluster.
    #[arg(long, value_name = "IMAGE", default_value = "docker.io/library/busybox:1.37")]
    shell_image: String,
}

/// Tells the whole story.
pub fn demo(place: &Where) -> Result<()> {
    if let (Some(context), Some(registry)) = (&place.context, &place.registry) {
        progress::headline(&format!("the cluster of the context {context}"));
        let cluster = cluster::existing(context)?;
        let images = images::publish(&cluster, registry)?;
        let told = tell_with(&cluster, &images, || claim_anywhere(&cluster, &place.shell_image));
        println!(
            "\nTake it away with:\n  kubectl --context {context} delete namespace {NAMESPACE}\n  helm --kube-context {context} uninstall lithe --namespace {SYSTEM}"
        );
        return told;
    }
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

/// The story on the embedded cluster, which is up.
pub fn tell(cluster: &Cluster) -> Result<()> {
    tell_with(cluster, &images::load(cluster)?, || claim_prepared(cluster))
}

fn tell_with(
    cluster: &Cluster,
    images: &Images,
    claim_models: impl Fn() -> Result<()>,
) -> Result<()> {
    progress::headline("Lithe, installed by Helm");
    install(cluster, images)?;
    progress::headline("two models and their evaluation data, from Python packages");
    let step = progress::step("make magika and minilm with data from files of this machine");
    python::models()?;
    step.done();
    cluster.apply(&format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"
    ))?;
    claim_models()?;
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
        ("gateway.image", &images.gateway),
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

/// The files of the examples.
fn files() -> impl Iterator<Item = String> {
    EXAMPLES.iter().flat_map(|name| ["onnx", "npz"].map(|kind| format!("{name}.{kind}")))
}

/// The claim `models` on the embedded cluster's volume, a folder of this machine.
fn claim_prepared(cluster: &Cluster) -> Result<()> {
    let made = python::models()?;
    for file in files() {
        volumes::place(volumes::MODELS, &made.join(&file), &file)?;
    }
    cluster.apply(&format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: models, namespace: {NAMESPACE}}}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: lithe-local
  resources: {{requests: {{storage: 1Gi}}}}
  selector: {{matchLabels: {{lithe.dev/volume: {}}}}}
",
        volumes::MODELS
    ))
}

/// The claim `models` in the default storage class of any cluster, filled by a pod with a shell.
fn claim_anywhere(cluster: &Cluster, image: &str) -> Result<()> {
    const POD: &str = "provide-models";
    let step = progress::step("put them on a volume of the cluster");
    let made = python::models()?;
    cluster.apply(&format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: models, namespace: {NAMESPACE}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {POD}, namespace: {NAMESPACE}}}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext:
    {{runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: shell
      image: {image}
      command: [sleep, '3600']
      securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
      resources: {{limits: {{cpu: \"1\", memory: 128Mi}}}}
      volumeMounts: [{{name: models, mountPath: /models}}]
  volumes: [{{name: models, persistentVolumeClaim: {{claimName: models}}}}]
"
    ))?;
    let kubectl = |arguments: &[&str]| -> Result<Command> {
        let mut command = cluster.kubectl()?;
        command.args(["--namespace", NAMESPACE]).args(arguments);
        Ok(command)
    };
    let ready = ["wait", "--for=condition=Ready", "--timeout=300s", "pod", POD];
    run_logged(&mut kubectl(&ready)?, "provide-models")
        .with_context(|| format!("`kubectl describe pod -n {NAMESPACE} {POD}` says why"))?;
    for file in files() {
        let write = format!("cat > /models/{file} && chmod 644 /models/{file}");
        let mut copy = kubectl(&["exec", "-i", POD, "--", "sh", "-c", &write])?;
        run_visible(copy.stdin(File::open(made.join(&file))?))?;
    }
    run_logged(&mut kubectl(&["delete", "pod", POD, "--wait"])?, "provide-models")?;
    step.done();
    Ok(())
}

/// A port of this machine that leads to a Service, until it is dropped.
struct Forward {
    child: Child,
    address: String,
    /// kubectl tells of each connection, and would end when nobody could read it.
    output: BufReader<ChildStdout>,
}

impl Forward {
    fn start(cluster: &Cluster, service: &str) -> Result<Self> {
        let service = format!("service/{service}");
        let mut child = cluster
            .kubectl()?
            .args(["port-forward", "-n", NAMESPACE, &service, ":80", "--address=127.0.0.1"])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the output of kubectl port-forward")?;
        let mut forward = Self { child, address: String::new(), output: BufReader::new(output) };
        let mut line = String::new();
        forward.output.read_line(&mut line)?;
        // Forwarding from 127.0.0.1:40123 -> 8080
        let address = line.split_whitespace().find(|word| word.starts_with("127.0.0.1:"));
        forward.address = address.context("kubectl port-forward named no port")?.to_owned();
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    let forward = Forward::start(cluster, example)?;
    let mut client = Command::new(python::interpreter("models")?);
    client.arg(python::sources().join("predict.py")).args([
        "--http",
        &forward.address,
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
