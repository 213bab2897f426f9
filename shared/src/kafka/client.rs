//! What every Kafka client of the product has in common: addresses, security, patience, and where its log lines go.

use std::ffi::CString;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::bindings::{rd_kafka_brokers_add, rd_kafka_flush};
use rdkafka::client::{Client as Inner, NativeClient};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, FutureProducer, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Statistics};

use super::error::unreachable;
use super::iam::Iam;
use crate::config::{ClientCertificate, KafkaConfig, Security};
use crate::errors::{Code, Error};
use crate::names::TopicName;

/// A name that no topic can have. To ask for its metadata brings a small reply, however many topics the cluster has, and
/// creates nothing; but librdkafka then looks again at what it was waiting for.
pub(super) const NO_TOPIC: &str = "?";

/// What a client is made with.
#[derive(Clone)]
pub struct Settings {
    config: ClientConfig,
    /// The login that all clients share, where it has tokens.
    iam: Option<Iam>,
}

impl std::fmt::Debug for Settings {
    /// Not the passwords and keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Settings")
    }
}

impl Settings {
    /// Sets one of librdkafka's properties.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.config.set(name, value);
        self
    }

    /// What a property was set to, if it was.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.config.get(name)
    }

    /// Makes a client: the only place where one is made. It connects to nothing yet. Blocks, as TLS reads its roots.
    pub(super) fn create<K: Kind>(&self) -> Result<Client<K>, KafkaError> {
        let bootstrap = CString::new(self.get("bootstrap.servers").unwrap_or_default()).unwrap_or_default();
        let kind = Some(K::make(&self.config)?);
        let client = Client { kind, iam: self.iam.clone(), given: AtomicU64::new(0), bootstrap };
        client.log_in();
        Ok(client)
    }
}

/// A kind of client.
pub(super) trait Kind: Sized + Send + 'static {
    /// Makes one.
    fn make(settings: &ClientConfig) -> Result<Self, KafkaError>;

    /// What librdkafka knows it by.
    fn native(&self) -> &NativeClient;
}

impl Kind for FutureProducer<Context> {
    fn make(settings: &ClientConfig) -> Result<Self, KafkaError> {
        Self::from_config_and_context(settings, Context)
    }

    fn native(&self) -> &NativeClient {
        self.client().native_client()
    }
}

impl Kind for BaseProducer<Context> {
    fn make(settings: &ClientConfig) -> Result<Self, KafkaError> {
        Self::from_config_and_context(settings, Context)
    }

    fn native(&self) -> &NativeClient {
        self.client().native_client()
    }
}

/// In an `Arc`, which the queues of its partitions hold as well.
impl Kind for Arc<BaseConsumer<Context>> {
    fn make(settings: &ClientConfig) -> Result<Self, KafkaError> {
        BaseConsumer::from_config_and_context(settings, Context).map(Arc::new)
    }

    fn native(&self) -> &NativeClient {
        self.client().native_client()
    }
}

impl Kind for AdminClient<Context> {
    fn make(settings: &ClientConfig) -> Result<Self, KafkaError> {
        Self::from_config_and_context(settings, Context)
    }

    fn native(&self) -> &NativeClient {
        self.inner().native_client()
    }
}

/// The settings of a client, before its role adds its own.
///
/// `KAFKA_PROPERTIES` come after the tuning here and may change it. What a role needs for its own way of working, such as
/// short fetches, it sets later; what the product promises, `config` refuses as a property.
pub fn settings(config: &KafkaConfig) -> Settings {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", &config.bootstrap_servers)
        .set("client.id", "kafka-gateway")
        // A client's second connection waits for half of this (but never under 11 ms), and a cold start has two.
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "1000")
        // What a call waits for when it meets the markers of the transaction before it.
        .set("retry.backoff.ms", "2")
        .set("retry.backoff.max.ms", "100")
        .set("socket.timeout.ms", "3000")
        .set("socket.connection.setup.timeout.ms", "3000")
        .set("socket.keepalive.enable", "true")
        // A thawed sandbox finds its connections closed; that is no event.
        .set("log.connection.close", "false")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in &config.properties {
        settings.set(name, value);
    }
    settings.set("allow.auto.create.topics", "false");
    secure(&mut settings, config);
    let iam = match &config.security {
        Security::MskIam(iam) => Some(iam.clone()),
        _ => None,
    };
    Settings { config: settings, iam }
}

/// The one place where a client learns how its connection is secured.
fn secure(settings: &mut ClientConfig, config: &KafkaConfig) {
    let protocol = match &config.security {
        Security::Plaintext => "plaintext",
        // With what is still to be read no endpoint is made, see `Warm`: no broker would let it in.
        Security::Tls | Security::Unread(..) => "ssl",
        Security::Mtls(ClientCertificate::Files { certificate, key }) => {
            settings
                .set("ssl.certificate.location", certificate.to_string_lossy())
                .set("ssl.key.location", key.to_string_lossy());
            "ssl"
        }
        Security::Mtls(ClientCertificate::Text { certificate, key, password }) => {
            settings.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key);
            if let Some(password) = password {
                settings.set("ssl.key.password", password);
            }
            "ssl"
        }
        Security::Scram { mechanism, username, password } => {
            settings.set("sasl.mechanism", *mechanism).set("sasl.username", username).set("sasl.password", password);
            "sasl_ssl"
        }
        Security::MskIam(_) => {
            settings.set("sasl.mechanism", "OAUTHBEARER");
            "sasl_ssl"
        }
    };
    settings.set("security.protocol", protocol);
    if !matches!(config.security, Security::Plaintext) {
        // Vendored OpenSSL looks for roots in a folder that does not exist; `probe` finds the system's.
        let roots = config.ca_file.as_ref().map_or("probe".into(), |file| file.to_string_lossy());
        settings.set("ssl.ca.location", roots);
    }
}

/// The longest that a new client waits to be connected early. Otherwise it only takes longer.
const CONNECT: Duration = Duration::from_millis(200);

/// Connects a new client to a partition's leader, at once.
///
/// Once librdkafka knows the brokers it gives the bootstrap connection up, and whatever was asked there; then it waits
/// 11 ms before it connects to just any of them. Not so to one that it is to ask something: so that one is asked.
pub(super) fn connect<C: ClientContext>(client: &Inner<C>, topic: &TopicName, partition: i32, patience: Duration) {
    let _ = client.fetch_watermarks(topic.as_str(), partition, patience.min(CONNECT));
}

/// The longest that a failed connection is waited for, to hear why it failed.
const HEARING: Duration = Duration::from_secs(2);

/// Sees to it that the log says why no broker lets us in: a wrong password, a certificate that nobody trusts.
///
/// librdkafka tells only who polls a client, and nobody polls an `AdminClient` for that.
pub(super) fn explain(settings: &Settings, patience: Duration) {
    let Ok(client) = settings.create::<Arc<BaseConsumer<Context>>>() else { return };
    let until = Instant::now() + patience.min(HEARING);
    // Makes it connect; the answer is not waited for.
    let _ = client.fetch_metadata(Some(NO_TOPIC), Duration::from_millis(10));
    while let Some(event) = client.poll(until.saturating_duration_since(Instant::now())) {
        // That all brokers are down is no reason.
        if event.is_err_and(|error| error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown)) {
            return;
        }
    }
}

/// A client. Whoever uses it finds it with the login of now. It ends off the path of the call that drops it: librdkafka
/// flushes and joins its threads.
pub(super) struct Client<K: Kind> {
    kind: Option<K>,
    iam: Option<Iam>,
    /// The token that it was given last.
    given: AtomicU64,
    /// The brokers that it was made with.
    bootstrap: CString,
}

impl<K: Kind> Client<K> {
    /// Ends it here and now: a member has left its group then.
    pub(super) fn end(mut self) {
        drop(self.kind.take());
    }

    /// The public error of a request that waited for a broker. If none could be reached, the client is told of the brokers
    /// anew, for the next request.
    ///
    /// It may have forgotten them all: a broker that is just starting may tell of none, and then librdkafka 2.10 to 2.13 drops
    /// those it knows and can be left with nobody to connect to, for good (its issue 5301).
    pub(super) fn unreachable(&self, error: KafkaError) -> Error {
        let error = unreachable(error);
        if error.code() == Code::BrokerUnavailable {
            self.find_brokers();
        }
        error
    }

    /// Tells the client of the brokers that it was made with. It keeps each of them once.
    #[allow(unsafe_code)]
    pub(super) fn find_brokers(&self) {
        let Some(kind) = &self.kind else { return };
        // SAFETY: the client lives as long as it is borrowed, and librdkafka locks its list itself. The string ends with a
        // zero and is copied.
        unsafe { rd_kafka_brokers_add(kind.native().ptr(), self.bootstrap.as_ptr()) };
    }

    fn log_in(&self) {
        if let (Some(iam), Some(kind)) = (&self.iam, &self.kind) {
            iam.give(kind.native(), &self.given);
        }
    }
}

impl Client<FutureProducer<Context>> {
    /// Sends what waits for company, and waits until nothing is on its way. rdkafka's own `flush` asks librdkafka again and
    /// again for no time at all, and only while it is asked does nothing wait: what is sent then is sent by luck.
    #[allow(unsafe_code)]
    pub(super) fn send_all(&self, patience: Duration) -> Result<(), KafkaError> {
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client lives as long as it is borrowed, and librdkafka may be asked from any thread. Reports are taken
        // by the producer's own thread meanwhile.
        match unsafe { rd_kafka_flush(self.client().native_ptr(), patience) }.into() {
            RDKafkaErrorCode::NoError => Ok(()),
            code => Err(KafkaError::Flush(code)),
        }
    }
}

impl<K: Kind> Deref for Client<K> {
    type Target = K;

    fn deref(&self) -> &K {
        self.log_in();
        self.kind.as_ref().expect("taken only at the end")
    }
}

impl<K: Kind> Drop for Client<K> {
    fn drop(&mut self) {
        let Some(client) = self.kind.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(client));
        }
    }
}

/// Sends librdkafka's log lines and errors to the product's log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            // To come to the end of a partition is no fault.
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            Some(RDKafkaErrorCode::AllBrokersDown) if !is_news() => {}
            _ => tracing::warn!(target: "librdkafka", %error, "{reason}"),
        }
    }
}

/// Whether it is time to say again that all brokers are down, which librdkafka does at each attempt to connect to one, many
/// times a second. Other errors it holds back itself, for as long.
fn is_news() -> bool {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let news = said.is_none_or(|said| said.elapsed() >= Duration::from_secs(30));
    if news {
        *said = Some(Instant::now());
    }
    news
}

impl rdkafka::consumer::ConsumerContext for Context {}

/// What became of a record that a producer of this context has sent: why it was not written, if it was not.
pub type Report = Arc<OnceLock<KafkaError>>;

impl ProducerContext for Context {
    type DeliveryOpaque = Report;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Report) {
        if let Err((error, _)) = result {
            // Said once for each record.
            let _ = report.set(error.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;

    fn config(security: Security) -> KafkaConfig {
        KafkaConfig {
            bootstrap_servers: "localhost:9092".into(),
            security,
            ca_file: None,
            properties: vec![("client.rack".into(), "a".into()), ("retry.backoff.ms".into(), "5".into())],
            auto_create_topics: false,
            delivery: crate::config::Delivery::Exclusive,
            dead_letters: crate::config::DeadLetterConfig::default(),
        }
    }

    #[test]
    fn each_kind_of_security_is_one_librdkafka_accepts() {
        for (security, protocol) in [
            (Security::Plaintext, "plaintext"),
            (Security::Tls, "ssl"),
            (Security::Scram { mechanism: "SCRAM-SHA-512", username: "u".into(), password: "p".into() }, "sasl_ssl"),
        ] {
            let settings = settings(&config(security));
            assert_eq!(settings.get("security.protocol"), Some(protocol));
            settings.config.create_native_config().expect("known to librdkafka");
        }
    }

    #[test]
    fn properties_tune_but_never_undo() {
        let settings = settings(&config(Security::Plaintext));
        assert_eq!(settings.get("retry.backoff.ms"), Some("5"));
        assert_eq!(settings.get("client.rack"), Some("a"));
    }

    #[test]
    fn a_client_that_has_no_broker_left_is_told_of_them() {
        let mock = MockCluster::new(1).expect("a cluster");
        mock.create_topic("t", 1, 1).expect("a topic");
        // What librdkafka comes to by itself is a matter of luck; this one never had a broker.
        let client = Client {
            kind: Some(<Arc<BaseConsumer<Context>>>::make(&ClientConfig::new()).expect("a client")),
            iam: None,
            given: AtomicU64::new(0),
            bootstrap: CString::new(mock.bootstrap_servers()).expect("text"),
        };
        let ask = |seconds| client.fetch_metadata(Some("t"), Duration::from_secs(seconds));
        let error = ask(1).map(drop).expect_err("nobody to ask");
        assert_eq!(client.unreachable(error).code(), Code::BrokerUnavailable);
        assert_eq!(ask(10).expect("metadata").brokers().len(), 1);
    }
}
