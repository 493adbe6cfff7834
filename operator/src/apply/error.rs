//! Why a write did not happen, in words for people and as a condition's reason.

use std::time::Duration;

use lithe::names::reason;

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// An object of the child's name belongs to somebody else.
    #[error("{kind} {name} exists and is not ours ({owner}); rename one of the two")]
    Foreign {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// Who it seems to belong to.
        owner: String,
    },
    /// The API server refused it, or did not answer.
    #[error("write {kind} {name}: {}", words(source))]
    Refused {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Another process leads by now.
    #[error("this process does not lead any more")]
    NotLeader,
}

impl WriteError {
    /// The condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Foreign { .. } => reason::NAME_CONFLICT,
            Self::Refused { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.message.contains("exceeded quota") => {
                    reason::QUOTA_EXCEEDED
                }
                _ => reason::WRITE_REFUSED,
            },
            Self::NotLeader => reason::WAITING,
        }
    }

    /// Whether trying again soon can help.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// How long the server asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Refused { source, .. } = self else { return None };
        let kube::Error::Api(status) = source.as_ref() else { return None };
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }
}

/// The words of `error` for people: the server's own, where there are any.
pub fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}
