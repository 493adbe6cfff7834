//! Structured logs on standard output, and traces to an OTLP endpoint when one is named.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::Config;

/// Starts logging; the provider, when there is one, must be shut down at the end.
pub fn init(
    config: &Config,
) -> anyhow::Result<Option<opentelemetry_sdk::trace::SdkTracerProvider>> {
    let filter = EnvFilter::try_new(&config.log)?;
    let logs = tracing_subscriber::fmt::layer().json().flatten_event(true).with_filter(filter);
    let provider = config.otlp_endpoint.as_ref().map(|endpoint| exporter(endpoint)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        // Requests are spans of kube's at the level of debugging.
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("lithe-operator"))
            .with_filter(EnvFilter::new("info,kube_client=debug"))
    });
    tracing_subscriber::registry().with(logs).with(traces).try_init()?;
    Ok(provider)
}

fn exporter(endpoint: &str) -> anyhow::Result<opentelemetry_sdk::trace::SdkTracerProvider> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource =
        opentelemetry_sdk::Resource::builder().with_service_name("lithe-operator").build();
    Ok(opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
