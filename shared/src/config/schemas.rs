//! `SCHEMA_*`: the registry, and what becomes of records that do not fit.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::secrets::{Arn, Login, REGISTRY_CREDENTIALS as CREDENTIALS};
use super::{ConfigError, Variables, bad};

/// Where schemas are, and what they are used for.
#[derive(Debug, Clone)]
pub struct SchemaConfig {
    /// The registry; formats with a schema are refused without one.
    pub registry: Option<RegistryConfig>,
    /// Whether plain JSON is validated; [`Validation::Off`] without a registry.
    pub validation: Validation,
    /// Whether a record that does not fit is kept as a dead letter (`SCHEMA_ON_INVALID=dlq`).
    pub keep_invalid: bool,
}

/// The schema registry.
#[derive(Clone)]
pub struct RegistryConfig {
    /// What the paths of Confluent's REST interface are added to.
    pub url: Url,
    /// The `Authorization` header of every request.
    pub authorization: Option<HeaderValue>,
    /// The secret that says it.
    pub secret: Option<Arn>,
}

impl RegistryConfig {
    /// Takes what the secret holds: a name and a password, or a token.
    pub(crate) fn read_secret(&mut self, text: &str) -> Result<(), ConfigError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Secret {
            Login(Login),
            Bearer { token: String },
        }

        let wrong = "the secret must be JSON with username and password, or with token";
        let given = match serde_json::from_str(text).map_err(|_| bad(CREDENTIALS, wrong))? {
            Secret::Login(Login { username, password }) => format!("{username}:{password}"),
            Secret::Bearer { token } => format!("Bearer {token}"),
        };
        self.authorization = Some(authorization(&given)?);
        Ok(())
    }
}

impl std::fmt::Debug for RegistryConfig {
    /// The address may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryConfig")
    }
}

/// `SCHEMA_VALIDATION`: what happens to plain JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// It is written as it is.
    Off,
    /// It must fit the JSON Schema of its subject, if the subject has one.
    IfRegistered,
    /// Values must fit the schema of their subject, and it must have one.
    Required,
}

impl SchemaConfig {
    pub(super) fn read(env: &Variables) -> Result<Self, ConfigError> {
        const URL: &str = "SCHEMA_REGISTRY_URL";
        const VALIDATION: &str = "SCHEMA_VALIDATION";
        let url = env.url(URL)?.and_then(|url| Url::parse(&url).ok());
        if url.as_ref().is_some_and(|url| !url.username().is_empty() || url.password().is_some()) {
            return Err(bad(URL, format!("must hold no credentials; they are for {CREDENTIALS}")));
        }
        let credentials = env.get(CREDENTIALS);
        let secret = credentials.map(|credentials| Arn::parse(CREDENTIALS, credentials)).transpose()?.flatten();
        let authorization = credentials.filter(|_| secret.is_none()).map(authorization).transpose()?;
        let choices =
            [("off", Validation::Off), ("if-registered", Validation::IfRegistered), ("required", Validation::Required)];
        let validation = match (env.choice(VALIDATION, &choices)?, &url) {
            (Some(Validation::Required), None) => return Err(bad(VALIDATION, format!("required needs {URL}"))),
            (_, None) => Validation::Off,
            (chosen, Some(_)) => chosen.unwrap_or(Validation::IfRegistered),
        };
        let keep_invalid = env.choice("SCHEMA_ON_INVALID", &[("reject", false), ("dlq", true)])?.unwrap_or(false);
        Ok(Self { registry: url.map(|url| RegistryConfig { url, authorization, secret }), validation, keep_invalid })
    }
}

/// `user:password`, or `Bearer` and a token.
fn authorization(credentials: &str) -> Result<HeaderValue, ConfigError> {
    let header = match credentials.strip_prefix("Bearer ") {
        Some(token) => format!("Bearer {}", token.trim()),
        None if credentials.contains(':') => format!("Basic {}", STANDARD.encode(credentials)),
        None => return Err(bad(CREDENTIALS, "must be user:password, Bearer and a token, or the ARN of a secret")),
    };
    let mut header =
        HeaderValue::try_from(header).map_err(|_| bad(CREDENTIALS, "holds characters that a header cannot carry"))?;
    header.set_sensitive(true);
    Ok(header)
}
