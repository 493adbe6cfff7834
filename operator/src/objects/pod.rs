//! What the pods of both roles have in common: no rights, no root, one place to write.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, SeccompProfile,
    SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use lithe::names::PATH_SCRATCH;
use lithe::spec::ModelDeployment;

use crate::config::Config;
use crate::objects::child_name;

/// The user and group of every process: above 10000, so that it is nobody's on any node.
const USER: i64 = 65532;

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }
}

/// A pod of `model` around `container`, under the `restricted` profile.
pub fn spec(model: &ModelDeployment, container: Container, volumes: Vec<Volume>) -> PodSpec {
    PodSpec {
        service_account_name: Some(child_name(model, "")),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(runtime_default()),
            ..Default::default()
        }),
        node_selector: {
            let labels = &model.spec.placement.node_selector;
            (!labels.is_empty()).then(|| labels.clone())
        },
        tolerations: {
            let tolerations = &model.spec.placement.tolerations;
            (!tolerations.is_empty()).then(|| tolerations.clone())
        },
        containers: vec![container],
        volumes: Some(volumes),
        ..Default::default()
    }
}

/// The container `name` of the worker's image with `arguments`.
pub fn container(name: &str, config: &Config, arguments: Vec<String>) -> Container {
    Container {
        name: name.into(),
        image: Some(config.worker_image.clone()),
        image_pull_policy: Some(config.image_pull_policy.clone()),
        args: Some(arguments),
        termination_message_path: Some("/dev/termination-log".into()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            seccomp_profile: Some(runtime_default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A named port.
pub fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: i32::from(port),
        protocol: Some("TCP".into()),
        ..Default::default()
    }
}

/// The only writable folder, of at most `size`.
pub fn scratch(size: &str) -> (Volume, VolumeMount) {
    let source = EmptyDirVolumeSource { size_limit: Some(Quantity(size.into())), medium: None };
    let volume = Volume { name: "scratch".into(), empty_dir: Some(source), ..Default::default() };
    (volume, mount("scratch", PATH_SCRATCH, false))
}

/// The Secret `secret` as files under `path`.
pub fn secret(name: &str, secret: &str, path: &str) -> (Volume, VolumeMount) {
    let source = SecretVolumeSource {
        secret_name: Some(secret.into()),
        default_mode: Some(0o440),
        ..Default::default()
    };
    let volume = Volume { name: name.into(), secret: Some(source), ..Default::default() };
    (volume, mount(name, path, true))
}

/// The claim `claim`, read only, under `path`.
pub fn claim(name: &str, claim: &str, path: &str) -> (Volume, VolumeMount) {
    let source =
        PersistentVolumeClaimVolumeSource { claim_name: claim.into(), read_only: Some(true) };
    let volume =
        Volume { name: name.into(), persistent_volume_claim: Some(source), ..Default::default() };
    (volume, mount(name, path, true))
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

/// The claim of a `pvc://claim/path` address.
pub fn claim_of(uri: &str) -> Option<&str> {
    uri.strip_prefix("pvc://").and_then(|rest| rest.split('/').next())
}
