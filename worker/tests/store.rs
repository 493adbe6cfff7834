//! Sources and artifact stores over real sockets: what comes is verified, what is forbidden is
//! refused, credentials stay at home, nothing is visible half-written.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    #[allow(dead_code, clippy::unwrap_used, clippy::panic, missing_docs)]
    pub mod registry;
}

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use lithe::Digest;
use lithe::artifact::*;
use lithe::names::reason;
use lithe::recipe::Recipe;
use lithe_worker::store::*;
use support::registry::Registry;

fn ring() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a server was asked: path and headers.
type Asked = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// An HTTPS server on a port of its own, whose certificate is in `ca.crt` of `folder`.
async fn tls(
    folder: &Path,
    answer: impl Fn(usize, &str) -> Response<Body> + Clone + Send + Sync + 'static,
) -> (u16, Asked) {
    ring();
    let made =
        rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).unwrap();
    let known = std::fs::read_to_string(folder.join("ca.crt")).unwrap_or_default();
    std::fs::write(folder.join("ca.crt"), known + &made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Asked::default();
    let seen = asked.clone();
    let router = axum::Router::new().fallback(move |request: Request<Body>| {
        let mut seen = seen.lock().unwrap();
        seen.push((request.uri().path().to_owned(), request.headers().clone()));
        let answer = answer(seen.len(), request.uri().path());
        async move { answer }
    });
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper_util::service::TowerToHyperService::new(router);
                let builder = hyper_util::server::conn::auto::Builder::new(
                    hyper_util::rt::TokioExecutor::new(),
                );
                let _ =
                    builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    (port, asked)
}

fn reply(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

fn redirect(to: &str) -> Response<Body> {
    Response::builder().status(302).header("location", to).body(Body::empty()).unwrap()
}

/// Fetches `uri` with the credentials in `folder`.
async fn get(
    uri: &str,
    folder: &Path,
    change: impl FnOnce(&mut Fetch<'_>),
) -> Result<Fetched, StoreError> {
    ring();
    let location = Location::parse(uri)?;
    let credentials = Credentials::new(Some(folder.to_owned()));
    let mut request = Fetch::new(&location, &credentials);
    request.private = true;
    request.budget = Duration::from_millis(700);
    change(&mut request);
    fetch(&request, &folder.join("fetched")).await
}

#[tokio::test]
async fn a_source_is_hashed_on_its_way_and_another_digest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (port, _) = tls(folder.path(), |_, _| reply(200, "the model")).await;
    let uri = format!("https://localhost:{port}/m.onnx");
    let fetched = get(&uri, folder.path(), |_| ()).await.unwrap();
    assert_eq!((fetched.digest.clone(), fetched.size), (Digest::of("the model"), 9));
    assert_eq!(std::fs::read(&fetched.path).unwrap(), b"the model");
    let other: &'static Digest = Box::leak(Box::new(Digest::of("another")));
    let error = get(&uri, folder.path(), |fetch| fetch.digest = Some(other)).await.unwrap_err();
    assert_eq!(error.reason(), reason::DIGEST_MISMATCH);
    let text = error.to_string();
    assert!(text.contains(other.as_str()) && text.contains(fetched.digest.as_str()), "{text}");
    let error = get(&uri, folder.path(), |fetch| fetch.limit = 8).await.unwrap_err();
    assert_eq!(error.reason(), reason::RESOURCE_BUDGET, "{error}");
}

#[tokio::test]
async fn every_bad_answer_has_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (port, asked) = tls(folder.path(), |count, path| match path {
        "/404" => reply(404, ""),
        "/401" => reply(401, ""),
        "/403" => reply(403, ""),
        "/500" => reply(500, ""),
        "/503-once" if count % 2 == 1 => reply(503, ""),
        "/short" => {
            let half = futures::stream::iter([
                Ok(bytes::Bytes::from_static(b"half")),
                Err(std::io::Error::other("cut")),
            ]);
            Response::builder().header("content-length", 100).body(Body::from_stream(half)).unwrap()
        }
        "/http" => redirect("http://localhost/x"),
        "/user" => redirect("https://a:b@localhost/x"),
        "/loop" => redirect("/loop"),
        "/metadata" => redirect("https://169.254.169.254/latest/meta-data"),
        _ => reply(200, "good"),
    })
    .await;
    for (path, reason, words) in [
        ("404", reason::SOURCE_NOT_FOUND, "404 Not Found"),
        ("401", reason::SOURCE_AUTH_FAILED, "401 Unauthorized"),
        ("403", reason::SOURCE_AUTH_FAILED, "403 Forbidden"),
        ("500", reason::SOURCE_UNAVAILABLE, "500 Internal"),
        ("short", reason::SOURCE_UNAVAILABLE, "unavailable"),
        ("http", reason::SOURCE_FORBIDDEN, "without TLS"),
        ("user", reason::SOURCE_FORBIDDEN, "with a user"),
        ("loop", reason::SOURCE_FORBIDDEN, "more than 5 redirects"),
        ("metadata", reason::SOURCE_FORBIDDEN, "169.254.169.254"),
    ] {
        let uri = format!("https://localhost:{port}/{path}?sig=secret");
        let error = get(&uri, folder.path(), |_| ()).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{path}: {error}");
        assert!(error.to_string().contains(words), "{path}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    asked.lock().unwrap().clear();
    let uri = format!("https://localhost:{port}/503-once");
    assert!(get(&uri, folder.path(), |_| ()).await.is_ok(), "a stumble was not tried again");
    let private = get(&uri, folder.path(), |fetch| fetch.private = false).await.unwrap_err();
    assert_eq!(private.reason(), reason::SOURCE_FORBIDDEN, "{private}");
    assert_eq!(asked.lock().unwrap().len(), 2, "a forbidden address was asked");
    let gone = get("https://localhost:1/x", folder.path(), |_| ()).await.unwrap_err();
    assert_eq!(gone.reason(), reason::SOURCE_UNAVAILABLE, "{gone}");
    let bare = tempfile::tempdir().unwrap();
    let untrusted = get(&uri, bare.path(), |_| ()).await.unwrap_err();
    assert_eq!(untrusted.reason(), reason::SOURCE_UNAVAILABLE, "{untrusted}");
}

#[tokio::test]
async fn credentials_never_follow_a_redirect_to_another_host() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "canary\n").unwrap();
    let (other, other_asked) = tls(folder.path(), |_, _| reply(200, "good")).await;
    let (first, first_asked) = tls(folder.path(), move |_, path| match path {
        "/same" => redirect("/there"),
        "/other" => redirect(&format!("https://127.0.0.1:{other}/there")),
        _ => reply(200, "good"),
    })
    .await;
    for path in ["same", "other"] {
        let uri = format!("https://localhost:{first}/{path}");
        get(&uri, folder.path(), |_| ()).await.unwrap();
    }
    let authorized = |asked: &Asked| {
        let asked = asked.lock().unwrap();
        asked.iter().map(|(_, headers)| headers.get("authorization").cloned()).collect::<Vec<_>>()
    };
    let bearer = Some("Bearer canary".parse().unwrap());
    assert_eq!(authorized(&first_asked), [bearer.clone(), bearer.clone(), bearer]);
    assert_eq!(authorized(&other_asked), [None], "the secret went to another host");
    let text = format!("{:?}", other_asked.lock().unwrap());
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn an_object_comes_from_an_endpoint_with_its_keys() {
    let objects = Arc::new(HashMap::from([("/bucket/a/m.onnx", "the model")]));
    let asked = Asked::default();
    let seen = asked.clone();
    let router = axum::Router::new().fallback(move |request: Request<Body>| {
        seen.lock().unwrap().push((request.uri().path().into(), request.headers().clone()));
        let found = objects.get(request.uri().path()).copied();
        async move {
            match found {
                Some(body) => Response::builder()
                    .header("etag", "\"e\"")
                    .header("last-modified", "Tue, 24 Nov 2026 07:00:00 GMT")
                    .header("content-length", body.len())
                    .body(Body::from(body))
                    .unwrap(),
                None => reply(404, "<Error><Code>NoSuchKey</Code></Error>"),
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let write = |key: &str, value: &str| std::fs::write(folder.path().join(key), value).unwrap();
    write("endpoint", &format!("http://{address}"));
    write("access-key-id", "id");
    let error = get("s3://bucket/a/m.onnx", folder.path(), |_| ()).await.unwrap_err();
    assert_eq!(error.reason(), reason::SECRET_MISSING, "{error}");
    assert!(error.to_string().contains("secret-access-key"), "{error}");
    write("secret-access-key", "canary");
    let fetched = get("s3://bucket/a/m.onnx", folder.path(), |_| ()).await.unwrap();
    assert_eq!(fetched.digest, Digest::of("the model"));
    let authorization = asked.lock().unwrap()[0].1["authorization"].to_str().unwrap().to_owned();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=id/"), "{authorization}");
    let error = get("s3://bucket/none", folder.path(), |_| ()).await.unwrap_err();
    assert_eq!(error.reason(), reason::SOURCE_NOT_FOUND, "{error}");
    write("endpoint", "http://169.254.169.254");
    let error = get("s3://bucket/a/m.onnx", folder.path(), |_| ()).await.unwrap_err();
    assert_eq!(error.reason(), reason::SOURCE_FORBIDDEN, "{error}");
}

/// An artifact of `model`, in a file, with its Manifest's JSON.
fn artifact(folder: &Path, model: &[u8]) -> (std::path::PathBuf, Vec<u8>, Manifest) {
    let path = folder.join("model.onnx");
    std::fs::write(&path, model).unwrap();
    let page = "<!doctype html>";
    std::fs::write(path.with_file_name(REPORT_FILE), page).unwrap();
    let file =
        File { name: MODEL_FILE.into(), digest: Digest::of(model), size: model.len() as u64 };
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA.into(),
        key: Digest::of("key"),
        source: Source { digest: Digest::of("source"), size: 9, parameters: 1, opset: 17 },
        data: None,
        recipe: Recipe::default(),
        model: file,
        inputs: vec![],
        outputs: vec![],
        steps: vec![],
        search: None,
        evaluation: None,
        gates: vec![],
        layers: vec![],
        activations: vec![],
        report: Some(File {
            name: REPORT_FILE.into(),
            digest: Digest::of(page),
            size: page.len() as u64,
        }),
        memory: None,
        environment: Environment::default(),
    };
    (path, serde_json::to_vec(&manifest).unwrap(), manifest)
}

fn credentials(folder: &Path, entries: &[(&str, &str)]) -> Credentials {
    for (key, value) in entries {
        std::fs::write(folder.join(key), value).unwrap();
    }
    Credentials::new(Some(folder.to_owned()))
}

#[tokio::test]
async fn a_registry_keeps_an_artifact_once_and_gives_it_back_verified() {
    ring();
    let login = [("username", "me"), ("password", "canary")];
    let as_me = Some(("me".to_owned(), "canary".to_owned()));
    for registry in [
        Registry::default(),
        Registry { login: as_me.clone(), ..Registry::default() },
        Registry { login: as_me.clone(), token: true, ..Registry::default() },
    ] {
        let (address, registry) = registry.serve().await;
        let folder = tempfile::tempdir().unwrap();
        let credentials = credentials(folder.path(), &login);
        // Larger than one piece of an upload.
        let model: Vec<u8> = (0..9_000_000_u32).map(|i| (i % 251) as u8).collect();
        let (path, json, manifest) = artifact(folder.path(), &model);
        let uri = format!("oci://{address}/prefix");
        let store = ArtifactStore::connect(&uri, &credentials, true).await.unwrap();
        assert_eq!(store.find("ns/name", &manifest.key).await.unwrap(), None);
        let uri = store.put("ns/name", &path, &json).await.unwrap();
        assert!(uri.starts_with(&format!("oci://{address}/prefix/ns/name@sha256:")), "{uri}");
        let found = store.find("ns/name", &manifest.key).await.unwrap().unwrap();
        assert_eq!((&found.uri, &found.manifest), (&uri, &manifest));
        assert_eq!(found.manifest_digest, Digest::of(&json));
        assert_eq!(store.find("ns/name", &Digest::of("other")).await.unwrap(), None);
        // The manifest came last, and the same artifact again writes no blob.
        let writes = std::mem::take(&mut *registry.writes.lock().unwrap());
        assert!(writes.last().unwrap().contains("/manifests/key-"), "{writes:?}");
        assert_eq!(store.put("ns/name", &path, &json).await.unwrap(), uri);
        assert_eq!(registry.writes.lock().unwrap().len(), 1);
        *registry.stumbles.lock().unwrap() = 2;
        let opened = open(&uri, &credentials, true).await.unwrap();
        assert_eq!((opened.model == model, opened.manifest), (true, manifest.clone()));
        // A source may be such an artifact.
        let source = uri.clone();
        let host: &'static str = address.to_string().leak();
        let fetched =
            get(&source, folder.path(), |fetch| fetch.plain_http = Some(host)).await.unwrap();
        assert_eq!(fetched.digest, manifest.model.digest);
        let pulled = registry.manifests.lock().unwrap().values().next().unwrap().clone();
        let pulled: serde_json::Value = serde_json::from_slice(&pulled).unwrap();
        assert_eq!(pulled["artifactType"], MODEL_ARTIFACT_TYPE);
        assert_eq!(pulled["config"]["mediaType"], MODEL_CONFIG_MEDIA_TYPE);
        assert_eq!(pulled["layers"][0]["mediaType"], MODEL_WEIGHT_MEDIA_TYPE);
        assert_eq!(pulled["layers"][0]["annotations"][FILEPATH_ANNOTATION], MODEL_FILE);
        assert_eq!(pulled["layers"][2]["mediaType"], REPORT_MEDIA_TYPE);
        let report = manifest.report_uri(&uri).unwrap();
        let (_, digest) = report.split_once('@').unwrap();
        assert_eq!(pulled["layers"][2]["digest"], digest);
        assert_eq!(registry.blobs.lock().unwrap()[digest], "<!doctype html>");
        let config =
            registry.blobs.lock().unwrap()[pulled["config"]["digest"].as_str().unwrap()].clone();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["modelfs"]["diffIds"][0], manifest.model.digest.as_str());
        if registry.login.is_some() {
            let stranger = Credentials::default();
            let error = open(&uri, &stranger, true).await.unwrap_err();
            assert_eq!(error.reason(), reason::SOURCE_AUTH_FAILED, "{error}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_changes_loses_or_refuses_bytes_is_caught() {
    ring();
    let folder = tempfile::tempdir().unwrap();
    let (path, json, manifest) = artifact(folder.path(), b"the model");
    let none = Credentials::default();

    let (address, registry) = Registry::default().serve().await;
    let store = ArtifactStore::connect(&format!("oci://{address}"), &none, true).await.unwrap();
    let uri = store.put("name", &path, &json).await.unwrap();
    let digest = manifest.model.digest.to_string();
    registry.blobs.lock().unwrap().insert(digest.clone(), "the m0del".into());
    let error = open(&uri, &none, true).await.unwrap_err();
    assert_eq!(error.reason(), reason::DIGEST_MISMATCH, "{error}");
    registry.blobs.lock().unwrap().remove(&digest);
    assert_eq!(store.find("name", &manifest.key).await.unwrap(), None, "a blob is lost");
    let missing =
        open(&format!("oci://{address}/name@{}", Digest::of("x")), &none, true).await.unwrap_err();
    assert_eq!(missing.reason(), reason::SOURCE_NOT_FOUND, "{missing}");

    let (address, registry) = Registry { no_manifests: true, ..Registry::default() }.serve().await;
    let store = ArtifactStore::connect(&format!("oci://{address}"), &none, true).await.unwrap();
    assert!(store.put("name", &path, &json).await.is_err());
    assert_eq!(store.find("name", &manifest.key).await.unwrap(), None, "half an artifact is seen");
    assert!(!registry.blobs.lock().unwrap().is_empty());

    let (address, _) = Registry { full: true, ..Registry::default() }.serve().await;
    let store = ArtifactStore::connect(&format!("oci://{address}"), &none, true).await.unwrap();
    let error = store.put("name", &path, &json).await.unwrap_err();
    assert_eq!(error.store_reason(), reason::NO_SPACE, "{error}");
}

#[tokio::test]
async fn a_folder_keeps_an_artifact_and_a_changed_one_is_not_opened() {
    ring();
    let folder = tempfile::tempdir().unwrap();
    let (path, json, manifest) = artifact(folder.path(), b"the model");
    let none = Credentials::default();
    let place = format!("file://{}/store", folder.path().display());
    let store = ArtifactStore::connect(&place, &none, false).await.unwrap();
    assert_eq!(store.find("ns/name", &manifest.key).await.unwrap(), None);
    let uri = store.put("ns/name", &path, &json).await.unwrap();
    assert_eq!(uri, format!("{place}/ns/name/sha256/{}", Digest::of(&json).hex()));
    assert_eq!(store.find("ns/name", &manifest.key).await.unwrap().unwrap().uri, uri);
    assert_eq!(open(&uri, &none, false).await.unwrap().model, b"the model");
    let report = manifest.report_uri(&uri).unwrap();
    let page = std::fs::read_to_string(report.strip_prefix("file://").unwrap()).unwrap();
    assert_eq!(page, "<!doctype html>");
    let file = Path::new(uri.strip_prefix("file://").unwrap()).join(MODEL_FILE);
    std::fs::write(&file, "the m0del").unwrap();
    let error = open(&uri, &none, false).await.unwrap_err();
    assert_eq!(error.reason(), reason::DIGEST_MISMATCH, "{error}");
    std::fs::write(&file, "the").unwrap();
    assert_eq!(store.find("ns/name", &manifest.key).await.unwrap(), None, "the model is cut short");
    std::fs::write(file.with_file_name(MANIFEST_FILE), "{}").unwrap();
    let error = open(&uri, &none, false).await.unwrap_err();
    assert_eq!(error.reason(), reason::DIGEST_MISMATCH, "{error}");
}
