//! What everything is called: labels, ports, paths, environment, exit reasons, child objects.
//!
//! Every reader and writer of a name takes it from here.

use crate::Digest;

/// The API group.
pub const GROUP: &str = "lithe.dev";
/// The field manager of every write to a child.
pub const FIELD_MANAGER: &str = "lithe-operator";
/// The field manager of every write to a status.
pub const STATUS_MANAGER: &str = "lithe-operator-status";

/// The label that every child carries: `lithe`.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "lithe";
/// The label with the ModelDeployment's name (shortened with a hash when over 63 characters).
pub const LABEL_MODEL: &str = "lithe.dev/model";
/// The label with the ModelDeployment's UID, by which a child is found again without its owner reference.
pub const LABEL_UID: &str = "lithe.dev/uid";
/// The label with what a pod does: [`ROLE_SERVE`] or [`ROLE_COMPRESS`].
pub const LABEL_ROLE: &str = "lithe.dev/role";
/// The role of a serving pod.
pub const ROLE_SERVE: &str = "serve";
/// The role of a compression pod.
pub const ROLE_COMPRESS: &str = "compress";
/// The role that a Service selects while its requests go through the gateway. No pod has it: the
/// cluster's own endpoints become empty, and those that the operator writes are all there are.
pub const ROLE_GATEWAY: &str = "gateway";
/// The label of an EndpointSlice with the Service it belongs to.
pub const LABEL_SERVICE: &str = "kubernetes.io/service-name";
/// The label of an EndpointSlice with who keeps it.
pub const LABEL_SLICE_KEEPER: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`LABEL_SLICE_KEEPER`] on ours.
pub const SLICE_KEEPER: &str = "lithe.dev";
/// The role of the headless Service of a model's workers, and so of its EndpointSlices: what the
/// gateway watches. The Service that clients use must not carry it.
pub const ROLE_WORKERS: &str = "workers";
/// The label of a headless Service, and so of its EndpointSlices, with what its workers serve.
pub const LABEL_REVISION: &str = "lithe.dev/revision";

/// The annotation with the digest of the object as the operator last wrote it.
pub const ANNOTATION_APPLIED: &str = "lithe.dev/applied";
/// The annotation of a Job with the request it works on, and of a Deployment with the request it serves.
pub const ANNOTATION_REQUEST: &str = "lithe.dev/request";
/// The annotation of a Deployment with the served artifact, so that a lost status can be rebuilt.
pub const ANNOTATION_ARTIFACT: &str = "lithe.dev/artifact";
/// The annotation of a Job with what it may use (credentials, resources, time, nodes) as a digest:
/// a Job that failed with other means than the spec now gives is tried again.
pub const ANNOTATION_MEANS: &str = "lithe.dev/means";
/// The annotation of a Job with why it was started, for people.
pub const ANNOTATION_WHY: &str = "lithe.dev/why";
/// The annotation of a serving pod with the digest it serves.
pub const ANNOTATION_DIGEST: &str = "lithe.dev/digest";

/// The container that compresses.
pub const CONTAINER_COMPRESS: &str = "compress";
/// The container that serves.
pub const CONTAINER_SERVE: &str = "serve";

/// OIP v2, KServe v1 and TensorFlow Serving over HTTP.
pub const PORT_HTTP: u16 = 8080;
/// OIP v2 and TensorFlow Serving over gRPC.
pub const PORT_GRPC: u16 = 8081;
/// `/metrics`, `/livez`, `/readyz`.
pub const PORT_ADMIN: u16 = 9090;
/// The gateway's `/metrics`, `/livez`, `/readyz`, `/configuration`, `/demand` and `/signals`.
pub const PORT_GATEWAY_ADMIN: u16 = 9091;

/// The ports of a gateway pod that are given to models, two to each: the even one for HTTP, the next
/// for gRPC. Below the ports that kernels give to outgoing connections.
pub const GATEWAY_PORTS: std::ops::Range<u16> = 20000..30000;

/// Where a pod mounts the model's `pvc://` claim, read only.
pub const PATH_MODEL_CLAIM: &str = "/mnt/model";
/// Where a pod mounts the data's `pvc://` claim, read only.
pub const PATH_DATA_CLAIM: &str = "/mnt/data";
/// Where a pod mounts the model's credentials, one file per key.
pub const PATH_MODEL_CREDENTIALS: &str = "/etc/lithe/model-credentials";
/// Where a pod mounts the data's credentials, one file per key.
pub const PATH_DATA_CREDENTIALS: &str = "/etc/lithe/data-credentials";
/// Where a pod mounts the artifact store's credentials, one file per key.
pub const PATH_STORE_CREDENTIALS: &str = "/etc/lithe/store-credentials";
/// Where a pod mounts its TLS identity: `tls.crt`, `tls.key`.
pub const PATH_TLS: &str = "/etc/lithe/tls";
/// Where a pod mounts the authority of its clients: `ca.crt`.
pub const PATH_TLS_CLIENT_CA: &str = "/etc/lithe/tls-client-ca";
/// Where a pod mounts the tokens of its clients, one file per token.
pub const PATH_TOKENS: &str = "/etc/lithe/tokens";
/// The only place where a pod may write.
pub const PATH_SCRATCH: &str = "/tmp";

/// Where a compression Job reads its recipe: the JSON of a [`crate::recipe::Recipe`].
pub const ENV_RECIPE: &str = "LITHE_RECIPE";

/// Reasons of conditions and refusals. One list for operator and worker.
pub mod reason {
    macro_rules! reasons {
        ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
            $($(#[$doc])* pub const $name: &str = $text;)*

            /// The constant that reads `text`, so that reasons stay one bounded list.
            pub fn known(text: &str) -> Option<&'static str> {
                match text {
                    $($text => Some($text),)*
                    _ => None,
                }
            }
        };
    }
    reasons! {
        /// Everything the condition asks is so.
        READY = "Ready";
        /// The spec was accepted.
        ACCEPTED = "Accepted";
        /// The running version cannot do what a field asks.
        UNSUPPORTED = "Unsupported";
        /// A field's value cannot be right.
        INVALID = "Invalid";
        /// Work has not ended yet.
        IN_PROGRESS = "InProgress";
        /// Waiting for an earlier stage.
        WAITING = "Waiting";
        /// The source passed every check.
        VERIFIED = "Verified";
        /// An artifact passed its gates.
        COMPRESSED = "Compressed";
        /// There is nothing to compress; the verified original is served.
        NOT_REQUESTED = "NotRequested";
        /// The gates failed and `onFailure: ServeOriginal` took the original.
        SERVING_ORIGINAL = "ServingOriginal";
        /// A gate failed.
        GATE_FAILED = "GateFailed";
        /// The bytes have another digest than the spec says.
        DIGEST_MISMATCH = "DigestMismatch";
        /// The source does not exist.
        SOURCE_NOT_FOUND = "SourceNotFound";
        /// The source refused our credentials, or none were given.
        SOURCE_AUTH_FAILED = "SourceAuthFailed";
        /// The source did not answer.
        SOURCE_UNAVAILABLE = "SourceUnavailable";
        /// The source's address is not allowed.
        SOURCE_FORBIDDEN = "SourceForbidden";
        /// A Secret, or a key in it, is missing.
        SECRET_MISSING = "SecretMissing";
        /// A PersistentVolumeClaim is missing or not bound.
        VOLUME_MISSING = "VolumeMissing";
        /// The bytes are no readable ONNX model.
        CORRUPT = "Corrupt";
        /// The file is a model of another format.
        UNSUPPORTED_FORMAT = "UnsupportedFormat";
        /// The model uses an operator or opset that is not allowed or not known.
        FORBIDDEN_OP = "ForbiddenOp";
        /// External data leads out of the model's directory.
        EXTERNAL_DATA_PATH = "ExternalDataPath";
        /// External data is no regular file.
        EXTERNAL_DATA_NOT_REGULAR = "ExternalDataNotRegular";
        /// External data lies outside its file.
        EXTERNAL_DATA_RANGE = "ExternalDataRange";
        /// External data has a key that is not known.
        EXTERNAL_DATA_KEY = "ExternalDataKey";
        /// A tensor's shape and its bytes do not agree.
        TENSOR_SIZE = "TensorSize";
        /// The model asks for more nodes, tensors, depth or bytes than allowed.
        RESOURCE_BUDGET = "ResourceBudget";
        /// The graph, or its functions, contain a cycle or are nested too deep.
        CYCLE = "Cycle";
        /// The runtime could not load the model.
        RUNTIME_REFUSED = "RuntimeRefused";
        /// The runtime crashed on the model.
        RUNTIME_CRASH = "RuntimeCrash";
        /// A weight is NaN or infinite.
        NOT_FINITE = "NotFinite";
        /// The recipe is wrong, or matches nothing.
        RECIPE_INVALID = "RecipeInvalid";
        /// The evaluation data does not fit the model.
        DATA_INVALID = "DataInvalid";
        /// There is no space left for the work or in the store.
        NO_SPACE = "NoSpace";
        /// The artifact store did not answer or refused.
        STORE_UNAVAILABLE = "StoreUnavailable";
        /// The kernel killed the process for its memory.
        OOM_KILLED = "OOMKilled";
        /// The Job took longer than it may.
        DEADLINE_EXCEEDED = "DeadlineExceeded";
        /// The image cannot be pulled.
        IMAGE_PULL_FAILED = "ImagePullFailed";
        /// No node can take the pod.
        UNSCHEDULABLE = "Unschedulable";
        /// No accelerator is free for one pod more.
        INSUFFICIENT_ACCELERATORS = "InsufficientAccelerators";
        /// A container ends again and again.
        CRASH_LOOP = "CrashLoop";
        /// The container's configuration cannot be used (a missing Secret key, for example).
        CONFIG_ERROR = "ContainerConfigError";
        /// A container ended with an error.
        FAILED = "Failed";
        /// An object of the child's name belongs to somebody else.
        NAME_CONFLICT = "NameConflict";
        /// The API server refused a write.
        WRITE_REFUSED = "WriteRefused";
        /// The namespace's quota is used up.
        QUOTA_EXCEEDED = "QuotaExceeded";
        /// No pod is ready.
        NO_READY_PODS = "NoReadyPods";
        /// Enough pods are ready.
        MINIMUM_REPLICAS = "MinimumReplicasAvailable";
        /// The rollout ended.
        ROLLED_OUT = "RolledOut";
        /// Nothing was asked to scale.
        FIXED = "Fixed";
        /// Somebody else sets the number of replicas.
        EXTERNAL = "External";
        /// Nothing was measured yet: the number of pods stays.
        HOLDING = "Holding";
        /// No request came for long: no pod runs, and the next request starts one.
        SCALED_TO_ZERO = "ScaledToZero";
    }
}

/// The longest name that a label value, and so a child, may have.
pub const MAX_NAME: usize = 63;

/// `owner` as a label value: as it is when it fits, else shortened with a hash.
pub fn label_value(owner: &str) -> String {
    if owner.len() <= MAX_NAME { owner.to_owned() } else { tailed(owner, owner, "") }
}

/// The name of a child of the ModelDeployment `owner` with `uid`: the owner's name, `suffix`, and a
/// hash of the UID, so that two generations of one name never share a child.
///
/// At most 63 characters whatever the owner's name.
pub fn child(owner: &str, uid: &str, suffix: &str) -> String {
    tailed(owner, uid, suffix)
}

/// The name of the Service of `owner`. It is the address that clients write down, so it is the
/// plain name wherever that is a DNS label.
pub fn service(owner: &str, uid: &str) -> String {
    let label = owner.len() <= MAX_NAME
        && owner.starts_with(|c: char| c.is_ascii_lowercase())
        && !owner.contains('.');
    if label { owner.to_owned() } else { tailed(owner, uid, "") }
}

/// The name of the headless Service with the addresses of the pods of `owner`.
pub fn workers(owner: &str, uid: &str) -> String {
    child(owner, uid, "-workers")
}

/// The name of the compression Job of `owner` for `request`.
pub fn job(owner: &str, uid: &str, request: &Digest) -> String {
    child(owner, uid, &format!("-{}", request.hex().get(..8).unwrap_or_default()))
}

fn tailed(owner: &str, hashed: &str, suffix: &str) -> String {
    let hash = Digest::of(hashed);
    let tail = format!("{suffix}-{}", hash.hex().get(..8).unwrap_or_default());
    // A DNS label has no dots and begins with a letter.
    let mut name: String = owner.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert(0, 'm');
    }
    name.truncate(MAX_NAME.saturating_sub(tail.len()));
    format!("{}{tail}", name.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_only_after_the_cut_stay_apart() {
        let one = child(&format!("{}a", "x".repeat(250)), "uid-1", "-serve");
        let two = child(&format!("{}b", "x".repeat(250)), "uid-2", "-serve");
        assert!(one.len() <= MAX_NAME && two.len() <= MAX_NAME);
        assert_ne!(one, two);
    }

    #[test]
    fn a_recreated_owner_gets_children_of_other_names() {
        assert_ne!(child("magika", "uid-1", ""), child("magika", "uid-2", ""));
    }

    #[test]
    fn a_service_is_a_dns_label_and_the_plain_name_where_it_can_be() {
        assert_eq!(service("magika", "u"), "magika");
        for odd in ["1model", "a.b", &"y".repeat(64)] {
            let name = service(odd, "u");
            assert!(name.len() <= MAX_NAME && !name.contains('.'), "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
        }
    }
}
