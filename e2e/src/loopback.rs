//! `cargo e2e clients`: real clients of every protocol against a worker on this machine, without a
//! cluster. The worker ends with the command.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::clients::{self, Likeness, Target};
use crate::{demo, images, interrupt, python};

/// How long a model may take to load.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which worker is asked.
#[derive(clap::Args)]
pub struct Which {
    /// The program to start instead of one that is built for this.
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
}

/// Lets every client predict on the examples' models, each served as it is.
pub fn clients(which: &Which) -> Result<()> {
    let program = match &which.worker {
        Some(program) => program.clone(),
        None => images::binaries()?.join("lithe-worker"),
    };
    for example in demo::EXAMPLES {
        let model = python::models()?.join(format!("{example}.onnx"));
        let worker = Worker::start(&program, example, &model)?;
        clients::ask(
            &Target {
                http: worker.http.to_string(),
                grpc: worker.grpc.to_string(),
                model: example,
                example,
                reference: &model,
                likeness: Likeness::Exact,
            },
            &clients::ALL,
        )?;
    }
    Ok(())
}

/// A worker that ends when it is dropped.
struct Worker {
    process: Child,
    http: SocketAddr,
    grpc: SocketAddr,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address of this machine that nobody listens on.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Worker {
    fn start(program: &Path, name: &str, model: &Path) -> Result<Self> {
        let (http, grpc, admin) = (free()?, free()?, free()?);
        let process = Command::new(program)
            .args(["serve", "--threads", "1", "--name", name, "--model"])
            .arg(model)
            .args(["--protocols", "OpenInference,TensorFlowServing,KServeV1"])
            .args(["--http", &http.to_string(), "--grpc", &grpc.to_string()])
            .args(["--admin", &admin.to_string()])
            .env("ORT_DYLIB_PATH", images::runtime_library()?)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut worker = Self { process, http, grpc };
        let start = Instant::now();
        while !ready(admin) {
            if let Some(status) = worker.process.try_wait()? {
                bail!("{} ended: {status}", program.display());
            }
            if start.elapsed() > PATIENCE || interrupt::interrupted() {
                bail!("the worker of {} did not get ready in {PATIENCE:?}", model.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(worker)
    }
}

fn ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
