//! The operator for 50, 200 and 500 ModelDeployments: compression and pods are left out, so that
//! the operator alone is measured. Its peer in the table is KServe's manager v0.16, whose figures
//! were taken with the same shape of load on a machine of this size.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::cluster::{self, Cluster};
use crate::command::capture;
use crate::{images, progress};

const NAMESPACE: &str = "lithe-bench";
const ADMIN: &str = "127.0.0.1:18099";
const SIZES: [usize; 3] = [50, 200, 500];
/// The children of a model. The last to be made comes first, since the others need not be counted
/// before it is complete.
const KINDS: [Kind; 4] = [
    Kind { api: "apis/apps/v1", plural: "deployments", others: 0 },
    Kind { api: "api/v1", plural: "services", others: 0 },
    Kind { api: "apis/networking.k8s.io/v1", plural: "networkpolicies", others: 0 },
    // Every namespace has one of its own.
    Kind { api: "api/v1", plural: "serviceaccounts", others: 1 },
];
/// How many more are created while repairs are measured under load.
const LOAD: usize = 200;
const REPAIRS: usize = 9;
/// Nothing of this size takes longer, unless it is stuck.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures and prints.
pub fn bench(json: bool) -> Result<()> {
    let binary = images::binaries()?.join("lithe-operator");
    let found = cluster::embedded().is_ok_and(|cluster| cluster::healthy(&cluster));
    let cluster = cluster::up()?;
    let crd = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/modeldeployments.yaml");
    capture(cluster.kubectl()?.args(["apply", "--server-side", "-f", crd]))?;
    let result = SIZES.iter().try_for_each(|size| {
        let figures = measure(&cluster, &binary, *size);
        let _ = remove(&cluster);
        print(*size, &figures?, json);
        Ok(())
    });
    if !found {
        cluster::down()?;
    }
    result
}

struct Kind {
    api: &'static str,
    plural: &'static str,
    others: usize,
}

struct Figures {
    created: f64,
    complete: f64,
    processor: f64,
    memory: f64,
    requests: f64,
    restart: f64,
    restart_writes: f64,
    rest_requests: f64,
    repair: f64,
    repair_under_load: f64,
}

fn measure(cluster: &Cluster, binary: &std::path::Path, size: usize) -> Result<Figures> {
    let step = progress::step(&format!("{size} ModelDeployments"));
    let _ = remove(cluster);
    cluster
        .apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"))?;
    let mut operator = start(cluster, binary)?;
    let began = Instant::now();
    create(cluster, "model", size)?;
    let created = began.elapsed().as_secs_f64();
    until(|| Ok(KINDS.iter().all(|kind| count(cluster, kind).is_ok_and(|n| n >= size))))?;
    let complete = began.elapsed().as_secs_f64();
    settle()?;
    let (processor, memory) = usage(operator.id())?;
    let requests = scrape(|line| !line.contains("WATCH") && !line.contains("leases"))?;
    let rest = {
        let before = scrape(|line| !line.contains("WATCH") && !line.contains("leases"))?;
        wait(Duration::from_secs(10));
        scrape(|line| !line.contains("WATCH") && !line.contains("leases"))? - before
    };
    let repair = repairs(cluster)?;
    let repair_under_load = std::thread::scope(|scope| {
        let load = scope.spawn(|| create(cluster, "load", LOAD));
        // The first of them are there and keep the operator busy.
        until(|| Ok(count(cluster, &KINDS[0])? > size))?;
        let repair = repairs(cluster)?;
        load.join().unwrap_or_else(|_| bail!("the load was not created"))?;
        anyhow::Ok(repair)
    })?;
    until(|| Ok(KINDS.iter().all(|kind| count(cluster, kind).is_ok_and(|n| n >= size + LOAD))))?;
    settle()?;
    stop(&mut operator)?;
    let began = Instant::now();
    let mut operator = start(cluster, binary)?;
    let all = (size + LOAD) as f64;
    until(|| Ok(metric("lithe_reconciles_total", |_| true)? >= all))?;
    let restart = began.elapsed().as_secs_f64();
    let restart_writes = scrape(|line| {
        !line.contains("leases")
            && ["POST", "PUT", "PATCH", "DELETE"].iter().any(|v| line.contains(v))
    })?;
    stop(&mut operator)?;
    step.done();
    Ok(Figures {
        created,
        complete,
        processor,
        memory,
        requests: requests / size as f64,
        restart,
        restart_writes,
        rest_requests: rest,
        repair,
        repair_under_load,
    })
}

fn print(size: usize, figures: &Figures, json: bool) {
    let Figures { complete, processor, memory, requests, restart, .. } = figures;
    if json {
        println!(
            "{}",
            json!({
                "bench": "operator", "models": size, "created_seconds": figures.created,
                "complete_seconds": complete,
                "cpu_seconds": processor, "memory_mib": memory,
                "requests_per_model": requests, "restart_seconds": restart,
                "restart_writes": figures.restart_writes, "requests_at_rest": figures.rest_requests,
                "repair_ms": figures.repair * 1e3,
                "repair_under_load_ms": figures.repair_under_load * 1e3,
            })
        );
        return;
    }
    println!(
        "{size:>4} models: created by kubectl after {:.1} s, complete {complete:.1} s, {processor:.2} CPU s, {memory:.0} MiB, \
         {requests:.2} requests each, restart {restart:.1} s with {} writes, {} requests in 10 s \
         at rest, repair {:.0} ms ({:.0} ms while {LOAD} are created)",
        figures.created,
        figures.restart_writes,
        figures.rest_requests,
        figures.repair * 1e3,
        figures.repair_under_load * 1e3,
    );
    if size == 500 {
        println!(
            "      limits: 20 s, 4 CPU s, 64 MiB, 8 requests, 5 s with 0 writes, 0 at rest, 50 ms\n\
             \x20     KServe manager v0.16: 112 s, 9 CPU s, 112 MiB, 22 requests, 99 s with 500 PUTs, \
             20 ms (20 s while 100 wait)"
        );
    }
}

fn start(cluster: &Cluster, binary: &std::path::Path) -> Result<Child> {
    let mut child = Command::new(binary)
        .env("KUBECONFIG", &cluster.kubeconfig)
        .args(["--namespace", NAMESPACE, "--lease-namespace", NAMESPACE, "--listen", ADMIN])
        .args(["--store", "oci://registry.invalid/lithe", "--worker-image", "none"])
        .args(["--bench-skip-compression", "--network-policy"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the operator")?;
    let output = child.stdout.take().context("the operator's output")?;
    let mut lines = BufReader::new(output).lines();
    for line in lines.by_ref() {
        if line?.contains("\"leads\":true") {
            // The pipe must be read to its end, or the operator would wait for us.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(child);
        }
    }
    bail!("the operator ended before it led")
}

fn stop(child: &mut Child) -> Result<()> {
    crate::process::signal(child.id(), nix::sys::signal::Signal::SIGTERM);
    child.wait()?;
    Ok(())
}

fn create(cluster: &Cluster, name: &str, size: usize) -> Result<()> {
    let documents: Vec<String> = (0..size)
        .map(|index| {
            json!({
                "apiVersion": "lithe.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": {"name": format!("{name}-{index}"), "namespace": NAMESPACE},
                "spec": {"model": {"uri": "pvc://models/a.onnx"}},
            })
            .to_string()
        })
        .collect();
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(documents.join("\n---\n").as_bytes())?;
    capture(cluster.kubectl()?.args(["create", "-f"]).arg(file.path()))?;
    Ok(())
}

/// How many objects of `kind` there are, from a list of one: what watches must not load what it
/// measures.
fn count(cluster: &Cluster, kind: &Kind) -> Result<usize> {
    let path = format!("/{}/namespaces/{NAMESPACE}/{}?limit=1", kind.api, kind.plural);
    let list: Value =
        serde_json::from_str(&capture(cluster.kubectl()?.args(["get", "--raw", &path]))?)?;
    let shown = list.get("items").and_then(Value::as_array).map_or(0, Vec::len);
    let rest = list.pointer("/metadata/remainingItemCount").and_then(Value::as_u64).unwrap_or(0);
    Ok((shown + rest as usize).saturating_sub(kind.others))
}

/// The median of the times in which [`REPAIRS`] deleted Deployments came back, in seconds.
fn repairs(cluster: &Cluster) -> Result<f64> {
    let mut times = (0..REPAIRS).map(|index| repair(cluster, index)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    times.get(REPAIRS / 2).copied().context("no repair was measured")
}

/// Deletes the Deployment of model `index` and waits for another UID under its name; in seconds.
fn repair(cluster: &Cluster, index: usize) -> Result<f64> {
    let get = |what: &str| -> Result<String> {
        let path = format!("jsonpath={{.items[0].metadata.{what}}}");
        let ours = format!("lithe.dev/model=model-{index}");
        capture(cluster.kubectl()?.args([
            "get",
            "deployments",
            "-n",
            NAMESPACE,
            "-l",
            &ours,
            "-o",
            &path,
        ]))
    };
    let name = get("name")?;
    let mut watch = cluster
        .kubectl()?
        .args(["get", "deployment", &name, "-n", NAMESPACE, "--watch", "--output-watch-events"])
        .args(["-o", "jsonpath={.type} {.object.metadata.uid}{\"\\n\"}"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = watch.stdout.take().context("the watch's output")?;
    let mut lines = BufReader::new(output).lines();
    lines.next().context("the watch ended")??;
    capture(cluster.kubectl()?.args([
        "delete",
        "deployment",
        &name,
        "-n",
        NAMESPACE,
        "--wait=false",
    ]))?;
    let mut deleted = None;
    let mut taken = None;
    for line in lines {
        let line = line?;
        match (line.split(' ').next(), deleted) {
            (Some("DELETED"), _) => deleted = Some(Instant::now()),
            (Some("ADDED"), Some(at)) => {
                taken = Some(Instant::now().duration_since(at).as_secs_f64());
                break;
            }
            _ => {}
        }
    }
    watch.kill()?;
    watch.wait()?;
    taken.context("the Deployment did not come back")
}

fn remove(cluster: &Cluster) -> Result<()> {
    capture(cluster.kubectl()?.args([
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout=240s",
    ]))?;
    Ok(())
}

/// (processor seconds, peak resident MiB) of the process `pid`.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("read the operator's times")?;
    let ticks: f64 = rest.split(' ').skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    // The kernel counts in hundredths of a second on every platform we run on.
    Ok((ticks / 100.0, kilobytes.context("read the operator's memory")? / 1024.0))
}

fn scrape(wanted: impl Fn(&str) -> bool) -> Result<f64> {
    metric("lithe_api_requests_total", wanted)
}

fn metric(name: &str, wanted: impl Fn(&str) -> bool) -> Result<f64> {
    let mut stream = std::net::TcpStream::connect(ADMIN)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let lines = text.lines().filter(|line| line.starts_with(name) && wanted(line));
    Ok(lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |all, one| all + one))
}

/// Waits until the operator makes no requests for two seconds.
fn settle() -> Result<()> {
    let mut last = -1.0;
    until(|| {
        let now = scrape(|line| !line.contains("WATCH") && !line.contains("leases"))?;
        let same = now == last;
        last = now;
        if !same {
            wait(Duration::from_secs(2));
        }
        Ok(same)
    })
}

fn until(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("not done within {LIMIT:?}");
        }
        wait(Duration::from_millis(100));
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // what is measured here is other processes
fn wait(time: Duration) {
    std::thread::sleep(time);
}
