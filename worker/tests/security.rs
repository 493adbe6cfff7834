//! TLS, client certificates and tokens over real sockets, renewed while the server runs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::path::Path;

use lithe::inference::ServerLiveRequest;
use lithe::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use lithe_worker::serve::{Curve, Folders, Policy, Running, ServeError, Served, Settings, start};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::*;
use tonic::Code;
use tonic::metadata::MetadataValue;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for this machine and its key, in PEM.
fn issued(authority: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn identity(folder: &Path, authority: &Authority) {
    let (certificate, key) = issued(authority);
    std::fs::write(folder.join("tls.crt"), certificate).unwrap();
    std::fs::write(folder.join("tls.key"), key).unwrap();
}

async fn secured(security: Folders) -> Result<Running, ServeError> {
    let usual = support::settings(LIMITS, 1 << 20, Policy::default(), None);
    let settings = Settings { protocols: vec![Served::OpenInference], security, ..usual };
    let running = start(settings).await?;
    running.load(Gate::new(true), Curve::default()).await?;
    Ok(running)
}

/// Whether a new client that trusts `authority`, with the identity `own`, is answered.
async fn answered(running: &Running, authority: &Authority, own: Option<(String, String)>) -> bool {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trusted = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]);
    if let Some((certificate, key)) = own {
        let pem = certificate + &key;
        builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
    }
    let url = format!("https://{}/v2/health/live", running.http);
    let answer = builder.build().unwrap().get(url).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_serves_new_connections_and_a_broken_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    identity(folder.path(), &old);
    let tls = Some(folder.path().to_owned());
    let running = secured(Folders { tls, ..Folders::default() }).await.unwrap();
    assert!(answered(&running, &old, None).await);
    assert!(!answered(&running, &new, None).await, "a stranger's certificate was trusted");
    assert!(client().get(format!("http://{}/v2", running.http)).send().await.is_err(), "no TLS");
    assert_eq!(get(running.admin, "/readyz").await.status, 200, "probes need no TLS");

    assert!(!running.security.renew().unwrap(), "nothing is new");
    identity(folder.path(), &new);
    assert!(running.security.renew().unwrap());
    assert!(answered(&running, &new, None).await && !answered(&running, &old, None).await);

    std::fs::write(folder.path().join("tls.crt"), "no certificate").unwrap();
    let error = running.security.renew().unwrap_err().to_string();
    assert!(error.contains("tls.crt is no certificate in PEM"), "{error}");
    assert!(answered(&running, &new, None).await, "what was there stays in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_of_the_declared_authority_are_let_in() {
    let (folder, clients) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, known, unknown) = (authority(), authority(), authority());
    identity(folder.path(), &server);
    std::fs::write(clients.path().join("ca.crt"), known.pem()).unwrap();
    let tls = Some(folder.path().to_owned());
    let client_ca = Some(clients.path().to_owned());
    let running = secured(Folders { tls, client_ca, tokens: None }).await.unwrap();
    assert!(answered(&running, &server, Some(issued(&known))).await);
    assert!(!answered(&running, &server, Some(issued(&unknown))).await);
    assert!(!answered(&running, &server, None).await);
    std::fs::write(clients.path().join("ca.crt"), unknown.pem()).unwrap();
    assert!(running.security.renew().unwrap());
    assert!(answered(&running, &server, Some(issued(&unknown))).await);
    assert!(!answered(&running, &server, Some(issued(&known))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_need_a_token_of_the_moment_on_both_ports() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("alice"), "first\n").unwrap();
    std::fs::write(folder.path().join("bob"), "second").unwrap();
    std::fs::write(folder.path().join("..data"), "hidden").unwrap();
    let tokens = Some(folder.path().to_owned());
    let running = secured(Folders { tokens, ..Folders::default() }).await.unwrap();
    let rest = async |token: &str| {
        let request = client().get(format!("http://{}/v2", running.http));
        answer(if token.is_empty() { request } else { request.header("authorization", token) })
            .await
    };
    for (token, status) in [
        ("Bearer first", 200),
        ("bearer second", 200),
        ("", 401),
        ("Bearer third", 401),
        ("Bearer hidden", 401),
        ("Bearer ", 401),
        ("Basic first", 401),
        ("first", 401),
    ] {
        let seen = rest(token).await;
        assert_eq!(seen.status, status, "{token}");
        if status == 401 {
            assert_eq!(seen.headers["www-authenticate"], "Bearer");
            assert!(seen.json()["error"].to_string().contains("Bearer TOKEN"));
        }
    }
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", running.grpc));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut grpc = GrpcInferenceServiceClient::new(channel);
    let status = grpc.server_live(ServerLiveRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let mut request = tonic::Request::new(ServerLiveRequest {});
    let value = MetadataValue::from_static("Bearer second");
    request.metadata_mut().insert("authorization", value);
    assert!(grpc.server_live(request).await.is_ok());
    assert_eq!(get(running.admin, "/metrics").await.status, 200, "the admin port is apart");

    std::fs::remove_file(folder.path().join("bob")).unwrap();
    assert!(running.security.renew().unwrap());
    assert_eq!((rest("Bearer first").await.status, rest("Bearer second").await.status), (200, 401));
    std::fs::remove_file(folder.path().join("alice")).unwrap();
    assert!(running.security.renew().unwrap_err().to_string().contains("holds no token"));
    assert_eq!(rest("Bearer first").await.status, 200, "what was there stays in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_secured_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let here = || Some(folder.path().to_owned());
    let tokens = secured(Folders { tokens: here(), ..Folders::default() }).await;
    assert!(tokens.err().unwrap().to_string().contains("holds no token"));
    let missing = secured(Folders { tls: here(), ..Folders::default() }).await;
    assert!(missing.err().unwrap().to_string().contains("tls.crt"));
    identity(folder.path(), &authority());
    let (_, other) = issued(&authority());
    std::fs::write(folder.path().join("tls.key"), other).unwrap();
    let unfit = secured(Folders { tls: here(), ..Folders::default() }).await;
    assert!(unfit.err().unwrap().to_string().contains("cannot be used"));
}
