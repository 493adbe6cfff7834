//! The gateway: what it adds to a request, how many it carries for a core, its memory with many open
//! streams; beside a direct connection and beside nginx when this machine has it, in turns.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lithe::gateway::{Configuration, Model, Worker, WorkerState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::images;

/// A process that ends with us.
struct Process(Child, Signal);

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(process) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(process), self.1);
        }
        let _ = self.0.wait();
    }
}

/// Measures and prints.
pub fn bench(json: bool) -> Result<()> {
    let release = images::release(&["lithe-gateway"], &["load"])?;
    let load = release.join("examples/load");
    let folder = tempfile::tempdir()?;
    let [worker, http, grpc, admin, peer] = ports()?;
    let _worker = start(Command::new(&load).args(["worker", &format!("127.0.0.1:{worker}")]))?;
    let file = folder.path().join("gateway.json");
    std::fs::write(&file, serde_json::to_vec(&configuration(worker, http, grpc))?)?;
    let gateway = start(
        Command::new(release.join("lithe-gateway"))
            .args(["--static".as_ref(), file.as_os_str()])
            .args(["--address", "127.0.0.1", "--admin", &format!("127.0.0.1:{admin}")]),
    )?;
    let nginx = nginx(folder.path(), worker, peer)?;
    let mut targets = vec![
        format!("direct=127.0.0.1:{worker}=0"),
        format!("gateway=127.0.0.1:{grpc}={}", gateway.0.id()),
    ];
    listens(grpc)?;
    if let Some(nginx) = &nginx {
        listens(peer)?;
        targets.push(format!("nginx=127.0.0.1:{peer}={}", nginx.0.id()));
    } else if !json {
        println!(
            "nginx is not installed; with it (apt-get install nginx-light) it is measured too"
        );
    }
    let output =
        Command::new(&load).arg("drive").args(&targets).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the driver ended with {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    if json {
        for mut line in lines {
            if let Some(fields) = line.as_object_mut() {
                fields.insert("bench".into(), "gateway".into());
            }
            println!("{line}");
        }
        return Ok(());
    }
    print(&lines)
}

fn print(lines: &[Value]) -> Result<()> {
    let number = |line: &Value, name: &str| line.get(name).and_then(Value::as_f64);
    let of = |measure: &str, target: &str| {
        let is = |line: &&Value| {
            line.get("measure").is_some_and(|seen| seen == measure)
                && line.get("target").is_some_and(|seen| seen == target)
        };
        lines
            .iter()
            .find(is)
            .with_context(|| format!("the driver did not tell {measure} of {target}"))
    };
    let direct = of("latency", "direct")?;
    for target in ["gateway", "nginx"] {
        let (Ok(most), Ok(latency)) = (of("most", target), of("latency", target)) else { continue };
        let added = |name: &str| {
            let both = number(latency, name).zip(number(direct, name));
            both.map(|(through, direct)| through - direct).unwrap_or(f64::NAN)
        };
        println!(
            "{target}: adds {:.0} us (p50, limit 100) and {:.0} us (p99, limit 500) at {:.0} requests/s, \
             {:.0} of them failed; {:.0} requests for a second of a core (limit 20000), at most {:.0}/s on this machine",
            added("p50_us"),
            added("p99_us"),
            number(latency, "requests_per_second").unwrap_or(f64::NAN),
            number(latency, "failed").unwrap_or(f64::NAN),
            number(most, "requests_per_core_second").unwrap_or(f64::NAN),
            number(most, "requests_per_second").unwrap_or(f64::NAN),
        );
    }
    println!(
        "direct: {:.0} us (p50), {:.0} us (p99)",
        number(direct, "p50_us").unwrap_or(f64::NAN),
        number(direct, "p99_us").unwrap_or(f64::NAN),
    );
    let streams = of("streams", "gateway")?;
    let bytes = |value: Option<&Value>| value.and_then(Value::as_f64).unwrap_or(f64::NAN) / 1e6;
    let after: Vec<String> = streams
        .get("after_bytes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|value| format!("{:.1}", bytes(Some(value))))
        .collect();
    println!(
        "{} open streams: {:.1} MB before, then {} MB after each exchange",
        streams.get("streams").unwrap_or(&Value::Null),
        bytes(streams.get("before_bytes")),
        after.join(", "),
    );
    Ok(())
}

fn configuration(worker: u16, http: u16, grpc: u16) -> Configuration {
    let worker = Worker {
        address: [127, 0, 0, 1].into(),
        http_port: worker,
        grpc_port: worker,
        admin_port: worker,
        revision: String::new(),
        state: WorkerState::Ready,
    };
    Configuration {
        models: vec![Model {
            uid: "bench".into(),
            namespace: "bench".into(),
            name: "bench".into(),
            generation: 1,
            resource_version: String::new(),
            http_port: http,
            grpc_port: grpc,
            target: None,
            weights: Vec::new(),
            workers: vec![worker],
        }],
    }
}

/// nginx as a gRPC proxy, with as many processes as cores and its connections kept, if it is here.
fn nginx(folder: &Path, worker: u16, port: u16) -> Result<Option<Process>> {
    let program =
        ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let Some(program) = program else { return Ok(None) };
    let text = format!(
        "daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections 16384; }}\n\
         http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
         fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
         upstream worker {{ server 127.0.0.1:{worker}; keepalive 256; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port} http2; http2_max_concurrent_streams 256;\n\
         keepalive_requests 100000000; location / {{ grpc_pass grpc://worker; }} }} }}\n",
        folder = folder.display(),
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&file).args(["-p".as_ref(), folder.as_os_str()]);
    let mut nginx = start(&mut command)?;
    // Killed outright it would leave its workers behind.
    nginx.1 = Signal::SIGTERM;
    Ok(Some(nginx))
}

fn start(command: &mut Command) -> Result<Process> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Process(child.with_context(|| format!("start {name}"))?, Signal::SIGKILL))
}

fn ports<const N: usize>() -> Result<[u16; N]> {
    let open = |_| std::net::TcpListener::bind("127.0.0.1:0");
    let listeners = (0..N).map(open).collect::<Result<Vec<_>, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn listens(port: u16) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > end {
            bail!("nothing listens on port {port} after 20 s");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
