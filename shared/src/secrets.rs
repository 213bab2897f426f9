//! Secrets that the configuration names: read at init, and again when they seem to have changed.

use std::time::Duration;

use crate::aws::Aws;
use crate::config::{Arn, Config, ConfigError, KafkaConfig, Security};
use crate::errors::BoxError;

/// The longest that Secrets Manager is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Which secrets there are.
#[derive(Debug)]
pub struct Secrets {
    aws: Aws,
    kafka: Option<Arn>,
    registry: Option<Arn>,
}

/// What they hold.
#[derive(PartialEq, Eq)]
pub struct Texts {
    kafka: Option<String>,
    registry: Option<String>,
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Texts")
    }
}

impl Secrets {
    /// Those that a configuration names, if it names any.
    pub fn of(config: &Config) -> Option<Self> {
        let registry = config.schemas.registry.as_ref().and_then(|registry| registry.secret.clone());
        Self::named(kafka(&config.kafka), registry)
    }

    /// The same for Kafka alone.
    pub fn of_kafka(config: &KafkaConfig) -> Option<Self> {
        Self::named(kafka(config), None)
    }

    fn named(kafka: Option<Arn>, registry: Option<Arn>) -> Option<Self> {
        let region = kafka.as_ref().or(registry.as_ref())?.region();
        Some(Self { aws: Aws::new(region)?, kafka, registry })
    }

    /// Reads them. Never says what they hold.
    pub async fn read(&self) -> Result<Texts, BoxError> {
        let one = async |arn: &Option<Arn>| match arn {
            Some(arn) => self.aws.secret(arn).await.map(Some),
            None => Ok(None),
        };
        let both = async { tokio::try_join!(one(&self.kafka), one(&self.registry)) };
        let (kafka, registry) = tokio::time::timeout(PATIENCE, both).await??;
        Ok(Texts { kafka, registry })
    }
}

impl Texts {
    /// The configuration with what the secrets hold. An error names the variable, and nothing of the secret.
    pub fn put_into(&self, config: &Config) -> Result<Config, ConfigError> {
        let mut config = config.clone();
        config.kafka = self.put_into_kafka(&config.kafka)?;
        if let (Some(registry), Some(text)) = (&mut config.schemas.registry, &self.registry) {
            registry.read_secret(text)?;
        }
        Ok(config)
    }

    /// The same for Kafka alone.
    pub fn put_into_kafka(&self, config: &KafkaConfig) -> Result<KafkaConfig, ConfigError> {
        let mut config = config.clone();
        if let (Security::Unread(purpose, _), Some(text)) = (&config.security, &self.kafka) {
            config.security = purpose.read(text)?;
        }
        Ok(config)
    }
}

fn kafka(config: &KafkaConfig) -> Option<Arn> {
    match &config.security {
        Security::Unread(_, arn) => Some(arn.clone()),
        _ => None,
    }
}
