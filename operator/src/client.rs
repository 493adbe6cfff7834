//! The clients of the API server: every request but a watch has a time limit and is counted.
//!
//! kube's defaults never give up on a silent connection and retry inside a call for minutes; here
//! a request fails after [`REQUEST_LIMIT`], and the queue decides when to try again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::{BoxError, Service};

use crate::metrics::Metrics;

/// A healthy API server answers within a second or two; a request that takes longer than this is
/// better tried again on another connection.
const REQUEST_LIMIT: Duration = Duration::from_secs(12);
/// A watch is renewed after this time, so that one whose connection died silently is noticed.
pub const WATCH_SECONDS: u32 = 30;
/// How long a watch may be silent: its server ends it after [`WATCH_SECONDS`].
const WATCH_LIMIT: Duration = Duration::from_secs(35);

/// Two clients, since connections on which watches run may be silent for longer than others.
#[derive(Clone)]
pub struct Clients {
    /// For reads and writes.
    pub requests: Client,
    /// For lists and watches.
    pub watches: Client,
}

/// Makes the clients.
pub async fn clients(metrics: &Arc<Metrics>) -> anyhow::Result<Clients> {
    let config = Config::infer().await?;
    Ok(Clients {
        requests: client(config.clone(), REQUEST_LIMIT, metrics)?,
        watches: client(config, WATCH_LIMIT, metrics)?,
    })
}

fn client(mut config: Config, silence: Duration, metrics: &Arc<Metrics>) -> anyhow::Result<Client> {
    config.connect_timeout = Some(Duration::from_secs(5));
    config.default_retry = false;
    config.read_timeout = Some(silence);
    // Else the time for which a connection lay idle would count against the next answer.
    config.reset_reader_on_write = true;
    let metrics = Arc::clone(metrics);
    let layer =
        tower::layer::layer_fn(move |inner| Limited { inner, metrics: Arc::clone(&metrics) });
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

/// Counts requests and ends those that take too long.
pub struct Limited<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, B> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let verb = if watch { "WATCH".to_owned() } else { request.method().to_string() };
        let kind = kind_of(request.uri().path());
        let metrics = Arc::clone(&self.metrics);
        let reply = self.inner.call(request);
        Box::pin(async move {
            let result = match tokio::time::timeout(REQUEST_LIMIT, reply).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {REQUEST_LIMIT:?}").into()),
            };
            let code = result.as_ref().map_or(0, |reply| reply.status().as_u16());
            metrics.request(&verb, &kind, code);
            result
        })
    }
}

/// The resource in a path such as `/apis/apps/v1/namespaces/x/deployments/y`: `deployments`.
fn kind_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let skip = if parts.first() == Some(&"api") { 2 } else { 3 };
    let rest = parts.get(skip..).unwrap_or_default();
    let rest = if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.get(2..).unwrap_or_default()
    } else {
        rest
    };
    let status = rest.get(2).is_some_and(|part| *part == "status");
    let kind = rest.first().copied().unwrap_or("other");
    if status { format!("{kind}/status") } else { kind.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::kind_of;

    #[test]
    fn a_path_names_its_resource() {
        let rows = [
            ("/api/v1/namespaces/x/services/y", "services"),
            ("/api/v1/pods", "pods"),
            ("/apis/apps/v1/namespaces/x/deployments", "deployments"),
            (
                "/apis/lithe.dev/v1alpha1/namespaces/x/modeldeployments/y/status",
                "modeldeployments/status",
            ),
        ];
        for (path, kind) in rows {
            assert_eq!(kind_of(path), kind, "{path}");
        }
    }
}
