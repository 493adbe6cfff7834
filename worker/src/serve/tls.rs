//! TLS on the protocols' ports, from mounted files that are read again as they change: a new
//! certificate serves new connections, a broken one leaves the old in place. Knows no protocol.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// The files of one TLS identity, named as in a Secret of the type `kubernetes.io/tls`.
#[derive(Debug)]
pub struct Files {
    /// The folder with `tls.crt` and `tls.key`.
    pub identity: PathBuf,
    /// The folder with `ca.crt`, whose clients alone are let in.
    pub client_ca: Option<PathBuf>,
}

/// Why a folder holds no TLS identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file holds no PEM of its kind.
    #[error("{} is no {what} in PEM: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// The parts do not fit each other.
    #[error("the certificate, key or client CA cannot be used: {0}")]
    Unfit(String),
}

/// What was read of the files, to be compared with what is there later.
#[derive(PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// An identity that follows its files.
pub struct Identity {
    files: Files,
    current: RwLock<(Content, Arc<ServerConfig>)>,
}

impl Identity {
    /// Reads the identity in `files`.
    ///
    /// # Errors
    /// When they hold none.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let content = read(&files)?;
        let config = config(&files, &content)?;
        Ok(Self { files, current: RwLock::new((content, Arc::new(config))) })
    }

    /// What new connections are served with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Reads the files again; whether they held something new.
    ///
    /// # Errors
    /// When they hold no identity any more; the current one stays.
    pub fn renew(&self) -> Result<bool, TlsError> {
        let content = read(&self.files)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == content {
            return Ok(false);
        }
        let config = Arc::new(config(&self.files, &content)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (content, config);
        Ok(true)
    }
}

fn file(path: PathBuf) -> Result<(PathBuf, Vec<u8>), TlsError> {
    match std::fs::read(&path) {
        Ok(content) => Ok((path, content)),
        Err(source) => Err(TlsError::Read { path, source }),
    }
}

fn read(files: &Files) -> Result<Content, TlsError> {
    let client_ca = files.client_ca.as_ref().map(|folder| file(folder.join("ca.crt")));
    Ok(Content {
        certificate: file(files.identity.join("tls.crt"))?.1,
        key: file(files.identity.join("tls.key"))?.1,
        client_ca: client_ca.transpose()?.map(|(_, content)| content),
    })
}

fn certificates(
    folder: &Path,
    name: &str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong =
        |reason: String| TlsError::Pem { path: folder.join(name), what: "certificate", reason };
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| wrong(error.to_string()))?;
    if all.is_empty() { Err(wrong("there is none in it".into())) } else { Ok(all) }
}

fn config(files: &Files, content: &Content) -> Result<ServerConfig, TlsError> {
    let unfit = |error: &dyn std::fmt::Display| TlsError::Unfit(error.to_string());
    let chain = certificates(&files.identity, "tls.crt", &content.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|error| TlsError::Pem {
        path: files.identity.join("tls.key"),
        what: "private key",
        reason: error.to_string(),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unfit(&error))?;
    let builder = match (&files.client_ca, &content.client_ca) {
        (Some(folder), Some(pem)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(folder, "ca.crt", pem)? {
                roots.add(certificate).map_err(|error| unfit(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| unfit(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unfit(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
