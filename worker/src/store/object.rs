//! Object stores: S3, Google Cloud Storage, Azure, and folders of this machine.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::buffered::BufWriter;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStore, ObjectStoreExt as _, RetryConfig};
use tokio::io::AsyncWriteExt as _;

use super::address::{Reach, resolve};
use super::credentials::Credentials;
use super::error::{StoreError, brief, chain, full, without_queries};
use super::fetch::Sink;
use super::location::Scheme;

/// Any object store.
pub type Store = Arc<dyn ObjectStore>;

/// Bytes of one part of a multipart upload.
const PART: usize = 8 << 20;

/// The store of `bucket`.
///
/// # Errors
/// When the credentials are incomplete or the endpoint makes no sense.
pub async fn connect(
    scheme: Scheme,
    bucket: &str,
    credentials: &Credentials,
) -> Result<Store, StoreError> {
    let wrong = |error| map(bucket, &error);
    let options = options(credentials)?;
    // Few tries here: the caller tries the whole transfer again.
    let retry = RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(20),
        ..RetryConfig::default()
    };
    Ok(match scheme {
        Scheme::File => Arc::new(LocalFileSystem::new()),
        Scheme::S3 => {
            let builder = s3(bucket, credentials, options).await?;
            Arc::new(builder.with_retry(retry).build().map_err(wrong)?)
        }
        Scheme::Gs => {
            let builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket);
            let builder = match credentials.get("service-account.json")? {
                Some(account) => builder.with_service_account_key(account),
                None => builder.with_skip_signature(true),
            };
            let builder = builder.with_client_options(options).with_retry(retry);
            Arc::new(builder.build().map_err(wrong)?)
        }
        Scheme::Az => {
            let account = credentials.need("account-name", "az:// needs the storage account")?;
            let builder = MicrosoftAzureBuilder::new()
                .with_account(account)
                .with_container_name(bucket)
                .with_client_options(options);
            let builder = match credentials.get("account-key")? {
                Some(key) => builder.with_access_key(key),
                None => builder.with_skip_signature(true),
            };
            Arc::new(builder.with_retry(retry).build().map_err(wrong)?)
        }
    })
}

fn options(credentials: &Credentials) -> Result<ClientOptions, StoreError> {
    let mut options =
        ClientOptions::new().with_connect_timeout(Duration::from_secs(10)).with_timeout_disabled();
    if let Some(authority) = credentials.authority()? {
        let certificates = Certificate::from_pem_bundle(authority.as_bytes()).map_err(|error| {
            let why = format!("ca.crt of the credentials is no certificate: {error}");
            StoreError::Malformed { what: "the object store".into(), why }
        })?;
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

async fn s3(
    bucket: &str,
    credentials: &Credentials,
    options: ClientOptions,
) -> Result<AmazonS3Builder, StoreError> {
    let region = credentials.get("region")?.unwrap_or_else(|| "us-east-1".into());
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_region(region);
    let (id, secret) = ("access-key-id", "secret-access-key");
    builder = match (credentials.get(id)?, credentials.get(secret)?) {
        (Some(id), Some(secret)) => builder.with_access_key_id(id).with_secret_access_key(secret),
        (None, None) => builder.with_skip_signature(true),
        (Some(_), None) => {
            return credentials.need(secret, "it goes with access-key-id").map(|_| builder);
        }
        (None, Some(_)) => {
            return credentials.need(id, "it goes with secret-access-key").map(|_| builder);
        }
    };
    if let Some(token) = credentials.get("session-token")? {
        builder = builder.with_token(token);
    }
    let mut options = options;
    if let Some(endpoint) = credentials.get("endpoint")? {
        let what = format!("s3://{bucket} at {endpoint}");
        let wrong =
            || StoreError::Address { uri: endpoint.clone(), why: "it is no endpoint".into() };
        let url = reqwest::Url::parse(&endpoint).map_err(|_| wrong())?;
        let host = url.host_str().ok_or_else(wrong)?;
        // Stores inside the cluster have private addresses; metadata services are never stores.
        resolve(&what, host, url.port_or_known_default().unwrap_or(443), Reach::Private).await?;
        options = options.with_allow_http(url.scheme() == "http");
        builder = builder.with_endpoint(endpoint);
    }
    Ok(builder.with_client_options(options))
}

fn path(what: &str, key: &str) -> Result<Path, StoreError> {
    Path::parse(key)
        .map_err(|error| StoreError::Address { uri: what.into(), why: error.to_string() })
}

/// Fetches the object `key` into `sink`.
///
/// # Errors
/// Whatever the store, the network or the disk say.
pub async fn get(store: &Store, what: &str, key: &str, sink: &mut Sink) -> Result<(), StoreError> {
    let result = store.get(&path(what, key)?).await.map_err(|error| map(what, &error))?;
    let size = result.meta.size;
    sink.take(Some(size), result.into_stream().map_err(|error| map(what, &error))).await
}

/// The bytes of the object `key` as they come.
///
/// # Errors
/// Whatever the store or the network say.
pub async fn stream<'a>(
    store: &Store,
    what: &'a str,
    key: &str,
) -> Result<impl Stream<Item = Result<Bytes, StoreError>> + use<'a>, StoreError> {
    let result = store.get(&path(what, key)?).await.map_err(|error| map(what, &error))?;
    Ok(result.into_stream().map_err(move |error| map(what, &error)))
}

/// The whole object `key`, of at most `limit` bytes; `None` when there is none.
///
/// # Errors
/// Whatever the store or the network say.
pub async fn read(
    store: &Store,
    what: &str,
    key: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let result = match store.get(&path(what, key)?).await {
        Ok(result) => result,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(map(what, &error)),
    };
    if result.meta.size > limit {
        return Err(StoreError::TooLarge { what: what.into(), limit });
    }
    let bytes = result.bytes().await.map_err(|error| map(what, &error))?;
    Ok(Some(bytes.into()))
}

/// Whether the object `key` is there with `size` bytes.
///
/// # Errors
/// Whatever the store or the network say.
pub async fn exists(store: &Store, what: &str, key: &str, size: u64) -> Result<bool, StoreError> {
    match store.head(&path(what, key)?).await {
        Ok(meta) => Ok(meta.size == size),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(map(what, &error)),
    }
}

/// Writes `bytes` as the object `key`, all or nothing.
///
/// # Errors
/// Whatever the store or the network say.
pub async fn put(store: &Store, what: &str, key: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
    let put = store.put(&path(what, key)?, bytes.into()).await;
    put.map(|_| ()).map_err(|error| map(what, &error))
}

/// Uploads `file` as the object `key` in parts; it is visible when the last part is in.
///
/// # Errors
/// Whatever the store, the network or the disk say.
pub async fn upload(
    store: &Store,
    what: &str,
    key: &str,
    file: &FilePath,
) -> Result<(), StoreError> {
    let mut from =
        tokio::fs::File::open(file).await.map_err(|error| StoreError::file(file, error))?;
    let mut to = BufWriter::with_capacity(store.clone(), path(what, key)?, PART);
    let copied = match tokio::io::copy(&mut from, &mut to).await {
        Ok(_) => to.shutdown().await,
        Err(error) => Err(error),
    };
    if let Err(error) = copied {
        // What was uploaded so far is of no use; the first error is the one to tell.
        let _ = to.abort().await;
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<object_store::Error>());
        return Err(
            inner.map_or_else(|| unavailable(what, chain(&error)), |inner| map(what, inner))
        );
    }
    Ok(())
}

fn unavailable(what: &str, why: String) -> StoreError {
    if full(&why) {
        return StoreError::Space { what: what.into(), why: brief(&why) };
    }
    StoreError::Unavailable { what: what.into(), why }
}

fn map(what: &str, error: &object_store::Error) -> StoreError {
    use object_store::Error;
    let what = without_queries(what);
    match error {
        Error::NotFound { .. } => StoreError::NotFound { what, status: "404 Not Found".into() },
        Error::Unauthenticated { .. } => {
            StoreError::Auth { what, status: "401 Unauthorized".into() }
        }
        Error::PermissionDenied { .. } => StoreError::Auth { what, status: "403 Forbidden".into() },
        Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => {
            StoreError::Address { uri: what, why: chain(error) }
        }
        other => unavailable(&what, chain(other)),
    }
}
