//! The gateway as a process: two of them, one killed; the admin port.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use lithe::gateway::{Acknowledgement, Configuration, Demand, ModelSignals, WorkerState};
use support::{Client, FakeWorker, Manner, model};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Process {
    child: Child,
    grpc: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start(workers: Vec<lithe::gateway::Worker>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = model(workers);
        let grpc = SocketAddr::from(([127, 0, 0, 1], model.grpc_port));
        let file = folder.path().join("gateway.json");
        let configuration = Configuration { models: vec![model] };
        std::fs::write(&file, serde_json::to_vec(&configuration).unwrap()).unwrap();
        let admin = SocketAddr::from(([127, 0, 0, 1], support::ports().0));
        let child = Command::new(env!("CARGO_BIN_EXE_lithe-gateway"))
            .args(["--static", file.to_str().unwrap(), "--admin", &admin.to_string()])
            .args(["--address", "127.0.0.1", "--drain-delay", "0ms"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, grpc, admin, _folder: folder };
        let ready = async {
            while process.get("/readyz").await.is_none_or(|answer| answer.0 != 200) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), ready).await.unwrap();
        process
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut socket = tokio::net::TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).await.ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_gateways_is_killed_and_one_retry_of_the_client_answers_everything() {
    let worker = FakeWorker::start(Manner::Echo).await;
    let told = || vec![worker.told(WorkerState::Ready)];
    let (mut one, other) = (Process::start(told()).await, Process::start(told()).await);
    let gateways = [one.grpc, other.grpc];
    let count = 600_u64;
    let third = std::sync::Arc::new(tokio::sync::Notify::new());
    let reached = third.clone();
    let client = tokio::spawn(async move {
        let mut clients = Vec::new();
        for gateway in gateways {
            clients.push(Client::connect(gateway).await.unwrap());
        }
        let mut retries = 0;
        for n in 0..count {
            if n == count / 3 {
                reached.notify_one();
            }
            let turn = (n % 2) as usize;
            let first = clients[turn].grpc("x").await;
            if first.as_ref().is_ok_and(|answer| answer.grpc() == Some("0")) {
                continue;
            }
            retries += 1;
            let second = clients[1 - turn].grpc("x").await.unwrap();
            assert_eq!(second.grpc(), Some("0"), "request {n} failed twice");
        }
        retries
    });
    third.notified().await;
    one.child.kill().unwrap();
    let retries = client.await.unwrap();
    assert!(retries > 0, "the kill came too late to be seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_acknowledges_counts_and_wakes_at_once() {
    let process = Process::start(Vec::new()).await;
    let (_, text) = process.get("/configuration").await.unwrap();
    let applied: Acknowledgement = serde_json::from_str(&text).unwrap();
    assert!(applied.models[0].listening && applied.models[0].generation == 1, "{text}");
    assert_eq!(process.get("/demand?after=x").await.unwrap().0, 400);
    let client = Client::connect(process.grpc).await.unwrap();
    let waits = tokio::spawn(async move { client.grpc("x").await });
    // Asked before or after the request came, the answer is the same.
    let (_, text) = process.get("/demand?after=0").await.unwrap();
    let demand: Demand = serde_json::from_str(&text).unwrap();
    assert_eq!((demand.sequence, demand.waiting[0].uid.as_str()), (1, "u"), "{text}");
    let (_, text) = process.get("/signals").await.unwrap();
    let signals: Vec<ModelSignals> = serde_json::from_str(&text).unwrap();
    assert_eq!(signals[0].signals.queued, 1, "{text}");
    let (_, text) = process.get("/metrics").await.unwrap();
    assert!(text.contains("lithe_gateway_held_requests{namespace=\"n\",model=\"m\"} 1"), "{text}");
    assert_eq!(process.get("/livez").await.unwrap().0, 200);
    waits.abort();
}

#[test]
fn a_file_that_is_no_configuration_ends_the_process_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.json");
    std::fs::write(&file, r#"{"models": [{"uid": "u", "prots": 1}]}"#).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lithe-gateway"))
        .args(["--static", file.to_str().unwrap(), "--admin", "127.0.0.1:0"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("wrong.json") && told.contains("prots"),
        "{told}"
    );
}
