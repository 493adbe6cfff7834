//! The worker: from the start of its process to ready, and the size of its image.
//!
//! What the runtime takes for itself (its library and its session) is told apart: the limit is on
//! what the worker adds to it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::demo::EXAMPLES;
use crate::{images, python};

/// Starts of each model; the median is shown.
const STARTS: usize = 9;

/// Measures and prints.
pub fn bench(json: bool) -> Result<()> {
    let binary = images::binaries()?.join("lithe-worker");
    let library = images::runtime_library()?;
    let models = python::models()?;
    for example in EXAMPLES {
        let file = models.join(format!("{example}.onnx"));
        let mut starts = (0..STARTS)
            .map(|_| start(&binary, &library, &file))
            .collect::<Result<Vec<_>>>()
            .with_context(|| format!("start the worker on {example}"))?;
        starts.sort_by(|a, b| a.own().total_cmp(&b.own()));
        let Start { total, library, load, warm, fetch } =
            *starts.get(STARTS / 2).context("no start was measured")?;
        let own = total - library - load;
        let bytes = std::fs::metadata(&file)?.len();
        if json {
            let line = json!({
                "bench": "worker-start", "model": example, "bytes": bytes, "ready_ms": total,
                "runtime_library_ms": library, "runtime_session_ms": load, "read_ms": fetch,
                "warm_ms": warm, "own_ms": own,
            });
            println!("{line}");
        } else {
            println!(
                "{example} ({:.1} MB): ready after {total:.0} ms, of which the runtime's library \
                 {library:.0} ms and session {load:.0} ms; the worker's own {own:.0} ms (limit 500)",
                bytes as f64 / 1e6,
            );
        }
    }
    let image = images::worker_archive()?;
    let bytes = std::fs::metadata(image)?.len();
    if json {
        println!("{}", json!({"bench": "worker-image", "bytes": bytes}));
    } else {
        println!("image of the worker: {:.1} MB, not compressed (limit 120)", bytes as f64 / 1e6);
    }
    Ok(())
}

/// One start in milliseconds: the whole as seen from outside, its parts as the worker tells them.
#[derive(Clone, Copy)]
struct Start {
    total: f64,
    library: f64,
    fetch: f64,
    load: f64,
    warm: f64,
}

impl Start {
    /// What the runtime does not take for itself.
    fn own(&self) -> f64 {
        self.total - self.library - self.load
    }
}

fn start(binary: &Path, library: &Path, model: &Path) -> Result<Start> {
    let any = "127.0.0.1:0";
    let began = Instant::now();
    let mut child = Command::new(binary)
        .env("ORT_DYLIB_PATH", library)
        .args(["serve", "--name", "m", "--http", any, "--grpc", any, "--admin", any, "--model"])
        .arg(model)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the worker")?;
    let output = child.stderr.take().context("the worker's output")?;
    let mut told = None;
    for line in BufReader::new(output).lines() {
        let line: Value = serde_json::from_str(&line?).context("read the worker's log")?;
        if line.get("message") == Some(&json!("ready")) {
            told = Some((line, began.elapsed().as_secs_f64() * 1e3));
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    let Some((line, total)) = told else { bail!("the worker ended before it was ready") };
    let figure = |name: &str| {
        let found = line.get(name).and_then(Value::as_f64);
        found.with_context(|| format!("the worker does not tell {name}"))
    };
    Ok(Start {
        total,
        library: figure("library_ms")?,
        fetch: figure("fetch_ms")?,
        load: figure("load_ms")?,
        warm: figure("warm_ms")?,
    })
}
