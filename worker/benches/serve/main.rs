//! Lithe beside bare ONNX Runtime: the same library, the same threads, the same machine, in turn.
//! `cargo bench -p lithe-worker --bench serve -- --worker BINARY --model NAME=FILE`, with
//! `ORT_DYLIB_PATH` set.
//!
//! Every figure is the median of rounds in which all contestants take turns, so that what else
//! the machine does meets all of them.
#![allow(missing_docs)]

mod client;
mod load;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lithe_worker::runtime::{Options, Session};
use lithe_worker::tensor::{Datatype, Tensor};
use serde_json::{Value, json};

use client::{Client, End, Protocol, request};
use worker::Worker;

#[derive(Parser)]
struct Arguments {
    /// The binary of `lithe-worker`.
    #[arg(long)]
    worker: PathBuf,
    /// A model as NAME=FILE, or NAME=FILE:LENGTH where open dimensions after the first are LENGTH.
    #[arg(long = "model", required = true)]
    models: Vec<String>,
    /// Rounds; each contestant's figure is their median.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of each contestant in each round.
    #[arg(long, default_value_t = 700)]
    millis: u64,
    /// Seconds of each overload.
    #[arg(long, default_value_t = 8)]
    overload: u64,
    /// Threads of one inference.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// Only load a model, run it, and print the memory that takes.
    #[arg(long, hide = true)]
    rss: Option<PathBuf>,
    // Cargo says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.rss {
        let (session, inputs) = bare(&format!("m={}", file.display()), arguments.threads)?.1;
        for _ in 0..200 {
            run(&session, &inputs)?;
        }
        println!("{}", worker::rss("self")?);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for model in &arguments.models {
        runtime.block_on(measure(&arguments, model))?;
    }
    Ok(())
}

type Bare = (Session, Vec<(String, Tensor)>);

/// The name and file of `model`, its session, and one request.
fn bare(model: &str, threads: usize) -> Result<((String, PathBuf), Bare)> {
    let (name, file) = model.split_once('=').context("a model is NAME=FILE")?;
    let (file, length) = match file.rsplit_once(':') {
        Some((file, length)) => (file, length.parse()?),
        None => (file, 1),
    };
    let bytes = std::fs::read(file).with_context(|| format!("read {file}"))?;
    let session = Session::load(&bytes, Options { threads, ..Options::default() })?;
    let inputs = session.inputs().iter().map(|input| {
        let size = |(axis, dim): (usize, &i64)| match usize::try_from(*dim) {
            Ok(size) => size,
            Err(_) if axis == 0 => 1,
            Err(_) => length,
        };
        let shape: Vec<usize> = input.shape.iter().enumerate().map(size).collect();
        let datatype = Datatype::from_name(&input.datatype).context("a type")?;
        let size = datatype.size().context("strings are not measured")?;
        // Zero is a valid element of every type, a valid index and a valid token.
        let data = vec![0; shape.iter().product::<usize>() * size];
        Ok((input.name.clone(), Tensor::new(datatype, shape, data.into())?))
    });
    let inputs = inputs.collect::<Result<_>>()?;
    Ok(((name.to_owned(), file.into()), (session, inputs)))
}

fn run(session: &Session, inputs: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Ok(session.run(&inputs, &[])?)
}

/// `inputs` with `rows` times their rows.
fn repeated(inputs: &[(String, Tensor)], rows: usize) -> Result<Vec<(String, Tensor)>> {
    let repeat = |(name, tensor): &(String, Tensor)| {
        let mut shape = tensor.shape().to_vec();
        *shape.first_mut().context("a batch")? *= rows;
        let data = tensor.data().repeat(rows);
        Ok((name.clone(), Tensor::new(tensor.datatype(), shape, data.into())?))
    };
    inputs.iter().map(repeat).collect()
}

async fn measure(arguments: &Arguments, model: &str) -> Result<()> {
    let ((name, file), (session, inputs)) = bare(model, arguments.threads)?;
    let threads = ["--threads".to_owned(), arguments.threads.to_string()];
    let plain = Worker::start(&arguments.worker, &file, &threads)?;
    let batched = [&threads[..], &["--max-batch-size".to_owned(), "32".to_owned()]].concat();
    let batched = Worker::start(&arguments.worker, &file, &batched)
        .inspect_err(|error| eprintln!("{name} is not batched: {error:#}"))
        .ok();
    same_numbers(&plain, &session, &inputs).await?;

    let time = Duration::from_millis(arguments.millis);
    let say = |what: &str, figures: Value| print(arguments.json, &name, what, &figures);
    let mut alone = load::Rounds::default();
    let mut many = load::Rounds::default();
    let batch = repeated(&inputs, 32)?;
    for _ in 0..arguments.rounds {
        alone.add("bare", load::bare(time, 1, || run(&session, &inputs))?);
        many.add("bare", load::bare(time, 1, || run(&session, &inputs))?);
        if batched.is_some() {
            many.add("bare, 32 rows", load::bare(time, 32, || run(&session, &batch))?);
        }
        for protocol in [Protocol::Grpc, Protocol::Rest] {
            let body = request(protocol, &inputs);
            let label = format!("{protocol:?}").to_lowercase();
            alone.add(&label, load::closed(&plain, protocol, &body, 1, time).await?);
            many.add(&label, load::closed(&plain, protocol, &body, 32, time).await?);
            if let Some(batched) = &batched {
                let figures = load::closed(batched, protocol, &body, 32, time).await?;
                many.add(&format!("{label}, batched"), figures);
            }
        }
    }
    for (contestant, figures) in alone.medians() {
        let added = figures.p50 - alone.median("bare").p50;
        say(
            "one client",
            json!({"contestant": contestant, "p50_us": figures.p50, "p99_us": figures.p99,
                "added_us": added, "cpu_us": figures.cpu,
                "goal_added_us": if contestant == "grpc" { 100 } else { 150 }}),
        );
    }
    let base = many.median("bare").rate;
    for (contestant, figures) in many.medians() {
        say(
            "32 clients",
            json!({"contestant": contestant, "per_second": figures.rate,
                "of_bare": figures.rate / base, "p50_us": figures.p50, "p99_us": figures.p99,
                "cpu_us": figures.cpu}),
        );
    }
    memory(arguments, &plain, &file, say)?;
    drop((plain, batched));
    overload(arguments, (&file, base), &inputs, say).await
}

/// The served numbers must be the runtime's own, bit for bit.
async fn same_numbers(
    worker: &Worker,
    session: &Session,
    inputs: &[(String, Tensor)],
) -> Result<()> {
    let want: Vec<u8> =
        run(session, inputs)?.iter().flat_map(|output| output.data().to_vec()).collect();
    for protocol in [Protocol::Grpc, Protocol::Rest] {
        let mut client = Client::connect(protocol, worker.address(protocol)).await?;
        let End::Answered(answer) = client.call(&request(protocol, inputs)).await? else {
            anyhow::bail!("refused");
        };
        // In gRPC each output has its length before it; one output is compared as it stands.
        let same = answer.ends_with(&want) || session.outputs().len() > 1;
        ensure!(same, "{protocol:?} does not give the runtime's numbers");
    }
    Ok(())
}

fn memory(
    arguments: &Arguments,
    worker: &Worker,
    file: &std::path::Path,
    say: impl Fn(&str, Value),
) -> Result<()> {
    let own = std::process::Command::new(std::env::current_exe()?)
        .args([
            "--worker",
            "-",
            "--model",
            "-",
            "--threads",
            &arguments.threads.to_string(),
            "--rss",
        ])
        .arg(file)
        .output()?;
    let runtime: u64 = String::from_utf8_lossy(&own.stdout).trim().parse().context("no memory")?;
    let (rss, model) = (worker.rss()?, std::fs::metadata(file)?.len());
    let beyond = (rss as f64 - runtime as f64) / f64::from(1 << 20);
    say(
        "memory after load",
        json!({"rss_mib": rss >> 20, "runtime_mib": runtime >> 20, "beyond_mib": beyond,
            "limit_beyond_mib": (model >> 20) + 64}),
    );
    Ok(())
}

/// Three and ten times what one thread of the runtime answers, at a declared target.
async fn overload(
    arguments: &Arguments,
    (file, capacity): (&std::path::Path, f64),
    inputs: &[(String, Tensor)],
    say: impl Fn(&str, Value),
) -> Result<()> {
    // A target of fifty inferences, at least 50 ms: what fits into a queue.
    let target = Duration::from_secs_f64((50.0 / capacity).max(0.05));
    let flags = [
        "--threads".to_owned(),
        arguments.threads.to_string(),
        "--latency-target".to_owned(),
        format!("{}us", target.as_micros()),
    ];
    let body = request(Protocol::Grpc, inputs);
    let time = Duration::from_secs(arguments.overload);
    let worker = Worker::start(&arguments.worker, file, &flags)?;
    let peak = load::closed(&worker, Protocol::Grpc, &body, 32, time / 4).await?.rate;
    if peak > load::MOST / 3.0 {
        // The clients on the same processors would be measured.
        return Ok(());
    }
    for times in [3.0, 10.0] {
        let rate = (times * peak).min(load::MOST);
        let before = worker.rss()?;
        let seen = load::open(&worker, &body, rate, time, target * 2).await?;
        say(
            "overload",
            json!({"times": rate / peak, "peak_per_second": peak, "goodput": seen.good / peak,
                "limit_ms": target.as_secs_f64() * 2e3, "accepted_p99_ms": seen.accepted_p99,
                "refused": seen.refused, "refusal_p99_ms": seen.refusal_p99,
                "rss_growth_mib": (worker.rss()? as f64 - before as f64) / f64::from(1 << 20)}),
        );
    }
    Ok(())
}

fn print(json: bool, model: &str, what: &str, figures: &Value) {
    if json {
        println!("{}", json!({"bench": "serve", "model": model, "what": what, "figures": figures}));
        return;
    }
    let number = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.as_f64().map_or_else(
            || other.to_string(),
            |number| match number.abs() {
                size if size >= 100.0 => format!("{number:.0}"),
                size if size >= 1.0 => format!("{number:.1}"),
                _ => format!("{number:.3}"),
            },
        ),
    };
    let figures = figures.as_object().into_iter().flatten();
    let text: Vec<_> = figures.map(|(name, value)| format!("{name} {}", number(value))).collect();
    println!("{model:9} {what:18} {}", text.join("  "));
}
