//! Why an inference was not answered, in terms that every protocol maps to its own form.

use std::time::Duration;

use crate::tensor::TensorError;

/// How long a refused client should wait where nothing better is known.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request was not answered; the text is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// The request cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// The request names a model or version that is not here.
    #[error("{0}")]
    NotFound(String),
    /// The request is larger than allowed.
    #[error("{0}")]
    TooLarge(String),
    /// The protocol knows the feature, this server does not.
    #[error("{0}")]
    Unsupported(String),
    /// More waits than can be answered in time; a later try may succeed.
    #[error("{message}")]
    Overloaded {
        /// What waits.
        message: String,
        /// When a try may succeed.
        retry: Duration,
        /// Whether there was room, but the answer would have come too late.
        late: bool,
    },
    /// The client's deadline passed before the result was there.
    #[error("{0}")]
    Deadline(String),
    /// The model is not loaded yet, or the server is ending.
    #[error("{0}")]
    Unavailable(String),
    /// The model failed.
    #[error("{0}")]
    Internal(String),
}

impl InferError {
    /// The value of the metrics' `outcome` label.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid(_) | Self::TooLarge(_) => "invalid",
            Self::NotFound(_) => "not_found",
            Self::Unsupported(_) => "unsupported",
            Self::Overloaded { late: false, .. } => "overloaded",
            Self::Overloaded { late: true, .. } => "late",
            Self::Deadline(_) => "deadline",
            Self::Unavailable(_) => "unavailable",
            Self::Internal(_) => "error",
        }
    }

    /// How long the client should wait before it tries again; `None` when a try is no use.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry, .. } => Some(*retry),
            Self::Unavailable(_) => Some(RETRY_AFTER),
            _ => None,
        }
    }
}

impl From<TensorError> for InferError {
    fn from(error: TensorError) -> Self {
        Self::Invalid(error.to_string())
    }
}
