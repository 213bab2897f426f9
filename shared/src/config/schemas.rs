//! `SCHEMA_*`: the registry, and what becomes of records that do not fit.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;

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
        const CREDENTIALS: &str = "SCHEMA_REGISTRY_CREDENTIALS";
        let url = env.url(URL)?.and_then(|url| Url::parse(&url).ok());
        if url.as_ref().is_some_and(|url| !url.username().is_empty() || url.password().is_some()) {
            return Err(bad(URL, format!("must hold no credentials; they are for {CREDENTIALS}")));
        }
        let authorization =
            env.get(CREDENTIALS).map(|credentials| authorization(CREDENTIALS, credentials)).transpose()?;
        let choices =
            [("off", Validation::Off), ("if-registered", Validation::IfRegistered), ("required", Validation::Required)];
        let validation = match (env.choice(VALIDATION, &choices)?, &url) {
            (Some(Validation::Required), None) => return Err(bad(VALIDATION, format!("required needs {URL}"))),
            (_, None) => Validation::Off,
            (chosen, Some(_)) => chosen.unwrap_or(Validation::IfRegistered),
        };
        let keep_invalid = env.choice("SCHEMA_ON_INVALID", &[("reject", false), ("dlq", true)])?.unwrap_or(false);
        Ok(Self { registry: url.map(|url| RegistryConfig { url, authorization }), validation, keep_invalid })
    }
}

/// `user:password`, or `Bearer` and a token.
fn authorization(variable: &'static str, credentials: &str) -> Result<HeaderValue, ConfigError> {
    if credentials.starts_with("arn:") {
        return Err(bad(variable, "Secrets Manager ARNs are not built into this version; use user:password"));
    }
    let header = match credentials.strip_prefix("Bearer ") {
        Some(token) => format!("Bearer {}", token.trim()),
        None if credentials.contains(':') => format!("Basic {}", STANDARD.encode(credentials)),
        None => return Err(bad(variable, "must be user:password, or Bearer and a token")),
    };
    let mut header =
        HeaderValue::try_from(header).map_err(|_| bad(variable, "holds characters that a header cannot carry"))?;
    header.set_sensitive(true);
    Ok(header)
}
