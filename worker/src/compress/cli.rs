//! `lithe-worker compress` on a laptop: arguments, what is printed where, and how it ends early.

mod bars;
mod words;

use std::io::Write;
use std::path::{Path, PathBuf};

use lithe::recipe::Recipe;
use serde_json::json;

use crate::compress::change::Change;
use crate::compress::confine::{absolute, enter_empty_directory};
use crate::compress::{Error, Request, compress, output, splits, steps, trial};
use crate::onnx::{self, Budget, Refusal, refusal::quoted};
use bars::Bars;

/// Compresses an ONNX model by a recipe, judges the result, and writes `model.onnx`, `report.html` and
/// `manifest.json`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The ONNX model; its external data lie beside it.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The recipe, YAML or JSON: what stands under `spec.compression` in a manifest.
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// Evaluation data: npz, npy, safetensors, JSON lines, or a folder of npy files; one array per
    /// model input, and `label` where there are labels.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// The directory for what is made.
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Threads of one inference; all processors by default.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Only tell what each step would match.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb; returns the exit code. What fails is one line on standard error, and with `json` an
/// object on standard output.
pub fn run(args: &Args) -> i32 {
    if let Err(error) = end_early(args.out.as_deref()) {
        eprintln!("lithe-worker: listen for signals: {error}");
    }
    let (text, code) = match attempt(args) {
        Ok(done) => done,
        Err(error) => {
            let refusal = error.refusal();
            let field = refusal.field.as_ref();
            let field = field.map_or_else(String::new, |field| format!(" ({field})"));
            eprintln!("lithe-worker: {}: {}{field}", refusal.reason, one_line(&refusal.message));
            let text =
                if args.json { format!("{}\n", json!({"error": refusal})) } else { String::new() };
            (text, error.exit_code())
        }
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("lithe-worker: print the result: {error}");
            1
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Ends the process at SIGTERM and SIGINT, and takes away what is half-written in `out` and the empty
/// working directory. The same command again begins anew.
fn end_early(out: Option<&Path>) -> std::io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // Threads inherit the mask, so that only the one below gets them.
    signals.thread_block()?;
    let out = out.map(absolute).transpose()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        if let Some(out) = &out {
            output::abandon(out);
        }
        // Not empty is not ours.
        let _ = std::env::current_dir().and_then(std::fs::remove_dir);
        eprintln!("lithe-worker: ended by {signal}; nothing half-written was left");
        crate::process::end(128 + signal as i32);
    })?;
    Ok(())
}

/// What is printed, and the exit code.
fn attempt(args: &Args) -> Result<(String, i32), Error> {
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
    if args.dry_run {
        let planned = plan(&request)?;
        let failed = planned.iter().find_map(|step| step.change.as_ref().err());
        let code = failed.map_or(0, Error::exit_code);
        let text = if args.json { words::plan_json(&planned) } else { words::plan(&planned) };
        return Ok((text, code));
    }
    let bars = Bars::new();
    let compressed = compress(&request, &|progress| bars.tell(progress));
    bars.clear();
    let compressed = compressed?;
    let text = if args.json { words::made_json(&compressed) } else { words::made(&compressed) };
    Ok((text, 0))
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

/// What one step would do.
struct Planned {
    name: String,
    change: Result<Change, Error>,
}

/// What each step would match, without judging or writing anything. After a step that would fail the
/// others are tried on the model before it.
fn plan(request: &Request) -> Result<Vec<Planned>, Error> {
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
    let mut planned = Vec::new();
    for (index, step) in request.recipe.steps.iter().enumerate() {
        let change = steps::run(model.clone(), index, step, means).map(|(next, change)| {
            model = next;
            change
        });
        planned.push(Planned { name: step.name(), change });
    }
    Ok(planned)
}
