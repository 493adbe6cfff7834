//! Bodies of inference requests and answers: size, time and compression. A compressed body may not
//! grow beyond the limit of a plain one.

use std::io::{Read, Write};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use futures::StreamExt as _;

use super::message::HEADER_LENGTH;
use crate::serve::error::InferError;

/// How long a client may take to send one request.
const SEND_TIME: Duration = Duration::from_secs(60);
/// How many times the limit of a body that is too large is read and thrown away, and for how long.
const DISCARD: usize = 4;
const DISCARD_TIME: Duration = Duration::from_secs(5);
/// Answers below this size gain nothing from compression.
const COMPRESS_FROM: usize = 1024;

#[derive(Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
}

/// The whole body, decompressed, of at most `limit` bytes.
///
/// # Errors
/// [`InferError::TooLarge`], [`InferError::Invalid`] for a coding that is unknown or broken.
pub async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, InferError> {
    let coding = match text(headers, header::CONTENT_ENCODING).unwrap_or_default().trim() {
        "" | "identity" => None,
        "gzip" | "x-gzip" => Some(Coding::Gzip),
        "deflate" => Some(Coding::Deflate),
        other => {
            let text = format!("content-encoding {other:?} is unknown: send gzip or deflate");
            return Err(InferError::Invalid(text));
        }
    };
    let late =
        |_| InferError::Deadline(format!("the request took longer than {SEND_TIME:?} to arrive"));
    let mut stream = body.into_data_stream();
    let body = tokio::time::timeout(SEND_TIME, collect(&mut stream, limit)).await.map_err(late)?;
    if let Err(InferError::TooLarge(_)) = body {
        // Who still sends does not read: an answer now would be lost with the connection.
        let rest = discard(&mut stream, limit.saturating_mul(DISCARD));
        let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
    }
    let body = body?;
    match coding {
        None => Ok(body),
        Some(coding) => tokio::task::spawn_blocking(move || decompress(coding, &body, limit))
            .await
            .map_err(|error| InferError::Internal(error.to_string()))?,
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn too_large(limit: usize) -> InferError {
    InferError::TooLarge(format!("the request is larger than {limit} bytes"))
}

async fn collect(stream: &mut BodyDataStream, limit: usize) -> Result<Bytes, InferError> {
    let mut all = Vec::new();
    let mut only = Bytes::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk
            .map_err(|error| InferError::Invalid(format!("the request broke off: {error}")))?;
        let before = all.len().max(only.len());
        if before.saturating_add(chunk.len()) > limit {
            return Err(too_large(limit));
        }
        // A body that came in one piece is not copied.
        if before == 0 {
            only = chunk;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut only));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(if all.is_empty() { only } else { all.into() })
}

async fn discard(stream: &mut BodyDataStream, most: usize) {
    let mut seen = 0_usize;
    while let Some(Ok(chunk)) = stream.next().await {
        seen = seen.saturating_add(chunk.len());
        if seen > most {
            return;
        }
    }
}

fn decompress(coding: Coding, body: &[u8], limit: usize) -> Result<Bytes, InferError> {
    let reader: Box<dyn Read + '_> = match coding {
        Coding::Gzip => Box::new(GzDecoder::new(body)),
        Coding::Deflate => Box::new(ZlibDecoder::new(body)),
    };
    let mut plain = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader
        .take(most)
        .read_to_end(&mut plain)
        .map_err(|error| InferError::Invalid(format!("the compressed body is broken: {error}")))?;
    if plain.len() > limit { Err(too_large(limit)) } else { Ok(plain.into()) }
}

/// The answer of `json` and binary `parts`, compressed when the client takes that.
pub async fn write(headers: &HeaderMap, json: Vec<u8>, parts: Vec<Bytes>) -> Response {
    let length = json.len();
    let binary = !parts.is_empty();
    let mut body = json;
    body.reserve_exact(parts.iter().map(Bytes::len).sum());
    for part in &parts {
        body.extend_from_slice(part);
    }
    let coding = accepted(headers).filter(|_| body.len() >= COMPRESS_FROM);
    let (body, coding) = match coding {
        None => (body, None),
        Some((coding, name)) => compressed(coding, name, body).await,
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    let kind = if binary { "application/octet-stream" } else { "application/json" };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if binary {
        headers.insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    response
}

fn accepted(headers: &HeaderMap) -> Option<(Coding, &'static str)> {
    let accepts = text(headers, header::ACCEPT_ENCODING)?;
    accepts.split(',').find_map(|item| {
        let (name, quality) = item.split_once(';').unwrap_or((item, ""));
        let refused = quality.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
        match name.trim() {
            "gzip" if !refused => Some((Coding::Gzip, "gzip")),
            "deflate" if !refused => Some((Coding::Deflate, "deflate")),
            _ => None,
        }
    })
}

async fn compressed(
    coding: Coding,
    name: &'static str,
    body: Vec<u8>,
) -> (Vec<u8>, Option<&'static str>) {
    let work = move || {
        let packed = pack(coding, &body);
        packed.map_or((body, None), |packed| (packed, Some(name)))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

fn pack(coding: Coding, body: &[u8]) -> std::io::Result<Vec<u8>> {
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body)?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body)?;
            encoder.finish()
        }
    }
}
