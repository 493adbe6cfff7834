//! `lithe-worker compress` in a Job: fetch, look the key up, compress, keep, report. A key that the
//! store knows is never made again, and nothing is kept half-made.

mod error;
mod options;

use std::path::Path;

use lithe::artifact::{Made, Outcome};
use lithe::recipe::artifact_key;

pub use error::JobError;
pub use options::Options;

use crate::compress::{self, Compressed, Progress, Request};
use crate::onnx::{self, Budget};
use crate::store::{ArtifactStore, Credentials, Fetch, Fetched, Location, StoreError, fetch};
use options::Source;

/// The exit code of a process that SIGTERM ended.
const EXIT_TERMINATED: i32 = 143;
/// The exit code of a failure that may pass.
const EXIT_FAILED: i32 = 1;

/// The compressor: writes the artifact into [`Request::out`].
pub type Compress = fn(&Request) -> Result<Compressed, compress::Error>;

/// The compressor of this program; its progress goes to the log.
///
/// # Errors
/// See [`compress::compress`].
pub fn compress(request: &Request) -> Result<Compressed, compress::Error> {
    compress::compress(request, &|progress| match progress {
        Progress::Judged { .. } => tracing::debug!(?progress, "compressing"),
        _ => tracing::info!(?progress, "compressing"),
    })
}

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
    if let Some(path) = report
        && let Err(error) = std::fs::write(&path, outcome.to_message())
    {
        eprintln!("lithe-worker: write {}: {error}", path.display());
        return EXIT_FAILED;
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

/// Does the whole Job and returns what is in the store.
///
/// # Errors
/// The first thing that went wrong.
pub async fn job(options: &Options, compress: Compress) -> Result<Made, JobError> {
    let recipe = options.recipe()?;
    let scratch = scratch()?;
    let store = connect(options).await?;
    let source = model(options, &scratch.path().join("source.onnx")).await?;
    let data = match options.data_source() {
        Some(data) => Some(bring(options, &data, &scratch.path().join("data.npz")).await?),
        None => None,
    };
    let data_digest = data.as_ref().map(|data| &data.digest);
    let key = artifact_key(&source.digest, data_digest, &recipe.digest(), compress::VERSION);
    tracing::info!(source = %source.digest, size = source.size, %key, "fetched");
    let found = store.find(&options.repository, &key).await.map_err(JobError::Store)?;
    if let Some(found) = found {
        tracing::info!(uri = found.uri, "the store has it");
        let made = compress::made(&found.manifest, found.manifest_digest, found.uri);
        return Ok(Made { reused: true, ..made });
    }
    let request = Request {
        model: source.path,
        recipe,
        data: data.map(|data| data.path),
        out: scratch.path().join("out"),
        threads: options.threads(),
        program: std::env::current_exe()
            .map_err(|source| JobError::local(Path::new("/proc/self/exe"), source))?,
        budget: Budget::default(),
    };
    let compressed = tokio::task::spawn_blocking(move || compress(&request))
        .await
        .map_err(|error| JobError::Failed(format!("the compressor ended early: {error}")))??;
    keep(options, &store, &compressed).await
}

/// Everything is made here; the folder is gone at the end whatever happens.
fn scratch() -> Result<tempfile::TempDir, JobError> {
    let made = tempfile::Builder::new().prefix("lithe-compress-").tempdir();
    made.map_err(|source| JobError::local(&std::env::temp_dir(), source))
}

/// The model. One that lies in a folder may have external data beside it, which are part of its
/// digest: the loader knows them.
async fn model(options: &Options, target: &Path) -> Result<Fetched, JobError> {
    let from = options.model_source();
    let unpinned = Source { digest: None, ..from };
    let mut fetched = bring(options, &unpinned, target).await?;
    if fetched.path != target {
        let path = fetched.path.clone();
        let loaded = tokio::task::spawn_blocking(move || onnx::load(&path, &Budget::default()))
            .await
            .map_err(|error| JobError::Failed(format!("the loader ended early: {error}")))?
            .map_err(|refusal| JobError::refused(&refusal, "spec.model"))?;
        (fetched.digest, fetched.size) = (loaded.digest, loaded.size);
    }
    match from.digest.filter(|wanted| **wanted != fetched.digest) {
        None => Ok(fetched),
        Some(wanted) => {
            let source = StoreError::Digest {
                what: from.uri.to_owned(),
                wanted: wanted.clone(),
                seen: fetched.digest,
            };
            Err(JobError::Source { field: from.field, source })
        }
    }
}

async fn connect(options: &Options) -> Result<ArtifactStore, JobError> {
    let credentials = Credentials::new(options.store_credentials.clone());
    let uri = options.store.as_deref().unwrap_or_default();
    let store = ArtifactStore::connect(uri, &credentials, options.store_plain_http).await;
    store.map_err(JobError::Store)
}

async fn bring(options: &Options, from: &Source<'_>, target: &Path) -> Result<Fetched, JobError> {
    let failed = |source| JobError::Source { field: from.field, source };
    let location =
        Location::parse(from.uri).and_then(|at| at.mounted(from.mount)).map_err(failed)?;
    let credentials = Credentials::new(from.credentials.cloned());
    // A source in the artifacts' own registry is reached as that registry is.
    let plain_http = options
        .store
        .as_deref()
        .filter(|_| options.store_plain_http)
        .and_then(|store| store.strip_prefix("oci://").and_then(|rest| rest.split('/').next()));
    let mut request = Fetch::new(&location, &credentials);
    request.digest = from.digest;
    request.private = options.allow_private_sources;
    request.plain_http = plain_http;
    fetch(&request, target).await.map_err(failed)
}

async fn keep(
    options: &Options,
    store: &ArtifactStore,
    compressed: &Compressed,
) -> Result<Made, JobError> {
    let Compressed { manifest, model, manifest_path, .. } = compressed;
    verify(model, &manifest.model.digest).await?;
    let json =
        std::fs::read(manifest_path).map_err(|source| JobError::local(manifest_path, source))?;
    let uri = store.put(&options.repository, model, &json).await.map_err(JobError::Store)?;
    tracing::info!(uri, digest = %manifest.model.digest, size = manifest.model.size, "kept");
    Ok(compressed.made(uri))
}

/// Nothing is kept under a digest that is not its own.
async fn verify(model: &Path, digest: &lithe::Digest) -> Result<(), JobError> {
    let location = Location::File(model.to_owned());
    let credentials = Credentials::default();
    let mut request = Fetch::new(&location, &credentials);
    request.digest = Some(digest);
    let checked = fetch(&request, model).await;
    checked.map(|_| ()).map_err(|error| JobError::Failed(format!("check the result: {error}")))
}
