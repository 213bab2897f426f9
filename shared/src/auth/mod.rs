//! Who calls, and what the caller may do.
//!
//! There is one way through, and each step is a type that only the step before it can make:
//!
//! 1. [`Authenticator::authenticate`] turns the `Authorization` header into a [`Principal`].
//! 2. [`Principal::may`] turns it into a [`May`] of an [`Action`]: the caller may do this *somewhere*. It needs nothing of
//!    the body, so a caller without the role is turned away before a byte of it is parsed.
//! 3. [`May::on`] turns it into an [`Authorized`] for one topic, or one topic and group.
//!
//! The Kafka modules take `&Authorized<…>`: code that forgets the check does not compile.
//!
//! Nothing here runs in the background. Lambda may freeze the sandbox as soon as an answer is given, so the issuer's keys
//! are refreshed inside the calls that find them due, within a small bound.

mod claims;
mod jwks;
mod rbac;

use std::sync::Arc;
use std::time::SystemTime;

use reqwest::Client;
use tokio::time::Instant;

use self::claims::{Rules, Token};
use self::jwks::KeyCache;
pub use self::rbac::{Action, Admin, Authorized, Describe, Fetch, GroupReader, May, Principal, Read, Write};
use crate::config::OidcConfig;
use crate::errors::{Code, Error};

/// Where the wall clock is read. Wall, not monotonic: that one may stand still while a sandbox is frozen.
type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Turns bearer tokens into principals. Made once at init, shared by all calls.
pub struct Authenticator {
    keys: KeyCache,
    rules: Rules,
    clock: Clock,
}

impl Authenticator {
    /// Fetches the issuer's keys, so that the first call need not. Never fails and takes 4 s at most: when the issuer is
    /// away, the calls try again.
    ///
    /// `client` must follow no redirects: the issuer says where its keys are, and nobody on the way may say otherwise.
    pub async fn start(config: &OidcConfig, client: Client) -> Self {
        Self::start_at(config, client, Arc::new(SystemTime::now)).await
    }

    async fn start_at(config: &OidcConfig, client: Client, clock: Clock) -> Self {
        let keys = KeyCache::new(config, client, clock.clone());
        keys.warm().await;
        Self { keys, rules: Rules::new(config), clock }
    }

    /// Who sent the request. `authorization` has the value of every `Authorization` header that it carried.
    ///
    /// `401` with `missing_token`, `expired_token` or `invalid_token`; `503 identity_unavailable` when the issuer's keys
    /// cannot be had before the deadline. The future may be dropped at any time.
    pub async fn authenticate(&self, authorization: &[&str], deadline: Instant) -> Result<Principal, Error> {
        let token = Token::parse(bearer(authorization)?)?;
        let keys = self.keys.holding(token.kid(), deadline).await?;
        let claims = token.verify(&keys)?;
        self.rules.principal(&claims, (self.clock)())
    }
}

/// The token of the one `Authorization` header (RFC 6750, 2.1).
fn bearer<'a>(authorization: &[&'a str]) -> Result<&'a str, Error> {
    let value = match authorization {
        [] => return Err(Error::new(Code::MissingToken, "The request carries no Authorization header")),
        [value] => value.trim(),
        // Which one counts would be a guess, and other parties on the way may have guessed differently.
        _ => return Err(Error::new(Code::InvalidToken, "The request carries more than one Authorization header")),
    };
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Error::new(Code::MissingToken, "The Authorization header's scheme is not Bearer"));
    }
    Ok(token.trim_start())
}

#[cfg(test)]
mod tests;
