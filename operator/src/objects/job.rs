//! The compression Job: immutable, named by its request, with the exit codes of the worker.

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    EnvVar, PodTemplateSpec, ResourceRequirements, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use lithe::Digest;
use lithe::artifact::{EXIT_GATE_FAILED, EXIT_REFUSED};
use lithe::names::{
    self, ANNOTATION_MEANS, ANNOTATION_REQUEST, ANNOTATION_WHY, CONTAINER_COMPRESS, ENV_RECIPE,
    LABEL_ROLE, PATH_DATA_CLAIM, PATH_DATA_CREDENTIALS, PATH_MODEL_CLAIM, PATH_MODEL_CREDENTIALS,
    PATH_STORE_CREDENTIALS, ROLE_COMPRESS,
};
use lithe::spec::ModelDeployment;

use crate::config::Config;
use crate::objects::{labels, meta, pod, uid};
use crate::plan::compress::{RETRIES, means};

/// The Job that works on `request`, for the reason `why`.
pub fn job(model: &ModelDeployment, request: &Digest, why: &str, config: &Config) -> Job {
    let mut metadata = meta(model, names::job(&model.name_any(), &uid(model), request));
    metadata.annotations = Some(
        [
            (ANNOTATION_REQUEST, request.to_string()),
            (ANNOTATION_MEANS, means(&model.spec).to_string()),
            (ANNOTATION_WHY, why.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
    );
    let mut pod_labels = labels(model);
    pod_labels.insert(LABEL_ROLE.into(), ROLE_COMPRESS.into());
    let deadline = model.spec.compression.as_ref().map(|compression| &compression.deadline);
    let seconds = deadline
        .and_then(|deadline| deadline.parse().ok())
        .and_then(|deadline| i64::try_from(deadline.as_secs()).ok())
        .unwrap_or(3600);
    let mut spec = pod_spec(model, config);
    spec.restart_policy = Some("Never".into());
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(RETRIES),
            active_deadline_seconds: Some(seconds.max(1)),
            pod_failure_policy: Some(failure_policy()),
            pod_replacement_policy: Some("Failed".into()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(pod_labels), ..Default::default() }),
                spec: Some(spec),
            },
            ..Default::default()
        }),
        status: None,
    }
}

/// Input that can never work ends the Job at once; a drained node does not count as a try.
fn failure_policy() -> PodFailurePolicy {
    PodFailurePolicy {
        rules: vec![
            PodFailurePolicyRule {
                action: "FailJob".into(),
                on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                    container_name: Some(CONTAINER_COMPRESS.into()),
                    operator: "In".into(),
                    values: vec![EXIT_REFUSED, EXIT_GATE_FAILED],
                }),
                on_pod_conditions: None,
            },
            PodFailurePolicyRule {
                action: "Ignore".into(),
                on_exit_codes: None,
                on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                    type_: "DisruptionTarget".into(),
                    status: Some("True".into()),
                }]),
            },
        ],
    }
}

fn pod_spec(model: &ModelDeployment, config: &Config) -> k8s_openapi::api::core::v1::PodSpec {
    let mut inputs = Inputs::default();
    inputs.arguments.push("compress".into());
    inputs.source(&Source {
        kind: "model",
        uri: &model.spec.model.uri,
        digest: model.spec.model.digest.as_ref(),
        secret: model.spec.model.credentials_secret.as_deref(),
        claim_path: PATH_MODEL_CLAIM,
        secret_path: PATH_MODEL_CREDENTIALS,
    });
    let compression = model.spec.compression.as_ref();
    if let Some(data) = compression.and_then(|compression| compression.data.as_ref()) {
        inputs.source(&Source {
            kind: "data",
            uri: &data.uri,
            digest: data.digest.as_ref(),
            secret: data.credentials_secret.as_deref(),
            claim_path: PATH_DATA_CLAIM,
            secret_path: PATH_DATA_CREDENTIALS,
        });
    }
    inputs.store(model, config);
    let (volume, mount) = pod::scratch("16Gi");
    inputs.volumes.push(volume);
    inputs.mounts.push(mount);
    let recipe = model.spec.recipe().unwrap_or_default();
    let mut container = pod::container(CONTAINER_COMPRESS, config, inputs.arguments);
    container.env = Some(vec![EnvVar {
        name: ENV_RECIPE.into(),
        value: Some(serde_json::to_string(&recipe).unwrap_or_default()),
        value_from: None,
    }]);
    container.volume_mounts = Some(inputs.mounts);
    let wanted = compression.and_then(|compression| compression.resources.as_ref());
    container.resources = Some(wanted.map_or_else(default_resources, ResourceRequirements::from));
    pod::spec(model, container, inputs.volumes)
}

fn default_resources() -> ResourceRequirements {
    let amounts = [("cpu", "500m"), ("memory", "512Mi")];
    let requests = amounts.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    ResourceRequirements { requests: Some(requests.into()), limits: None, claims: None }
}

struct Source<'a> {
    kind: &'a str,
    uri: &'a str,
    digest: Option<&'a Digest>,
    secret: Option<&'a str>,
    claim_path: &'a str,
    secret_path: &'a str,
}

/// Arguments and mounts, gathered source by source.
#[derive(Default)]
struct Inputs {
    arguments: Vec<String>,
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
}

impl Inputs {
    fn mounted(&mut self, (volume, mount): (Volume, VolumeMount)) {
        self.volumes.push(volume);
        self.mounts.push(mount);
    }

    fn source(&mut self, source: &Source<'_>) {
        let flag = |name: &str| format!("--{}{name}", source.kind);
        self.arguments.extend([flag(""), source.uri.to_owned()]);
        if let Some(digest) = source.digest {
            self.arguments.extend([flag("-digest"), digest.to_string()]);
        }
        if let Some(secret) = source.secret {
            let name = format!("{}-credentials", source.kind);
            self.mounted(pod::secret(&name, secret, source.secret_path));
            self.arguments.extend([flag("-credentials"), source.secret_path.to_owned()]);
        }
        if let Some(claim) = pod::claim_of(source.uri) {
            self.mounted(pod::claim(source.kind, claim, source.claim_path));
            self.arguments.extend([flag("-mount"), source.claim_path.to_owned()]);
        }
    }

    fn store(&mut self, model: &ModelDeployment, config: &Config) {
        let repository = format!("{}/{}", model.namespace().unwrap_or_default(), model.name_any());
        self.arguments.extend(["--store".into(), config.store.clone()]);
        self.arguments.extend(["--repository".into(), repository]);
        self.arguments.extend(["--termination-message".into(), "/dev/termination-log".into()]);
        if config.store_plain_http {
            self.arguments.push("--store-plain-http".into());
        }
        if config.allow_private_sources {
            self.arguments.push("--allow-private-sources".into());
        }
        if let Some(secret) = &config.store_credentials_secret {
            self.mounted(pod::secret("store-credentials", secret, PATH_STORE_CREDENTIALS));
            self.arguments.extend(["--store-credentials".into(), PATH_STORE_CREDENTIALS.into()]);
        }
    }
}
