//! `lithe-worker compress`: fetch, look the key up, compress, keep, report. A key that the store
//! knows is never made again. On a laptop the result goes to `--out` instead of a store.

mod error;
mod options;

use std::path::{Path, PathBuf};

use lithe::Digest;
use lithe::artifact::{MANIFEST_FILE, MODEL_FILE, Made, Manifest, Outcome};
use lithe::names::reason;
use lithe::recipe::{Recipe, artifact_key};
use lithe::units::human_bytes;

pub use error::JobError;
pub use options::Options;

use crate::store::{ArtifactStore, Credentials, Fetch, Fetched, Location, fetch};
use options::Source;

/// The version that is part of every key: another worker may make other bytes.
pub const WORKER: &str = env!("CARGO_PKG_VERSION");
/// The exit code of a process that SIGTERM ended.
const EXIT_TERMINATED: i32 = 143;
/// The exit code of a failure that may pass.
const EXIT_FAILED: i32 = 1;

/// What the compressor gets: everything is here and verified.
#[derive(Clone, Debug)]
pub struct Work {
    /// The model file; external data lies beside it where the source is a folder.
    pub model: PathBuf,
    /// Its digest.
    pub source: Digest,
    /// The data file, when there is data.
    pub data: Option<PathBuf>,
    /// The data's digest.
    pub data_digest: Option<Digest>,
    /// What to do.
    pub recipe: Recipe,
    /// The key of the result.
    pub key: Digest,
    /// The empty folder where `model.onnx` goes.
    pub out: PathBuf,
}

/// The compressor: writes `model.onnx` into [`Work::out`] and says what it is.
pub type Compress = fn(&Work) -> Result<Manifest, JobError>;

/// Runs the Job with `compress` and returns the process's exit code.
pub fn main(options: Options, compress: Compress) -> i32 {
    let report = options.termination_message.clone();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lithe-worker: start: {error}");
            return EXIT_FAILED;
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            result = job(&options, compress) => Some(result),
            () = terminated() => None,
        }
    });
    // The compressor may still run after SIGTERM; nobody waits for it.
    runtime.shutdown_background();
    let Some(result) = ended else {
        eprintln!("lithe-worker: terminated, nothing was kept");
        return EXIT_TERMINATED;
    };
    let (outcome, code) = match result {
        Ok(made) => (Outcome::Made(Box::new(made)), 0),
        Err(error) => {
            eprintln!("lithe-worker: {error}");
            (Outcome::Refused(error.refusal()), error.exit_code())
        }
    };
    if let Some(path) = report {
        if let Err(error) = std::fs::write(&path, outcome.to_message()) {
            eprintln!("lithe-worker: write {}: {error}", path.display());
            return EXIT_FAILED;
        }
    }
    code
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Does the whole Job and returns what is in the store, or in `--out`.
///
/// # Errors
/// The first thing that went wrong.
pub async fn job(options: &Options, compress: Compress) -> Result<Made, JobError> {
    let recipe = options.recipe()?;
    let scratch = scratch(options)?;
    let store = connect(options).await?;
    let model = options.model_source();
    let source = bring(options, &model, &scratch.path().join("source.onnx")).await?;
    let data = match options.data_source() {
        Some(data) => Some(bring(options, &data, &scratch.path().join("data.npz")).await?),
        None => None,
    };
    let data_digest = data.as_ref().map(|data| data.digest.clone());
    let key = artifact_key(&source.digest, data_digest.as_ref(), &recipe.digest(), WORKER);
    tracing::info!(source = %source.digest, size = source.size, %key, "fetched");
    if let Some(store) = &store {
        let found = store.find(&options.repository, &key).await.map_err(JobError::Store)?;
        if let Some(found) = found {
            tracing::info!(uri = found.uri, "the store has it");
            let made = made(&found.manifest, found.manifest_digest, found.uri);
            return Ok(Made { reused: true, ..made });
        }
    }
    let out = scratch.path().join("out");
    std::fs::create_dir(&out).map_err(|source| JobError::local(&out, source))?;
    let work = Work {
        model: source.path,
        source: source.digest.clone(),
        data: data.map(|data| data.path),
        data_digest,
        recipe,
        key,
        out: out.clone(),
    };
    // SEAM: `compress` is `compress::compress` behind the signature above.
    let manifest = tokio::task::spawn_blocking(move || compress(&work))
        .await
        .map_err(|error| JobError::Failed(format!("the compressor ended early: {error}")))??;
    keep(options, store.as_ref(), &out, &manifest).await
}

/// Everything is made here and moved when it is whole; the folder is gone at the end whatever
/// happens. With `--out` it lies beside the target, so that the move is a rename.
fn scratch(options: &Options) -> Result<tempfile::TempDir, JobError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lithe-compress-");
    let made = match &options.out {
        None => builder.tempdir(),
        Some(out) => std::fs::create_dir_all(out).and_then(|()| builder.tempdir_in(out)),
    };
    made.map_err(|source| JobError::local(options.out.as_deref().unwrap_or(Path::new("/tmp")), source))
}

async fn connect(options: &Options) -> Result<Option<ArtifactStore>, JobError> {
    let Some(uri) = &options.store else { return Ok(None) };
    let credentials = Credentials::new(options.store_credentials.clone());
    let store = ArtifactStore::connect(uri, &credentials, options.store_plain_http).await;
    store.map(Some).map_err(JobError::Store)
}

async fn bring(options: &Options, from: &Source<'_>, target: &Path) -> Result<Fetched, JobError> {
    let failed = |source| JobError::Source { field: from.field, source };
    let location = Location::parse(from.uri).and_then(|at| at.mounted(from.mount)).map_err(failed)?;
    let credentials = Credentials::new(from.credentials.cloned());
    // A source in the artifacts' own registry is reached as that registry is.
    let plain_http = options.store.as_deref().filter(|_| options.store_plain_http).and_then(|store| {
        store.strip_prefix("oci://").and_then(|rest| rest.split('/').next())
    });
    let mut request = Fetch::new(&location, &credentials);
    request.digest = from.digest;
    request.private = options.allow_private_sources;
    request.plain_http = plain_http;
    fetch(&request, target).await.map_err(failed)
}

async fn keep(
    options: &Options,
    store: Option<&ArtifactStore>,
    out: &Path,
    manifest: &Manifest,
) -> Result<Made, JobError> {
    let model = out.join(MODEL_FILE);
    verify(&model, manifest).await?;
    let json = serde_json::to_vec_pretty(manifest).map_err(|error| JobError::Failed(error.to_string()))?;
    let digest = Digest::of(&json);
    let uri = match (store, &options.out) {
        (Some(store), _) => {
            store.put(&options.repository, &model, &json).await.map_err(JobError::Store)?
        }
        (None, Some(target)) => {
            place(&model, &json, target)?;
            target.display().to_string()
        }
        (None, None) => return Err(JobError::Failed("give --store or --out".into())),
    };
    tracing::info!(uri, digest = %manifest.model.digest, size = manifest.model.size, "kept");
    Ok(made(manifest, digest, uri))
}

/// Nothing is kept under a digest that is not its own.
async fn verify(model: &Path, manifest: &Manifest) -> Result<(), JobError> {
    let location = Location::File(model.to_owned());
    let credentials = Credentials::default();
    let mut request = Fetch::new(&location, &credentials);
    request.digest = Some(&manifest.model.digest);
    fetch(&request, model)
        .await
        .map_err(|error| JobError::Failed(format!("check the result: {error}")))?;
    Ok(())
}

/// The model first, its Manifest last: who sees the Manifest sees all of it.
fn place(model: &Path, json: &[u8], target: &Path) -> Result<(), JobError> {
    let manifest = model.with_file_name(MANIFEST_FILE);
    std::fs::write(&manifest, json).map_err(|source| JobError::local(&manifest, source))?;
    for (from, name) in [(model, MODEL_FILE), (manifest.as_path(), MANIFEST_FILE)] {
        let to = target.join(name);
        std::fs::rename(from, &to).map_err(|source| JobError::local(&to, source))?;
    }
    Ok(())
}

/// The artifact in brief, as the operator shows it.
pub fn made(manifest: &Manifest, digest: Digest, uri: String) -> Made {
    let evaluation = manifest.evaluation.as_ref();
    let failed: Vec<_> = manifest
        .gates
        .iter()
        .filter(|gate| !gate.passed)
        .map(|gate| format!("{} {}, measured {}", gate.gate, gate.bound, gate.measured))
        .collect();
    let steps = manifest.steps.iter().map(|step| {
        let sizes = (human_bytes(step.size_before), human_bytes(step.size_after));
        format!("{}: {}; {} -> {}", step.name, step.summary, sizes.0, sizes.1)
    });
    Made {
        uri,
        digest: manifest.model.digest.clone(),
        manifest: digest,
        key: manifest.key.clone(),
        source: manifest.source.digest.clone(),
        size: manifest.model.size,
        original_size: manifest.source.size,
        reused: false,
        // An artifact with a failed gate is the original, taken by `onFailure: ServeOriginal`.
        fallback: (!failed.is_empty()).then(|| format!("{}: {}", reason::GATE_FAILED, failed.join("; "))),
        metric: evaluation.map(|evaluation| evaluation.metric),
        original_value: evaluation.map(|evaluation| evaluation.original),
        value: evaluation.map(|evaluation| evaluation.compressed),
        agreement: evaluation.map(|evaluation| evaluation.agreement),
        cosine: evaluation.map(|evaluation| evaluation.cosine),
        speedup: evaluation.map(|evaluation| evaluation.latency.speedup),
        samples: evaluation.map(|evaluation| evaluation.samples),
        steps: steps.collect(),
    }
}
