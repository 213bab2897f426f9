//! Credentials that are in Secrets Manager: which secret, and what it must hold.

use serde::Deserialize;

use super::{ClientCertificate, ConfigError, Security, bad};

/// The variable that names Kafka's credentials.
pub(super) const KAFKA_CREDENTIALS: &str = "KAFKA_CREDENTIALS";
/// The same for the schema registry.
pub(super) const REGISTRY_CREDENTIALS: &str = "SCHEMA_REGISTRY_CREDENTIALS";

/// The ARN of a secret: `arn:<partition>:secretsmanager:<region>:<account>:secret:<name>`.
#[derive(Debug, Clone)]
pub struct Arn(String);

impl Arn {
    /// Reads a variable's value, if it begins like an ARN.
    pub(super) fn parse(variable: &'static str, value: &str) -> Result<Option<Self>, ConfigError> {
        if !value.starts_with("arn:") {
            return Ok(None);
        }
        if !cfg!(feature = "aws") {
            return Err(bad(variable, "Secrets Manager is not built in"));
        }
        let parts: Vec<_> = value.splitn(7, ':').collect();
        let [_, partition, "secretsmanager", region, account, "secret", name] = parts[..] else {
            return Err(bad(variable, "is no ARN of a secret in Secrets Manager"));
        };
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        if ![partition, region, account].into_iter().all(plain) || name.is_empty() {
            return Err(bad(variable, "is no ARN of a secret in Secrets Manager"));
        }
        Ok(Some(Self(value.to_owned())))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the secret is.
    pub fn region(&self) -> &str {
        self.0.split(':').nth(3).unwrap_or_default()
    }

    /// Which of AWS's clouds: `aws`, `aws-cn`.
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }
}

/// What the credentials are good for, once they are read.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// A SCRAM login by this mechanism.
    Scram(&'static str),
    /// A client's certificate.
    Mtls,
}

impl Purpose {
    /// Reads what a secret holds, which is never repeated.
    pub(crate) fn read(self, text: &str) -> Result<Security, ConfigError> {
        #[derive(Deserialize)]
        struct Held {
            certificate: String,
            #[serde(rename = "privateKey")]
            key: String,
            #[serde(rename = "privateKeyPassword")]
            password: Option<String>,
        }

        match self {
            Self::Scram(mechanism) => {
                let Login { username, password } = Login::read(KAFKA_CREDENTIALS, text)?;
                Ok(Security::Scram { mechanism, username, password })
            }
            Self::Mtls => {
                let wrong = "the secret must be JSON with certificate and privateKey";
                let held: Held = serde_json::from_str(text).map_err(|_| bad(KAFKA_CREDENTIALS, wrong))?;
                let Held { certificate, key, password } = held;
                Ok(Security::Mtls(ClientCertificate::Text { certificate, key, password }))
            }
        }
    }
}

/// A name and a password, as AWS's own secrets have them.
#[derive(Deserialize)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: String,
}

impl Login {
    pub(super) fn read(variable: &'static str, text: &str) -> Result<Self, ConfigError> {
        serde_json::from_str(text).map_err(|_| bad(variable, "the secret must be JSON with username and password"))
    }
}
