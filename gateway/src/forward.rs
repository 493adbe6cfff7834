//! One attempt: the request to one worker, up to the head of its answer.

use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};

use crate::pool::{Lease, PoolError};
use crate::tally::Protocol;
use crate::upload::{Stop, Upload};
use crate::worker::Worker;

/// A worker's answer, of which the head came.
#[derive(Debug)]
pub struct Reply {
    /// The head, and the body as it will come.
    pub response: Response<RecvStream>,
    /// The place on the connection, kept until the body ended.
    pub lease: Lease,
    /// Where the rest of the request's body goes, when it is not all sent.
    pub sending: Option<SendStream<Bytes>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] PoolError),
    /// The worker did not look at the request.
    #[error("the worker is ending and did not take the request: {0}")]
    NotProcessed(h2::Error),
    /// The connection broke.
    #[error("the worker went away: {0}")]
    Broken(h2::Error),
    /// The client went away.
    #[error("the client went away")]
    Client,
}

/// Sends `head` and as much of `upload` as comes before the answer's head.
///
/// # Errors
/// When no worker answers, with what is known about whether it acted.
pub async fn send(
    worker: &Worker,
    protocol: Protocol,
    head: Request<()>,
    upload: &mut Upload,
) -> Result<Reply, Failed> {
    let mut lease = worker.pool(protocol).acquire().await?;
    let mut sending = !upload.is_empty();
    let (mut answer, mut stream) = lease.sender.send_request(head, !sending).map_err(|error| {
        lease.retire();
        Failed::NotProcessed(error)
    })?;
    let response = std::future::poll_fn(|cx| {
        if sending {
            match upload.poll_send(cx, &mut stream) {
                Poll::Pending => {}
                Poll::Ready(Ok(()) | Err(Stop::Worker)) => sending = false,
                Poll::Ready(Err(Stop::Client)) => {
                    stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(Failed::Client));
                }
            }
        }
        Poll::Ready(ready!(Pin::new(&mut answer).poll(cx)).map_err(failed))
    })
    .await?;
    Ok(Reply { response, lease, sending: sending.then_some(stream) })
}

/// RFC 9113, 8.7: what GOAWAY leaves out or REFUSED_STREAM names was not processed.
fn failed(error: h2::Error) -> Failed {
    let refused = error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM);
    if refused && error.is_remote() { Failed::NotProcessed(error) } else { Failed::Broken(error) }
}

/// Sends the rest of `upload`, for streams in both directions. Ends the stream when the client
/// goes away.
pub async fn finish(mut upload: Upload, mut stream: SendStream<Bytes>) {
    let sent = std::future::poll_fn(|cx| upload.poll_send(cx, &mut stream)).await;
    if sent == Err(Stop::Client) {
        stream.send_reset(Reason::CANCEL);
    }
}
