//! The log, searched for what must never be in it, at the most talkative level there is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::issuer::{FOREIGN, Issuer, OURS};
use crate::kit::{Raw, write};
use crate::world::{Answer, CONSUME, PRODUCE, function_with, topic, unique};

/// Everything on, and librdkafka and the HTTP clients as well.
const TRACE: (&str, &str) = ("RUST_LOG", "trace");

/// Texts that must not be in a log, in none of the forms they may take on their way.
#[derive(Default)]
struct Secrets(Vec<String>);

impl Secrets {
    /// A new text that is nowhere else.
    fn make(&mut self, what: &str) -> String {
        let marker = format!("s3cret.{}.Zq9", unique(what));
        self.add(&marker);
        marker
    }

    fn add(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }

    /// Where a text is found: as it is, in JSON or in a debug format, in base64 at any of its three alignments (both
    /// alphabets), in hexadecimal, as a list of bytes, or escaped for a URL.
    fn found(&self, log: &str) -> Vec<String> {
        let mut found = Vec::new();
        for secret in &self.0 {
            let mut forms = vec![secret.clone(), json!(secret).to_string().trim_matches('"').to_owned()];
            for pad in 0..3 {
                let encoded = STANDARD_NO_PAD.encode([&vec![b'x'; pad][..], secret.as_bytes()].concat());
                // The first and the last characters also hold bits of what is beside it.
                let core = encoded[4..encoded.len() - 3].to_owned();
                forms.push(core.replace('+', "-").replace('/', "_"));
                forms.push(core);
            }
            forms.push(secret.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat());
            forms.push(secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", "));
            forms.push(secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(","));
            for form in forms {
                if let Some(line) = log.lines().find(|line| line.contains(&form)) {
                    found.push(format!("{form}\n    in {}", line.chars().take(500).collect::<String>()));
                }
            }
        }
        found
    }
}

/// Any of a token's three parts would be too much, but for a header that all tokens share.
fn token_parts(secrets: &mut Secrets, token: &str) {
    token.split('.').filter(|part| part.len() > 100).for_each(|part| secrets.add(part));
}

async fn send(function: &Function, event: Value) -> Answer {
    Answer::read(&function.invoke(event).await)
}

/// Fails if one of the secrets is in the log, or if the log is not one.
fn search(function: &Function, secrets: &Secrets, calls: usize, topic: &str) {
    let log = function.log_text();
    assert!(log.lines().count() >= calls, "a line for every call");
    assert!(log.contains(topic), "the log is the right one");
    let found = secrets.found(&log);
    assert!(found.is_empty(), "found in the log:\n{}", found.join("\n"));
}

#[test]
fn the_search_finds_every_form() {
    let mut secrets = Secrets::default();
    let marker = secrets.make("key");
    for pad in ["", "x", "xy", "xyz"] {
        let text = format!("{pad}{marker}{pad}");
        assert!(!secrets.found(&text).is_empty());
        assert!(!secrets.found(&STANDARD_NO_PAD.encode(&text)).is_empty(), "{pad}");
    }
    assert!(!secrets.found(&format!("{:?}", marker.as_bytes())).is_empty());
    assert!(!secrets.found(&format!("{:02x?}", marker.as_bytes()).replace(", ", "")).is_empty());
    assert!(secrets.found("nothing to see").is_empty());
}

#[tokio::test]
async fn the_log_of_produce_holds_no_token_key_value_or_header_value() {
    let (stack, mut secrets) = (Stack::shared().await, Secrets::default());
    let (producer, topic) = (function_with("produce", &[TRACE]).await, topic(1).await);
    let token = stack.token("gateway-full").await;
    token_parts(&mut secrets, &token);
    let (key, value, header, member) =
        (secrets.make("key"), secrets.make("value"), secrets.make("header"), secrets.make("member"));
    let (request_header, query) = (secrets.make("request-header"), secrets.make("query"));
    let good = json!({
        "topic": topic, "key": key, "value": { "deep": [&value] },
        "headers": [{ "name": "a", "value": header }, { "name": "b", "value_base64": STANDARD_NO_PAD.encode("abc") }],
    });
    let changed = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body.to_string()
    };
    let text = good.to_string();
    let bodies = [
        (200, text.clone()),
        (200, changed("value", json!(value))),
        (400, text.replace('}', "")),
        (400, format!("{text}{value}")),
        (400, text.replacen("\"value\":", "value:", 1)),
        (400, changed(&member, json!(value))),
        (400, changed("topic", json!(format!("{value} no name")))),
        (400, changed("partition", json!(value))),
        (400, changed("timestamp", json!(value))),
        (400, changed("value_format", json!(value))),
        (400, changed("headers", json!([{ "name": "dlq.x", "value": header }]))),
        (400, changed("headers", json!([{ "name": "x", "value": [header] }]))),
        (422, changed("headers", json!([{ "name": "x", "value_base64": header }]))),
        (422, changed("value_format", json!("string"))),
        (422, changed("key_format", json!("binary"))),
        (404, changed("partition", json!(77))),
        (404, changed("topic", json!("topic-that-is-nowhere"))),
        (413, changed("value", json!(value.repeat(60_000)))),
    ];
    let mut calls = bodies.len();
    for (status, body) in bodies {
        let event = Event::post(PRODUCE).bearer(&token).header("x-custom", &request_header);
        let answer = send(&producer, event.body(&*body).build()).await;
        assert_eq!(answer.status, status, "{answer:?}");
        // What is refused is not repeated to the caller, either.
        for secret in [&key, &value, &header] {
            assert!(!answer.body.to_string().contains(secret.as_str()), "{answer:?}");
        }
    }
    let base64 = Event::post(PRODUCE).bearer(&token).bytes(&text).build();
    assert_eq!(send(&producer, base64).await.status, 200);
    let mut broken = Event::post(PRODUCE).bearer(&token).bytes(&text).build();
    broken["body"] = format!("{}!", broken["body"].as_str().expect("text")).into();
    assert_eq!(send(&producer, broken).await.status, 400);
    let event = Event::post(PRODUCE).bearer(&token).query(&format!("access_token={token}&x={query}")).body(&*text);
    assert_eq!(send(&producer, event.build()).await.status, 400);
    let event = Event::post(PRODUCE).bearer(&token).header("content-type", &request_header).body(&*text);
    assert_eq!(send(&producer, event.build()).await.status, 415);
    calls += 4;

    // Events that no longer are what API Gateway sends.
    for pointer in ["/headers", "/body", "/requestContext", "/requestContext/http/method", "/isBase64Encoded"] {
        let mut event = Event::post(PRODUCE).bearer(&token).header("x-custom", &request_header).body(&*text).build();
        *event.pointer_mut(pointer).expect("a member") = json!([value, token, 7]);
        let outcome = producer.try_invoke(event, std::time::Duration::from_secs(10)).await;
        calls += usize::from(outcome.is_ok());
    }
    search(&producer, &secrets, calls, &topic);
}

#[tokio::test]
async fn the_log_of_consume_holds_no_token_key_value_or_header_value() {
    let (stack, mut secrets) = (Stack::shared().await, Secrets::default());
    let (consumer, topic) = (function_with("consume", &[TRACE]).await, topic(1).await);
    let token = stack.token("gateway-full").await;
    token_parts(&mut secrets, &token);
    let (key, value, header, query) =
        (secrets.make("key"), secrets.make("value"), secrets.make("header"), secrets.make("query"));
    let record = Raw {
        partition: 0,
        key: Some(key.into_bytes()),
        value: Some(value.clone().into_bytes()),
        headers: vec![("name".to_owned(), Some(header.clone().into_bytes()))],
    };
    let binary = Raw { value: Some([&[0xff][..], value.as_bytes()].concat()), ..record.clone() };
    let large = Raw { value: Some(value.repeat(1000).into_bytes()), ..record.clone() };
    write(&topic, &[record, binary, large]).await;
    let mut calls = 0;
    for format in ["auto", "json", "string", "binary"] {
        let group = unique("g");
        for (max_bytes, status) in [(5000, 200), (5000, 413), (1_000_000, 200)] {
            let query = format!("topic={topic}&group_id={group}&format={format}&timeout_ms=0&max_bytes={max_bytes}");
            let event = Event::get(CONSUME).bearer(&token).header("x-custom", &header).query(&query);
            let answer = send(&consumer, event.build()).await;
            assert_eq!(answer.status, status, "{answer:?}");
            calls += 1;
        }
    }
    for (status, more) in [
        (400, format!("limit={query}")),
        (400, format!("{query}={query}")),
        (400, format!("access_token={token}")),
        (400, format!("start={query}")),
    ] {
        let event = Event::get(CONSUME).bearer(&token).query(&format!("topic={topic}&group_id=g&{more}"));
        assert_eq!(send(&consumer, event.build()).await.status, status);
        calls += 1;
    }
    search(&consumer, &secrets, calls, &topic);
}

#[tokio::test]
async fn the_log_holds_nothing_of_a_token_that_was_refused() {
    let (issuer, mut secrets) = (Issuer::start().await, Secrets::default());
    let bootstrap = Stack::shared().await.bootstrap();
    let consumer = issuer.function("consume", &bootstrap, &[TRACE]).await;
    let header = json!({ "alg": "RS256", "kid": "ours" });
    let (claim, kid, basic) = (secrets.make("claim"), secrets.make("kid"), secrets.make("basic"));
    let mut claims = issuer.claims(&["kafka_consumer:read"]);
    claims["email"] = json!(claim);
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let tokens = [
        OURS.token(&header, &claims),
        OURS.token(&header, &with("exp", json!(1))),
        OURS.token(&header, &with("aud", json!(claim))),
        OURS.token(&header, &with("iss", json!(claim))),
        OURS.token(&header, &with("nbf", json!(claim))),
        OURS.token(&header, &with("realm_access", json!({ "roles": [claim] }))),
        OURS.token(&json!({ "alg": "RS256", "kid": kid }), &claims),
        OURS.token(&json!({ "alg": claim, "kid": "ours" }), &claims),
        FOREIGN.token(&header, &claims),
        format!("{}.{basic}", claims["iss"]),
        basic.clone(),
    ];
    for token in &tokens {
        token_parts(&mut secrets, token);
        let event = Event::get(CONSUME).bearer(token).query("topic=topic-that-is-nowhere&group_id=g&timeout_ms=0");
        let answer = send(&consumer, event.build()).await;
        assert!(matches!(answer.status, 401 | 403 | 404), "{answer:?}");
        assert!(!answer.body.to_string().contains(&claim), "{answer:?}");
    }
    for scheme in ["Basic", "basic", "Token", "Bearer Bearer"] {
        let event = Event::get(CONSUME).header("authorization", &format!("{scheme} {basic}"));
        assert_eq!(send(&consumer, event.query("topic=t&group_id=g").build()).await.status, 401);
    }
    search(&consumer, &secrets, tokens.len() + 4, "consume");
}

#[tokio::test]
async fn the_log_does_not_hold_the_password_for_kafka() {
    let mut secrets = Secrets::default();
    let password = secrets.make("password");
    // The broker here speaks no TLS: every attempt fails, and librdkafka says all it knows about why.
    let more = [
        TRACE,
        ("KAFKA_SECURITY", "scram-sha-512"),
        ("KAFKA_CREDENTIALS", &format!("somebody:{password}")),
        ("KAFKA_PROPERTIES", "debug=all"),
        ("KAFKA_REQUEST_TIMEOUT_MS", "1000"),
    ];
    let token = Stack::shared().await.token("gateway-full").await;
    for name in ["produce", "consume"] {
        let function = function_with(name, &more).await;
        let event = if name == "produce" {
            Event::post(PRODUCE).json(&json!({ "topic": "t", "value": "v" }))
        } else {
            Event::get(CONSUME).query("topic=t&group_id=g&timeout_ms=0")
        };
        let answer = send(&function, event.bearer(&token).build()).await;
        assert!(matches!(answer.status, 503 | 504), "{answer:?}");
        let broker = Stack::shared().await.bootstrap();
        assert!(!answer.body.to_string().contains(&broker), "no address of a broker: {answer:?}");
        search(&function, &secrets, 1, name);
    }
}
