//! One OCI registry: sources come from it, artifacts go to it. Blobs first, the manifest last, so
//! that nothing is ever half there.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use lithe::Digest;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::address::{Reach, resolve};
use super::credentials::Credentials;
use super::error::{StoreError, brief, chain, full};
use super::fetch::Sink;
use super::location::Version;
use super::modelpack;

/// Bytes of one piece of an upload that is read from disk.
const PIECE: usize = 1 << 20;
/// The largest small blob (a Manifest) that is read into memory.
const SMALL: u64 = 16 << 20;

/// A registry and what opens it.
pub struct Registry {
    host: String,
    client: Client,
    auth: RegistryAuth,
}

/// A manifest as it lies in the registry.
pub struct Pulled {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its content.
    pub manifest: OciImageManifest,
}

impl Registry {
    /// The registry at `host`, spoken to without TLS when `plain`.
    ///
    /// # Errors
    /// When the credentials are incomplete or the host is forbidden.
    pub async fn connect(
        host: &str,
        credentials: &Credentials,
        plain: bool,
    ) -> Result<Self, StoreError> {
        let what = format!("oci://{host}");
        let (name, port) = split(host, if plain { 80 } else { 443 });
        // Registries inside the cluster have private addresses; metadata services are never one.
        resolve(&what, name, port, Reach::Private).await?;
        let auth = match (credentials.login()?, credentials.get("token")?) {
            (Some((user, password)), _) => RegistryAuth::Basic(user, password),
            (None, Some(token)) => RegistryAuth::Bearer(token),
            (None, None) => RegistryAuth::Anonymous,
        };
        let certificate =
            |pem: String| Certificate { encoding: CertificateEncoding::Pem, data: pem.into() };
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: credentials
                .authority()?
                .map(certificate)
                .into_iter()
                .collect(),
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(30)),
            user_agent: concat!("lithe-worker/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| map(&what, error))?;
        client.store_auth_if_needed(host, &auth).await;
        Ok(Self { host: host.to_owned(), client, auth })
    }

    fn reference(&self, repository: &str, version: &Version) -> Reference {
        let (host, repository) = (self.host.clone(), repository.to_owned());
        match version {
            Version::Tag(tag) => Reference::with_tag(host, repository, tag.clone()),
            Version::Digest(digest) => Reference::with_digest(host, repository, digest.to_string()),
        }
    }

    /// The manifest of `version`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and whatever else the registry says.
    pub async fn manifest(
        &self,
        repository: &str,
        version: &Version,
    ) -> Result<Pulled, StoreError> {
        let reference = self.reference(repository, version);
        let what = format!("oci://{reference}");
        let pulled =
            self.client.pull_manifest_raw(&reference, &self.auth, &[OCI_IMAGE_MEDIA_TYPE]).await;
        let (bytes, _) = pulled.map_err(|error| map(&what, error))?;
        let digest = Digest::of(&bytes);
        if let Version::Digest(wanted) = version
            && *wanted != digest
        {
            return Err(StoreError::Digest { what, wanted: wanted.clone(), seen: digest });
        }
        let manifest = serde_json::from_slice(&bytes).map_err(|error| StoreError::Malformed {
            what,
            why: format!("its manifest is not an image manifest: {error}"),
        })?;
        Ok(Pulled { digest, manifest })
    }

    /// Fetches the model file of a ModelPack artifact, or the only layer of any other artifact,
    /// into `sink`.
    ///
    /// # Errors
    /// Whatever the registry, the network or the disk say.
    pub async fn source(
        &self,
        repository: &str,
        version: &Version,
        sink: &mut Sink,
    ) -> Result<(), StoreError> {
        let pulled = self.manifest(repository, version).await?;
        let layer = modelpack::model_layer(&pulled.manifest)
            .map_err(|why| StoreError::Malformed { what: sink.what.clone(), why })?;
        let size = u64::try_from(layer.size).ok();
        sink.expect(size)?;
        let stream = self.blob(repository, layer).await?;
        sink.take(size, stream).await
    }

    /// The bytes of `blob`, which the client verifies while they come.
    ///
    /// # Errors
    /// Whatever the registry says.
    pub async fn blob(
        &self,
        repository: &str,
        blob: &OciDescriptor,
    ) -> Result<impl Stream<Item = Result<Bytes, StoreError>> + use<>, StoreError> {
        let version = Version::Tag("blob".into());
        let reference = self.reference(repository, &version);
        // Other addresses of the blob, which the registry may name, are nobody's business.
        let blob = OciDescriptor { urls: None, ..blob.clone() };
        let what = format!("oci://{}/{repository}@{}", self.host, blob.digest);
        let pulled = self.client.pull_blob_stream(&reference, &blob).await;
        let pulled = pulled.map_err(|error| map(&what, error))?;
        Ok(pulled.stream.map_err(move |error| broken(&what, error)))
    }

    /// All of a small `blob`, verified.
    ///
    /// # Errors
    /// Whatever the registry says; [`StoreError::TooLarge`].
    pub async fn small(
        &self,
        repository: &str,
        blob: &OciDescriptor,
    ) -> Result<Vec<u8>, StoreError> {
        let what = format!("oci://{}/{repository}@{}", self.host, blob.digest);
        if u64::try_from(blob.size).map_or(true, |size| size > SMALL) {
            return Err(StoreError::TooLarge { what, limit: SMALL });
        }
        let stream = self.blob(repository, blob).await?;
        futures::pin_mut!(stream);
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > SMALL {
                return Err(StoreError::TooLarge { what, limit: SMALL });
            }
        }
        Ok(bytes)
    }

    /// Whether the registry has `digest`.
    ///
    /// # Errors
    /// Whatever the registry says.
    pub async fn has(&self, repository: &str, digest: &str) -> Result<bool, StoreError> {
        let reference = self.reference(repository, &Version::Tag("blob".into()));
        let what = format!("oci://{}/{repository}@{digest}", self.host);
        self.client.blob_exists(&reference, digest).await.map_err(|error| map(&what, error))
    }

    /// Uploads `file` in pieces, unless it is there.
    ///
    /// # Errors
    /// Whatever the registry, the network or the disk say.
    pub async fn push_file(
        &self,
        repository: &str,
        file: &Path,
        blob: &OciDescriptor,
    ) -> Result<(), StoreError> {
        if self.has(repository, &blob.digest).await? {
            return Ok(());
        }
        let opened = tokio::fs::File::open(file).await;
        let opened = opened.map_err(|error| StoreError::file(file, error))?;
        let stream = tokio_util::io::ReaderStream::with_capacity(opened, PIECE)
            .map_err(OciDistributionError::IoError);
        let reference = self.reference(repository, &Version::Tag("blob".into()));
        let what = format!("oci://{}/{repository}", self.host);
        let size = u64::try_from(blob.size).ok();
        let pushed = self.client.push_blob_stream(&reference, stream, &blob.digest, size).await;
        pushed.map(|_| ()).map_err(|error| map(&what, error))
    }

    /// Uploads `bytes`, unless they are there.
    ///
    /// # Errors
    /// Whatever the registry or the network say.
    pub async fn push_bytes(
        &self,
        repository: &str,
        bytes: Vec<u8>,
        blob: &OciDescriptor,
    ) -> Result<(), StoreError> {
        if self.has(repository, &blob.digest).await? {
            return Ok(());
        }
        let reference = self.reference(repository, &Version::Tag("blob".into()));
        let what = format!("oci://{}/{repository}", self.host);
        let pushed = self.client.push_blob(&reference, bytes, &blob.digest).await;
        pushed.map(|_| ()).map_err(|error| map(&what, error))
    }

    /// Makes `manifest` visible under `tag`, and returns its digest.
    ///
    /// # Errors
    /// Whatever the registry or the network say.
    pub async fn publish(
        &self,
        repository: &str,
        tag: &str,
        manifest: &OciImageManifest,
    ) -> Result<Digest, StoreError> {
        let what = format!("oci://{}/{repository}:{tag}", self.host);
        let reference = self.reference(repository, &Version::Tag(tag.to_owned()));
        // The digest is that of canonical JSON: sorted keys, no spaces.
        let value = serde_json::to_value(manifest).map_err(|error| StoreError::Malformed {
            what: what.clone(),
            why: error.to_string(),
        })?;
        let bytes = value.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let kind = http::HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        let pushed = self.client.push_manifest_raw(&reference, bytes, kind).await;
        pushed.map_err(|error| map(&what, error))?;
        Ok(digest)
    }
}

/// The host and the port of `host[:port]`.
fn split(host: &str, default: u16) -> (&str, u16) {
    match host.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name, port),
        _ => (host, default),
    }
}

/// The error of a stream: other bytes than the digest says are no reason to try again.
fn broken(what: &str, error: std::io::Error) -> StoreError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>());
    if let Some(DigestError::VerificationError { expected, actual }) = inner
        && let (Ok(wanted), Ok(seen)) = (expected.parse(), actual.parse())
    {
        return StoreError::Digest { what: what.to_owned(), wanted, seen };
    }
    StoreError::Unavailable { what: what.to_owned(), why: chain(&error) }
}

fn map(what: &str, error: OciDistributionError) -> StoreError {
    let what = what.to_owned();
    let status = |code: u16, why: &str| {
        let code = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::BAD_GATEWAY);
        StoreError::status(&what, code, why)
    };
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => status(404, ""),
        OciDistributionError::UnauthorizedError { .. } => status(401, ""),
        OciDistributionError::AuthenticationFailure(_) => status(401, ""),
        OciDistributionError::ServerError { code, message, .. } => status(code, &message),
        OciDistributionError::RegistryError { envelope, .. } => {
            let said = serde_json::to_string(&envelope.errors).unwrap_or_default();
            match envelope.errors.first().map(|error| &error.code) {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown
                    | OciErrorCode::NotFound,
                ) => status(404, ""),
                Some(OciErrorCode::Unauthorized) => status(401, ""),
                _ if full(&said) => StoreError::Space { what, why: brief(&said) },
                Some(OciErrorCode::Denied) => status(403, ""),
                Some(OciErrorCode::Toomanyrequests) => status(429, ""),
                _ => StoreError::Malformed { what, why: brief(&said) },
            }
        }
        OciDistributionError::RequestError(error) => {
            StoreError::Unavailable { what, why: chain(&error.without_url()) }
        }
        OciDistributionError::IoError(error) => {
            StoreError::Unavailable { what, why: chain(&error) }
        }
        // A registry that restarts in the middle answers with pieces of an answer.
        error @ (OciDistributionError::SpecViolationError(_)
        | OciDistributionError::RegistryNoLocationError) => {
            let why = chain(&error);
            if full(&why) {
                return StoreError::Space { what, why };
            }
            StoreError::Unavailable { what, why }
        }
        error => StoreError::Malformed { what, why: chain(&error) },
    }
}
