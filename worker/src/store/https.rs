//! `https://` sources: every hop's address is checked and pinned, credentials go to the first
//! origin only.

use std::time::Duration;

use futures::TryStreamExt as _;
use http::header::{AUTHORIZATION, LOCATION};
use reqwest::{Certificate, Response, Url, redirect};

use super::address::{Reach, resolve};
use super::credentials::Credentials;
use super::error::{StoreError, chain};
use super::fetch::Sink;

/// Redirects that are followed.
const HOPS: usize = 5;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the head of an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Fetches `url` into `sink`.
///
/// # Errors
/// Whatever the address rules, the credentials, the peer or the disk say.
pub async fn get(
    url: &Url,
    credentials: &Credentials,
    reach: Reach,
    sink: &mut Sink,
) -> Result<(), StoreError> {
    let mut at = url.clone();
    for _ in 0..=HOPS {
        let trusted = at.origin() == url.origin();
        let response = hop(&at, trusted.then_some(credentials), credentials, reach).await?;
        let status = response.status();
        if status.is_redirection() {
            at = next(&at, &response)?;
            continue;
        }
        if !status.is_success() {
            return Err(StoreError::status(&shown(&at), status, ""));
        }
        let size = response.content_length();
        let what = shown(&at);
        let stream = response.bytes_stream().map_err(|error| StoreError::Unavailable {
            what: what.clone(),
            why: chain(&error.without_url()),
        });
        return sink.take(size, stream).await;
    }
    let why = format!("more than {HOPS} redirects");
    Err(StoreError::Forbidden { what: shown(url), why })
}

fn shown(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

async fn hop(
    url: &Url,
    login: Option<&Credentials>,
    trust: &Credentials,
    reach: Reach,
) -> Result<Response, StoreError> {
    let what = shown(url);
    let unavailable = |why: String| StoreError::Unavailable { what: what.clone(), why };
    let host = url.host_str().unwrap_or_default();
    // What the Secret lacks is told before anybody is asked.
    let (basic, bearer) = match login {
        Some(credentials) => (credentials.login()?, credentials.get("token")?),
        None => (None, None),
    };
    let addresses = resolve(&what, host, url.port_or_known_default().unwrap_or(443), reach).await?;
    let mut builder = reqwest::Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .resolve_to_addrs(host, &addresses)
        .user_agent(concat!("lithe-worker/", env!("CARGO_PKG_VERSION")));
    if let Some(authority) = trust.authority()? {
        builder = builder.tls_certs_merge(authorities(&what, &authority)?);
    }
    let client = builder.build().map_err(|error| unavailable(chain(&error)))?;
    let mut request = client.get(url.clone());
    if let Some((user, password)) = basic {
        request = request.basic_auth(user, Some(password));
    } else if let Some(token) = bearer {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let answer = tokio::time::timeout(ANSWER, request.send()).await;
    let answer = answer.map_err(|_| unavailable(format!("no answer in {ANSWER:?}")))?;
    answer.map_err(|error| unavailable(chain(&error.without_url())))
}

/// The certificates of a PEM text.
///
/// # Errors
/// [`StoreError::Malformed`] when it is none.
pub fn authorities(what: &str, pem: &str) -> Result<Vec<Certificate>, StoreError> {
    Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| {
        let why = format!("ca.crt of the credentials is no certificate: {}", chain(&error));
        StoreError::Malformed { what: what.to_owned(), why }
    })
}

fn next(at: &Url, response: &Response) -> Result<Url, StoreError> {
    let forbidden = |why: &str| StoreError::Forbidden { what: shown(at), why: why.to_owned() };
    let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
    let target = target.ok_or_else(|| forbidden("it redirects to nowhere"))?;
    let target = at.join(target).map_err(|_| forbidden("it redirects to no address"))?;
    if target.scheme() != "https" {
        return Err(forbidden("it redirects to an address without TLS"));
    }
    if !target.username().is_empty() || target.password().is_some() {
        return Err(forbidden("it redirects to an address with a user"));
    }
    Ok(target)
}
