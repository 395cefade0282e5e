//! Traces by OTLP over gRPC. A span of a call continues the trace that its caller sent; sampled before it is built.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Tracer};
use tracing::Subscriber;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::registry::LookupSpan;

use crate::trace::TraceContext;

/// Whether spans go anywhere: where they do not, a call pays nothing for it.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Makes a span part of the trace that its caller sent; the context that its own calls send on.
pub fn join(span: &tracing::Span, received: Option<TraceContext>) -> TraceContext {
    let fallback = || received.map_or_else(TraceContext::start, TraceContext::child);
    if !ENABLED.load(Ordering::Relaxed) {
        return fallback();
    }
    if let Some(caller) = received {
        let flags = if caller.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, parent) = (TraceId::from_bytes(caller.trace_id.to_be_bytes()), SpanId::from_bytes(caller.span_id.to_be_bytes()));
        let remote = SpanContext::new(trace, parent, flags, true, TraceState::default());
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
    }
    let context = span.context();
    let own = context.span().span_context().clone();
    if !own.is_valid() {
        return fallback();
    }
    TraceContext {
        trace_id: u128::from_be_bytes(own.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(own.span_id().to_bytes()),
        sampled: own.is_sampled(),
    }
}

/// Sends spans in batches.
pub fn provider(endpoint: &str, service: &'static str, percent: u32) -> Result<SdkTracerProvider, String> {
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(|error| format!("the OTLP endpoint cannot be used: {error}"))?;
    #[allow(clippy::float_arithmetic, reason = "a share of traces, not money")]
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(f64::from(percent) / 100.0)));
    let resource = Resource::builder().with_service_name(service).with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
    ENABLED.store(true, Ordering::Relaxed);
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_sampler(sampler).with_resource(resource).build())
}

/// Spans at info become spans of the trace.
pub fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    OpenTelemetryLayer::<S, Tracer>::new(provider.tracer("lastro")).with_filter(LevelFilter::INFO)
}
