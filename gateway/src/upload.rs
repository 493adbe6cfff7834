//! The body of a request on its way to a worker: passed on as it comes and as fast as the worker
//! takes it, and kept from its first byte as long as it is small, so that it can be sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http_body::Body as _;
use hyper::body::Incoming;

/// Bytes of one request that are kept: an image of 224 x 224 x 3 floats fits.
const KEEP: usize = 1 << 20;

/// Bytes that all requests of a gateway may keep together. Beyond, requests are sent only once.
#[derive(Debug)]
pub struct Replay {
    left: AtomicUsize,
}

impl Replay {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes) }
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }
}

/// Why an upload stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The client went away.
    Client,
    /// The worker takes no more; its answer tells why.
    Worker,
}

/// A request's body.
#[derive(Debug)]
pub struct Upload {
    body: Incoming,
    current: Option<Bytes>,
    ended: bool,
    /// The whole beginning of the body, unless `forgotten`.
    kept: Vec<Bytes>,
    /// The next of `kept` to send.
    next: usize,
    forgotten: bool,
    taken: usize,
    replay: Arc<Replay>,
}

impl Upload {
    /// Nothing of `body` was sent yet.
    pub fn new(body: Incoming, replay: Arc<Replay>) -> Self {
        let ended = body.is_end_stream();
        Self {
            body,
            current: None,
            ended,
            kept: Vec::new(),
            next: 0,
            forgotten: false,
            taken: 0,
            replay,
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.ended && self.kept.is_empty() && !self.forgotten
    }

    /// The bytes that the client declared.
    pub fn declared(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Whether it can be sent again from its first byte.
    pub fn replayable(&self) -> bool {
        !self.forgotten
    }

    /// Begins again at the first byte.
    pub fn rewind(&mut self) {
        self.current = None;
        self.next = 0;
    }

    /// The worker answered: what was sent is not sent again.
    pub fn answered(&mut self) {
        // What is left of a second attempt still has to go out.
        if self.next >= self.kept.len() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.forgotten = true;
        self.kept = Vec::new();
        self.next = 0;
        self.replay.left.fetch_add(std::mem::take(&mut self.taken), Ordering::AcqRel);
    }

    fn keep(&mut self, data: &Bytes) {
        if self.forgotten {
            return;
        }
        let fits = self.taken + data.len() <= KEEP && self.replay.take(data.len());
        if fits {
            self.taken += data.len();
            self.kept.push(data.clone());
            self.next = self.kept.len();
        } else {
            self.forget();
        }
    }

    /// Sends what there is to `stream`; ready once all is sent.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Stop>> {
        loop {
            if self.current.is_some() {
                ready!(self.poll_current(cx, stream))?;
                if self.done() {
                    return Poll::Ready(Ok(()));
                }
            }
            if let Some(chunk) = self.kept.get(self.next) {
                self.current = Some(chunk.clone());
                self.next += 1;
                continue;
            }
            if self.ended {
                stream.send_data(Bytes::new(), true).map_err(|_| Stop::Worker)?;
                return Poll::Ready(Ok(()));
            }
            match ready!(std::pin::Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.keep(&data);
                        self.ended = self.body.is_end_stream();
                        self.current = Some(data);
                    }
                    Err(frame) => {
                        // No client of ours has trailers in requests; they are not kept.
                        self.forget();
                        self.ended = true;
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(
                            stream.send_trailers(trailers).map_err(|_| Stop::Worker),
                        );
                    }
                },
                Some(Err(_)) => return Poll::Ready(Err(Stop::Client)),
                None => self.ended = true,
            }
        }
    }

    /// Whether the last byte was read and sent, with the mark that it was the last.
    fn done(&self) -> bool {
        self.ended && self.current.is_none() && self.next >= self.kept.len()
    }

    fn poll_current(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Stop>> {
        while let Some(mut chunk) = self.current.take() {
            let last = self.ended && self.next >= self.kept.len();
            if chunk.is_empty() {
                if last {
                    stream.send_data(chunk, true).map_err(|_| Stop::Worker)?;
                }
                break;
            }
            stream.reserve_capacity(chunk.len());
            let mut room = stream.capacity();
            while room == 0 {
                match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(more))) => room = more,
                    Poll::Ready(_) => return Poll::Ready(Err(Stop::Worker)),
                    Poll::Pending => {
                        self.current = Some(chunk);
                        return Poll::Pending;
                    }
                }
            }
            let piece = chunk.split_to(room.min(chunk.len()));
            let end = last && chunk.is_empty();
            stream.send_data(piece, end).map_err(|_| Stop::Worker)?;
            if !chunk.is_empty() {
                self.current = Some(chunk);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.forget();
    }
}
