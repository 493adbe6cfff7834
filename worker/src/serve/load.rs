//! From a file or an artifact to a warm session. The bytes are verified before the runtime sees
//! them: an artifact by its digest, a file by the loader.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use lithe::Digest;

use super::model::Backend;
use super::queue::Batching;
use super::{Loaded, warm};
use crate::onnx::{self, Budget};
use crate::runtime::{self, Options, RuntimeError, Session};
use crate::store::{self, Credentials, StoreError};

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file on this machine.
    File(PathBuf),
    /// An artifact of the store.
    Artifact {
        /// Its address, by digest.
        uri: String,
        /// The folder with the store's credentials.
        credentials: Option<PathBuf>,
        /// Whether the store is spoken to without TLS.
        plain_http: bool,
    },
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is no model that may be served.
    #[error("{}: {}", .0.reason, .0.message)]
    Refused(#[from] onnx::Refusal),
    /// The artifact cannot be fetched.
    #[error("fetch {uri}: {source}")]
    Fetch {
        /// The artifact.
        uri: String,
        /// Why.
        source: StoreError,
    },
    /// The runtime does not take the model.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A thread ended early or cannot be had.
    #[error("load the model: {0}")]
    Thread(String),
    /// The model cannot run several requests at once.
    #[error("--max-batch-size: {0}")]
    Batching(String),
}

/// Loads and warms the model of `source` with `threads` threads per inference, for `batching`.
pub(super) async fn load(
    source: &Source,
    threads: usize,
    batching: Option<Batching>,
) -> Result<Loaded, LoadError> {
    // The library loads while the bytes are on their way.
    let library = tokio::task::spawn_blocking(|| {
        let start = Instant::now();
        runtime::preload()
            .and_then(|()| runtime::version())
            .map(|version| (version, start.elapsed()))
    });
    let start = Instant::now();
    let (model, digest) = bytes(source).await?;
    let fetch = start.elapsed();
    let thread = |error: tokio::task::JoinError| LoadError::Thread(error.to_string());
    let (runtime, library) = library.await.map_err(thread)??;
    let start = Instant::now();
    let options = Options { threads, ..Options::default() };
    let session = tokio::task::spawn_blocking(move || Session::load(&model, options));
    let backend: Arc<dyn Backend> = Arc::new(session.await.map_err(thread)??);
    let load = start.elapsed();
    let start = Instant::now();
    let warming = backend.clone();
    let warming =
        tokio::task::spawn_blocking(move || warm::warm(warming.as_ref(), batching.as_ref()));
    let curve = warming.await.map_err(thread)?.map_err(LoadError::Batching)?;
    Ok(Loaded { backend, digest, curve, runtime, library, fetch, load, warm: start.elapsed() })
}

async fn bytes(source: &Source) -> Result<(Vec<u8>, Digest), LoadError> {
    match source {
        Source::File(path) => {
            let path = path.clone();
            tokio::task::spawn_blocking(move || load_bytes(&path))
                .await
                .map_err(|error| LoadError::Thread(error.to_string()))?
        }
        Source::Artifact { uri, credentials, plain_http } => {
            let fetch = |source| LoadError::Fetch { uri: uri.clone(), source };
            let credentials = Credentials::new(credentials.clone());
            let opened = store::open(uri, &credentials, *plain_http).await.map_err(fetch)?;
            Ok((opened.model, opened.digest))
        }
    }
}

/// The bytes of the model at `path` as the runtime may see them, and the source's digest.
fn load_bytes(path: &Path) -> Result<(Vec<u8>, Digest), LoadError> {
    let loaded = onnx::load(path, &Budget::default())?;
    Ok((onnx::graph::serialise(&loaded.model), loaded.digest))
}
