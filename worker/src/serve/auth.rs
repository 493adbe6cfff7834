//! Bearer tokens on the protocols' ports. Whoever has none of them is refused before anything of a
//! request is read; the header goes no further. The files are read again as they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::rest::reply;

/// What is kept of a token, and compared: neither the token nor how much of it was right shows.
type Mark = [u8; 32];

/// Why a folder holds no tokens.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The folder or a file in it cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nobody could be let in.
    #[error("{} holds no token: each file in it is one", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// The tokens in a folder, one in each file: the keys of a mounted Secret.
pub struct Tokens {
    folder: PathBuf,
    marks: RwLock<Vec<Mark>>,
}

impl Tokens {
    /// The tokens in `folder`.
    ///
    /// # Errors
    /// When there are none.
    pub fn open(folder: PathBuf) -> Result<Self, AuthError> {
        let marks = RwLock::new(read(&folder)?);
        Ok(Self { folder, marks })
    }

    /// Reads the files again; whether they held something new.
    ///
    /// # Errors
    /// When there are none any more; the current ones stay.
    pub fn renew(&self) -> Result<bool, AuthError> {
        let marks = read(&self.folder)?;
        let mut current = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        let new = *current != marks;
        *current = marks;
        Ok(new)
    }

    /// Whether `value`, of the header `authorization`, holds one of the tokens.
    pub fn allow(&self, value: Option<&HeaderValue>) -> bool {
        let Some((scheme, token)) =
            value.and_then(|value| value.to_str().ok()).and_then(|value| value.split_once(' '))
        else {
            return false;
        };
        let mark: Mark = Sha256::digest(token.trim()).into();
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        scheme.eq_ignore_ascii_case("bearer") && marks.contains(&mark)
    }
}

fn read(folder: &Path) -> Result<Vec<Mark>, AuthError> {
    let broken = |path: &Path| {
        let path = path.to_owned();
        move |source| AuthError::Read { path, source }
    };
    let mut marks = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(broken(folder))? {
        let path = entry.map_err(broken(folder))?.path();
        // kubelet keeps the files behind links in hidden folders.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || !path.is_file() {
            continue;
        }
        let content = std::fs::read(&path).map_err(broken(&path))?;
        let token = content.trim_ascii();
        if !token.is_empty() {
            marks.push(Sha256::digest(token).into());
        }
    }
    marks.sort_unstable();
    if marks.is_empty() { Err(AuthError::Empty { path: folder.to_owned() }) } else { Ok(marks) }
}

/// `router` behind `tokens`; as it is without them.
pub fn guard(router: Router, tokens: Option<Arc<Tokens>>) -> Router {
    let Some(tokens) = tokens else { return router };
    router.layer(middleware::from_fn(move |request, next| check(tokens.clone(), request, next)))
}

async fn check(tokens: Arc<Tokens>, mut request: Request<Body>, next: Next) -> Response {
    let value = request.headers_mut().remove(header::AUTHORIZATION);
    if tokens.allow(value.as_ref()) {
        return next.run(request).await;
    }
    let text = "send the header `authorization: Bearer TOKEN` with a token of this server";
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return tonic::Status::unauthenticated(text).into_http::<Body>();
    }
    let mut response = reply(StatusCode::UNAUTHORIZED, &json!({"error": text})).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
