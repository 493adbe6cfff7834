//! `lithe-worker compress` on a laptop: arguments, progress for people, a table at the end.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use lithe::artifact::{Manifest, SearchReport};
use lithe::recipe::Recipe;
use lithe::units::human_bytes;

use crate::compress::confine::{absolute, enter_empty_directory};
use crate::compress::{Compressed, Error, Progress, Request, compress, splits, steps, trial};
use crate::onnx::{self, Budget, Refusal, refusal::quoted};

/// Compresses an ONNX model by a recipe, judges the result, and writes `model.onnx` and
/// `manifest.json`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The ONNX model; its external data lie beside it.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The recipe, YAML or JSON: what stands under `spec.compression` in a manifest.
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// Evaluation data as .npz: one array per model input, and `label` where there are labels.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// The directory for `model.onnx` and `manifest.json`.
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Threads of one inference; all processors by default.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Only tell what each step would match.
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs the verb; returns the exit code. What fails is one line on standard error.
pub fn run(args: &Args) -> i32 {
    match attempt(args) {
        Ok(()) => 0,
        Err(error) => {
            let refusal = error.refusal();
            let field = refusal.field.map_or_else(String::new, |field| format!(" ({field})"));
            eprintln!("lithe-worker: {}: {}{field}", refusal.reason, one_line(&refusal.message));
            error.exit_code()
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn attempt(args: &Args) -> Result<(), Error> {
    let here = |path: &Path| {
        absolute(path).map_err(|source| Error::Io { act: "find the working directory", source })
    };
    let request = Request {
        recipe: read_recipe(&args.recipe)?,
        model: here(&args.model)?,
        data: args.data.as_deref().map(here).transpose()?,
        out: here(args.out.as_deref().unwrap_or(Path::new(".")))?,
        threads: args
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        program: trial::this_program()
            .map_err(|source| Error::Io { act: "find this program", source })?,
        budget: Budget::default(),
    };
    let _empty = enter_empty_directory()
        .map_err(|source| Error::Io { act: "make a scratch directory", source })?;
    let mut stdout = std::io::stdout().lock();
    let text = if args.dry_run {
        plan(&request)?
    } else {
        let talk = std::io::stderr().is_terminal();
        table(&compress(&request, &|progress| {
            if talk {
                tell(&progress);
            }
        })?)
    };
    stdout
        .write_all(text.as_bytes())
        .map_err(|source| Error::Io { act: "print the result", source })
}

/// Reads a recipe file.
pub fn read_recipe(path: &Path) -> Result<Recipe, Error> {
    use lithe::names::reason;
    let refuse = |message: String| Error::Refused {
        refusal: Refusal::new(reason::RECIPE_INVALID, one_line(&message)),
        field: None,
        source_digest: None,
    };
    let shown = quoted(&path.to_string_lossy());
    let text = std::fs::read_to_string(path)
        .map_err(|error| refuse(format!("recipe {shown}: {error}")))?;
    serde_yaml::from_str(&text).map_err(|error| refuse(format!("recipe {shown}: {error}")))
}

fn tell(progress: &Progress) {
    match progress {
        Progress::Verified { size, digest } => {
            eprintln!("verified {} {}", human_bytes(*size), digest.short())
        }
        Progress::Tried => eprintln!("loaded and ran once in a limited process"),
        Progress::Candidate { names } => eprintln!("trying {names} …"),
        Progress::Step { index, name } => eprintln!("step {}: {name} …", index + 1),
        Progress::Stepped { summary, size } => eprintln!("  {summary}; {}", human_bytes(*size)),
        Progress::Judging { samples } => eprintln!("  judging on {samples} samples …"),
        Progress::Written => eprintln!("written"),
    }
}

/// What each step would match, without judging or writing anything.
fn plan(request: &Request) -> Result<String, Error> {
    steps::check(&request.recipe, true)?;
    if request.recipe.objective.is_some() {
        let message = "a dry run lists what named steps would match; an objective has none yet";
        let refusal = Refusal::new(lithe::names::reason::RECIPE_INVALID, message);
        return Err(Error::refused(refusal, "spec.compression.objective"));
    }
    let loaded = onnx::load(&request.model, &request.budget).map_err(|refusal| Error::Refused {
        refusal,
        field: Some("spec.model".into()),
        source_digest: None,
    })?;
    let splits = splits(request, &loaded.model)?;
    let calibration = splits.as_ref().and_then(|splits| splits.calibration.as_ref());
    let target = request.recipe.target.unwrap_or_default();
    let means = steps::Means { calibration, target };
    let mut model = loaded.model;
    let mut text = String::new();
    for (index, step) in request.recipe.steps.iter().enumerate() {
        let (next, change) = steps::run(model, index, step, means)?;
        text.push_str(&format!("{}: {}\n", step.name(), change.summary()));
        for skipped in &change.skipped {
            let nodes = if skipped.nodes.is_empty() {
                String::new()
            } else {
                format!(" ({}, …)", skipped.nodes.join(", "))
            };
            text.push_str(&one_line(&format!(
                "  left alone: {} {}: {}{nodes}",
                skipped.count, skipped.op, skipped.reason
            )));
            text.push('\n');
        }
        model = next;
    }
    Ok(text)
}

/// What a search tried and chose, a candidate in a line.
fn searched(search: &SearchReport) -> Vec<String> {
    let mut lines = Vec::new();
    for one in &search.candidates {
        let steps: Vec<String> = one.steps.iter().map(|step| step.written().to_string()).collect();
        let figures = match (one.size, one.metric, one.speedup) {
            (Some(size), Some(metric), Some(speedup)) => {
                let memory =
                    one.memory.map_or_else(String::new, |m| format!(", {}", human_bytes(m)));
                format!("{}, {metric:.4}, {speedup:.2}x{memory}; ", human_bytes(size))
            }
            _ => String::new(),
        };
        let front = if one.front { "*" } else { " " };
        lines.push(format!("tried   {front} {}: {figures}{}", steps.join(" "), one.verdict));
    }
    let steps: Vec<String> = search.chosen.iter().map(|step| step.written().to_string()).collect();
    let steps = if steps.is_empty() {
        "the original".to_owned()
    } else {
        format!("[{}]", steps.join(", "))
    };
    lines.push(format!("chosen    {steps} after {:.0} s", search.seconds));
    lines
}

fn table(compressed: &Compressed) -> String {
    let manifest: &Manifest = &compressed.manifest;
    let mut lines = vec![format!("model     {}", compressed.model.display())];
    lines.push(format!("digest    {}", manifest.model.digest));
    let ratio = manifest.source.size as f64 / manifest.model.size.max(1) as f64;
    lines.push(format!(
        "size      {} -> {} ({ratio:.2}x smaller)",
        human_bytes(manifest.source.size),
        human_bytes(manifest.model.size)
    ));
    if let Some(search) = &manifest.search {
        lines.extend(searched(search));
    }
    for step in &manifest.steps {
        lines.push(format!("step      {}", super::step_line(step)));
        for skipped in &step.skipped {
            lines.push(format!(
                "          left alone: {} {}: {}",
                skipped.count, skipped.op, skipped.reason
            ));
        }
    }
    if let Some(e) = &manifest.evaluation {
        lines.push(format!(
            "{:<9} {:.4} -> {:.4} on {} samples of {}",
            format!("{:?}", e.metric),
            e.original,
            e.compressed,
            e.samples,
            e.output
        ));
        lines.push(format!("agreement {:.2} %, cosine {:.4}", 100.0 * e.agreement, e.cosine));
        lines.push(format!(
            "latency   {:.3} ms -> {:.3} ms ({:.2}x, {} pairs, batch {})",
            1e3 * e.latency.original_seconds,
            1e3 * e.latency.compressed_seconds,
            e.latency.speedup,
            e.latency.pairs,
            e.latency.batch_size
        ));
    }
    for gate in &manifest.gates {
        let verdict = if gate.passed { "held" } else { "failed" };
        lines.push(format!("gate      {} {}: {verdict}, {}", gate.gate, gate.bound, gate.measured));
    }
    if let Some(line) = &compressed.fallback {
        lines.push(format!("fallback  the original is kept: {line}"));
    }
    lines.iter().map(|line| one_line(line) + "\n").collect()
}
