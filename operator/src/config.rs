//! What the operator is told at its start, by flags or environment.

use clap::Parser;

/// Turns ModelDeployments into compression Jobs and serving Deployments.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Namespaces to watch; all of them without this flag.
    #[arg(long = "namespace", env = "LITHE_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Where artifacts are kept: oci://host:port/prefix, s3://bucket/prefix, gs://, az://.
    #[arg(long, env = "LITHE_STORE")]
    pub store: String,
    /// Talk to an OCI store without TLS.
    #[arg(long, env = "LITHE_STORE_PLAIN_HTTP")]
    pub store_plain_http: bool,
    /// A Secret, in each namespace of a ModelDeployment, with the store's credentials.
    #[arg(long, env = "LITHE_STORE_CREDENTIALS_SECRET")]
    pub store_credentials_secret: Option<String>,
    /// The image of the worker.
    #[arg(long, env = "LITHE_WORKER_IMAGE")]
    pub worker_image: String,
    /// When the worker's image is pulled.
    #[arg(long, env = "LITHE_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// The Service of the gateway that this installation has; without one there is no gateway.
    #[arg(long, env = "LITHE_GATEWAY_SERVICE")]
    pub gateway_service: Option<String>,
    /// The namespace of the gateway.
    #[arg(long, env = "LITHE_GATEWAY_NAMESPACE", default_value = "lithe-system")]
    pub gateway_namespace: String,
    /// Let pods talk only to what they need.
    #[arg(long, env = "LITHE_NETWORK_POLICY")]
    pub network_policy: bool,
    /// Let Jobs fetch https sources from private addresses.
    #[arg(long, env = "LITHE_ALLOW_PRIVATE_SOURCES")]
    pub allow_private_sources: bool,
    /// The namespace of the leader's Lease.
    #[arg(long, env = "LITHE_LEASE_NAMESPACE", default_value = "lithe-system")]
    pub lease_namespace: String,
    /// The name of the leader's Lease.
    #[arg(long, env = "LITHE_LEASE_NAME", default_value = "lithe-operator")]
    pub lease_name: String,
    /// Who this process is among those that may lead; the host's name, which in a pod is the pod's.
    #[arg(long, env = "LITHE_IDENTITY", default_value_t = host())]
    pub identity: String,
    /// Objects that are worked on at the same time. More would not be faster: they would wait in the
    /// API server, and a repair behind them.
    #[arg(long, env = "LITHE_CONCURRENCY", default_value_t = 6)]
    pub concurrency: usize,
    /// Address of /metrics, /livez and /readyz.
    #[arg(long, env = "LITHE_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: std::net::SocketAddr,
    /// Send traces to this OTLP/gRPC endpoint.
    #[arg(long, env = "LITHE_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// What is logged, such as `info` or `lithe_operator=debug`.
    #[arg(long, env = "LITHE_LOG", default_value = "info")]
    pub log: String,
    /// For benchmarks: act as if every artifact existed, and run no pods.
    #[arg(long, hide = true)]
    pub bench_skip_compression: bool,
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "lithe-operator".to_owned() } else { name.to_owned() }
}
