//! The schema registry, over Confluent's REST interface.
//!
//! What it says of an id never changes and is kept, of the last ones used. What a numbered version is, and where an id is
//! registered, changes when somebody deletes a subject for good: it is believed for ten minutes. What is latest, and that
//! something is not there, is believed for half a minute, or for a second where a caller has named it. One call asks for a
//! thing, and the others that want it wait for that answer. When the registry is away, what was known still serves, and
//! for the rest calls fail at once for a few seconds instead of each waiting in its turn. That one question was odd (it may
//! be a caller's, or a record's) is not taken for that.
//!
//! It is three questions and what is believed of the answers for how long, which is the part that matters here; the codecs are
//! our own in any case (ARCHITECTURE.md, Schemas). So it is not left to the crate `schema_registry_converter`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use super::cache::{BELIEVED, Cache, NOT_YET, SETTLED};
use super::{Compile, Kind, Schema};
use crate::config::RegistryConfig;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};

/// How soon the registry is asked again when it failed. Under the answer's `Retry-After`.
const REST: Duration = Duration::from_secs(3);
/// What one request may take.
const WITHIN: Duration = Duration::from_secs(2);
/// Beyond any schema: the registry keeps each in a record of Kafka's, of 1 MB unless somebody changed that, and sends it as a
/// JSON string.
const LARGEST: usize = 4 * 1024 * 1024;
/// The highest id and the highest version. Beyond, the registry does not say that there is no such thing, but that the
/// question is wrong (Confluent's reads Java's `int`).
const HIGHEST: u32 = i32::MAX.cast_unsigned();
/// How many schemas one may refer to, directly or through others.
const MOST_REFERENCES: usize = 100;
/// How many compiled schemas a sandbox keeps, and how many answers about subjects.
const SCHEMAS: usize = 256;
const SUBJECTS: usize = 1024;

/// A version of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Version {
    /// The one that was registered last.
    Latest,
    /// One by its number.
    Number(u32),
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A schema that another one refers to.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    /// What it is called there.
    pub(super) name: String,
    /// Its text.
    pub(super) schema: String,
}

/// Why the registry gave no answer. For the log: nothing of it reaches the caller.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the HTTP client cannot be made")]
    Client(#[source] BoxError),
    #[error("the schema registry cannot be asked")]
    Http(#[source] reqwest::Error),
    #[error("the schema registry answered with status {0}")]
    Status(u16),
    #[error("the schema registry's answer is too large")]
    TooLarge,
    #[error("the schema registry's answer is not the JSON it should be")]
    Json(#[source] serde_json::Error),
    #[error("the schema registry did not answer in time")]
    Timeout,
    #[error("the schema registry failed a moment ago, and is left alone")]
    Resting,
}

/// The registry, and what is known of it.
pub(super) struct Registry {
    base: Url,
    authorization: Option<HeaderValue>,
    compile: Compile,
    client: OnceCell<Client>,
    schemas: Cache<u32, Arc<Schema>>,
    versions: Cache<(String, Version), u32>,
    placed: Cache<(u32, String), ()>,
    failed: Mutex<Option<SystemTime>>,
}

/// As the registry says it.
#[derive(Deserialize)]
struct Registered {
    schema: String,
    #[serde(rename = "schemaType")]
    kind: Option<String>,
    #[serde(default)]
    references: Vec<Referred>,
}

#[derive(Deserialize)]
struct Referred {
    name: String,
    subject: String,
    version: u32,
}

impl Registry {
    pub(super) fn new(config: &RegistryConfig, compile: Compile) -> Self {
        Self {
            base: config.url.clone(),
            authorization: config.authorization.clone(),
            compile,
            client: OnceCell::new(),
            schemas: Cache::new(SCHEMAS),
            versions: Cache::new(SUBJECTS),
            placed: Cache::new(SUBJECTS),
            failed: Mutex::default(),
        }
    }

    /// The schema of an id, compiled; none if there is none.
    pub(super) async fn schema(&self, id: u32, deadline: Deadline) -> Result<Option<Arc<Schema>>, Error> {
        if id > HIGHEST {
            return Ok(None);
        }
        self.within(deadline, self.schemas.get(id, Duration::MAX, BELIEVED, async || self.compile(id).await)).await
    }

    /// The id of a subject's version; none if there is no such version, which is believed for `missing`.
    pub(super) async fn id(
        &self,
        subject: &str,
        version: Version,
        missing: Duration,
        deadline: Deadline,
    ) -> Result<Option<u32>, Error> {
        #[derive(Deserialize)]
        struct Found {
            id: u32,
        }

        let lasts = match version {
            Version::Latest => BELIEVED,
            Version::Number(..=HIGHEST) => SETTLED,
            Version::Number(_) => return Ok(None),
        };
        let ask = async || {
            let found: Option<Found> = self.get(&["subjects", subject, "versions", &version.to_string()]).await?;
            Ok(found.map(|found| found.id))
        };
        self.within(deadline, self.versions.get((subject.to_owned(), version), lasts, missing, ask)).await
    }

    /// Whether an id is registered under a subject.
    pub(super) async fn is_under(&self, id: u32, subject: &str, deadline: Deadline) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Place {
            subject: String,
        }

        if id > HIGHEST {
            return Ok(false);
        }
        let ask = async || {
            let places: Option<Vec<Place>> = self.get(&["schemas", "ids", &id.to_string(), "versions"]).await?;
            let here = places.is_some_and(|places| places.iter().any(|place| place.subject == subject));
            Ok(here.then_some(()))
        };
        let placed = self.placed.get((id, subject.to_owned()), SETTLED, NOT_YET, ask);
        Ok(self.within(deadline, placed).await?.is_some())
    }

    async fn within<T>(
        &self,
        deadline: Deadline,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Error> {
        let answer = tokio::time::timeout_at(deadline.instant(), answer).await;
        answer.unwrap_or(Err(Failure::Timeout)).map_err(|failure| {
            Error::new(Code::SchemaRegistryUnavailable, "The schema registry does not answer").source(failure)
        })
    }

    async fn compile(&self, id: u32) -> Result<Option<Arc<Schema>>, Failure> {
        let found = self.get(&["schemas", "ids", &id.to_string()]).await;
        if matches!(found, Err(Failure::TooLarge)) {
            tracing::warn!(id, "a schema of the registry is too large to be used");
            return Ok(Some(Arc::new(Schema::Unusable(None))));
        }
        let found: Option<Registered> = found?;
        let Some(Registered { schema, kind, references }) = found else { return Ok(None) };
        let Some(references) = self.references(references).await? else { return Ok(None) };
        let kind = Kind::of_registry(kind.as_deref());
        let compiled = kind
            .ok_or_else(|| "its type is not known here".into())
            .and_then(|kind| (self.compile)(kind, &schema, &references));
        Ok(Some(Arc::new(compiled.unwrap_or_else(|error: BoxError| {
            tracing::warn!(id, %error, "a schema of the registry cannot be used");
            Schema::Unusable(kind)
        }))))
    }

    /// All that a schema refers to, the innermost first; none if something of it is missing.
    async fn references(&self, direct: Vec<Referred>) -> Result<Option<Vec<Reference>>, Failure> {
        let mut open = direct;
        let mut found: Vec<Reference> = Vec::new();
        while let Some(Referred { name, subject, version }) = open.pop() {
            if found.iter().any(|known| known.name == name) {
                continue;
            }
            let path = ["subjects", &subject, "versions", &version.to_string()];
            let Some(Registered { schema, references, .. }) = self.get(&path).await? else { return Ok(None) };
            found.push(Reference { name, schema });
            if found.len() > MOST_REFERENCES {
                return Ok(None);
            }
            open.extend(references);
        }
        found.reverse();
        Ok(Some(found))
    }

    /// What the registry answers; none if it says that there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, Failure> {
        if self.failed_at().is_some_and(|failed| failed.elapsed().is_ok_and(|passed| passed < REST)) {
            return Err(Failure::Resting);
        }
        let answer = tokio::time::timeout(WITHIN, self.ask(path)).await.unwrap_or(Err(Failure::Timeout));
        let odd = |failure: &Failure| matches!(failure, Failure::TooLarge | Failure::Status(400 | 414));
        let away = answer.as_ref().is_err_and(|failure| !odd(failure));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = away.then(SystemTime::now);
        answer
    }

    fn failed_at(&self) -> Option<SystemTime> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, Failure> {
        /// How the registry says that there is no such thing, or that there can be no version of this number (42202).
        /// Another 404 comes from somebody else on the way.
        #[derive(Deserialize)]
        struct Refusal {
            error_code: u32,
        }

        let http = |error: reqwest::Error| Failure::Http(error.without_url());
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut request = self.client().await?.get(url).header(ACCEPT, "application/vnd.schemaregistry.v1+json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let mut response = request.send().await.map_err(http)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(http)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST {
                return Err(Failure::TooLarge);
            }
        }
        match status {
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(Failure::Json),
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => match serde_json::from_slice(&body) {
                Ok(Refusal { error_code: 40401..=40499 | 42202 }) => Ok(None),
                _ => Err(Failure::Status(status.as_u16())),
            },
            other => Err(Failure::Status(other.as_u16())),
        }
    }

    /// Made when it is first needed: many sandboxes never ask the registry.
    async fn client(&self) -> Result<&Client, Failure> {
        let make = async || tokio::task::spawn_blocking(crate::app::http_client).await?;
        self.client.get_or_try_init(make).await.map_err(Failure::Client)
    }
}

impl std::fmt::Debug for Registry {
    /// Not the credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
