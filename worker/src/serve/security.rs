//! Who may speak to the protocols' ports: TLS and tokens as declared, read again as their files
//! change. The admin port has neither: probes carry no secret.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::auth::{AuthError, Tokens};
use super::tls::{self, Identity, TlsError};

/// How often mounted files are looked at: kubelet itself takes up to a minute to change them.
const INTERVAL: Duration = Duration::from_secs(10);

/// The mounted folders; without any, the ports are open.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// The folder with `tls.crt` and `tls.key`.
    pub tls: Option<PathBuf>,
    /// The folder with `ca.crt`, whose clients alone are let in; only beside `tls`.
    pub client_ca: Option<PathBuf>,
    /// The folder with tokens, one in each file.
    pub tokens: Option<PathBuf>,
}

/// Why the ports cannot be secured as declared.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// The TLS identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The tokens.
    #[error(transparent)]
    Auth(#[from] AuthError),
}

/// What secures the ports.
#[derive(Clone, Default)]
pub struct Security {
    /// The identity that connections are served with.
    pub tls: Option<Arc<Identity>>,
    /// The tokens that requests need one of.
    pub tokens: Option<Arc<Tokens>>,
}

impl Security {
    /// Reads what is in `folders`.
    ///
    /// # Errors
    /// When a folder that is named does not hold what it should.
    pub fn open(folders: Folders) -> Result<Self, SecurityError> {
        let Folders { tls, client_ca, tokens } = folders;
        let open = |identity| Identity::open(tls::Files { identity, client_ca });
        Ok(Self {
            tls: tls.map(open).transpose()?.map(Arc::new),
            tokens: tokens.map(Tokens::open).transpose()?.map(Arc::new),
        })
    }

    /// Reads all files again; whether they held something new.
    ///
    /// # Errors
    /// When some do not hold what they should; what was there stays in force.
    pub fn renew(&self) -> Result<bool, SecurityError> {
        let tls = self.tls.as_ref().map(|tls| tls.renew()).transpose();
        let tokens = self.tokens.as_ref().map(|tokens| tokens.renew()).transpose();
        Ok(tls?.unwrap_or_default() | tokens?.unwrap_or_default())
    }

    /// Follows the files until `stop` becomes true.
    pub async fn follow(self, mut stop: watch::Receiver<bool>) {
        if self.tls.is_none() && self.tokens.is_none() {
            return;
        }
        let mut told = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let security = self.clone();
            let Ok(renewed) = tokio::task::spawn_blocking(move || security.renew()).await else {
                continue;
            };
            let said = match renewed {
                Ok(true) => {
                    tracing::info!("new certificates or tokens are in force");
                    String::new()
                }
                Ok(false) => String::new(),
                Err(error) => error.to_string(),
            };
            // A fault lasts for many looks and is told once.
            if !said.is_empty() && said != told {
                tracing::warn!(
                    error = said,
                    "the certificates and tokens from before stay in force"
                );
            }
            told = said;
        }
    }
}
