//! Why a Job made no artifact, what the operator is told, and whether another try may help.

use std::path::{Path, PathBuf};

use lithe::artifact::{EXIT_REFUSED, Refusal};
use lithe::names::reason;

use super::EXIT_FAILED;
use crate::compress;
use crate::onnx;
use crate::store::StoreError;

/// Why a Job made no artifact.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The model or the data did not come.
    #[error("{field}: {source}")]
    Source {
        /// The part of the spec: `spec.model` or `spec.compression.data`.
        field: &'static str,
        /// Why.
        source: StoreError,
    },
    /// The artifact store did not answer or refused.
    #[error("the artifact store: {0}")]
    Store(StoreError),
    /// The recipe cannot be read.
    #[error("the recipe: {0}")]
    Recipe(String),
    /// The compressor refused the model, the data or the recipe, or a gate failed.
    #[error(transparent)]
    Compress(#[from] compress::Error),
    /// A local file cannot be read or written.
    #[error("{path}: {source}")]
    Local {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Something else failed that may work next time.
    #[error("{0}")]
    Failed(String),
}

impl JobError {
    pub(super) fn local(path: &Path, source: std::io::Error) -> Self {
        Self::Local { path: path.to_owned(), source }
    }

    pub(super) fn refused(refusal: &onnx::Refusal, field: &str) -> Self {
        let (refusal, field) = (refusal.clone(), Some(field.to_owned()));
        Self::Compress(compress::Error::Refused { refusal, field, source_digest: None })
    }

    /// What the operator puts into a condition.
    pub fn refusal(&self) -> Refusal {
        let refusal = |reason: &str, field: Option<String>| Refusal {
            reason: reason.to_owned(),
            message: self.to_string(),
            field,
            source: None,
        };
        match self {
            Self::Compress(error) => error.refusal(),
            Self::Source { field, source } => {
                let part = match source {
                    StoreError::Digest { .. } => "digest",
                    StoreError::Auth { .. } | StoreError::Secret { .. } => "credentialsSecret",
                    _ => "uri",
                };
                let mut refusal = refusal(source.reason(), Some(format!("{field}.{part}")));
                refusal.message = source.to_string();
                refusal
            }
            Self::Store(source) => refusal(source.store_reason(), None),
            Self::Recipe(_) => refusal(reason::RECIPE_INVALID, Some("spec.compression".into())),
            Self::Local { source, .. } if full(source) => refusal(reason::NO_SPACE, None),
            Self::Local { .. } | Self::Failed(_) => refusal(reason::FAILED, None),
        }
    }

    /// The exit code: 42 and 43 end the Job, 1 lets it try again.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Recipe(_) => EXIT_REFUSED,
            Self::Compress(error) => error.exit_code(),
            // A full disk may be emptied, a peer may come back; what was refused stays refused.
            Self::Source { source, .. } => match source {
                StoreError::Unavailable { .. }
                | StoreError::Space { .. }
                | StoreError::File { .. } => EXIT_FAILED,
                _ => EXIT_REFUSED,
            },
            Self::Store(_) | Self::Local { .. } | Self::Failed(_) => EXIT_FAILED,
        }
    }
}

fn full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
