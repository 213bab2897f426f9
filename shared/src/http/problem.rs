//! The only place where an [`Error`] becomes an answer: `application/problem+json` (RFC 9457).

use serde_json::{Map, Value};

use super::Reply;
use crate::errors::{Code, Error};

/// Where the codes are explained; a code's word is appended. A relative reference, as the service has no fixed host.
const TYPE_BASE: &str = "/problems/";

/// What an answer says of an error, or one of its results: all but the request's id.
pub fn members(error: &Error) -> Map<String, Value> {
    let code = error.code();
    let mut body = Map::new();
    body.insert("type".into(), format!("{TYPE_BASE}{}", code.word()).into());
    body.insert("title".into(), code.title().into());
    body.insert("status".into(), code.status().into());
    body.insert("detail".into(), error.detail().into());
    body.insert("code".into(), code.word().into());
    body.insert("error_code".into(), code.error_code().into());
    body.insert("retryable".into(), code.retryable().into());
    for (name, value) in error.members() {
        body.entry(name.clone()).or_insert_with(|| value.clone());
    }
    body
}

/// Turns an error into its answer.
pub fn reply(error: &Error, request_id: &str) -> Reply {
    let (code, mut body) = (error.code(), members(error));
    body.insert("request_id".into(), request_id.into());
    let mut reply = Reply::json(code.status(), Value::Object(body).to_string());
    reply.content_type = Some("application/problem+json");
    reply.www_authenticate = challenge(code);
    reply.retry_after = code.retry_after();
    if code == Code::MethodNotAllowed {
        reply.allow = error.members().get("allow").and_then(Value::as_str).map(str::to_owned);
    }
    reply
}

/// The challenge of a 401 or 403 (RFC 6750, section 3): no error word when no token was sent at all.
fn challenge(code: Code) -> Option<&'static str> {
    match code {
        Code::MissingToken => Some("Bearer"),
        Code::InvalidToken => Some("Bearer error=\"invalid_token\""),
        Code::ExpiredToken => Some("Bearer error=\"invalid_token\", error_description=\"The token has expired\""),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_contract_s_members() {
        for &code in Code::ALL {
            let reply = reply(&Error::new(code, "what happened").with("topic", "orders").with("status", 1), "r-1");
            let body: Value = serde_json::from_str(&reply.body).expect("JSON");
            assert_eq!(body["status"], code.status(), "an extension member never replaces a standard one");
            assert_eq!(body["code"], code.word());
            assert_eq!(body["error_code"], code.error_code());
            assert_eq!(body["retryable"], code.retryable());
            assert_eq!(body["request_id"], "r-1");
            assert_eq!(body["detail"], "what happened");
            assert_eq!(body["topic"], "orders");
            assert_eq!(reply.www_authenticate.is_some(), code.status() == 401, "{code:?}");
            assert_eq!(reply.retry_after.is_some(), matches!(code.status(), 429 | 503), "{code:?}");
        }
    }
}
