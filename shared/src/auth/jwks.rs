//! The issuer's keys, kept between calls.
//!
//! - Keys serve for ten minutes, then the call that finds them due fetches them anew. It waits little for that, the calls
//!   beside it not at all, and all go on with the old keys when the issuer does not answer: up to 24 h.
//! - A key that is not known may be a new one: the calls that want it wait together for one fetch, and then the name of a
//!   key can cause no other for a minute.
//! - What failed is remembered, so that an outage does not cost every call a wait.
//!
//! What must never happen: two fetches at once; a call with a known key waiting for another call's fetch; keys used
//! beyond 24 h, whatever the clock does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use reqwest::{Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Clock;
use crate::config::OidcConfig;
use crate::errors::{BoxError, Code, Error};

/// How old keys may get before they are due.
const REFRESH_EVERY: Duration = Duration::from_secs(600);
/// How old they may get while they cannot be refreshed.
const KEEP_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// How soon an unknown key's name may cause another fetch.
const UNKNOWN_EVERY: Duration = Duration::from_secs(60);
/// How soon a failed fetch is tried again when the call cannot do without. Under the answer's `Retry-After`, so that who
/// obeys it finds a new attempt.
const RETRY_NEEDED: Duration = Duration::from_secs(3);
/// How soon it is tried again while the old keys still serve.
const RETRY_DUE: Duration = Duration::from_secs(30);
/// What a fetch may take when the call cannot do without it. An issuer that is slow is worth more of a wait than a refusal;
/// discovery and keys, each with a handshake of its own, go into it.
const NEEDED_WITHIN: Duration = Duration::from_secs(4);
/// What it may take when the old keys would do.
const DUE_WITHIN: Duration = Duration::from_secs(1);
/// Beyond any key set or discovery document in use.
const MAX_DOCUMENT_BYTES: usize = 512 * 1024;

/// The keys of one fetch, ready to verify with.
pub(super) struct KeySet(HashMap<String, Vec<Key>>);

struct Key {
    /// The algorithms the *key* is for. A token's header can only choose among them.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a key set (RFC 7517, 5). Keys that are of no use here are left out.
    pub(super) fn read(keys: Vec<Value>) -> Self {
        let mut set: HashMap<String, Vec<Key>> = HashMap::new();
        for jwk in keys {
            if let Some((kid, key)) = serde_json::from_value(jwk).ok().and_then(usable) {
                set.entry(kid).or_default().push(key);
            }
        }
        Self(set)
    }

    /// How many names it knows.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn holds(&self, kid: &str) -> bool {
        self.0.contains_key(kid)
    }

    /// The keys of that name that are for that algorithm. The name need not be unique (RFC 7517, 4.5).
    pub(super) fn fitting(&self, kid: &str, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        let named = self.0.get(kid).map(Vec::as_slice).unwrap_or_default();
        named.iter().filter(move |key| key.algorithms.contains(&algorithm)).map(|key| &key.key)
    }
}

/// The name of a key and what it verifies, if it can verify anything here.
fn usable(jwk: Jwk) -> Option<(String, Key)> {
    let common = &jwk.common;
    if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        || common.key_operations.as_ref().is_some_and(|allowed| !allowed.contains(&KeyOperations::Verify))
    {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    let (key, fitting) = match (&jwk.algorithm, key.kind()) {
        (AlgorithmParameters::RSA(_), DecodingKeyKind::RsaModulusExponent { n, e }) => rsa(n, e)?,
        (AlgorithmParameters::EllipticCurve(ec), DecodingKeyKind::SecretOrDer(point)) => match ec.curve {
            EllipticCurve::P256 if point.len() == 1 + 2 * 32 => (key, &[Algorithm::ES256][..]),
            EllipticCurve::P384 if point.len() == 1 + 2 * 48 => (key, &[Algorithm::ES384][..]),
            _ => return None,
        },
        (AlgorithmParameters::OctetKeyPair(okp), DecodingKeyKind::SecretOrDer(point))
            if okp.curve == EllipticCurve::Ed25519 && point.len() == 32 =>
        {
            (key, &[Algorithm::EdDSA][..])
        }
        _ => return None,
    };
    let algorithms = match common.key_algorithm {
        None => fitting.to_vec(),
        Some(only) => vec![Algorithm::try_from(only).ok().filter(|only| fitting.contains(only))?],
    };
    Some((jwk.common.key_id?, Key { algorithms, key }))
}

/// An RSA key of 2048 bits or more. Zeros in front, which some issuers send, count for nothing.
fn rsa(n: &[u8], e: &[u8]) -> Option<(DecodingKey, &'static [Algorithm])> {
    const ALGORITHMS: &[Algorithm] =
        &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
    let significant = |bytes: &'_ [u8]| bytes.iter().position(|byte| *byte != 0);
    let (n, e) = (&n[significant(n)?..], &e[significant(e)?..]);
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    (bits >= 2048).then(|| (DecodingKey::from_rsa_raw_components(n, e), ALGORITHMS))
}

/// Why a fetch brought nothing. For the log: nothing of it reaches the caller.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the {0} cannot be fetched")]
    Http(&'static str, #[source] reqwest::Error),
    #[error("the {0} was answered with status {1}")]
    Status(&'static str, u16),
    #[error("the {0} is too large")]
    TooLarge(&'static str),
    #[error("the {0} is not the JSON it should be")]
    Json(&'static str, #[source] serde_json::Error),
    #[error("the discovery document is of the issuer {0:?}")]
    Issuer(String),
    #[error("the discovery document's jwks_uri is not an address to fetch keys from")]
    Address,
    #[error("the key set has no key that can be used")]
    NoKeys,
    #[error("the issuer did not answer in time")]
    Timeout,
    /// Stands while a fetch is under way, and stays when its caller was dropped.
    #[error("the fetch did not come to its end")]
    Unfinished,
}

/// Where the keys are.
enum Source {
    /// Said by the configuration.
    Configured(String),
    /// Said by the issuer's discovery document, asked each time: the answer may change.
    Discovered { issuer: String },
}

#[derive(Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// When the keys were asked for.
    loaded: Option<SystemTime>,
    /// When the last fetch began, or ended.
    tried: Option<SystemTime>,
    /// When an unknown name last made the issuer send its keys.
    unknown: Option<SystemTime>,
    /// What became of the last fetch, unless it brought keys.
    failure: Option<Arc<Failure>>,
    /// How many fetches came to their end, so that a call can tell that one did while it waited.
    finished: u64,
}

/// How much a call wants a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// The keys are due, and would still do.
    Due,
    /// The key's name is not among the keys.
    Unknown,
    /// There are no keys, or too old ones.
    Keys,
}

impl State {
    /// A clock that was set back would leave these in the future, and the keys young for ever: they count from the new
    /// time on.
    fn follow(&mut self, now: SystemTime) {
        for stamp in [&mut self.loaded, &mut self.tried, &mut self.unknown].into_iter().flatten() {
            *stamp = now.min(*stamp);
        }
    }

    fn need(&mut self, kid: &str, now: SystemTime) -> Need {
        self.follow(now);
        match &self.keys {
            Some(keys) if passed(self.loaded, now) < KEEP_AT_MOST => match keys.holds(kid) {
                true if passed(self.loaded, now) < REFRESH_EVERY => Need::Nothing,
                true => Need::Due,
                false => Need::Unknown,
            },
            _ => Need::Keys,
        }
    }

    /// Whether enough time has passed since the last fetch for one more.
    fn may_fetch(&self, need: Need, now: SystemTime) -> bool {
        let rested = |pause| self.failure.is_none() || passed(self.tried, now) >= pause;
        match need {
            Need::Nothing => false,
            Need::Due => rested(RETRY_DUE),
            Need::Unknown => rested(RETRY_NEEDED) && !self.asked_for_unknown(now),
            Need::Keys => rested(RETRY_NEEDED),
        }
    }

    /// Whether an unknown name already had its fetch for this minute. One that failed does not count.
    fn asked_for_unknown(&self, now: SystemTime) -> bool {
        passed(self.unknown, now) < UNKNOWN_EVERY
    }
}

fn passed(since: Option<SystemTime>, now: SystemTime) -> Duration {
    since.map_or(Duration::MAX, |since| now.duration_since(since).unwrap_or_default())
}

/// The keys of one issuer.
pub(super) struct KeyCache {
    source: Source,
    client: Client,
    clock: Clock,
    /// Held for moments only, never while something is awaited.
    state: Mutex<State>,
    /// Held by the call that fetches.
    flight: tokio::sync::Mutex<()>,
}

impl KeyCache {
    pub(super) fn new(config: &OidcConfig, client: Client, clock: Clock) -> Self {
        let source = match &config.jwks_uri {
            Some(address) => Source::Configured(address.clone()),
            None => Source::Discovered { issuer: config.issuer.clone() },
        };
        Self { source, client, clock, state: Mutex::default(), flight: tokio::sync::Mutex::new(()) }
    }

    /// The first fetch, before any call. Its failure is remembered like any other.
    pub(super) async fn warm(&self) {
        let _flight = self.flight.lock().await;
        self.fetch(Need::Keys, Instant::now() + NEEDED_WITHIN).await;
    }

    /// Keys among which is one of that name. `401 invalid_token` when the issuer has none, `503 identity_unavailable` when
    /// it cannot be asked.
    pub(super) async fn holding(&self, kid: &str, deadline: Instant) -> Result<Arc<KeySet>, Error> {
        let (need, finished) = {
            let now = (self.clock)();
            let mut state = self.state();
            (state.need(kid, now), state.finished)
        };
        let flight = match need {
            Need::Nothing => None,
            // Another call is at it already, or this one is.
            Need::Due => self.flight.try_lock().ok(),
            Need::Unknown | Need::Keys => timeout_at(deadline, self.flight.lock()).await.ok(),
        };
        if flight.is_some() {
            let now = (self.clock)();
            let may_fetch = {
                let state = self.state();
                // What another call learned in the meantime, good or bad, is news enough.
                state.finished == finished && state.may_fetch(need, now)
            };
            if may_fetch {
                let left = deadline.saturating_duration_since(Instant::now());
                // What is only due must leave the call time for its work.
                let within = if need == Need::Due { DUE_WITHIN.min(left / 2) } else { NEEDED_WITHIN.min(left) };
                self.fetch(need, Instant::now() + within).await;
            }
        }
        self.answer(kid)
    }

    /// What is known now.
    fn answer(&self, kid: &str) -> Result<Arc<KeySet>, Error> {
        let now = (self.clock)();
        let mut state = self.state();
        let need = state.need(kid, now);
        match (&state.keys, need) {
            (Some(keys), Need::Nothing | Need::Due) => return Ok(Arc::clone(keys)),
            // Only an issuer that was asked can say that a key is not its own.
            (_, Need::Unknown) if state.failure.is_none() || state.asked_for_unknown(now) => {
                return Err(Error::new(
                    Code::InvalidToken,
                    "The token is signed with a key that the issuer does not publish",
                ));
            }
            _ => {}
        }
        let error = Error::new(Code::IdentityUnavailable, "The identity provider's keys cannot be had just now");
        Err(match &state.failure {
            Some(failure) => error.source(BoxError::from(Arc::clone(failure))),
            None => error,
        })
    }

    /// Fetches the keys and remembers what came of it. Only for the holder of `flight`.
    async fn fetch(&self, need: Need, until: Instant) {
        let now = (self.clock)();
        {
            let mut state = self.state();
            state.tried = Some(now);
            // If the caller is dropped before the end, this is what was learned.
            state.failure = Some(Arc::new(Failure::Unfinished));
        }
        let result = timeout_at(until, self.download()).await.unwrap_or(Err(Failure::Timeout));
        if let Err(failure) = &result {
            tracing::warn!(error = failure as &dyn std::error::Error, "the issuer's keys could not be refreshed");
        }
        let mut state = self.state();
        state.finished += 1;
        match result {
            Ok(keys) => {
                state.keys = Some(Arc::new(keys));
                state.loaded = Some(now);
                state.failure = None;
                if need == Need::Unknown {
                    state.unknown = Some(now);
                }
            }
            Err(failure) => {
                state.tried = Some((self.clock)());
                state.failure = Some(Arc::new(failure));
            }
        }
    }

    async fn download(&self) -> Result<KeySet, Failure> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }

        let address = match &self.source {
            Source::Configured(address) => Url::parse(address).map_err(|_| Failure::Address)?,
            Source::Discovered { issuer } => self.discover(issuer).await?,
        };
        let document: Document = self.get(address, "key set").await?;
        let keys = KeySet::read(document.keys);
        // Taken for an outage: the old keys are better than none.
        if keys.len() == 0 { Err(Failure::NoKeys) } else { Ok(keys) }
    }

    /// Asks the issuer where its keys are (OIDC Discovery 1.0, 4).
    async fn discover(&self, issuer: &str) -> Result<Url, Failure> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }

        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let address = Url::parse(&address).map_err(|_| Failure::Address)?;
        let encrypted = address.scheme() == "https";
        let document: Document = self.get(address, "discovery document").await?;
        if document.issuer != issuer {
            return Err(Failure::Issuer(document.issuer.chars().take(200).collect()));
        }
        address_of_keys(&document.jwks_uri, encrypted).ok_or(Failure::Address)
    }

    async fn get<T: DeserializeOwned>(&self, address: Url, what: &'static str) -> Result<T, Failure> {
        let http = |error: reqwest::Error| Failure::Http(what, error.without_url());
        let mut response = self.client.get(address).send().await.map_err(http)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(Failure::Status(what, response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(http)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_DOCUMENT_BYTES {
                return Err(Failure::TooLarge(what));
            }
        }
        serde_json::from_slice(&body).map_err(|error| Failure::Json(what, error))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is done under the lock that could leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys that come in the clear are anybody's: an issuer that is asked by https may not send us to http.
fn address_of_keys(jwks_uri: &str, encrypted: bool) -> Option<Url> {
    let address = Url::parse(jwks_uri).ok()?;
    match address.scheme() {
        "https" => Some(address),
        "http" if !encrypted => Some(address),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_is_never_given_up() {
        assert!(address_of_keys("https://issuer/keys", true).is_some());
        assert!(address_of_keys("https://issuer/keys", false).is_some());
        assert!(address_of_keys("http://issuer/keys", false).is_some());
        assert!(address_of_keys("http://issuer/keys", true).is_none());
        assert!(address_of_keys("file:///keys", false).is_none());
        assert!(address_of_keys("keys", false).is_none());
    }
}
