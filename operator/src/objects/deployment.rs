//! The Deployment that serves an artifact: the template carries the digest, so a new artifact is
//! a rollout and the old pods serve until the new ones are warm.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{
    Container, HTTPGetAction, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use lithe::names::{
    ANNOTATION_ARTIFACT, ANNOTATION_DIGEST, ANNOTATION_REQUEST, CONTAINER_SERVE, LABEL_ROLE,
    PATH_STORE_CREDENTIALS, PATH_TLS, PATH_TLS_CLIENT_CA, PATH_TOKENS, PORT_ADMIN, PORT_GRPC,
    PORT_HTTP, ROLE_SERVE,
};
use lithe::spec::{ModelDeployment, OnTimeout, TrafficMode};
use lithe::status::ArtifactStatus;

use crate::config::Config;
use crate::objects::{child_name, labels, meta, pod, selector};
use crate::plan::Plan;
use crate::plan::rollout::Surge;

/// Seconds in which a pod that must go still takes requests: endpoints need that long to spread.
const DRAIN_DELAY: i64 = 5;
/// Seconds in which its last requests must end.
const DRAIN_DEADLINE: i64 = 30;

/// How long a connection lives where nobody balances requests.
const CONNECTION_AGE: &str = "60s";

/// The Deployment that serves `artifact`.
pub fn deployment(
    model: &ModelDeployment,
    plan: &Plan,
    artifact: &ArtifactStatus,
    config: &Config,
) -> Deployment {
    let mut metadata = meta(model, child_name(model, ""));
    // When the rollout ended is news of the status, not a reason to write the Deployment again.
    let record = ArtifactStatus { rolled_out: None, ..artifact.clone() };
    metadata.annotations = Some(
        [
            (ANNOTATION_REQUEST.to_owned(), artifact.request.to_string()),
            (ANNOTATION_ARTIFACT.to_owned(), serde_json::to_string(&record).unwrap_or_default()),
        ]
        .into(),
    );
    let mut pod_labels = labels(model);
    pod_labels.insert(LABEL_ROLE.into(), ROLE_SERVE.into());
    let digest = [(ANNOTATION_DIGEST.to_owned(), artifact.digest.to_string())];
    let deadline = model.spec.rollout.progress_deadline.parse().ok();
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(plan.replicas),
            // Going back is a new spec, not an old ReplicaSet.
            revision_history_limit: Some(1),
            progress_deadline_seconds: deadline
                .and_then(|deadline| i32::try_from(deadline.as_secs()).ok()),
            selector: LabelSelector {
                match_labels: Some(selector(model, ROLE_SERVE)),
                ..Default::default()
            },
            strategy: Some(strategy(plan.surge)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: Some(digest.into()),
                    ..Default::default()
                }),
                spec: Some(pod_spec(model, artifact, config)),
            },
            ..Default::default()
        }),
        status: None,
    }
}

fn strategy(surge: Surge) -> DeploymentStrategy {
    let (more, less) = match surge {
        Surge::OneMore | Surge::Hold => (1, 0),
        Surge::OneLess { .. } => (0, 1),
    };
    DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(more)),
            max_unavailable: Some(IntOrString::Int(less)),
        }),
    }
}

fn pod_spec(model: &ModelDeployment, artifact: &ArtifactStatus, config: &Config) -> PodSpec {
    let (volume, mount) = pod::scratch("8Gi");
    let (mut volumes, mut mounts) = (vec![volume], vec![mount]);
    let mut container = pod::container(CONTAINER_SERVE, config, arguments(model, artifact, config));
    if let Some(secret) = &config.store_credentials_secret {
        let (volume, mount) = pod::secret("store-credentials", secret, PATH_STORE_CREDENTIALS);
        volumes.push(volume);
        mounts.push(mount);
    }
    for (name, secret, _, path) in secrets(model) {
        let (volume, mount) = pod::secret(name, secret, path);
        volumes.push(volume);
        mounts.push(mount);
    }
    container.volume_mounts = Some(mounts);
    container.resources = Some(resources(model, artifact));
    container.ports = Some(vec![
        pod::port("http", PORT_HTTP),
        pod::port("grpc", PORT_GRPC),
        pod::port("admin", PORT_ADMIN),
    ]);
    probes(&mut container);
    let mut spec = pod::spec(model, container, volumes);
    let accelerator = model.spec.placement.accelerator.as_ref();
    if let Some(product) = accelerator.and_then(|accelerator| accelerator.product.clone()) {
        spec.node_selector.get_or_insert_default().insert("nvidia.com/gpu.product".into(), product);
    }
    spec.termination_grace_period_seconds = Some(DRAIN_DELAY + DRAIN_DEADLINE + 5);
    spec.topology_spread_constraints = Some(vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(LabelSelector {
            match_labels: Some(selector(model, ROLE_SERVE)),
            ..Default::default()
        }),
        ..Default::default()
    }]);
    spec
}

/// The Secrets of `model` that secure its ports: volume, Secret, the worker's flag, path.
fn secrets(model: &ModelDeployment) -> Vec<(&'static str, &str, &'static str, &'static str)> {
    let runtime = &model.spec.runtime;
    let mut secrets = Vec::new();
    if let Some(tls) = &runtime.tls {
        secrets.push(("tls", tls.secret_name.as_str(), "--tls", PATH_TLS));
        if let Some(ca) = &tls.client_ca_secret_name {
            secrets.push(("tls-client-ca", ca.as_str(), "--tls-client-ca", PATH_TLS_CLIENT_CA));
        }
    }
    if let Some(auth) = &runtime.auth {
        secrets.push(("tokens", auth.token_secret_name.as_str(), "--tokens", PATH_TOKENS));
    }
    secrets
}

fn arguments(model: &ModelDeployment, artifact: &ArtifactStatus, config: &Config) -> Vec<String> {
    let mut arguments: Vec<String> = vec![
        "serve".into(),
        "--artifact".into(),
        artifact.uri.clone(),
        "--name".into(),
        model.name_any(),
    ];
    for (flag, port) in [("--http", PORT_HTTP), ("--grpc", PORT_GRPC), ("--admin", PORT_ADMIN)] {
        arguments.extend([flag.to_owned(), format!("0.0.0.0:{port}")]);
    }
    arguments.extend(["--drain-delay".into(), format!("{DRAIN_DELAY}s")]);
    arguments.extend(["--drain-deadline".into(), format!("{DRAIN_DEADLINE}s")]);
    if config.store_plain_http {
        arguments.push("--store-plain-http".into());
    }
    if config.store_credentials_secret.is_some() {
        arguments.extend(["--store-credentials".into(), PATH_STORE_CREDENTIALS.into()]);
    }
    if let Some(threads) = model.spec.runtime.threads {
        arguments.extend(["--threads".into(), threads.to_string()]);
    }
    for (_, _, flag, path) in secrets(model) {
        arguments.extend([flag.to_owned(), path.to_owned()]);
    }
    let protocols = &model.spec.runtime.protocols;
    if !protocols.is_empty() {
        // Their names in the spec are those that the worker takes.
        let names: Vec<_> = protocols.iter().map(|protocol| format!("{protocol:?}")).collect();
        arguments.extend(["--protocols".into(), names.join(",")]);
    }
    if let Some(latency) = &model.spec.scaling.latency {
        arguments.extend(["--latency-target".into(), latency.target.to_string()]);
        arguments.extend(["--latency-percentile".into(), latency.percentile.to_string()]);
    }
    // Where nobody balances requests, clients find new pods by connecting anew.
    if model.spec.traffic_mode() == TrafficMode::Direct && model.spec.scaling.most() > 1 {
        arguments.extend(["--max-connection-age".into(), CONNECTION_AGE.into()]);
    }
    let size = model.spec.runtime.max_request_size.as_ref().and_then(|size| size.bytes().ok());
    if let Some(bytes) = size {
        arguments.extend(["--max-request-bytes".into(), bytes.to_string()]);
    }
    arguments.extend(waiting(model));
    arguments
}

/// The flags that say how requests wait and which of them run together.
fn waiting(model: &ModelDeployment) -> Vec<String> {
    let mut flags: Vec<(&str, String)> = Vec::new();
    if let Some(batching) = &model.spec.runtime.batching {
        flags.push(("--max-batch-size", batching.max_batch_size.to_string()));
        let delay = batching.max_queue_delay.as_ref();
        flags.extend(delay.map(|delay| ("--max-queue-delay", delay.to_string())));
        if !batching.preferred_batch_sizes.is_empty() {
            let sizes: Vec<_> = batching.preferred_batch_sizes.iter().map(u32::to_string).collect();
            flags.push(("--preferred-batch-sizes", sizes.join(",")));
        }
        let levels = batching.priority_levels;
        flags.extend(levels.map(|levels| ("--priority-levels", levels.to_string())));
        let queue = batching.queue.clone().unwrap_or_default();
        flags.extend(queue.size.map(|size| ("--max-queue", size.to_string())));
        flags.extend(queue.timeout.map(|timeout| ("--queue-timeout", timeout.to_string())));
        let action = |action| match action {
            OnTimeout::Reject => "reject".to_owned(),
            OnTimeout::Delay => "delay".to_owned(),
        };
        flags.extend(queue.on_timeout.map(|what| ("--on-queue-timeout", action(what))));
    }
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// What the user says, else little to start with and a memory limit that fits the model: the
/// weights while they are verified and again in the runtime, its arenas, and 1 GiB for requests.
fn resources(model: &ModelDeployment, artifact: &ArtifactStatus) -> ResourceRequirements {
    let wanted = model.spec.runtime.resources.as_ref();
    let amounts = |amounts: &[(&str, String)]| {
        Some(
            amounts
                .iter()
                .map(|(name, amount)| ((*name).to_owned(), Quantity(amount.clone())))
                .collect(),
        )
    };
    let limit = 1024 + artifact.size.saturating_mul(4) / (1 << 20);
    let mut resources = wanted.map_or_else(
        || ResourceRequirements {
            requests: amounts(&[("cpu", "100m".into()), ("memory", "256Mi".into())]),
            limits: amounts(&[("memory", format!("{limit}Mi"))]),
            claims: None,
        },
        ResourceRequirements::from,
    );
    if let Some(accelerator) = &model.spec.placement.accelerator {
        let amount = Quantity(accelerator.count.to_string());
        resources.limits.get_or_insert_default().insert(accelerator.resource.clone(), amount);
    }
    resources
}

/// Ready means loaded and warmed; alive means that the process answers at all.
fn probes(container: &mut Container) {
    let probe = |path: &str, period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("admin".into()),
            scheme: Some("HTTP".into()),
            ..Default::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(2),
        success_threshold: Some(1),
        ..Default::default()
    };
    // A large model may take ten minutes to fetch and load; a small one is seen within a second.
    container.startup_probe = Some(probe("/readyz", 1, 600));
    container.readiness_probe = Some(probe("/readyz", 1, 3));
    container.liveness_probe = Some(probe("/livez", 10, 6));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_about_waiting_reaches_the_worker() {
        let yaml = "
apiVersion: lithe.dev/v1alpha1
kind: ModelDeployment
metadata: {name: a}
spec:
  model: {uri: pvc://models/a.onnx}
  runtime:
    batching:
      maxBatchSize: 32
      maxQueueDelay: 2ms
      preferredBatchSizes: [8, 16]
      priorityLevels: 3
      queue: {size: 100, timeout: 1s, onTimeout: Delay}
";
        let model: ModelDeployment = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(
            waiting(&model).join(" "),
            "--max-batch-size 32 --max-queue-delay 2ms --preferred-batch-sizes 8,16 \
             --priority-levels 3 --max-queue 100 --queue-timeout 1s --on-queue-timeout delay"
        );
    }
}
