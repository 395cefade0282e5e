//! JSON logs, one object a line on standard error, with the fields `timestamp, level, service, correlationId, message, metadata`.

pub mod otlp;

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

/// Keeps the writers alive; what is still buffered is written when it is dropped.
pub struct Guard {
    _worker: tracing_appender::non_blocking::WorkerGuard,
    traces: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.traces.take().map(|traces| traces.shutdown()) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Starts logging and, where an endpoint is given, tracing for the process. `filter` is as in `RUST_LOG`: `warn`,
/// `info,lastro_transactions=debug`.
pub fn start(filter: &str, service: &'static str, otlp_endpoint: Option<&str>, trace_percent: u32) -> Result<Guard, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("the log filter {filter:?} cannot be read: {error}"))?;
    let (writer, worker) = tracing_appender::non_blocking(std::io::stderr());
    let traces = otlp_endpoint.map(|endpoint| otlp::provider(endpoint, service, trace_percent)).transpose()?;
    // The layer is not even built without an endpoint: it must not cost.
    let spans = traces.as_ref().map(otlp::layer);
    let subscriber = tracing_subscriber::registry().with(JsonLines { writer, service }.with_filter(filter)).with(spans);
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
    Ok(Guard { _worker: worker, traces })
}

struct JsonLines {
    writer: tracing_appender::non_blocking::NonBlocking,
    service: &'static str,
}

/// The fields of a span or event. `service` and `correlationId` have their own place in the line.
#[derive(Default, Clone)]
struct Fields {
    message: String,
    service: Option<String>,
    correlation_id: Option<String>,
    metadata: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match field.name() {
            "message" => self.message = text(value),
            "service" => self.service = Some(text(value)),
            "correlationId" => self.correlation_id = Some(text(value)),
            name => {
                self.metadata.insert(name.trim_start_matches("r#").to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.set(field, Value::String(text));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::String(value.to_owned()));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for JsonLines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        use std::io::Write as _;
        let mut line = Fields::default();
        event.record(&mut line);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.service = line.service.or_else(|| fields.service.clone());
                line.correlation_id = line.correlation_id.or_else(|| fields.correlation_id.clone());
                for (name, value) in &fields.metadata {
                    line.metadata.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
        let timestamp = jiff::Timestamp::from_microsecond(crate::clock::now_us()).unwrap_or_default();
        line.metadata.insert("target".to_owned(), event.metadata().target().into());
        let object = serde_json::json!({
            "timestamp": timestamp.to_string(),
            "level": event.metadata().level().as_str(),
            "service": line.service.as_deref().unwrap_or(self.service),
            "correlationId": line.correlation_id,
            "message": line.message,
            "metadata": line.metadata,
        });
        // In one piece: what is written in several is torn apart by what other threads write.
        let _ = self.writer.clone().write_all(format!("{object}\n").as_bytes());
    }
}
