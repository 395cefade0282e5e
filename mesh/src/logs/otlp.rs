//! Traces by OTLP over gRPC. A span of a call continues the trace that its caller sent; sampled before it is built.

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Tracer};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::registry::LookupSpan;

/// Sends spans in batches.
pub fn provider(endpoint: &str, service: &'static str, percent: u32) -> Result<SdkTracerProvider, String> {
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(|error| format!("the OTLP endpoint cannot be used: {error}"))?;
    #[allow(clippy::float_arithmetic, reason = "a share of traces, not money")]
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(f64::from(percent) / 100.0)));
    let resource = Resource::builder().with_service_name(service).with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_sampler(sampler).with_resource(resource).build())
}

/// Spans at info become spans of the trace.
pub fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    OpenTelemetryLayer::<S, Tracer>::new(provider.tracer("lastro")).with_filter(LevelFilter::INFO)
}
