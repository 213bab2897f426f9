//! The environment, read once at init. A bad value stops the function, and the error names the variable.
//!
//! Names and defaults are the contract's (section 4), as far as they belong to what is built; the README says which.

mod monitor;
mod schemas;
mod secrets;

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use self::schemas::{RegistryConfig, SchemaConfig, Validation};
use crate::aws::Aws;
use crate::dlq::Suffix;
use crate::kafka::iam::Iam;

pub use self::monitor::MonitorConfig;
use self::secrets::KAFKA_CREDENTIALS;
pub use self::secrets::{Arn, Purpose};

/// A variable that is missing or has a value that cannot be used. Never repeats the value: it may be a secret.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
}

impl ConfigError {
    /// `problem` must not repeat the value.
    pub(crate) fn new(variable: &'static str, problem: impl Into<String>) -> Self {
        Self { variable, problem: problem.into() }
    }
}

/// Everything that the environment decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// Whose tokens count.
    pub oidc: OidcConfig,
    /// Where schemas are, and what they are used for.
    pub schemas: SchemaConfig,
    /// Where metrics go.
    pub metrics: MetricsConfig,
    /// The ceiling for the work of one call, beside `timeout_ms` (`KAFKA_REQUEST_TIMEOUT_MS`).
    pub request_timeout: Duration,
}

/// How to reach Kafka, and how to use it.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// How the connection is secured.
    pub security: Security,
    /// PEM file with the roots that sign the brokers' certificates; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Further librdkafka properties.
    pub properties: Vec<(String, String)>,
    /// Whether producing to an unknown topic leaves its creation to the broker.
    pub auto_create_topics: bool,
    /// Exclusive hand-over, or plain offset commits.
    pub delivery: Delivery,
    /// Where records go that nobody can use, and when.
    pub dead_letters: DeadLetterConfig,
}

/// Where records go that nobody can use, and when.
#[derive(Debug, Clone)]
pub struct DeadLetterConfig {
    /// What a dead-letter topic's name has beyond its origin's (`DLQ_TOPIC_SUFFIX`).
    pub suffix: Suffix,
    /// How often a record is delivered under leases before it is given up (`DLQ_MAX_DELIVERIES`).
    pub max_deliveries: u32,
}

impl Default for DeadLetterConfig {
    fn default() -> Self {
        Self { suffix: Suffix::default(), max_deliveries: 5 }
    }
}

/// `KAFKA_SECURITY`, with what belongs to each kind.
#[derive(Clone)]
pub enum Security {
    /// No encryption, no login: for local work.
    Plaintext,
    /// Encrypted; the broker is verified, the client anonymous.
    Tls,
    /// Encrypted; both sides show a certificate.
    Mtls(ClientCertificate),
    /// Encrypted, with a SCRAM login (RFC 5802).
    Scram {
        /// librdkafka's `sasl.mechanism`.
        mechanism: &'static str,
        /// The user's name.
        username: String,
        /// The user's password.
        password: String,
    },
    /// Encrypted, with the function's IAM role as the login at MSK.
    MskIam(Iam),
    /// What is needed is in Secrets Manager, and was not read yet: no client is made before.
    Unread(Purpose, Arn),
}

/// Who the client is.
#[derive(Clone)]
pub enum ClientCertificate {
    /// PEM files.
    Files {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// PEM texts.
    Text {
        /// The certificate.
        certificate: String,
        /// Its key.
        key: String,
        /// What the key is encrypted with, if it is.
        password: Option<String>,
    },
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plaintext => "Plaintext",
            Self::Tls => "Tls",
            Self::Mtls(_) => "Mtls",
            Self::Scram { mechanism, .. } => mechanism,
            Self::MskIam(_) => "MskIam",
            Self::Unread(..) => "Unread",
        })
    }
}

/// `KAFKA_CONSUME_DELIVERY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Two calls never get the same record (see `kafka::claim`). Needs transactions.
    Exclusive,
    /// Plain offset commits: concurrent calls of a group may get the same records.
    Shared,
}

/// Whose tokens count.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    /// The expected `iss`, to the letter.
    pub issuer: String,
    /// The expected member of `aud`.
    pub audience: String,
    /// The key set's address; by discovery when absent.
    pub jwks_uri: Option<String>,
    /// Paths of the claims that hold roles (dots between steps, `\.` for a dot in a name), instead of Keycloak's.
    pub role_claims: Option<Vec<String>>,
}

/// Where metrics go.
#[derive(Clone)]
pub struct MetricsConfig {
    /// The Pushgateway's base address; nothing is pushed without one.
    pub pushgateway_url: Option<String>,
    /// The `job` label.
    pub job: String,
}

impl std::fmt::Debug for MetricsConfig {
    /// The address may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetricsConfig").field("job", &self.job).finish_non_exhaustive()
    }
}

/// What `KAFKA_PROPERTIES` may not set, since the product sets or promises it. Every name that librdkafka knows for the
/// same thing stands here: two names of one property would be applied in no particular order.
const RESERVED: &[&str] = &[
    // Which cluster, and that it is a real one.
    "bootstrap.servers",
    "metadata.broker.list",
    "plugin.library.paths",
    "interceptors",
    "enable.ssl.certificate.verification",
    "enable.sasl.oauthbearer.unsecure.jwt",
    // Every record is acknowledged by all in-sync replicas, once and in order; the answer says so, or says why not.
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "retries",
    "message.send.max.retries",
    "queuing.strategy",
    "delivery.report.only.error",
    "produce.offset.report",
    "api.version.request",
    // No record is written after its call was answered, see `Producer`.
    "message.timeout.ms",
    "delivery.timeout.ms",
    // Keys go where Java's clients send them.
    "partitioner",
    // The broker's limit decides what is too large.
    "message.max.bytes",
    // Whether a topic is made has a variable of its own.
    "allow.auto.create.topics",
    "topic.metadata.propagation.max.ms",
    // Positions move by the product's own steps only, and it decides where reading begins.
    "transactional.id",
    "transaction.timeout.ms",
    "isolation.level",
    "enable.auto.commit",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "enable.auto.offset.store",
    "offset.store.method",
    "offset.store.path",
    "offset.store.sync.interval.ms",
    "auto.offset.reset",
    "enable.partition.eof",
    // What librdkafka logs is the product's log, at its levels: records and credentials never show there.
    "log_level",
    "log.queue",
    "enabled_events",
];
/// The same for whole families.
const RESERVED_PREFIXES: &[&str] = &["group.", "security.", "sasl.", "ssl.", "ssl_", "https.", "test.", "ut_"];

impl Config {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&Variables(std::env::vars().collect()))
    }

    fn read(env: &Variables) -> Result<Self, ConfigError> {
        Ok(Self {
            kafka: KafkaConfig::read(env)?,
            oidc: OidcConfig::read(env)?,
            schemas: SchemaConfig::read(env)?,
            metrics: MetricsConfig::read(env)?,
            request_timeout: Duration::from_millis(env.number("KAFKA_REQUEST_TIMEOUT_MS", 10_000, 100..=29_000)?),
        })
    }
}

impl KafkaConfig {
    fn read(env: &Variables) -> Result<Self, ConfigError> {
        let config = Self {
            bootstrap_servers: env.required("KAFKA_BOOTSTRAP_SERVERS")?,
            security: Security::read(env)?,
            ca_file: env.file("KAFKA_CA_FILE")?,
            properties: properties(env)?,
            auto_create_topics: env
                .choice("KAFKA_AUTO_CREATE_TOPICS", &[("false", false), ("true", true)])?
                .unwrap_or(false),
            delivery: env
                .choice("KAFKA_CONSUME_DELIVERY", &[("exclusive", Delivery::Exclusive), ("shared", Delivery::Shared)])?
                .unwrap_or(Delivery::Exclusive),
            dead_letters: DeadLetterConfig::read(env)?,
        };
        // librdkafka's own check of names and values, here, where the variable can still be named. Its message would
        // repeat the value.
        for (name, value) in &config.properties {
            let mut probe = rdkafka::ClientConfig::new();
            probe.set(name, value);
            if probe.create_native_config().is_err() {
                return Err(bad(
                    "KAFKA_PROPERTIES",
                    format!("{name}: librdkafka does not take this name or its value"),
                ));
            }
        }
        Ok(config)
    }
}

impl DeadLetterConfig {
    fn read(env: &Variables) -> Result<Self, ConfigError> {
        const SUFFIX: &str = "DLQ_TOPIC_SUFFIX";
        let default = Self::default();
        let suffix = match env.get(SUFFIX) {
            Some(text) => Suffix::parse(text).ok_or_else(|| bad(SUFFIX, "must be legal in a topic's name"))?,
            None => default.suffix,
        };
        Ok(Self { suffix, max_deliveries: env.number("DLQ_MAX_DELIVERIES", default.max_deliveries, 1..=1_000_000)? })
    }
}

impl Security {
    fn read(env: &Variables) -> Result<Self, ConfigError> {
        const SECURITY: &str = "KAFKA_SECURITY";
        match env.get(SECURITY).unwrap_or("plaintext") {
            "plaintext" => Ok(Self::Plaintext),
            "tls" => Ok(Self::Tls),
            "mtls" => Self::mtls(env),
            "scram-sha-256" => Self::scram(env, "SCRAM-SHA-256"),
            "scram-sha-512" => Self::scram(env, "SCRAM-SHA-512"),
            "msk-iam" => {
                let aws = Aws::new(&env.required("AWS_REGION")?);
                aws.map(|aws| Self::MskIam(Iam::new(aws))).ok_or_else(|| bad(SECURITY, "msk-iam is not built in"))
            }
            _ => Err(bad(SECURITY, "must be plaintext, tls, mtls, scram-sha-256, scram-sha-512 or msk-iam")),
        }
    }

    fn mtls(env: &Variables) -> Result<Self, ConfigError> {
        if let Some(credentials) = env.get(KAFKA_CREDENTIALS) {
            let arn = Arn::parse(KAFKA_CREDENTIALS, credentials)?;
            let arn = arn.ok_or_else(|| bad(KAFKA_CREDENTIALS, "must be the ARN of a secret for mtls"))?;
            return Ok(Self::Unread(Purpose::Mtls, arn));
        }
        let file = |name| env.file(name)?.ok_or_else(|| missing(name));
        let (certificate, key) = (file("KAFKA_CLIENT_CERT_FILE")?, file("KAFKA_CLIENT_KEY_FILE")?);
        Ok(Self::Mtls(ClientCertificate::Files { certificate, key }))
    }

    fn scram(env: &Variables, mechanism: &'static str) -> Result<Self, ConfigError> {
        let credentials = env.required(KAFKA_CREDENTIALS)?;
        if let Some(arn) = Arn::parse(KAFKA_CREDENTIALS, &credentials)? {
            return Ok(Self::Unread(Purpose::Scram(mechanism), arn));
        }
        let wrong = "must be user:password, or the ARN of a secret";
        let (username, password) = credentials.split_once(':').ok_or_else(|| bad(KAFKA_CREDENTIALS, wrong))?;
        Ok(Self::Scram { mechanism, username: username.to_owned(), password: password.to_owned() })
    }
}

impl OidcConfig {
    fn read(env: &Variables) -> Result<Self, ConfigError> {
        let role_claims = env.get("OIDC_ROLE_CLAIMS").map(|paths| {
            paths.split(',').map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        });
        if role_claims.as_ref().is_some_and(Vec::is_empty) {
            return Err(bad("OIDC_ROLE_CLAIMS", "names no claim"));
        }
        Ok(Self {
            issuer: env.url("OIDC_ISSUER")?.ok_or_else(|| missing("OIDC_ISSUER"))?,
            audience: env.required("OIDC_AUDIENCE")?,
            jwks_uri: env.url("OIDC_JWKS_URI")?,
            role_claims,
        })
    }
}

impl MetricsConfig {
    fn read(env: &Variables) -> Result<Self, ConfigError> {
        Ok(Self {
            pushgateway_url: env.url("PUSHGATEWAY_URL")?,
            job: env.get("METRICS_JOB").unwrap_or("kafka-gateway").to_owned(),
        })
    }
}

fn properties(env: &Variables) -> Result<Vec<(String, String)>, ConfigError> {
    const PROPERTIES: &str = "KAFKA_PROPERTIES";
    let mut properties = Vec::new();
    for pair in env.get(PROPERTIES).unwrap_or_default().split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| bad(PROPERTIES, "must be name=value, separated by ';'"))?;
        let name = name.trim();
        if RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(bad(PROPERTIES, format!("{name} is set by the product and cannot be changed")));
        }
        properties.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(properties)
}

fn bad(variable: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::new(variable, problem)
}

fn missing(variable: &'static str) -> ConfigError {
    bad(variable, "is required and not set")
}

struct Variables(HashMap<String, String>);

impl Variables {
    /// A variable that is set to nothing counts as unset, as SAM templates pass empty parameters on.
    fn get(&self, name: &'static str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<String, ConfigError> {
        self.get(name).map(str::to_owned).ok_or_else(|| missing(name))
    }

    fn number<T: FromStr + PartialOrd + Display>(
        &self,
        name: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse()
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| bad(name, format!("must be a whole number from {} to {}", range.start(), range.end())))
    }

    fn choice<T: Copy>(&self, name: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| Some(*value)).ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            bad(name, format!("must be {}", words.join(" or ")))
        })
    }

    fn file(&self, name: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = self.get(name).map(PathBuf::from) else { return Ok(None) };
        std::fs::File::open(&path).map_err(|error| bad(name, format!("cannot be read: {error}")))?;
        Ok(Some(path))
    }

    fn url(&self, name: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match reqwest::Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(text.to_owned())),
            _ => Err(bad(name, "must be an http or https address")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut variables = HashMap::from(
            [
                ("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
                ("OIDC_ISSUER", "http://localhost/realms/r"),
                ("OIDC_AUDIENCE", "kafka-gateway"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        variables.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::read(&Variables(variables))
    }

    #[test]
    fn defaults_are_the_contract_s() {
        let config = read(&[]).expect("valid");
        assert!(matches!(config.kafka.security, Security::Plaintext));
        assert!(!config.kafka.auto_create_topics);
        assert_eq!(config.kafka.delivery, Delivery::Exclusive);
        assert_eq!(config.kafka.dead_letters.suffix, Suffix::default());
        assert_eq!(config.kafka.dead_letters.max_deliveries, 5);
        assert_eq!(config.request_timeout, Duration::from_secs(10));
        assert_eq!(config.metrics.job, "kafka-gateway");
        assert_eq!(config.metrics.pushgateway_url, None);
        assert!(config.schemas.registry.is_none() && !config.schemas.keep_invalid);
        assert_eq!(config.schemas.validation, Validation::Off);
        let with_registry = read(&[("SCHEMA_REGISTRY_URL", "http://localhost:8081")]).expect("valid");
        assert_eq!(with_registry.schemas.validation, Validation::IfRegistered);
    }

    #[test]
    fn every_bad_value_names_its_variable_and_keeps_the_value_to_itself() {
        for (variable, value) in [
            ("KAFKA_BOOTSTRAP_SERVERS", " "),
            ("KAFKA_SECURITY", "s3cret"),
            ("KAFKA_SECURITY", "mtls"),
            ("KAFKA_SECURITY", "scram-sha-256"),
            ("KAFKA_SECURITY", "msk-iam"),
            ("KAFKA_CREDENTIALS", "arn:aws:secretsmanager:eu-central-1:1:s3cret"),
            ("KAFKA_CREDENTIALS", "arn:aws:secretsmanager:s3cret.example/:1:secret:x"),
            ("KAFKA_CREDENTIALS", "arn:aws:ssm:eu-central-1:1:secret:s3cret"),
            ("KAFKA_CA_FILE", "/s3cret/none"),
            ("KAFKA_AUTO_CREATE_TOPICS", "yes"),
            ("KAFKA_CONSUME_DELIVERY", "s3cret"),
            ("KAFKA_REQUEST_TIMEOUT_MS", "0"),
            ("DLQ_TOPIC_SUFFIX", "/s3cret"),
            ("DLQ_MAX_DELIVERIES", "0"),
            ("KAFKA_REQUEST_TIMEOUT_MS", "10s"),
            ("KAFKA_PROPERTIES", "linger.ms"),
            ("KAFKA_PROPERTIES", "no.such.property=s3cret"),
            ("KAFKA_PROPERTIES", "linger.ms=s3cret"),
            ("OIDC_ISSUER", "s3cret"),
            ("OIDC_AUDIENCE", ""),
            ("OIDC_JWKS_URI", "file:///s3cret"),
            ("OIDC_ROLE_CLAIMS", " , "),
            ("PUSHGATEWAY_URL", "s3cret:9091"),
            ("SCHEMA_REGISTRY_URL", "s3cret"),
            ("SCHEMA_REGISTRY_URL", "http://user:s3cret@localhost:8081"),
            ("SCHEMA_REGISTRY_CREDENTIALS", "s3cret"),
            ("SCHEMA_REGISTRY_CREDENTIALS", "arn:s3cret"),
            ("SCHEMA_REGISTRY_CREDENTIALS", "Bearer s3cret\u{1}"),
            ("SCHEMA_VALIDATION", "s3cret"),
            ("SCHEMA_VALIDATION", "required"),
            ("SCHEMA_ON_INVALID", "s3cret"),
        ] {
            let mut given = vec![(variable, value)];
            if variable == "KAFKA_CREDENTIALS" {
                given.push(("KAFKA_SECURITY", "scram-sha-512"));
            }
            let error = read(&given).expect_err(variable).to_string();
            let named = match (variable, value) {
                (_, "mtls") => "KAFKA_CLIENT_CERT_FILE",
                (_, "scram-sha-256") => "KAFKA_CREDENTIALS",
                (_, "msk-iam") => "AWS_REGION",
                _ => variable,
            };
            assert!(error.starts_with(named), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn what_the_product_promises_cannot_be_taken_away() {
        for name in [
            "acks",
            "request.required.acks",
            "enable.idempotence",
            "enable.gapless.guarantee",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "retries",
            "message.send.max.retries",
            "queuing.strategy",
            "delivery.report.only.error",
            "message.timeout.ms",
            "delivery.timeout.ms",
            "message.max.bytes",
            "partitioner",
            "allow.auto.create.topics",
            "isolation.level",
            "transactional.id",
            "transaction.timeout.ms",
            "enable.auto.commit",
            "auto.commit.enable",
            "enable.auto.offset.store",
            "auto.offset.reset",
            "enable.partition.eof",
            "enable.ssl.certificate.verification",
            "test.mock.num.brokers",
            "group.id",
            "group.instance.id",
            "security.protocol",
            "sasl.password",
            "ssl.ca.location",
            "plugin.library.paths",
        ] {
            let error = read(&[("KAFKA_PROPERTIES", &format!("linger.ms=1; {name}=x"))]).expect_err(name).to_string();
            // Refused for what it is, not for its value.
            assert_eq!(error, format!("KAFKA_PROPERTIES: {name} is set by the product and cannot be changed"));
        }
        // What only tunes, or names the client, stays free.
        let free =
            "client.id=x; compression.type=zstd; socket.timeout.ms=5000; queue.buffering.max.ms=1; check.crcs=true";
        read(&[("KAFKA_PROPERTIES", free)]).expect("valid");
        let config = read(&[("KAFKA_PROPERTIES", " linger.ms=1 ;; client.rack = a ;")]).expect("valid");
        assert_eq!(
            config.kafka.properties,
            [("linger.ms".to_owned(), "1".to_owned()), ("client.rack".to_owned(), "a".to_owned())]
        );
    }

    #[test]
    fn credentials_never_show() {
        let config = read(&[
            ("KAFKA_SECURITY", "scram-sha-512"),
            ("KAFKA_CREDENTIALS", "user:pa:ss"),
            ("PUSHGATEWAY_URL", "http://user:pa:ss@localhost:9091"),
            ("SCHEMA_REGISTRY_URL", "http://localhost:8081"),
            ("SCHEMA_REGISTRY_CREDENTIALS", "Bearer pa:ss"),
        ])
        .expect("valid");
        let Security::Scram { username, password, .. } = &config.kafka.security else { panic!("scram") };
        assert_eq!((username.as_str(), password.as_str()), ("user", "pa:ss"));
        assert!(!format!("{config:?}").contains("pa:ss"));
    }

    #[test]
    fn a_secret_is_read_later_and_never_shown() {
        const ARN: &str = "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:kafka/a:b-AbCdEf";
        let config = read(&[
            ("KAFKA_SECURITY", "scram-sha-256"),
            ("KAFKA_CREDENTIALS", ARN),
            ("SCHEMA_REGISTRY_URL", "http://localhost:8081"),
            ("SCHEMA_REGISTRY_CREDENTIALS", ARN),
        ])
        .expect("valid");
        let Security::Unread(purpose, arn) = &config.kafka.security else { panic!("not yet") };
        assert_eq!((arn.as_str(), arn.region(), arn.partition()), (ARN, "cn-north-1", "aws-cn"));
        let read_as = purpose.read(r#"{ "username": "u", "password": "p", "engine": "x" }"#).expect("valid");
        let Security::Scram { mechanism: "SCRAM-SHA-256", username, password } = &read_as else { panic!("scram") };
        assert_eq!((username.as_str(), password.as_str()), ("u", "p"));
        assert!(matches!(
            Purpose::Mtls.read(r#"{ "certificate": "c", "privateKey": "k" }"#),
            Ok(Security::Mtls(ClientCertificate::Text { password: None, .. }))
        ));
        let mut registry = config.schemas.registry.expect("a registry");
        assert!(registry.authorization.is_none());
        registry.read_secret(r#"{ "username": "u", "password": "p" }"#).expect("valid");
        assert_eq!(registry.authorization.as_ref().expect("known now"), "Basic dTpw");
        registry.read_secret(r#"{ "token": "t" }"#).expect("valid");
        assert_eq!(registry.authorization.as_ref().expect("known now"), "Bearer t");
        for wrong in ["s3cret", r#"{ "username": "s3cret" }"#, r#"{ "certificate": "s3cret" }"#, "{}"] {
            for error in [purpose.read(wrong).err(), Purpose::Mtls.read(wrong).err(), registry.read_secret(wrong).err()]
            {
                let error = error.expect("refused").to_string();
                assert!(
                    error.contains("_CREDENTIALS: the secret must be JSON") && !error.contains("s3cret"),
                    "{error}"
                );
            }
        }
    }
}
