//! The endpoint of a warm sandbox, and what must be in order before a call may use it: its login.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::timeout_at;

use crate::config::Config;
use crate::deadline::{Deadline, FUNCTION_TIMEOUT};
use crate::errors::{BoxError, Code, Error};
use crate::http::Endpoint;
use crate::kafka::iam::log_in;
use crate::metrics::pushgateway::causes;
use crate::secrets::{Secrets, Texts};

/// How soon secrets are read again.
const REST: Duration = Duration::from_secs(5);

/// An endpoint whose clients can log in.
///
/// Where credentials are secrets, the endpoint is made with what they hold, and made anew once they hold something else.
/// After a call that could not reach Kafka or the schema registry the next one reads them again: perhaps that was a login
/// with a password that has been changed. So a rotation needs no deployment.
pub struct Warm<E> {
    config: Config,
    /// None, if all credentials are in the environment.
    secrets: Option<Secrets>,
    endpoint: RwLock<Option<Arc<E>>>,
    /// What the endpoint was made with. Held by the one call that reads; others wait for it only if there is no endpoint.
    read: Mutex<Read>,
    /// Whether a call has failed that may have used old credentials.
    suspected: AtomicBool,
}

#[derive(Default)]
struct Read {
    texts: Option<Texts>,
    /// By the wall clock, as the sandbox may be frozen meanwhile.
    tried: Option<SystemTime>,
}

impl<E> std::fmt::Debug for Warm<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warm")
    }
}

impl<E: Endpoint> Warm<E> {
    /// Makes the endpoint. A login that cannot be had now is asked for again by each call; secrets that hold something
    /// else than they should stop the function.
    pub async fn start(mut config: Config) -> Result<Self, BoxError> {
        if !E::SCHEMAS {
            config.schemas.registry = None;
        }
        if let Err(error) = log_in(&config.kafka.security, Deadline::of_invocation(0, FUNCTION_TIMEOUT)).await {
            tracing::warn!(error_chain = error.chain().join(": "), "no login at Kafka yet; calls will try again");
        }
        let warm = Self {
            secrets: Secrets::of(&config),
            endpoint: RwLock::default(),
            read: Mutex::default(),
            suspected: AtomicBool::new(false),
            config,
        };
        match &warm.secrets {
            None => warm.put(E::start(&warm.config).await?),
            Some(secrets) => match secrets.read().await {
                Ok(texts) => warm.make(&mut *warm.read.lock().await, texts).await?,
                Err(error) => tracing::warn!(
                    error_chain = causes(error.as_ref()),
                    "the secrets cannot be read yet; calls will try again"
                ),
            },
        }
        Ok(warm)
    }

    /// The endpoint, for a call that may use it until its deadline.
    ///
    /// Errors: `503` where Kafka cannot be logged in to.
    pub async fn endpoint(&self, deadline: Deadline) -> Result<Arc<E>, Error> {
        log_in(&self.config.kafka.security, deadline).await?;
        let unread = self.current().is_none();
        if let Some(secrets) = &self.secrets
            && (unread || self.suspected.load(Ordering::Relaxed))
        {
            let refreshed = timeout_at(deadline.instant(), self.refresh(secrets, unread)).await;
            if let Err(error) = refreshed.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                tracing::warn!(error_chain = causes(error.as_ref()), "new credentials could not be had");
            }
        }
        let unavailable = || Error::new(Code::BrokerUnavailable, "The gateway cannot read its credentials just now");
        self.current().ok_or_else(unavailable)
    }

    /// Notes how a call failed.
    pub fn failed(&self, error: &Error) {
        let may_be_a_login =
            matches!(error.code(), Code::BrokerUnavailable | Code::DeadlineExceeded | Code::SchemaRegistryUnavailable);
        if may_be_a_login {
            self.suspected.store(true, Ordering::Relaxed);
        }
    }

    /// See [`Endpoint::stop`].
    pub async fn stop(&self) {
        if let Some(endpoint) = self.current() {
            endpoint.stop().await;
        }
    }

    /// Reads the secrets, unless that was tried just now; what they hold replaces the endpoint, if it is new. Where another
    /// call is at it, only one that `must` have them waits.
    async fn refresh(&self, secrets: &Secrets, must: bool) -> Result<(), BoxError> {
        let mut read = match self.read.try_lock() {
            Ok(read) => read,
            Err(_) if must => self.read.lock().await,
            Err(_) => return Ok(()),
        };
        if read.tried.is_some_and(|tried| tried.elapsed().is_ok_and(|passed| passed < REST)) {
            return Ok(());
        }
        read.tried = Some(SystemTime::now());
        let texts = secrets.read().await?;
        if read.texts.as_ref() != Some(&texts) {
            self.make(&mut read, texts).await?;
            tracing::info!("the credentials are new");
        }
        self.suspected.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn make(&self, read: &mut Read, texts: Texts) -> Result<(), BoxError> {
        let config = texts.put_into(&self.config)?;
        self.put(E::start(&config).await?);
        read.texts = Some(texts);
        Ok(())
    }

    fn put(&self, endpoint: E) {
        let endpoint = Some(Arc::new(endpoint));
        let old = std::mem::replace(&mut *self.endpoint.write().unwrap_or_else(PoisonError::into_inner), endpoint);
        // To end Kafka clients takes its time.
        tokio::task::spawn_blocking(move || drop(old));
    }

    fn current(&self) -> Option<Arc<E>> {
        self.endpoint.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
