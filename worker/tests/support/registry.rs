//! A registry in this process: enough of the OCI Distribution API for one client, with faults.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use lithe::Digest;

/// What the registry holds, and how it misbehaves.
#[derive(Default)]
pub struct Registry {
    pub blobs: Mutex<HashMap<String, Bytes>>,
    pub manifests: Mutex<HashMap<String, Bytes>>,
    pub uploads: Mutex<HashMap<usize, Vec<u8>>>,
    /// Answers the next so many requests for a manifest with 503.
    pub stumbles: Mutex<usize>,
    /// Wants this user and password, as basic authentication or for a token.
    pub login: Option<(String, String)>,
    /// Hands out a token for the login instead of taking it itself.
    pub token: bool,
    /// Has no space left.
    pub full: bool,
    /// Takes blobs, no manifests.
    pub no_manifests: bool,
    /// Requests that changed something.
    pub writes: Mutex<Vec<String>>,
}

fn reply(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

fn error(status: u16, code: &str) -> Response<Body> {
    reply(status, format!(r#"{{"errors":[{{"code":"{code}","message":"no","detail":null}}]}}"#))
}

impl Registry {
    /// Serves on a port of its own.
    pub async fn serve(self) -> (SocketAddr, Arc<Self>) {
        let registry = Arc::new(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = registry.clone();
        let router = axum::Router::new().fallback(move |request: Request<Body>| {
            let registry = shared.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let query = parts.uri.query().unwrap_or_default().to_owned();
                registry.answer(
                    address,
                    &parts.method,
                    parts.uri.path(),
                    &query,
                    &parts.headers,
                    body,
                )
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        (address, registry)
    }

    fn allowed(&self, headers: &HeaderMap) -> bool {
        use base64::Engine as _;
        let Some((user, password)) = &self.login else { return true };
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let want = if self.token { "Bearer t".to_owned() } else { format!("Basic {basic}") };
        headers.get("authorization").is_some_and(|seen| *seen == *want)
    }

    fn challenge(&self, address: SocketAddr) -> Response<Body> {
        let how = if self.token {
            format!("Bearer realm=\"http://{address}/token\",service=\"r\"")
        } else {
            "Basic realm=\"r\"".to_owned()
        };
        let mut answer = error(401, "UNAUTHORIZED");
        answer.headers_mut().insert("www-authenticate", how.parse().unwrap());
        answer
    }

    fn answer(
        &self,
        address: SocketAddr,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Response<Body> {
        if path == "/token" {
            let basic = Self { login: self.login.clone(), ..Self::default() };
            let good = basic.allowed(headers);
            return if good { reply(200, r#"{"token":"t"}"#) } else { error(401, "UNAUTHORIZED") };
        }
        if !self.allowed(headers) {
            return self.challenge(address);
        }
        if *method != Method::GET && *method != Method::HEAD {
            self.writes.lock().unwrap().push(format!("{method} {path}"));
        }
        if let Some((_, reference)) = path.split_once("/manifests/") {
            return self.manifest(method, path, reference, body);
        }
        if let Some((name, upload)) = path.split_once("/blobs/uploads/") {
            return self.upload(method, name, upload, query, &body);
        }
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return match self.blobs.lock().unwrap().get(digest) {
                Some(blob) if *method == Method::GET => reply(200, blob.clone()),
                Some(_) => reply(200, ""),
                None => error(404, "BLOB_UNKNOWN"),
            };
        }
        reply(200, "{}")
    }

    fn manifest(
        &self,
        method: &Method,
        path: &str,
        reference: &str,
        body: Bytes,
    ) -> Response<Body> {
        if *method == Method::PUT {
            if self.no_manifests {
                return error(403, "DENIED");
            }
            let digest = Digest::of(&body).to_string();
            let mut manifests = self.manifests.lock().unwrap();
            manifests.insert(reference.to_owned(), body.clone());
            manifests.insert(digest, body);
            let answer = Response::builder().status(StatusCode::CREATED).header("location", path);
            return answer.body(Body::empty()).unwrap();
        }
        let mut stumbles = self.stumbles.lock().unwrap();
        if *stumbles > 0 {
            *stumbles -= 1;
            return reply(503, "later");
        }
        match self.manifests.lock().unwrap().get(reference) {
            Some(manifest) => reply(200, manifest.clone()),
            None => error(404, "MANIFEST_UNKNOWN"),
        }
    }

    fn upload(
        &self,
        method: &Method,
        name: &str,
        id: &str,
        query: &str,
        body: &[u8],
    ) -> Response<Body> {
        if self.full && *method == Method::PATCH {
            return reply(
                500,
                r#"{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"Enclosed":{"Op":"write","Err":28}}}]}"#,
            );
        }
        let mut uploads = self.uploads.lock().unwrap();
        if *method == Method::POST {
            let id = uploads.len();
            uploads.insert(id, Vec::new());
            let answer = Response::builder().status(202);
            return answer
                .header("location", format!("{name}/blobs/uploads/{id}"))
                .body(Body::empty())
                .unwrap();
        }
        let id: usize = id.parse().unwrap();
        let upload = uploads.get_mut(&id).unwrap();
        upload.extend_from_slice(body);
        let range = format!("0-{}", upload.len().saturating_sub(1));
        let answer = Response::builder().header("location", format!("{name}/blobs/uploads/{id}"));
        if *method == Method::PATCH {
            return answer.status(202).header("range", range).body(Body::empty()).unwrap();
        }
        let digest = query.replace("digest=", "").replace("%3A", ":");
        assert_eq!(Digest::of(&upload).to_string(), digest, "an upload broke");
        self.blobs.lock().unwrap().insert(digest, std::mem::take(upload).into());
        answer.status(201).body(Body::empty()).unwrap()
    }
}
