//! The answer on its way to the client: passed on as fast as the client takes it, trailers and all.
//! The request counts as under way until its last byte, and ends at the worker when the client
//! goes away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::call::Call;
use crate::forward::{Reply, finish};
use crate::pool::Lease;
use crate::refuse::Refusal;
use crate::tally::Outcome;
use crate::upload::Upload;

/// The body of every answer.
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Option<Bytes>),
    Worker(Box<Answer>),
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self(Kind::Whole(None))
    }

    /// A text of our own.
    pub fn text(text: String) -> Self {
        Self(Kind::Whole(Some(text.into())))
    }
}

#[derive(Debug)]
struct Answer {
    stream: RecvStream,
    call: Call,
    grpc: bool,
    /// What the head says, unless gRPC's trailers say more.
    outcome: Outcome,
    /// Bytes to come, where the head says how many: an HTTP/1 peer reads no further than that.
    left: Option<u64>,
    done: bool,
    upload: Option<AbortHandle>,
    _lease: Lease,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(upload) = &self.upload {
            upload.abort();
        }
    }
}

/// What the head of an answer says about its end.
pub fn outcome(response: &Response<RecvStream>, grpc: bool) -> Outcome {
    match response.headers().get("grpc-status").filter(|_| grpc) {
        Some(status) => Outcome::of_grpc(status.as_bytes()),
        None => Outcome::of_http(response.status()),
    }
}

/// Makes `reply` the answer of `call`; what is left of `upload` goes on meanwhile.
pub fn answer(reply: Reply, upload: Upload, mut call: Call, grpc: bool) -> Response<Body> {
    let outcome = outcome(&reply.response, grpc);
    let (head, stream) = reply.response.into_parts();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if stream.is_end_stream() {
        call.end(outcome);
        return response;
    }
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let left = length.and_then(|text| text.parse().ok());
    let upload = reply.sending.map(|sending| tokio::spawn(finish(upload, sending)).abort_handle());
    let lease = reply.lease;
    let answer = Answer { stream, call, grpc, outcome, left, done: false, upload, _lease: lease };
    *response.body_mut() = Body(Kind::Worker(Box::new(answer)));
    response
}

impl Answer {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // The worker may send more once this much is taken.
                let _ = self.stream.flow_control().release_capacity(data.len());
                let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                self.left = self.left.map(|left| left.saturating_sub(length));
                if !self.grpc && (self.left == Some(0) || self.stream.is_end_stream()) {
                    self.call.end(self.outcome);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(self.broke(error)),
            None => match ready!(self.stream.poll_trailers(cx)) {
                Ok(trailers) => {
                    self.done = true;
                    self.call.end(self.end(trailers.as_ref()));
                    Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
                }
                Err(error) => Poll::Ready(self.broke(error)),
            },
        }
    }

    fn end(&self, trailers: Option<&HeaderMap>) -> Outcome {
        let status = trailers.and_then(|trailers| trailers.get("grpc-status"));
        match status.filter(|_| self.grpc) {
            Some(status) => Outcome::of_grpc(status.as_bytes()),
            None => self.outcome,
        }
    }

    /// The worker went away: a gRPC client is told in its own form, another sees the answer break.
    fn broke(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        self.done = true;
        self.call.end(Outcome::Broken);
        if self.grpc {
            let refusal = Refusal::broken(format!("the worker went away: {error}"));
            return Some(Ok(Frame::trailers(refusal.trailers())));
        }
        Some(Err(error))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match &mut self.0 {
            Kind::Whole(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Worker(answer) => answer.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(text) => text.is_none(),
            Kind::Worker(answer) => answer.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(text) => SizeHint::with_exact(
                text.as_ref().map_or(0, |text| u64::try_from(text.len()).unwrap_or(u64::MAX)),
            ),
            Kind::Worker(_) => SizeHint::default(),
        }
    }
}
