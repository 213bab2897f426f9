//! Log lines: one JSON object a line on standard error, and one line a request (contract, section 6).
//!
//! What may never appear in a line: a token, a credential, a key, a value or a header's value, whatever `RUST_LOG` says.
//! Our own code logs none; three rules hold the libraries to it:
//! - every target that is not ours is capped at `info` (the runtime writes whole events at `trace`);
//! - what the runtime says of an event that it cannot decode is cut down to its message (serde quotes the value that it
//!   trips over);
//! - a panic's text is written only where it is a literal (a formatted one quotes what it failed on).

use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use serde::Serializer as _;
use serde::ser::SerializeMap;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::config::ConfigError;
use crate::dlq::Reason;
use crate::errors::Error;
use crate::metrics::{self, Direction};
use crate::names::{GroupId, TopicName};

const RUST_LOG: &str = "RUST_LOG";

/// Starts logging for this process. Call it first; what fails before it has no other way out than `main`'s result.
pub fn init() -> Result<(), ConfigError> {
    let directives = std::env::var(RUST_LOG).unwrap_or_default();
    let subscriber = subscriber(&directives, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|_| ConfigError::new(RUST_LOG, "logging was started twice"))?;
    std::panic::set_hook(Box::new(|panic| {
        let reason = panic.payload().downcast_ref::<&'static str>().copied();
        let location = panic.location().map(ToString::to_string);
        let backtrace = Backtrace::force_capture();
        tracing::error!(reason, location, %backtrace, "panicked");
    }));
    Ok(())
}

fn subscriber<W>(directives: &str, writer: W) -> Result<impl Subscriber + Send + Sync + 'static, ConfigError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let chosen = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(directives.trim())
        .map_err(|_| ConfigError::new(RUST_LOG, "must be a filter such as `info` or `warn,kafka_gateway=debug`"))?;
    let capped = filter_fn(|metadata| is_ours(metadata) || *metadata.level() <= Level::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(JsonLine)
        .with_writer(writer)
        .with_filter(chosen.and(capped));
    Ok(tracing_subscriber::registry().with(lines))
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target.strip_prefix(env!("CARGO_CRATE_NAME")).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// A request that has its answer.
#[derive(Debug)]
pub struct Finished<'a> {
    /// The function's name, one of a fixed set.
    pub function: &'static str,
    /// The invocation's id, as Lambda's own lines have it.
    pub request_id: &'a str,
    /// The topic as the caller named it, if the call got so far.
    pub topic: Option<&'a str>,
    /// Whether that topic is known to exist, and the caller may use it: only then does it become a label value.
    pub topic_label: bool,
    /// The consumer group.
    pub group: Option<&'a str>,
    /// The token's subject.
    pub principal: Option<&'a str>,
    /// The answer's HTTP status.
    pub status: u16,
    /// What the answer tells of, when it is an error.
    pub error: Option<&'a Error>,
    /// From the event to the answer.
    pub duration: Duration,
    /// Whether the request waited for its sandbox to start.
    pub cold_start: bool,
    /// The caller's trace, by its `traceparent`.
    pub trace_id: Option<&'a str>,
}

/// Counts a finished request and writes its line. Errors of the service's own making (5xx) carry their causes and a
/// backtrace. A caller's mistake carries its public text alone: its causes may quote the body.
pub fn request_finished(finished: &Finished<'_>) {
    let Finished { function, request_id, topic, group, principal, status, error, cold_start, trace_id, .. } = *finished;
    let labelled = topic.filter(|_| finished.topic_label);
    metrics::request_finished(function, labelled, status, finished.duration, cold_start);

    let code = error.map(|error| error.code().word());
    let duration_ms = milliseconds(finished.duration);
    if status < 500 {
        let detail = error.map(Error::detail);
        tracing::info!(
            parent: None,
            request_id, function, topic, group, principal, status, code, detail, duration_ms, cold_start, trace_id,
            "request finished"
        );
    } else {
        let error_chain = error.map(|error| error.chain().join(": "));
        let backtrace = error.and_then(Error::backtrace).map(tracing::field::display);
        tracing::error!(
            parent: None,
            request_id, function, topic, group, principal, status, code, duration_ms, cold_start, trace_id,
            error_chain, backtrace,
            "request failed"
        );
    }
}

/// Writes a line for each kind of failure that is ours (5xx) among the records of a batch that was answered all the same:
/// how many, and the causes of the first.
pub fn records_failed(errors: &[&Error]) {
    let mut ours: BTreeMap<&str, (&Error, u64)> = BTreeMap::new();
    for error in errors.iter().filter(|error| error.code().status() >= 500) {
        ours.entry(error.code().word()).or_insert((error, 0)).1 += 1;
    }
    for (code, (first, records)) in ours {
        tracing::error!(code, records, error_chain = first.chain().join(": "), "records of a batch failed");
    }
}

/// Records of one partition lie in the dead-letter topic from now on: counts them and writes their line. `topic` is where
/// they come from, and must be known to exist.
pub fn died(topic: &TopicName, group: Option<&GroupId>, partition: Option<i32>, reason: Reason, records: u64) {
    metrics::died(topic, reason, records);
    let group = group.map(GroupId::as_str);
    tracing::warn!(%topic, group, partition, reason = reason.word(), records, "records went to the dead-letter topic");
}

/// Letters of one partition are back in the topic that they came from: counts them and writes their line.
pub fn redriven(letters: &TopicName, partition: i32, target: &TopicName, records: u64, bytes: u64) {
    metrics::records_passed(Direction::Produce, target, records, bytes);
    tracing::info!(topic = %letters, partition, %target, records, "dead letters went back");
}

/// To the microsecond; the line need not carry more digits than the clock.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// One event, one object, one line: time, level, the event's fields, then those of our spans around it. A span's field
/// and an event's must not share a name.
struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'l> LookupSpan<'l>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = object(event).map_err(|_| fmt::Error)?;
        let spans = context.event_scope().into_iter().flatten().filter(|span| is_ours(span.metadata()));
        for span in spans {
            let extensions = span.extensions();
            let Some(fields) = extensions.get::<FormattedFields<JsonFields>>() else { continue };
            // An object again, whose members move to the end of the line's own.
            let members = fields.strip_prefix('{').unwrap_or("}");
            if members != "}" {
                line.pop();
                line.push(',');
                line.push_str(members);
            }
        }
        line.push('\n');
        writer.write_str(&line)
    }
}

fn object(event: &Event<'_>) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let mut object = serializer.serialize_map(None)?;
    let mut timestamp = String::with_capacity(32);
    SystemTime.format_time(&mut Writer::new(&mut timestamp)).map_err(serde::ser::Error::custom)?;
    object.serialize_entry("timestamp", &timestamp)?;
    object.serialize_entry("level", event.metadata().level().as_str())?;
    if !is_ours(event.metadata()) {
        object.serialize_entry("target", event.metadata().target())?;
    }
    let mut fields = Fields { object, result: Ok(()) };
    event.record(&mut fields);
    fields.result?;
    SerializeMap::end(fields.object)?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

struct Fields<M: SerializeMap> {
    object: M,
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> Fields<M> {
    fn write(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        if self.result.is_ok() {
            self.result = self.object.serialize_entry(field.name(), value);
        }
    }
}

impl<M: SerializeMap> Visit for Fields<M> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, &format_args!("{value:?}"));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;
    use crate::errors::Code;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("unpoisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `log` writes under these directives.
    pub(crate) fn lines(directives: &str, log: impl FnOnce()) -> Vec<Value> {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(directives, move || writer.clone()).expect("valid directives");
        tracing::subscriber::with_default(subscriber, log);
        let written = String::from_utf8(sink.0.lock().expect("unpoisoned").clone()).expect("text");
        written.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    }

    fn finished(status: u16, error: Option<&Error>) -> Finished<'_> {
        Finished {
            function: "produce",
            request_id: "r-1",
            topic: Some("orders"),
            topic_label: false,
            group: None,
            principal: Some("alice"),
            status,
            error,
            duration: Duration::from_micros(1500),
            cold_start: true,
            trace_id: Some("t-1"),
        }
    }

    #[test]
    fn a_request_is_one_flat_line_with_the_contract_s_names() {
        let lines = lines("", || {
            let _entered = tracing::error_span!("request", request_id = "r-1").entered();
            request_finished(&finished(200, None));
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let mut line = line.as_object().expect("an object").clone();
        let timestamp = line.remove("timestamp").expect("a timestamp");
        let timestamp = timestamp.as_str().expect("text");
        assert!(timestamp.ends_with('Z') && timestamp.as_bytes()[10] == b'T', "{timestamp}");
        let expected = serde_json::json!({
            "level": "INFO", "message": "request finished", "request_id": "r-1", "function": "produce",
            "topic": "orders", "principal": "alice", "status": 200, "duration_ms": 1.5, "cold_start": true,
            "trace_id": "t-1",
        });
        assert_eq!(Value::Object(line), expected);
    }

    #[test]
    fn an_error_of_ours_carries_its_causes_and_a_backtrace_a_caller_s_only_its_public_text() {
        let cause = || io::Error::other("the cause");
        let ours = Error::new(Code::BrokerUnavailable, "Kafka is not available").source(cause());
        let theirs = Error::new(Code::InvalidJson, "line 1").source(cause());
        let lines = lines("", || {
            request_finished(&finished(503, Some(&ours)));
            request_finished(&finished(400, Some(&theirs)));
        });
        assert_eq!(lines[0]["level"], "ERROR");
        assert_eq!(lines[0]["code"], "broker_unavailable");
        assert_eq!(lines[0]["error_chain"], "broker_unavailable: Kafka is not available: the cause");
        assert!(lines[0]["backtrace"].as_str().is_some_and(|text| text.contains("telemetry::tests")), "{}", lines[0]);
        assert_eq!(lines[1]["level"], "INFO");
        assert_eq!(lines[1]["code"], "invalid_json");
        assert_eq!(lines[1]["detail"], "line 1");
        assert!(lines[1].get("error_chain").is_none() && lines[1].get("backtrace").is_none(), "{}", lines[1]);
    }

    #[test]
    fn lines_within_a_request_carry_its_id_and_nothing_of_the_libraries_spans() {
        let lines = lines("warn", || {
            let _library = tracing::error_span!(target: "hyper", "connection", peer = "p").entered();
            let _request = tracing::error_span!("request", request_id = "r-\"1\"").entered();
            let _empty = tracing::error_span!("step").entered();
            tracing::warn!(attempt = 2, "again");
        });
        assert_eq!(lines[0]["request_id"], "r-\"1\"");
        assert_eq!(lines[0]["attempt"], 2);
        assert!(lines[0].get("peer").is_none());
    }

    #[test]
    fn libraries_are_capped_at_info_whatever_rust_log_says() {
        let log = || {
            tracing::trace!(target: "hyper::proto::h1", body = "s3cret", "read");
            tracing::debug!(target: "hyper::client", header = "s3cret", "sent");
            tracing::debug!(target: "kafka_gatewayish", value = "s3cret", "not ours");
            tracing::warn!(target: "librdkafka", "broker down");
            tracing::trace!("ours");
        };
        for directives in ["trace", "hyper=trace,kafka_gatewayish=trace,info,kafka_gateway=trace"] {
            let lines = lines(directives, log);
            let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().expect("text")).collect();
            assert_eq!(messages, ["broker down", "ours"], "{directives}");
        }
        assert_eq!(lines("error", log).len(), 0);
        assert_eq!(lines("", log).len(), 1);
    }

    #[test]
    fn a_bad_filter_names_its_variable() {
        let error = subscriber("kafka_gateway=loud", io::sink).err().expect("refused");
        assert!(error.to_string().starts_with("RUST_LOG: "), "{error}");
    }
}
