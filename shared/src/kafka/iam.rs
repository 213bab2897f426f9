//! The login at MSK by IAM: a signed request, shown to brokers as an OAUTHBEARER token.
//!
//! librdkafka asks for a token by an event, but rdkafka serves that only for clients that are polled, and never for an
//! `AdminClient`; and in a frozen sandbox nobody is asked at all. So nobody waits for the event. A sandbox has one token.
//! It is renewed at the beginning of a call, by the wall clock, and each client gets it when it is made and, as soon as
//! there is a newer one, before it is used: [`Client`](super::client::Client) sees to both.
//!
//! What librdkafka does by itself with the token it was given last: it opens connections, and logs in again on open ones
//! as often as the broker wants (KIP-368).

use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::bindings::rd_kafka_oauthbearer_set_token;
use rdkafka::client::NativeClient;
use rdkafka::types::RDKafkaRespErr;

use crate::aws::{self, Aws};
use crate::config::Security;
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};

/// Whose token it is, as librdkafka wants to know; the broker reads that in the token.
const PRINCIPAL: &CStr = c"kafka-gateway";

/// The longest that a new token is waited for. Where the credentials are in the environment, it takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(3);

/// The sandbox's login, which all clients share.
#[derive(Clone)]
pub struct Iam(Arc<Shared>);

struct Shared {
    aws: Aws,
    token: RwLock<Option<Arc<Token>>>,
    /// Held by the one call that renews the token.
    renewing: tokio::sync::Mutex<()>,
}

struct Token {
    text: CString,
    made: SystemTime,
    until: SystemTime,
    /// Which one it is, counted from 1 on.
    number: u64,
}

impl std::fmt::Debug for Iam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Iam")
    }
}

impl Token {
    fn new(token: aws::Token, made: SystemTime, number: u64) -> Result<Self, BoxError> {
        Ok(Self { text: CString::new(token.text)?, made, until: token.until, number })
    }

    /// Whether a call may begin with it: a fifth of its time is left, three minutes of MSK's fifteen. By the wall clock, as
    /// the sandbox may have been frozen; one that was set back makes a token old, not eternal.
    fn is_good(&self, now: SystemTime) -> bool {
        let life = self.until.duration_since(self.made).unwrap_or_default();
        now.duration_since(self.made).is_ok_and(|age| age < life * 4 / 5)
    }
}

/// Sees to it that clients can log in to Kafka for as long as a call lasts.
///
/// Errors: `503` where AWS gives no credentials for it.
pub async fn log_in(security: &Security, deadline: Deadline) -> Result<(), Error> {
    match security {
        Security::MskIam(iam) => iam.renew(deadline).await,
        _ => Ok(()),
    }
}

impl Iam {
    /// Without a token yet.
    pub fn new(aws: Aws) -> Self {
        Self(Arc::new(Shared { aws, token: RwLock::default(), renewing: tokio::sync::Mutex::default() }))
    }

    async fn renew(&self, deadline: Deadline) -> Result<(), Error> {
        if self.token().is_some_and(|token| token.is_good(SystemTime::now())) {
            return Ok(());
        }
        let renewed = tokio::time::timeout_at(deadline.within(PATIENCE).instant(), self.replace()).await;
        let Err(error) = renewed.unwrap_or_else(|elapsed| Err(elapsed.into())) else { return Ok(()) };
        if self.token().is_some_and(|token| token.until > SystemTime::now()) {
            tracing::warn!(%error, "the token for Kafka could not be renewed; the old one still serves");
            return Ok(());
        }
        Err(Error::new(Code::BrokerUnavailable, "The gateway cannot log in to Kafka just now").source(error))
    }

    async fn replace(&self) -> Result<(), BoxError> {
        let _one_call = self.0.renewing.lock().await;
        let old = self.token();
        let made = SystemTime::now();
        if old.as_ref().is_some_and(|token| token.is_good(made)) {
            return Ok(());
        }
        let number = old.map_or(1, |old| old.number + 1);
        let token = Token::new(self.0.aws.token().await?, made, number)?;
        *self.0.token.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(token));
        Ok(())
    }

    fn token(&self) -> Option<Arc<Token>> {
        self.0.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives a client the token, unless it is the one that the client was `given` last.
    pub(super) fn give(&self, client: &NativeClient, given: &AtomicU64) {
        let Some(token) = self.token() else { return };
        if given.load(Ordering::Relaxed) == token.number {
            return;
        }
        match set(client, &token) {
            Ok(()) => given.store(token.number, Ordering::Relaxed),
            Err(said) => tracing::warn!(said, "librdkafka does not take the token"),
        }
    }
}

/// What rdkafka has no safe function for. The error is librdkafka's text.
#[allow(unsafe_code)]
fn set(client: &NativeClient, token: &Token) -> Result<(), String> {
    let until = token.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut said = [0; 256];
    // SAFETY: the client lives as long as it is borrowed, and librdkafka locks its login itself. The strings end with a
    // zero and are copied. There are no extensions: a null pointer, and none of them. The length is the buffer's.
    let code = unsafe {
        rd_kafka_oauthbearer_set_token(
            client.ptr(),
            token.text.as_ptr(),
            i64::try_from(until).unwrap_or(i64::MAX),
            PRINCIPAL.as_ptr(),
            std::ptr::null_mut(),
            0,
            said.as_mut_ptr(),
            said.len(),
        )
    };
    if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    let said: Vec<u8> = said.iter().map(|&byte| byte.to_ne_bytes()[0]).collect();
    Err(CStr::from_bytes_until_nul(&said).map(|said| said.to_string_lossy().into_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_four_fifths_of_its_time_by_the_wall_clock() {
        let made = SystemTime::now();
        let at = |seconds: u64| made + Duration::from_secs(seconds);
        let token = Token::new(aws::Token { text: "t".into(), until: at(900) }, made, 1).expect("no zero in it");
        assert!(token.is_good(made) && token.is_good(at(719)));
        assert!(!token.is_good(at(720)) && !token.is_good(at(100_000)), "old, or frozen meanwhile");
        assert!(!token.is_good(made - Duration::from_secs(1)), "the clock was set back");
        let dead = Token::new(aws::Token { text: "t".into(), until: made }, at(1), 2).expect("no zero in it");
        assert!(!dead.is_good(at(1)), "its credentials had ended before");
    }
}
