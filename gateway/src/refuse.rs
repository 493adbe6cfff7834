//! What the gateway itself answers, in the form of the request's protocol: gRPC's trailers-only
//! response, or a status with `{"error": ...}`; with a hint when to come back where that may help.

use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::answer::Body;
use crate::tally::Outcome;

/// When a client asks again whose request found everything full.
const SOON: Duration = Duration::from_secs(1);

/// Why a request is not answered by a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    kind: Kind,
    message: String,
    retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full,
    NoWorker,
    Deadline,
    Broken,
    Unsupported,
}

impl Refusal {
    /// More requests wait or run than are allowed.
    pub fn full(message: impl Into<String>) -> Self {
        Self { kind: Kind::Full, message: message.into(), retry_after: Some(SOON) }
    }

    /// No worker took the request in time; one may in `retry_after`.
    pub fn no_worker(message: impl Into<String>, retry_after: Duration) -> Self {
        Self { kind: Kind::NoWorker, message: message.into(), retry_after: Some(retry_after) }
    }

    /// The client's deadline passed.
    pub fn deadline(message: impl Into<String>) -> Self {
        Self { kind: Kind::Deadline, message: message.into(), retry_after: None }
    }

    /// The worker went away while it had the request.
    pub fn broken(message: impl Into<String>) -> Self {
        Self { kind: Kind::Broken, message: message.into(), retry_after: None }
    }

    /// The gateway does not forward such requests.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unsupported, message: message.into(), retry_after: None }
    }

    /// How the request is counted.
    pub fn outcome(&self) -> Outcome {
        match self.kind {
            Kind::Full => Outcome::Full,
            Kind::NoWorker => Outcome::NoWorker,
            Kind::Deadline => Outcome::Deadline,
            Kind::Broken => Outcome::Broken,
            Kind::Unsupported => Outcome::Invalid,
        }
    }

    /// The answer to a gRPC request, or to another.
    pub fn response(self, grpc: bool) -> Response<Body> {
        if grpc { self.grpc() } else { self.http() }
    }

    fn grpc(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.extend(self.trailers());
        response
    }

    /// The end of a gRPC response.
    pub fn trailers(&self) -> HeaderMap {
        // https://grpc.io/docs/guides/status-codes
        let status = match self.kind {
            Kind::Full => 8,
            Kind::NoWorker | Kind::Broken => 14,
            Kind::Deadline => 4,
            Kind::Unsupported => 12,
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(status));
        if let Ok(message) = HeaderValue::try_from(percent_encode(&self.message)) {
            trailers.insert("grpc-message", message);
        }
        if let Some(time) = self.retry_after {
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            trailers.insert("grpc-retry-pushback-ms", HeaderValue::from(milliseconds));
        }
        trailers
    }

    fn http(self) -> Response<Body> {
        let status = match self.kind {
            Kind::Full => StatusCode::TOO_MANY_REQUESTS,
            Kind::NoWorker => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Kind::Broken => StatusCode::BAD_GATEWAY,
            Kind::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
        };
        let text = serde_json::json!({ "error": self.message }).to_string();
        let mut response = Response::new(Body::text(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(time) = self.retry_after {
            // Whole seconds, and not before the time.
            let seconds = time.as_millis().div_ceil(1000);
            headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(1)));
        }
        response
    }
}

/// gRPC's encoding of messages in a header: printable ASCII but `%` stays.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut all, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => all.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(all, "%{byte:02X}")),
        }
        all
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_form_of_its_protocol_and_its_hint() {
        let millis = Duration::from_millis;
        let rows = [
            (Refusal::full("f"), "8", Some("1000"), 429, Some("1")),
            (Refusal::no_worker("n", millis(2500)), "14", Some("2500"), 503, Some("3")),
            (Refusal::deadline("d"), "4", None, 504, None),
            (Refusal::broken("b"), "14", None, 502, None),
            (Refusal::unsupported("u"), "12", None, 405, None),
        ];
        for (refusal, grpc, pushback, http, after) in rows {
            let answer = refusal.clone().response(true);
            let header = |answer: &Response<Body>, name: &str| {
                answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
            };
            assert_eq!(answer.status(), 200);
            assert_eq!(header(&answer, "grpc-status").as_deref(), Some(grpc));
            assert_eq!(header(&answer, "grpc-retry-pushback-ms").as_deref(), pushback);
            let answer = refusal.response(false);
            assert_eq!(answer.status(), http);
            assert_eq!(header(&answer, "retry-after").as_deref(), after);
        }
    }

    #[test]
    fn messages_are_encoded_as_grpc_wants() {
        assert_eq!(percent_encode("50% of \"ü\"\n"), "50%25 of \"%C3%BC\"%0A");
    }
}
