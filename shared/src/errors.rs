//! The one error type that crosses the product's boundaries.
//!
//! An [`Error`] keeps two texts apart: `detail` is public and goes into the answer, everything else (the source chain,
//! the backtrace) goes only into the log. What kind of error it is, is decided once, by its [`Code`]; status, Confluent
//! number, title and whether a retry can help all follow from the code.

use std::backtrace::Backtrace;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

/// Any error, as the source of an [`Error`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:literal, $error_code:literal, $title:literal;)+) => {
        /// What went wrong, as the contract names it (section 3).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// Every code, for tests and documents.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable word in the answer's `code`.
            pub const fn word(self) -> &'static str { match self { $(Self::$name => $word,)+ } }

            /// The HTTP status.
            pub const fn status(self) -> u16 { match self { $(Self::$name => $status,)+ } }

            /// The number that Confluent's REST Proxy uses for the same thing, otherwise the status.
            pub const fn error_code(self) -> u32 { match self { $(Self::$name => $error_code,)+ } }

            /// The short text that never varies between two errors of one code (RFC 9457, `title`).
            pub const fn title(self) -> &'static str { match self { $(Self::$name => $title,)+ } }
        }
    };
}

codes! {
    /// The body is not the JSON it should be.
    InvalidJson = "invalid_json", 400, 400, "The body is not valid JSON";
    /// A parameter or a member of the body has a value that cannot be used.
    InvalidParameter = "invalid_parameter", 400, 400, "A parameter is not valid";
    /// A parameter or a member of the body is missing.
    MissingParameter = "missing_parameter", 400, 400, "A parameter is missing";
    /// The log does not hold this offset.
    OffsetOutOfRange = "offset_out_of_range", 400, 400, "The offset is outside of the log";
    /// No bearer token came with the request.
    MissingToken = "missing_token", 401, 40101, "A bearer token is required";
    /// The token is not one that this service accepts.
    InvalidToken = "invalid_token", 401, 40101, "The bearer token is not valid";
    /// The token was good once.
    ExpiredToken = "expired_token", 401, 40101, "The bearer token has expired";
    /// No role of the caller allows this kind of call.
    Forbidden = "forbidden", 403, 40301, "The caller may not do this";
    /// The caller may do this, but not on this topic or group.
    TopicForbidden = "topic_forbidden", 403, 40301, "The caller may not use this topic or group";
    /// The topic does not exist.
    TopicNotFound = "topic_not_found", 404, 40401, "The topic does not exist";
    /// The topic exists, the partition does not.
    PartitionNotFound = "partition_not_found", 404, 40402, "The partition does not exist";
    /// The registry has no such schema.
    SchemaNotFound = "schema_not_found", 404, 404, "The schema does not exist";
    /// This function serves another route.
    RouteNotFound = "route_not_found", 404, 404, "There is no such route";
    /// The route exists, with another method.
    MethodNotAllowed = "method_not_allowed", 405, 405, "The method is not allowed";
    /// A record, or an answer with a single record, is larger than what can carry it.
    RecordTooLarge = "record_too_large", 413, 413, "The record is too large";
    /// The body's content type is not JSON.
    UnsupportedMediaType = "unsupported_media_type", 415, 415, "The content type is not supported";
    /// Ordinary members of the consumer group are alive.
    GroupInUse = "group_in_use", 409, 409, "The consumer group has live members";
    /// A topic of this name exists already.
    TopicExists = "topic_exists", 409, 40002, "The topic exists already";
    /// The lease is over.
    LeaseLost = "lease_lost", 409, 409, "The lease is lost";
    /// The record is well-formed JSON, but cannot become a Kafka record.
    UnprocessableRecord = "unprocessable_record", 422, 422, "The record cannot be written";
    /// The key or value does not fit its schema.
    SchemaValidationFailed = "schema_validation_failed", 422, 42203, "The record does not fit its schema";
    /// Another record of an atomic batch failed.
    TransactionAborted = "transaction_aborted", 424, 424, "The batch was not written";
    /// The broker asks for a slower pace, or the sandbox is at work for as many groups as it can.
    Throttled = "throttled", 429, 429, "Too many requests";
    /// Kafka cannot be reached, or cannot do it just now.
    BrokerUnavailable = "broker_unavailable", 503, 50003, "Kafka is not available";
    /// The identity provider's keys cannot be had.
    IdentityUnavailable = "identity_unavailable", 503, 503, "The identity provider is not available";
    /// The schema registry cannot be asked.
    SchemaRegistryUnavailable = "schema_registry_unavailable", 503, 40801, "The schema registry is not available";
    /// The time for the call ran out.
    DeadlineExceeded = "deadline_exceeded", 504, 504, "The deadline was exceeded";
    /// A fault of ours.
    Internal = "internal", 500, 500, "Internal error";
}

impl Code {
    /// Whether the same call may succeed later without being changed.
    pub const fn retryable(self) -> bool {
        match self {
            Self::Throttled
            | Self::BrokerUnavailable
            | Self::IdentityUnavailable
            | Self::SchemaRegistryUnavailable
            | Self::DeadlineExceeded
            | Self::GroupInUse => true,
            Self::InvalidJson
            | Self::InvalidParameter
            | Self::MissingParameter
            | Self::OffsetOutOfRange
            | Self::MissingToken
            | Self::InvalidToken
            | Self::ExpiredToken
            | Self::Forbidden
            | Self::TopicForbidden
            | Self::TopicNotFound
            | Self::PartitionNotFound
            | Self::SchemaNotFound
            | Self::RouteNotFound
            | Self::MethodNotAllowed
            | Self::RecordTooLarge
            | Self::UnsupportedMediaType
            | Self::TopicExists
            | Self::LeaseLost
            | Self::UnprocessableRecord
            | Self::SchemaValidationFailed
            | Self::TransactionAborted
            | Self::Internal => false,
        }
    }

    /// `Retry-After`, for the codes that carry one (429 and 503).
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Throttled | Self::BrokerUnavailable => Some(Duration::from_secs(1)),
            Self::IdentityUnavailable | Self::SchemaRegistryUnavailable => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}

/// An error with its public answer and its private causes. What stops several records of a batch is cloned for each.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    members: Map<String, Value>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    backtrace: Option<Arc<Backtrace>>,
}

impl Error {
    /// An error with its public text. The text must hold no token, payload or broker address.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let backtrace = (code.status() >= 500).then(Backtrace::force_capture).map(Arc::new);
        Self(Box::new(Inner { code, detail: detail.into(), members: Map::new(), source: None, backtrace }))
    }

    /// A fault of ours: the caller learns nothing but that it happened.
    pub fn internal(source: impl Into<BoxError>) -> Self {
        Self::new(Code::Internal, "The request could not be completed").source(source)
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// Adds an extension member to the answer (RFC 9457, 3.2), such as the topic or the partition.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(name.to_owned(), value.into());
        self
    }

    /// What kind of error it is.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The public text.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The extension members of the answer.
    pub fn members(&self) -> &Map<String, Value> {
        &self.0.members
    }

    /// Where it came to be; captured for statuses from 500 on.
    pub fn backtrace(&self) -> Option<&Backtrace> {
        self.0.backtrace.as_deref()
    }

    /// The whole chain of causes, outermost first, for the log.
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.to_string()];
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            chain.push(cause.to_string());
            next = cause.source();
        }
        chain
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.word(), self.0.detail)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_retry_after_belongs_to_retryable_codes() {
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(code.retry_after().is_some(), matches!(code.status(), 429 | 503), "{code:?}");
            assert!(code.retry_after().is_none() || code.retryable(), "{code:?}");
        }
    }

    #[test]
    fn the_chain_names_every_cause_and_the_answer_none() {
        let io = std::io::Error::other("connection refused by 10.0.0.1:9092");
        let error = Error::new(Code::BrokerUnavailable, "Kafka is not available").source(io);
        assert_eq!(
            error.chain(),
            ["broker_unavailable: Kafka is not available", "connection refused by 10.0.0.1:9092"]
        );
        assert!(!error.detail().contains("10.0.0.1"));
        assert!(error.backtrace().is_some());
    }
}
