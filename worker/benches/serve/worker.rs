//! The measured process: started on free ports, stopped at the end, its processor time and memory
//! read from /proc.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::client::Protocol;

/// A `lithe-worker serve` that is ready.
pub struct Worker {
    child: Child,
    http: SocketAddr,
    grpc: SocketAddr,
}

impl Worker {
    /// Starts `binary` on `model` with `flags`, and waits until it is ready.
    pub fn start(binary: &Path, model: &Path, flags: &[String]) -> Result<Self> {
        let any = "127.0.0.1:0";
        let mut child = Command::new(binary)
            .args(["serve", "--name", "m", "--http", any, "--grpc", any, "--admin", any])
            .arg("--model")
            .arg(model)
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the worker")?;
        let output = BufReader::new(child.stderr.take().context("the worker's output")?);
        let mut ports = None;
        let mut said = String::new();
        for line in output.lines() {
            said = line?;
            let Ok(line) = serde_json::from_str::<Value>(&said) else { continue };
            let address = |name: &str| line.get(name).and_then(Value::as_str)?.parse().ok();
            ports = ports.or(address("http").zip(address("grpc")));
            if line.get("message").and_then(Value::as_str) == Some("ready") {
                let (http, grpc) = ports.context("the worker does not tell its ports")?;
                return Ok(Self { child, http, grpc });
            }
        }
        child.wait()?;
        anyhow::bail!("the worker ended before it was ready: {said}")
    }

    /// Where it speaks `protocol`.
    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Grpc => self.grpc,
            Protocol::Rest => self.http,
        }
    }

    /// Seconds of processor time so far.
    pub fn cpu(&self) -> Result<f64> {
        cpu(&self.child.id().to_string())
    }

    /// Its memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        rss(&self.child.id().to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time of the process `id`, or `self`.
pub fn cpu(id: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    // The kernel counts in hundredths towards user space, whatever its own tick.
    Ok(ticks.sum::<f64>() / 100.0)
}

/// Bytes of memory of the process `id`, or `self`.
pub fn rss(id: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}
