//! Why there is no artifact, and what that means for the Job: refused for good, a gate that failed, or
//! worth another attempt.

use lithe::Digest;
use lithe::artifact::{EXIT_GATE_FAILED, EXIT_REFUSED};
use lithe::names::reason;

use crate::onnx::Refusal;
use crate::runtime::RuntimeError;

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input can never work.
    #[error("{refusal}")]
    Refused {
        /// What is wrong.
        refusal: Refusal,
        /// The spec field to look at.
        field: Option<String>,
        /// The source's digest, when it could be read.
        source_digest: Option<Digest>,
    },
    /// The result failed a gate.
    #[error("{line}")]
    Gate {
        /// Gate, bound and figure of each that failed.
        line: String,
        /// The source's digest.
        source_digest: Digest,
    },
    /// The machine failed; another attempt may work.
    #[error("{act}: {source}")]
    Io {
        /// What was being done.
        act: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The runtime's library cannot be used.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Error {
    /// The process's exit code: [`EXIT_REFUSED`], [`EXIT_GATE_FAILED`], or 1 for what may be tried again.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Refused { .. } => EXIT_REFUSED,
            Self::Gate { .. } => EXIT_GATE_FAILED,
            Self::Io { .. } | Self::Runtime(_) => 1,
        }
    }

    /// The refusal for a termination message.
    pub fn refusal(&self) -> lithe::artifact::Refusal {
        let (reason, field, source) = match self {
            Self::Refused { refusal, field, source_digest } => {
                (refusal.reason, field.clone(), source_digest.clone())
            }
            Self::Gate { source_digest, .. } => (
                reason::GATE_FAILED,
                Some("spec.compression.gates".into()),
                Some(source_digest.clone()),
            ),
            Self::Io { source, .. } if full(source) => (reason::NO_SPACE, None, None),
            Self::Io { .. } | Self::Runtime(_) => (reason::FAILED, None, None),
        };
        lithe::artifact::Refusal { reason: reason.into(), message: self.to_string(), field, source }
    }

    /// A refusal because of what stands in `field`.
    pub fn refused(refusal: Refusal, field: &str) -> Self {
        Self::Refused { refusal, field: Some(field.to_owned()), source_digest: None }
    }

    /// The same error with the source's digest.
    pub fn of_source(mut self, digest: &Digest) -> Self {
        if let Self::Refused { source_digest, .. } = &mut self {
            *source_digest = Some(digest.clone());
        }
        self
    }
}

fn full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
