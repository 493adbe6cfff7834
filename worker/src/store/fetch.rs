//! Brings a source to a file: streamed, hashed on its way, bounded in size and in patience.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use lithe::Digest;
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::address::Reach;
use super::credentials::Credentials;
use super::error::StoreError;
use super::location::Location;
use super::retry::{BUDGET, retry};
use super::{https, object, oci};

/// The largest source: what a compression pod's scratch folder holds.
pub const MAX_SOURCE_BYTES: u64 = 16 << 30;
/// The longest silence of a peer.
const SILENCE: Duration = Duration::from_secs(30);
/// In every such window a peer must send at least [`SLOWEST`] bytes.
const WINDOW: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 64 << 10;

/// What to fetch, and how.
#[derive(Clone, Debug)]
pub struct Fetch<'a> {
    /// Where it lies.
    pub location: &'a Location,
    /// What opens it.
    pub credentials: &'a Credentials,
    /// The digest it must have.
    pub digest: Option<&'a Digest>,
    /// The most bytes it may have.
    pub limit: u64,
    /// Whether private addresses are allowed.
    pub private: bool,
    /// The registry that is spoken to without TLS, if any.
    pub plain_http: Option<&'a str>,
    /// How long to keep trying.
    pub budget: Duration,
}

impl<'a> Fetch<'a> {
    /// A fetch of `location` with the usual limits.
    pub fn new(location: &'a Location, credentials: &'a Credentials) -> Self {
        Self {
            location,
            credentials,
            digest: None,
            limit: MAX_SOURCE_BYTES,
            private: false,
            plain_http: None,
            budget: BUDGET,
        }
    }
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The file with the bytes: the destination, or the source itself where that is a file.
    pub path: PathBuf,
    /// The digest of the bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// Brings the source to `target`; files of this machine stay where they are.
///
/// # Errors
/// Whatever is wrong with the address, the credentials, the peer or the bytes. `target` is left
/// behind half-written on an error and must not be used.
pub async fn fetch(fetch: &Fetch<'_>, target: &Path) -> Result<Fetched, StoreError> {
    let fetched = retry(fetch.budget, async || {
        let mut sink = Sink::new(fetch, target);
        match fetch.location {
            Location::File(path) => return local(fetch, path).await,
            Location::Claim { .. } => {
                let why = "the claim is not mounted".into();
                return Err(StoreError::Address { uri: fetch.location.to_string(), why });
            }
            Location::Https(url) => {
                let reach = if fetch.private { Reach::Private } else { Reach::Public };
                https::get(url, fetch.credentials, reach, &mut sink).await?;
            }
            Location::Object { scheme, bucket, key } => {
                let store = object::connect(*scheme, bucket, fetch.credentials).await?;
                object::get(&store, &sink.what.clone(), key, &mut sink).await?;
            }
            Location::Oci { registry, repository, version } => {
                let plain = fetch.plain_http == Some(registry);
                let registry = oci::Registry::connect(registry, fetch.credentials, plain).await?;
                registry.source(repository, version, &mut sink).await?;
            }
        }
        sink.finish().await
    });
    let fetched = fetched.await?;
    if let Some(wanted) = fetch.digest.filter(|wanted| **wanted != fetched.digest) {
        let what = fetch.location.to_string();
        return Err(StoreError::Digest { what, wanted: wanted.clone(), seen: fetched.digest });
    }
    Ok(fetched)
}

async fn local(fetch: &Fetch<'_>, path: &Path) -> Result<Fetched, StoreError> {
    let wrong = |error| StoreError::file(path, error);
    let kind = tokio::fs::metadata(path).await.map_err(wrong)?;
    if !kind.is_file() {
        return Err(wrong(std::io::Error::other("it is not a regular file")));
    }
    let mut file = tokio::fs::File::open(path).await.map_err(wrong)?;
    let mut hasher = Sha256::default();
    let (mut size, mut buffer) = (0_u64, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).await.map_err(wrong)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
        sha2::Digest::update(&mut hasher, chunk);
        size += chunk.len() as u64;
        if size > fetch.limit {
            let what = path.display().to_string();
            return Err(StoreError::TooLarge { what, limit: fetch.limit });
        }
    }
    Ok(Fetched { path: path.to_owned(), digest: Digest::finish(hasher), size })
}

/// A file that is being written and hashed.
pub struct Sink {
    /// The source, for messages.
    pub what: String,
    path: PathBuf,
    limit: u64,
    size: u64,
    hasher: Sha256,
    file: Option<tokio::fs::File>,
}

impl Sink {
    fn new(fetch: &Fetch<'_>, path: &Path) -> Self {
        Self {
            what: fetch.location.to_string(),
            path: path.to_owned(),
            limit: fetch.limit,
            size: 0,
            hasher: Sha256::default(),
            file: None,
        }
    }

    /// Refuses a size that the peer claims, before anything is written.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn expect(&self, size: Option<u64>) -> Result<(), StoreError> {
        if size.is_some_and(|size| size > self.limit) {
            return Err(StoreError::TooLarge { what: self.what.clone(), limit: self.limit });
        }
        Ok(())
    }

    /// Writes all of `stream`, which must bring `size` bytes when that is known.
    ///
    /// # Errors
    /// When the peer is silent, slow, brings more than allowed or breaks off; when the disk is full.
    pub async fn take(
        &mut self,
        size: Option<u64>,
        stream: impl Stream<Item = Result<Bytes, StoreError>>,
    ) -> Result<(), StoreError> {
        self.expect(size)?;
        let unavailable =
            |what: &str, why: String| StoreError::Unavailable { what: what.into(), why };
        let mut pace = Pace::new(Instant::now());
        futures::pin_mut!(stream);
        loop {
            let silent = |_| unavailable(&self.what, format!("it was silent for {SILENCE:?}"));
            let next = tokio::time::timeout(SILENCE, stream.next()).await.map_err(silent)?;
            let Some(chunk) = next else { break };
            let chunk = chunk?;
            if pace.too_slow(Instant::now(), chunk.len() as u64) {
                let why = format!("it sent less than {SLOWEST} bytes in {WINDOW:?}");
                return Err(unavailable(&self.what, why));
            }
            self.write(&chunk).await?;
        }
        if size.is_some_and(|size| size != self.size) {
            let why = format!("it broke off after {} of {} bytes", self.size, size.unwrap_or(0));
            return Err(unavailable(&self.what, why));
        }
        Ok(())
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        self.size += chunk.len() as u64;
        self.expect(Some(self.size))?;
        sha2::Digest::update(&mut self.hasher, chunk);
        let wrong = |error| StoreError::file(&self.path, error);
        if self.file.is_none() {
            self.file = Some(tokio::fs::File::create(&self.path).await.map_err(wrong)?);
        }
        match self.file.as_mut() {
            Some(file) => file.write_all(chunk).await.map_err(wrong),
            None => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<Fetched, StoreError> {
        self.write(&[]).await?;
        let wrong = |error| StoreError::file(&self.path, error);
        if let Some(mut file) = self.file {
            file.flush().await.map_err(wrong)?;
        }
        Ok(Fetched { path: self.path, digest: Digest::finish(self.hasher), size: self.size })
    }
}

/// How fast a peer sends, window by window.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    fn too_slow(&mut self, now: Instant, bytes: u64) -> bool {
        self.bytes += bytes;
        if now.saturating_duration_since(self.since) < WINDOW {
            return false;
        }
        let slow = self.bytes < SLOWEST;
        *self = Self::new(now);
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_given_up_after_one_window() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(!pace.too_slow(start + Duration::from_secs(59), 1));
        assert!(pace.too_slow(start + WINDOW, 1));
        assert!(!pace.too_slow(start + WINDOW + WINDOW, SLOWEST));
    }
}
