//! The flags of `lithe-gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use lithe::names::PORT_GATEWAY_ADMIN;

/// Takes requests for every model and gives each to the least loaded worker.
#[derive(Parser, Clone, Debug)]
#[command(name = "lithe-gateway", version)]
pub struct Options {
    /// Namespaces to watch; all of them without this flag.
    #[arg(long = "namespace", env = "LITHE_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Serve what this JSON file says (lithe::gateway::Configuration), without a cluster.
    #[arg(long = "static", value_name = "FILE", conflicts_with = "namespaces")]
    pub file: Option<PathBuf>,
    /// The address on which the models' ports are opened.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub address: std::net::IpAddr,
    /// Address of /metrics, /livez, /readyz, /configuration, /demand and /signals.
    #[arg(long, env = "LITHE_LISTEN", value_name = "ADDRESS", default_value_t = admin())]
    pub admin: SocketAddr,
    /// What one model may use.
    #[command(flatten)]
    pub limits: Limits,
    /// How long a process that must go still takes requests: endpoints need that long to spread.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,
    /// How long its last requests may take.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_deadline: Duration,
    /// What is logged, such as `info` or `lithe_gateway=debug`.
    #[arg(long, env = "LITHE_LOG", default_value = "info")]
    pub log: String,
}

/// What one model may use.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Limits {
    /// How long a request without a deadline waits for a first worker.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub hold: Duration,
    /// Requests of one model that may wait for a first worker; more are refused at once.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub held_requests: usize,
    /// Bytes of those: what was declared, or the 256 KiB that a client may send unasked.
    #[arg(long, value_name = "N", default_value_t = 256 << 20)]
    pub held_bytes: u64,
    /// Requests of one model that may be under way, open streams included.
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(60),
            held_requests: 1024,
            held_bytes: 256 << 20,
            requests: 16_384,
        }
    }
}

fn admin() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], PORT_GATEWAY_ADMIN))
}

fn duration(text: &str) -> Result<Duration, String> {
    lithe::units::Duration::from(text).parse().map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_defaults_are_the_librarys() {
        let options = Options::parse_from(["lithe-gateway"]);
        assert_eq!(format!("{:?}", options.limits), format!("{:?}", Limits::default()));
    }
}
