//! What can go wrong between here and a source or store, and the condition reason of each.
//!
//! No text holds a credential or the query of an address (which may be signed).

use std::path::PathBuf;

use lithe::Digest;
use lithe::names::reason;

/// Why bytes did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An address that cannot be read.
    #[error("{uri:?} is not an address: {why}")]
    Address {
        /// The address.
        uri: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is nothing at the address.
    #[error("{what} does not exist ({status})")]
    NotFound {
        /// The address.
        what: String,
        /// The answer, such as `404 Not Found`.
        status: String,
    },
    /// The other side does not accept the credentials, or wants some.
    #[error("{what} refused the credentials ({status})")]
    Auth {
        /// The address.
        what: String,
        /// The answer, such as `403 Forbidden`.
        status: String,
    },
    /// The other side did not answer, or not as it should; a later try may succeed.
    #[error("{what} is unavailable: {why}")]
    Unavailable {
        /// The address.
        what: String,
        /// What happened.
        why: String,
    },
    /// The address leads where it must not.
    #[error("{what} is forbidden: {why}")]
    Forbidden {
        /// The address.
        what: String,
        /// The rule.
        why: String,
    },
    /// The bytes are others than expected.
    #[error("{what} has digest {seen}, wanted {wanted}")]
    Digest {
        /// The address.
        what: String,
        /// The digest that was asked for.
        wanted: Digest,
        /// The digest of what came.
        seen: Digest,
    },
    /// A credential is missing.
    #[error("the credentials have no {key:?} (looked for {path}): {why}")]
    Secret {
        /// The key of the Secret.
        key: String,
        /// The file it should be in.
        path: PathBuf,
        /// Why it is needed.
        why: String,
    },
    /// There is no room.
    #[error("no space left for {what}: {why}")]
    Space {
        /// What was written.
        what: String,
        /// The words of whoever is full.
        why: String,
    },
    /// The source is larger than allowed.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// The address.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The other side's answer makes no sense.
    #[error("{what} is not what it should be: {why}")]
    Malformed {
        /// The address.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A local file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The condition reason when the bytes are a source's.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => reason::INVALID,
            Self::NotFound { .. } => reason::SOURCE_NOT_FOUND,
            Self::Auth { .. } => reason::SOURCE_AUTH_FAILED,
            Self::Unavailable { .. } | Self::File { .. } => reason::SOURCE_UNAVAILABLE,
            Self::Forbidden { .. } => reason::SOURCE_FORBIDDEN,
            Self::Digest { .. } => reason::DIGEST_MISMATCH,
            Self::Secret { .. } => reason::SECRET_MISSING,
            Self::Space { .. } => reason::NO_SPACE,
            Self::TooLarge { .. } => reason::RESOURCE_BUDGET,
            Self::Malformed { .. } => reason::CORRUPT,
        }
    }

    /// The condition reason when the bytes are the artifact store's.
    pub fn store_reason(&self) -> &'static str {
        match self {
            Self::Space { .. } => reason::NO_SPACE,
            Self::Secret { .. } => reason::SECRET_MISSING,
            _ => reason::STORE_UNAVAILABLE,
        }
    }

    /// Whether another try may succeed without anybody changing anything.
    pub fn transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// The error of a file operation at `path`.
    pub fn file(path: &std::path::Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Space { what: path.display().to_string(), why: source.to_string() }
            }
            ErrorKind::NotFound => {
                Self::NotFound { what: path.display().to_string(), status: source.to_string() }
            }
            _ => Self::File { path: path.to_owned(), source },
        }
    }

    /// The error for an HTTP status that is no success; `why` is what the answer said.
    pub fn status(what: &str, status: http::StatusCode, why: &str) -> Self {
        let what = what.to_owned();
        let said = status.to_string();
        match status.as_u16() {
            404 | 410 => Self::NotFound { what, status: said },
            401 | 403 | 407 => Self::Auth { what, status: said },
            507 => Self::Space { what, why: said },
            408 | 425 | 429 | 500.. if full(why) => Self::Space { what, why: brief(why) },
            408 | 425 | 429 | 500.. => Self::Unavailable { what, why: said },
            _ => Self::Malformed { what, why: format!("the answer is {said}") },
        }
    }
}

/// Whether a server's words say that its disk is full. CNCF Distribution hides the words and
/// passes on the number of ENOSPC.
pub fn full(words: &str) -> bool {
    words.contains("no space left")
        || words.contains("No space left")
        || words.contains("\"Err\":28")
        || words.contains("quota exceeded")
}

/// The head of what a server said, on one line.
pub fn brief(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// An error and its causes on one line, without the queries of addresses.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    brief(&without_queries(&text))
}

/// `text` with everything from a `?` to the end of its word removed.
pub fn without_queries(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.split_once('?') {
        Some((head, _)) if word.contains("://") => head,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_queries_do_not_reach_a_message() {
        let text = without_queries("GET https://h/p?X-Amz-Signature=abc failed? yes");
        assert_eq!(text, "GET https://h/p failed? yes");
    }

    #[test]
    fn a_full_registry_is_told_from_a_broken_one() {
        let status = http::StatusCode::INTERNAL_SERVER_ERROR;
        let enospc = r#"{"detail":{"Enclosed":{"Op":"write","Err":28}}}"#;
        assert_eq!(StoreError::status("r", status, enospc).reason(), reason::NO_SPACE);
        assert_eq!(StoreError::status("r", status, "").reason(), reason::SOURCE_UNAVAILABLE);
    }
}
