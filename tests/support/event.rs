//! API Gateway HTTP API events (payload format 2.0).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Builds the event API Gateway makes of an HTTP request.
///
/// ```no_run
/// # use tests::Event;
/// let event = Event::post("/kafka/producer/produce").bearer("…").json(&serde_json::json!({"topic": "demo"})).build();
/// let event = Event::get("/kafka/consumer/consume").query("topic=demo&group_id=g").bearer("…").build();
/// ```
#[derive(Debug, Clone)]
pub struct Event {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Option<(String, bool)>,
}

impl Event {
    /// A request with any method.
    pub fn new(method: &str, path: &str) -> Self {
        let host = ("host", "abcde12345.execute-api.eu-central-1.amazonaws.com");
        let headers = [host, ("accept", "*/*"), ("user-agent", "curl/8.5.0"), ("x-forwarded-proto", "https")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { method: method.to_owned(), path: path.to_owned(), query: String::new(), headers, body: None }
    }

    /// A GET request.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST request.
    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    /// The query string as it stood in the URL, without the question mark.
    #[must_use]
    pub fn query(mut self, raw: &str) -> Self {
        raw.clone_into(&mut self.query);
        self
    }

    /// A header; the same name again is joined with a comma, as API Gateway does.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let joined = self.headers.entry(name.to_lowercase()).or_default();
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(value);
        self
    }

    /// `Authorization: Bearer <token>`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// A text body as it is, without a content type.
    #[must_use]
    pub fn body(mut self, text: impl Into<String>) -> Self {
        self.body = Some((text.into(), false));
        self
    }

    /// A JSON body with its content type.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// A body API Gateway does not take for text: base64, with `isBase64Encoded`.
    #[must_use]
    pub fn bytes(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some((STANDARD.encode(body), true));
        self
    }

    /// The event.
    pub fn build(self) -> Value {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let request_id = format!("test{:011}=", NUMBER.fetch_add(1, Ordering::Relaxed));
        let route = format!("{} {}", self.method, self.path);
        let mut headers = self.headers;
        if let Some((body, _)) = &self.body {
            headers.insert("content-length".to_owned(), body.len().to_string());
        }
        let mut event = json!({
            "version": "2.0",
            "routeKey": route,
            "rawPath": self.path,
            "rawQueryString": self.query,
            "headers": headers,
            "requestContext": {
                "accountId": "123456789012",
                "apiId": "abcde12345",
                "domainName": "abcde12345.execute-api.eu-central-1.amazonaws.com",
                "domainPrefix": "abcde12345",
                "http": {
                    "method": self.method,
                    "path": self.path,
                    "protocol": "HTTP/1.1",
                    "sourceIp": "192.0.2.1",
                    "userAgent": "curl/8.5.0",
                },
                "requestId": request_id,
                "routeKey": route,
                "stage": "$default",
                "timeEpoch": u64::try_from(now).unwrap_or(0),
            },
            "isBase64Encoded": self.body.as_ref().is_some_and(|(_, base64)| *base64),
        });
        if !self.query.is_empty() {
            let mut parameters = BTreeMap::<String, String>::new();
            for (name, value) in form_urlencoded::parse(self.query.as_bytes()) {
                let joined = parameters.entry(name.into_owned()).and_modify(|before| before.push(','));
                joined.or_default().push_str(&value);
            }
            event["queryStringParameters"] = json!(parameters);
        }
        if let Some((body, _)) = self.body {
            event["body"] = body.into();
        }
        event
    }
}
