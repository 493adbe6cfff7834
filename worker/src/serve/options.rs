//! The flags of `lithe-worker serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lithe::names::{PORT_ADMIN, PORT_GRPC, PORT_HTTP};

use super::load::Source;
use super::protocols::Served;
use super::queue::{Batching, Limits, OnTimeout, Policy};
use super::{Drain, Folders, Settings};

/// What is served, and how.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The ONNX file to serve.
    #[arg(long, value_name = "FILE", value_parser = crate::process::absolute, required_unless_present = "artifact")]
    pub model: Option<PathBuf>,
    /// The artifact to serve, by digest: oci://host/name@sha256:…, s3://bucket/prefix/sha256/….
    #[arg(long, value_name = "URI", conflicts_with = "model")]
    pub artifact: Option<String>,
    /// A folder with the store's credentials, one file per key.
    #[arg(long, value_name = "DIR", value_parser = crate::process::absolute)]
    pub store_credentials: Option<PathBuf>,
    /// Talk to an OCI store without TLS.
    #[arg(long)]
    pub store_plain_http: bool,
    /// The model's name in requests.
    #[arg(long, default_value = "model")]
    pub name: String,
    /// The protocols to speak: OpenInference, TensorFlowServing, KServeV1.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "OpenInference")]
    pub protocols: Vec<Served>,
    /// Address of the HTTP protocols.
    #[arg(long, value_name = "ADDRESS", default_value_t = local(PORT_HTTP))]
    pub http: SocketAddr,
    /// Address of the gRPC protocols.
    #[arg(long, value_name = "ADDRESS", default_value_t = local(PORT_GRPC))]
    pub grpc: SocketAddr,
    /// Address of /livez, /readyz, /metrics and /signals.
    #[arg(long, value_name = "ADDRESS", default_value_t = local(PORT_ADMIN))]
    pub admin: SocketAddr,
    /// A folder with tls.crt and tls.key: the protocols are spoken over TLS.
    #[arg(long, value_name = "DIR", value_parser = crate::process::absolute)]
    pub tls: Option<PathBuf>,
    /// A folder with ca.crt: only clients with a certificate of it are let in.
    #[arg(long, value_name = "DIR", value_parser = crate::process::absolute, requires = "tls")]
    pub tls_client_ca: Option<PathBuf>,
    /// A folder with bearer tokens, one in each file: requests need one of them.
    #[arg(long, value_name = "DIR", value_parser = crate::process::absolute)]
    pub tokens: Option<PathBuf>,
    /// Threads of one inference; what affinity and the cgroup's quota allow by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// The most bytes of one request, decompressed.
    #[arg(long, value_name = "N", default_value_t = 64 << 20)]
    pub max_request_bytes: usize,
    /// Requests that may wait for the model; more are refused at once.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_queue: usize,
    /// The most rows of one inference: requests that arrive together run as one. Without it each
    /// request runs alone.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_batch_size: Option<u32>,
    /// How long a request waits for company; by default as long as pays, by what inferences take.
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "max_batch_size")]
    pub max_queue_delay: Option<Duration>,
    /// Sizes in rows that run at once when the waiting requests make exactly one of them.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', requires = "max_batch_size")]
    pub preferred_batch_sizes: Vec<u32>,
    /// Priorities that requests may ask for, 1 the most urgent; when there is too much to do the
    /// least urgent are refused first. Requests without one are in the middle.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub priority_levels: u32,
    /// How long a request may wait for the model.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub queue_timeout: Option<Duration>,
    /// What happens to a request that waited for --queue-timeout.
    #[arg(long, value_enum, default_value_t = OnTimeout::Reject, requires = "queue_timeout")]
    pub on_queue_timeout: OnTimeout,
    /// The latency that requests should meet. What cannot be answered within twice that time is
    /// refused instead of computed.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub latency_target: Option<Duration>,
    /// The percentile of requests that should meet --latency-target; shown in the metrics.
    #[arg(long, value_name = "N", default_value_t = 95, value_parser = clap::value_parser!(u32).range(50..=99))]
    pub latency_percentile: u32,
    /// How long a connection lives, give or take a tenth, before its client is asked to connect
    /// anew: so clients find new pods where nothing balances requests.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_connection_age: Option<Duration>,
    /// How long a process that must go still takes requests.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,
    /// How long its last requests may take.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_deadline: Duration,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn duration(text: &str) -> Result<Duration, String> {
    lithe::units::Duration::from(text).parse().map_err(|error| error.to_string())
}

impl Options {
    /// Where to listen and how much to take.
    pub fn settings(&self) -> Settings {
        Settings {
            name: self.name.clone(),
            http: self.http,
            grpc: self.grpc,
            admin: self.admin,
            protocols: self.protocols.clone(),
            security: Folders {
                tls: self.tls.clone(),
                client_ca: self.tls_client_ca.clone(),
                tokens: self.tokens.clone(),
            },
            max_request_bytes: self.max_request_bytes,
            limits: Limits {
                requests: self.max_queue,
                // A few of the largest requests, or many small ones.
                bytes: self.max_request_bytes.saturating_mul(4),
            },
            policy: Policy {
                batching: self.batching(),
                levels: self.priority_levels as usize,
                timeout: self.queue_timeout,
                on_timeout: self.on_queue_timeout,
                target: self.latency_target,
            },
            connection_age: self.max_connection_age,
        }
    }

    /// How requests become one inference.
    pub fn batching(&self) -> Option<Batching> {
        Some(Batching {
            max: self.max_batch_size? as usize,
            delay: self.max_queue_delay,
            preferred: self.preferred_batch_sizes.iter().map(|size| *size as usize).collect(),
        })
    }

    /// Where the model comes from.
    pub fn source(&self) -> Source {
        match &self.artifact {
            Some(uri) => Source::Artifact {
                uri: uri.clone(),
                credentials: self.store_credentials.clone(),
                plain_http: self.store_plain_http,
            },
            None => Source::File(self.model.clone().unwrap_or_default()),
        }
    }

    /// Threads of one inference. The standard library asks the affinity mask and the CPU quota of
    /// cgroup v1 and v2, and rounds down: a thread more than the quota is a throttled one.
    pub fn threads(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(available).max(1)
    }

    /// How the server ends.
    pub fn drain(&self) -> Drain {
        Drain { delay: self.drain_delay, deadline: self.drain_deadline }
    }
}
