//! Where artifacts are kept, and how one is found, put and opened. An artifact is the model file
//! and its Manifest; its address holds the digest of what describes both.

use std::path::Path;

use futures::StreamExt as _;
use lithe::Digest;
use lithe::artifact::{MANIFEST_FILE, MODEL_FILE, Manifest, REPORT_FILE};

use super::credentials::Credentials;
use super::error::StoreError;
use super::fetch::MAX_SOURCE_BYTES;
use super::location::{Location, Scheme, Version};
use super::modelpack;
use super::object;
use super::oci::Registry;
use super::retry::{BUDGET, retry};

/// The largest Manifest.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// A place for artifacts.
pub enum ArtifactStore {
    /// `prefix/<repository>` in a registry, one tag per key.
    Oci {
        /// The registry.
        registry: Registry,
        /// Host and port, for addresses.
        host: String,
        /// What precedes the repository's name.
        prefix: String,
    },
    /// `prefix/<repository>/sha256/<hex>/…` in an object store, one pointer per key.
    Object {
        /// The store.
        store: object::Store,
        /// The address of the bucket, such as `s3://bucket`.
        base: String,
        /// What precedes the repository's name.
        prefix: String,
    },
}

/// An artifact that a store holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its address, by digest.
    pub uri: String,
    /// Its Manifest.
    pub manifest: Manifest,
    /// The digest of the Manifest's bytes.
    pub manifest_digest: Digest,
}

/// An artifact in memory, verified.
#[derive(Debug)]
pub struct Opened {
    /// The bytes of the model file.
    pub model: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// The Manifest.
    pub manifest: Manifest,
}

fn join(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/")
}

fn parse(what: &str, bytes: &[u8]) -> Result<Manifest, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Malformed {
        what: what.to_owned(),
        why: format!("its {MANIFEST_FILE} cannot be read: {error}"),
    })
}

impl ArtifactStore {
    /// The store at `uri`: `oci://host/prefix`, `s3://bucket/prefix`, `gs://`, `az://`, `file:///`.
    ///
    /// # Errors
    /// When the address or the credentials make no sense.
    pub async fn connect(
        uri: &str,
        credentials: &Credentials,
        plain_http: bool,
    ) -> Result<Self, StoreError> {
        let trimmed = uri.trim_end_matches('/');
        // A registry alone is no artifact's address, but a place for artifacts.
        if let Some(host) = trimmed.strip_prefix("oci://").filter(|rest| !rest.contains('/')) {
            let registry = Registry::connect(host, credentials, plain_http).await?;
            return Ok(Self::Oci { registry, host: host.to_owned(), prefix: String::new() });
        }
        match Location::parse(trimmed)? {
            Location::Oci { registry: host, repository: prefix, .. } => {
                let registry = Registry::connect(&host, credentials, plain_http).await?;
                Ok(Self::Oci { registry, host, prefix })
            }
            Location::Object { scheme, bucket, key } => {
                let store = object::connect(scheme, &bucket, credentials).await?;
                let base = Location::Object { scheme, bucket, key: String::new() }.to_string();
                Ok(Self::Object { store, base: base.trim_end_matches('/').into(), prefix: key })
            }
            Location::File(folder) => {
                let store = object::connect(Scheme::File, "", credentials).await?;
                let prefix = folder.to_string_lossy().trim_matches('/').to_owned();
                Ok(Self::Object { store, base: "file://".into(), prefix })
            }
            Location::Https(_) | Location::Claim { .. } => Err(StoreError::Address {
                uri: uri.to_owned(),
                why: "artifacts are kept in oci://, s3://, gs://, az:// or file:///".into(),
            }),
        }
    }

    /// The artifact of `repository` that was made for `key`, if it is whole.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn find(&self, repository: &str, key: &Digest) -> Result<Option<Found>, StoreError> {
        let found = retry(BUDGET, async || match self {
            Self::Oci { registry, host, prefix } => {
                let name = join(&[prefix, repository]);
                find_oci(registry, host, &name, key).await
            }
            Self::Object { store, base, prefix } => {
                let name = join(&[prefix, repository]);
                find_object(store, base, &name, key).await
            }
        })
        .await?;
        // A key that somebody moved to another artifact is as good as none.
        Ok(found.filter(|found| found.manifest.key == *key))
    }

    /// Keeps the model file, the report that lies beside it and the `json` of its Manifest, and returns
    /// the artifact's address. Other processes see all of it or nothing.
    ///
    /// # Errors
    /// Whatever the store, the network or the disk say.
    pub async fn put(
        &self,
        repository: &str,
        model: &Path,
        json: &[u8],
    ) -> Result<String, StoreError> {
        let manifest = parse(repository, json)?;
        let report = read_report(&manifest, model)?;
        retry(BUDGET, async || match self {
            Self::Oci { registry, host, prefix } => {
                let name = join(&[prefix, repository]);
                let pack = modelpack::pack(repository, &manifest, json);
                let [weights, document, rest @ ..] = pack.manifest.layers.as_slice() else {
                    let why = "it has no layers".into();
                    return Err(StoreError::Malformed { what: name, why });
                };
                registry.push_file(&name, model, weights).await?;
                registry.push_bytes(&name, json.to_vec(), document).await?;
                if let (Some(page), Some(layer)) = (&report, rest.first()) {
                    registry.push_bytes(&name, page.clone(), layer).await?;
                }
                registry.push_bytes(&name, pack.config.clone(), &pack.manifest.config).await?;
                let digest = registry.publish(&name, &tag(&manifest.key), &pack.manifest).await?;
                Ok(format!("oci://{host}/{name}@{digest}"))
            }
            Self::Object { store, base, prefix } => {
                let name = join(&[prefix, repository]);
                let kept = Kept { store, base, name: &name };
                kept.put(model, &manifest, json, report.as_deref()).await
            }
        })
        .await
    }
}

fn tag(key: &Digest) -> String {
    format!("key-{}", key.hex())
}

/// `None` where the error says that something is not there.
fn absent<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn find_oci(
    registry: &Registry,
    host: &str,
    name: &str,
    key: &Digest,
) -> Result<Option<Found>, StoreError> {
    let version = Version::Tag(tag(key));
    let Some(pulled) = absent(registry.manifest(name, &version).await)? else { return Ok(None) };
    let uri = format!("oci://{host}/{name}@{}", pulled.digest);
    let layers = (
        modelpack::layer(&pulled.manifest, MODEL_FILE),
        modelpack::layer(&pulled.manifest, MANIFEST_FILE),
    );
    let (Some(weights), Some(document)) = layers else { return Ok(None) };
    // A registry may have lost blobs to a clean-up that kept the tag.
    if !registry.has(name, &weights.digest).await? {
        return Ok(None);
    }
    let Some(json) = absent(registry.small(name, document).await)? else { return Ok(None) };
    let manifest = parse(&uri, &json)?;
    Ok(Some(Found { uri, manifest, manifest_digest: Digest::of(&json) }))
}

async fn find_object(
    store: &object::Store,
    base: &str,
    name: &str,
    key: &Digest,
) -> Result<Option<Found>, StoreError> {
    let pointer = format!("{name}/keys/{}", key.hex());
    let what = format!("{base}/{pointer}");
    let Some(hex) = object::read(store, &what, &pointer, 128).await? else { return Ok(None) };
    let wanted = format!("sha256:{}", String::from_utf8_lossy(&hex)).parse::<Digest>();
    let Ok(wanted) = wanted else { return Ok(None) };
    let folder = format!("{name}/sha256/{}", wanted.hex());
    let uri = format!("{base}/{folder}");
    let document = format!("{folder}/{MANIFEST_FILE}");
    let Some(json) = object::read(store, &uri, &document, MAX_MANIFEST_BYTES).await? else {
        return Ok(None);
    };
    if Digest::of(&json) != wanted {
        return Ok(None);
    }
    let manifest = parse(&uri, &json)?;
    let model = format!("{folder}/{MODEL_FILE}");
    if !object::exists(store, &uri, &model, manifest.model.size).await? {
        return Ok(None);
    }
    Ok(Some(Found { uri, manifest, manifest_digest: wanted }))
}

/// The report that `manifest` names, beside the model file.
fn read_report(manifest: &Manifest, model: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(report) = &manifest.report else { return Ok(None) };
    let path = model.with_file_name(REPORT_FILE);
    let page = std::fs::read(&path).map_err(|error| StoreError::file(&path, error))?;
    let seen = Digest::of(&page);
    if seen != report.digest {
        let what = path.display().to_string();
        return Err(StoreError::Digest { what, wanted: report.digest.clone(), seen });
    }
    Ok(Some(page))
}

/// A repository of an object store.
struct Kept<'a> {
    store: &'a object::Store,
    base: &'a str,
    name: &'a str,
}

impl Kept<'_> {
    async fn put(
        &self,
        model: &Path,
        manifest: &Manifest,
        json: &[u8],
        report: Option<&[u8]>,
    ) -> Result<String, StoreError> {
        let Self { store, base, name } = self;
        let digest = Digest::of(json);
        let folder = format!("{name}/sha256/{}", digest.hex());
        let uri = format!("{base}/{folder}");
        let file = format!("{folder}/{MODEL_FILE}");
        if !object::exists(store, &uri, &file, manifest.model.size).await? {
            object::upload(store, &uri, &file, model).await?;
        }
        if let Some(page) = report {
            object::put(store, &uri, &format!("{folder}/{REPORT_FILE}"), page.to_vec()).await?;
        }
        object::put(store, &uri, &format!("{folder}/{MANIFEST_FILE}"), json.to_vec()).await?;
        let pointer = format!("{name}/keys/{}", manifest.key.hex());
        object::put(store, &uri, &pointer, digest.hex().as_bytes().to_vec()).await?;
        Ok(uri)
    }
}

/// The artifact at `uri`, in memory: as many bytes as its Manifest says, no more, each of them
/// verified.
///
/// # Errors
/// Whatever the store says; [`StoreError::Digest`] when the bytes are others than promised.
pub async fn open(
    uri: &str,
    credentials: &Credentials,
    plain_http: bool,
) -> Result<Opened, StoreError> {
    let location = Location::parse(uri)?;
    retry(BUDGET, async || match &location {
        Location::Oci { registry, repository, version } => {
            let registry = Registry::connect(registry, credentials, plain_http).await?;
            open_oci(&registry, uri, repository, version).await
        }
        Location::Object { scheme, bucket, key } => {
            let store = object::connect(*scheme, bucket, credentials).await?;
            open_object(&store, uri, key).await
        }
        Location::File(folder) => {
            let store = object::connect(Scheme::File, "", credentials).await?;
            open_object(&store, uri, folder.to_string_lossy().trim_matches('/')).await
        }
        Location::Https(_) | Location::Claim { .. } => {
            let why = "artifacts are kept in oci://, s3://, gs://, az:// or file:///".into();
            Err(StoreError::Address { uri: uri.to_owned(), why })
        }
    })
    .await
}

async fn open_oci(
    registry: &Registry,
    uri: &str,
    repository: &str,
    version: &Version,
) -> Result<Opened, StoreError> {
    let malformed = |why: &str| StoreError::Malformed { what: uri.into(), why: why.into() };
    let pulled = registry.manifest(repository, version).await?;
    let layer = |name| modelpack::layer(&pulled.manifest, name);
    let document = layer(MANIFEST_FILE).ok_or_else(|| malformed("it has no Manifest"))?;
    let weights = layer(MODEL_FILE).ok_or_else(|| malformed("it has no model"))?;
    let manifest = parse(uri, &registry.small(repository, document).await?)?;
    if weights.digest != manifest.model.digest.as_str() {
        return Err(malformed("its Manifest describes another model"));
    }
    let stream = registry.blob(repository, weights).await?;
    let model = collect(uri, &manifest, stream).await?;
    Ok(Opened { model, digest: manifest.model.digest.clone(), manifest })
}

async fn open_object(store: &object::Store, uri: &str, folder: &str) -> Result<Opened, StoreError> {
    let malformed = |why: &str| StoreError::Malformed { what: uri.into(), why: why.into() };
    let hex = folder.rsplit('/').next().unwrap_or_default();
    let wanted: Digest =
        format!("sha256:{hex}").parse().map_err(|_| malformed("the address has no digest"))?;
    let document = format!("{folder}/{MANIFEST_FILE}");
    let json = object::read(store, uri, &document, MAX_MANIFEST_BYTES).await?;
    let json = json.ok_or_else(|| StoreError::NotFound {
        what: format!("{uri}/{MANIFEST_FILE}"),
        status: "404 Not Found".into(),
    })?;
    let seen = Digest::of(&json);
    if seen != wanted {
        return Err(StoreError::Digest { what: format!("{uri}/{MANIFEST_FILE}"), wanted, seen });
    }
    let manifest = parse(uri, &json)?;
    let stream = object::stream(store, uri, &format!("{folder}/{MODEL_FILE}")).await?;
    let model = collect(uri, &manifest, stream).await?;
    Ok(Opened { model, digest: manifest.model.digest.clone(), manifest })
}

/// All of `stream`, which must be the model that `manifest` describes.
async fn collect(
    uri: &str,
    manifest: &Manifest,
    stream: impl futures::Stream<Item = Result<bytes::Bytes, StoreError>>,
) -> Result<Vec<u8>, StoreError> {
    let what = format!("{uri} ({MODEL_FILE})");
    let size = manifest.model.size;
    if size > MAX_SOURCE_BYTES {
        return Err(StoreError::TooLarge { what, limit: MAX_SOURCE_BYTES });
    }
    let mut hasher = sha2::Sha256::default();
    let mut model = Vec::new();
    let room = usize::try_from(size).ok().map(|size| model.try_reserve_exact(size));
    if !matches!(room, Some(Ok(()))) {
        return Err(StoreError::Space {
            what,
            why: format!("{size} bytes do not fit into memory"),
        });
    }
    futures::pin_mut!(stream);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if (model.len() + chunk.len()) as u64 > size {
            return Err(StoreError::TooLarge { what, limit: size });
        }
        sha2::Digest::update(&mut hasher, &chunk);
        model.extend_from_slice(&chunk);
    }
    let seen = Digest::finish(hasher);
    if (model.len() as u64) < size {
        let why = format!("it broke off after {} of {size} bytes", model.len());
        return Err(StoreError::Unavailable { what, why });
    }
    if seen != manifest.model.digest {
        return Err(StoreError::Digest { what, wanted: manifest.model.digest.clone(), seen });
    }
    Ok(model)
}
