//! One request: admitted, given to a worker (after waiting for one if need be), sent again if that
//! is safe, answered or refused.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::header::{
    CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use hyper::body::Incoming;

use crate::answer::{self, Body};
use crate::call::{Call, Unanswered};
use crate::deadline;
use crate::forward::{self, Failed, Reply};
use crate::model::Model;
use crate::pool::PoolError;
use crate::refuse::Refusal;
use crate::retry::{self, Failure, Tried};
use crate::tally::Protocol;
use crate::upload::Upload;
use crate::worker::Worker;

/// What a held request without a declared length may take: the window of its stream.
const UNDECLARED: u64 = crate::listen::STREAM_WINDOW as u64;

struct Exchange {
    head: Parts,
    upload: Upload,
    grpc: bool,
    deadline: Option<Instant>,
}

/// Answers one request for `model`.
pub async fn proxy(
    model: Arc<Model>,
    protocol: Protocol,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut call = Call::begin(model, protocol, Instant::now());
    let (head, body) = request.into_parts();
    let mut exchange = Exchange {
        grpc: is_grpc(&head.headers),
        deadline: timeout(&head.headers).and_then(|time| call.arrived.checked_add(time)),
        upload: Upload::new(body, call.model.shared.replay.clone()),
        head,
    };
    let grpc = exchange.grpc;
    let delivered = match exchange.deadline {
        Some(deadline) => {
            let attempts = attempts(&mut call, &mut exchange);
            let late = |_| Err(Refusal::deadline("the deadline passed before a worker answered"));
            tokio::time::timeout_at(deadline.into(), attempts).await.unwrap_or_else(late)
        }
        None => attempts(&mut call, &mut exchange).await,
    };
    match delivered {
        Ok(reply) => answer::answer(reply, exchange.upload, call, grpc),
        Err(refusal) => {
            call.end(refusal.outcome());
            refusal.response(grpc)
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get(deadline::HEADER).and_then(|value| deadline::parse(value.to_str().ok()?))
}

/// Tries workers until one answers or trying again is not safe.
async fn attempts(call: &mut Call, exchange: &mut Exchange) -> Result<Reply, Refusal> {
    admit(call, &exchange.head.method)?;
    let mut sent = 0;
    let mut avoid: Option<Arc<Worker>> = None;
    loop {
        let worker = assign(call, avoid.as_ref(), exchange.upload.declared()).await?;
        let begun = Instant::now();
        call.assign(worker.clone(), begun);
        let unanswered = Unanswered::at(call.model.clone(), worker.clone());
        let head = head(&exchange.head, &worker, left(call, exchange, begun));
        let tried = forward::send(&worker, call.protocol, head, &mut exchange.upload).await;
        drop(unanswered);
        let failure = match &tried {
            Ok(reply) => {
                let outcome = answer::outcome(&reply.response, exchange.grpc);
                let now = Instant::now();
                call.answered(now.saturating_duration_since(begun), outcome, now);
                if !unavailable(reply, exchange.grpc) {
                    exchange.upload.answered();
                    return tried.map_err(|failed| refused(&failed, call));
                }
                Failure::Unavailable
            }
            Err(Failed::Connect(PoolError::Unreachable { .. })) => {
                call.model.lose(&worker);
                Failure::Unreachable
            }
            Err(Failed::NotProcessed(_)) => Failure::NotProcessed,
            Err(Failed::Broken(_) | Failed::Client | Failed::Connect(PoolError::Full(_))) => {
                Failure::Broken
            }
        };
        sent += u32::from(failure != Failure::Unreachable);
        if !again(call, failure, Tried { sent, replayable: exchange.upload.replayable() }, &worker)
        {
            return tried.map_err(|failed| refused(&failed, call));
        }
        tracing::debug!(worker = %worker.address, ?failure, "sent again");
        exchange.upload.rewind();
        avoid = Some(worker);
    }
}

fn admit(call: &Call, method: &Method) -> Result<(), Refusal> {
    if method == Method::CONNECT {
        return Err(Refusal::unsupported("CONNECT is not forwarded"));
    }
    let limit = call.model.shared.limits.requests;
    if call.model.in_flight.load(Ordering::Acquire) > limit {
        return Err(Refusal::full(format!(
            "{limit} requests of {} are under way already",
            call.model.title()
        )));
    }
    let mut budget = call.model.budget.lock().unwrap_or_else(PoisonError::into_inner);
    budget.earn(1);
    Ok(())
}

/// Whether the request goes to a worker again, after `worker`.
fn again(call: &Call, failure: Failure, tried: Tried, worker: &Arc<Worker>) -> bool {
    if !retry::may_retry(failure, tried) {
        return false;
    }
    let now = Instant::now();
    match failure {
        // Nothing was sent: it costs nobody anything.
        Failure::Unreachable => return true,
        Failure::Unavailable => {
            // To be told the same again by the same worker helps nobody.
            let other = call.model.pick(Some(worker), now);
            if other.is_none_or(|other| other.address == worker.address) {
                return false;
            }
        }
        Failure::NotProcessed | Failure::Broken => {}
    }
    let paid = call.model.budget.lock().unwrap_or_else(PoisonError::into_inner).spend(now);
    if paid && failure == Failure::Unavailable {
        // The end of the call speaks of the next worker.
        call.model.judge(worker, false, now);
    }
    paid
}

fn refused(failed: &Failed, call: &Call) -> Refusal {
    match failed {
        Failed::Connect(PoolError::Full(_)) => Refusal::full(failed.to_string()),
        Failed::Connect(_) | Failed::NotProcessed(_) => {
            Refusal::no_worker(failed.to_string(), Duration::from_secs(1))
        }
        // The client is gone and reads none of this.
        Failed::Broken(_) | Failed::Client => {
            tracing::debug!(model = call.model.title(), error = %failed, "a request broke");
            Refusal::broken(failed.to_string())
        }
    }
}

/// Whether a worker says that it does not serve now, before anything else.
fn unavailable(reply: &Reply, grpc: bool) -> bool {
    let said = reply.response.headers().get("grpc-status");
    if grpc {
        said.is_some_and(|status| status == "14")
    } else {
        reply.response.status() == http::StatusCode::SERVICE_UNAVAILABLE
    }
}

/// The worker for the request; waits for one within the bounds of the hold.
async fn assign(
    call: &Call,
    avoid: Option<&Arc<Worker>>,
    declared: Option<u64>,
) -> Result<Arc<Worker>, Refusal> {
    let model = &call.model;
    // Who waits already comes first.
    if model.hold.len() == 0
        && let Some(worker) = model.pick(avoid, Instant::now())
    {
        return Ok(worker);
    }
    let bound = call.arrived + model.shared.limits.hold;
    let bytes = declared.map_or(UNDECLARED, |declared| declared.min(UNDECLARED));
    loop {
        let Some((mut ticket, only)) = model.hold.enter(bytes, Instant::now()) else {
            return Err(Refusal::full(format!(
                "{} requests of {} wait for a worker already",
                model.hold.len(),
                model.title()
            )));
        };
        model.waits(only);
        if tokio::time::timeout_at(bound.into(), ticket.called()).await.is_err() {
            return Err(Refusal::no_worker(
                format!("no worker of {} took the request in time", model.title()),
                model.retry_after(),
            ));
        }
        if let Some(worker) = model.pick(avoid, Instant::now()) {
            return Ok(worker);
        }
    }
}

/// What is left of the client's deadline, where some of it was spent here. A request that goes on
/// at once keeps its header as it came.
fn left(call: &Call, exchange: &Exchange, now: Instant) -> Option<Duration> {
    let spent = now.saturating_duration_since(call.arrived);
    let deadline = exchange.deadline.filter(|_| spent >= Duration::from_millis(1))?;
    Some(deadline.saturating_duration_since(now))
}

/// The head as it goes to the worker, with `timeout` left if that has to be said anew.
fn head(parts: &Parts, worker: &Worker, timeout: Option<Duration>) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = parts.headers.clone();
    if parts.version < Version::HTTP_2 {
        to_http2(request.headers_mut());
    }
    *request.uri_mut() = uri(parts, worker);
    let value = timeout.and_then(|time| HeaderValue::try_from(deadline::format(time)).ok());
    if let Some(value) = value {
        request.headers_mut().insert(deadline::HEADER, value);
    }
    request
}

/// The absolute form that HTTP/2 wants.
fn uri(parts: &Parts, worker: &Worker) -> Uri {
    if parts.uri.authority().is_some() && parts.uri.scheme().is_some() {
        return parts.uri.clone();
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = host.and_then(|host| host.parse::<Authority>().ok());
    let authority = authority.or_else(|| worker.address.to_string().parse().ok());
    let mut whole = parts.uri.clone().into_parts();
    whole.scheme = Some(Scheme::HTTP);
    whole.authority = authority;
    if whole.path_and_query.is_none() {
        whole.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    Uri::from_parts(whole).unwrap_or_else(|_| parts.uri.clone())
}

/// Drops what belongs to a connection of HTTP/1 (RFC 9110, 7.6.1); `host` becomes the authority.
fn to_http2(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let always = [CONNECTION, TRANSFER_ENCODING, UPGRADE, HOST, TE, EXPECT];
    let old = ["keep-alive", "proxy-connection", "http2-settings"].map(HeaderName::from_static);
    for name in named.into_iter().chain(always).chain(old) {
        headers.remove(name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_connection_of_http1_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "model.example"),
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("authorization", "Bearer x"),
            ("inference-header-content-length", "12"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        to_http2(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "inference-header-content-length"]);
    }
}
