//! Whose tokens count, and for what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};
use tokio::task::JoinSet;

use crate::issuer::{AUDIENCE, CURVE, Counter, FOREIGN, Issuer, Key, NEXT, OURS, b64, now};
use crate::kit::{problem, refused};
use crate::world::{Answer, CONSUME, PRODUCE, admin, function, function_with, topic, unique};

const WRITE: &str = "kafka_producer:write";
const READ: &str = "kafka_consumer:read";

fn verdict(response: &Value) -> (u64, String) {
    if response["statusCode"] == 200 { (200, String::new()) } else { problem(response) }
}

fn refusal(code: &str) -> (u64, String) {
    let status = match code {
        "forbidden" | "topic_forbidden" => 403,
        "identity_unavailable" | "broker_unavailable" => 503,
        _ => 401,
    };
    (status, code.to_owned())
}

fn accepted() -> (u64, String) {
    (200, String::new())
}

/// A call that any token with the role for reading may make, and that needs no topic: it ends in 404.
fn probe() -> Event {
    Event::get(CONSUME).query("topic=topic-that-is-nowhere&group_id=g&timeout_ms=0")
}

/// What becomes of a token. Past the check of identity and role the call ends at the topic that is nowhere.
async fn judged(function: &Function, token: &str) -> (u64, String) {
    match verdict(&function.invoke(probe().bearer(token).build()).await) {
        (404, code) if code == "topic_not_found" => accepted(),
        other => other,
    }
}

#[tokio::test]
async fn keycloak_s_tokens_are_worth_their_roles() {
    let stack = Stack::shared().await;
    let (producer, consumer) = (function("produce").await, function("consume").await);
    let (any, orders) = (topic(1).await, unique("orders."));
    let new = NewTopic::new(&orders, 1, TopicReplication::Fixed(1));
    admin(&stack.bootstrap()).create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    let (ok, none, elsewhere, invalid) =
        (accepted(), refusal("forbidden"), refusal("topic_forbidden"), refusal("invalid_token"));
    for (client, topic, group, writes, reads) in [
        ("gateway-full", &any, "g", &ok, &ok),
        ("gateway-reader", &any, "g", &none, &ok),
        ("gateway-none", &any, "g", &none, &none),
        ("gateway-no-audience", &any, "g", &invalid, &invalid),
        ("gateway-narrow", &orders, "team-a", &ok, &ok),
        ("gateway-narrow", &orders, "team-a:blue", &ok, &ok),
        ("gateway-narrow", &orders, "team-b", &ok, &elsewhere),
        ("gateway-narrow", &orders, "my-team-a", &ok, &elsewhere),
        ("gateway-narrow", &any, "team-a", &elsewhere, &elsewhere),
    ] {
        let token = stack.token(client).await;
        let event = Event::post(PRODUCE).json(&json!({ "topic": topic, "value": "v" }));
        let got = verdict(&producer.invoke(event.bearer(&token).build()).await);
        assert_eq!(&got, writes, "{client} writes {topic}");
        let event = Event::get(CONSUME).query(&format!("topic={topic}&group_id={group}&timeout_ms=0"));
        let got = verdict(&consumer.invoke(event.bearer(&token).build()).await);
        assert_eq!(&got, reads, "{client} reads {topic} as {group}");
    }
}

#[tokio::test]
async fn what_the_gateway_has_found_in_a_token_counts_for_nothing() {
    let consumer = function("consume").await;
    let token = Stack::shared().await.token("gateway-none").await;
    for (token, expected) in [(None, "missing_token"), (Some("forged"), "invalid_token"), (Some(&*token), "forbidden")]
    {
        let mut event = token.map_or_else(probe, |token| probe().bearer(token)).build();
        let roles = json!({ "roles": ["kafka_consumer:read", "kafka_producer:write", "kafka_admin:write"] });
        event["requestContext"]["authorizer"]["jwt"] = json!({
            "claims": { "iss": "any", "sub": "somebody", "realm_access": roles.to_string(), "exp": "99999999999" },
            "scopes": ["kafka_consumer:read"],
        });
        assert_eq!(verdict(&consumer.invoke(event).await), refusal(expected));
    }
}

/// What Keycloak's token endpoint says to a form.
async fn token_endpoint(form: &str) -> Value {
    let url = format!("{}/protocol/openid-connect/token", Stack::shared().await.issuer());
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form.to_owned());
    let bytes = request.send().await.expect("an answer").bytes().await.expect("a body");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[tokio::test]
async fn an_id_token_is_no_access_token_even_for_its_own_audience() {
    let form =
        "grant_type=client_credentials&client_id=gateway-full&client_secret=gateway-full-local-only&scope=openid";
    let answer = token_endpoint(form).await;
    let (id, access) = (answer["id_token"].as_str().expect("an ID token"), answer["access_token"].as_str());
    // Signed by the same keys, in time, and for this very audience.
    let consumer = function_with("consume", &[("OIDC_AUDIENCE", "gateway-full")]).await;
    assert_eq!(judged(&consumer, id).await, refusal("invalid_token"));
    let consumer = function("consume").await;
    assert_eq!(judged(&consumer, id).await, refusal("invalid_token"));
    assert_eq!(judged(&consumer, access.expect("an access token")).await, accepted());
}

#[tokio::test]
async fn a_token_of_keycloak_that_was_changed_is_refused() {
    let consumer = function("consume").await;
    let (reader, none) =
        (Stack::shared().await.token("gateway-reader").await, Stack::shared().await.token("gateway-none").await);
    assert_eq!(judged(&consumer, &reader).await, accepted());
    let (good, other): (Vec<_>, Vec<_>) = (reader.split('.').collect(), none.split('.').collect());
    for parts in [
        vec![good[0], good[1], other[2]],
        vec![other[0], good[1], other[2]],
        vec![good[0], other[1], good[2]],
        vec![good[0], good[1], ""],
        vec![good[0], good[1]],
        vec![good[0], good[1], good[2], ""],
        vec!["", good[1], good[2]],
        vec![good[1], good[1], good[2]],
    ] {
        assert_eq!(judged(&consumer, &parts.join(".")).await, refusal("invalid_token"));
    }
    // Where base64 leaves bits unused, a signature could be written in several ways.
    assert_eq!(judged(&consumer, &format!("{reader}=")).await, refusal("invalid_token"));
    let basic = probe().header("authorization", &format!("Basic {reader}")).build();
    assert_eq!(problem(&consumer.invoke(basic).await), refusal("missing_token"));
    let in_query = Event::get(CONSUME).query(&format!("topic=t&group_id=g&access_token={reader}")).build();
    assert_eq!(problem(&consumer.invoke(in_query).await), refusal("missing_token"));
}

/// Adds members, or takes them away where the new value is the word `-`.
fn changed(mut object: Value, changes: &Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        if value == "-" {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    object
}

/// Tokens that must not pass, each with its name and its code. `evil` is an attacker's address.
fn hostile(issuer: &Issuer, evil: &str) -> Vec<(String, String, &'static str)> {
    const INVALID: &str = "invalid_token";
    let (header, claims) = (json!({ "alg": "RS256", "typ": "JWT", "kid": "ours" }), issuer.claims(&[READ]));
    let mut tokens = Vec::new();

    // By the true key, with a wrong header.
    for change in [
        json!({ "alg": "none" }),
        json!({ "alg": "RS384" }),
        json!({ "alg": "PS256" }),
        json!({ "alg": "HS256" }),
        json!({ "alg": "ES256" }),
        json!({ "alg": "-" }),
        json!({ "kid": "-" }),
        json!({ "kid": "" }),
        json!({ "kid": "curve" }),
        json!({ "kid": "nobody's" }),
        json!({ "kid": "../../../../dev/null" }),
        json!({ "kid": "' OR 1=1 --" }),
        json!({ "crit": ["exp"], "exp": 1 }),
        json!({ "crit": ["b64"], "b64": false }),
        json!({ "typ": "logout+jwt" }),
        json!({ "typ": "dpop+jwt" }),
        json!({ "typ": "secevent+jwt" }),
        json!({ "enc": "A256GCM", "alg": "RSA-OAEP" }),
    ] {
        tokens.push((format!("header {change}"), OURS.token(&changed(header.clone(), &change), &claims), INVALID));
    }
    // By the true key, with wrong claims.
    for (change, code) in [
        (json!({ "aud": "-" }), INVALID),
        (json!({ "aud": "account" }), INVALID),
        (json!({ "aud": ["account", "kafka-gateway-2"] }), INVALID),
        (json!({ "aud": [] }), INVALID),
        (json!({ "aud": "Kafka-Gateway" }), INVALID),
        (json!({ "iss": "-" }), INVALID),
        (json!({ "iss": evil }), INVALID),
        (json!({ "iss": format!("{}/", claims["iss"].as_str().expect("text")) }), INVALID),
        (json!({ "exp": "-" }), INVALID),
        (json!({ "exp": null }), INVALID),
        (json!({ "exp": "2099-01-01" }), INVALID),
        (json!({ "exp": now() * 1000 }), INVALID),
        (json!({ "exp": now() - 60 }), "expired_token"),
        (json!({ "exp": 1 }), "expired_token"),
        (json!({ "exp": now() - 60, "aud": "account" }), INVALID),
        (json!({ "nbf": now() + 120 }), INVALID),
        (json!({ "iat": now() + 120 }), INVALID),
        (json!({ "typ": "ID" }), INVALID),
        (json!({ "typ": "Refresh" }), INVALID),
        (json!({ "typ": "Offline" }), INVALID),
        (json!({ "cnf": { "jkt": "x" } }), INVALID),
        (json!({ "sub": "-" }), INVALID),
        (json!({ "sub": "" }), INVALID),
    ] {
        tokens.push((format!("claims {change}"), OURS.token(&header, &changed(claims.clone(), &change)), code));
    }
    // By a foreign key, under the true key's name, which some of them bring along or point to.
    let url = format!("{evil}/keys");
    for change in [
        json!({}),
        json!({ "jwk": FOREIGN.jwk("ours") }),
        json!({ "jku": url }),
        json!({ "x5u": url }),
        json!({ "jku": url, "kid": "theirs" }),
        json!({ "kid": url }),
        json!({ "jwk": FOREIGN.jwk("theirs"), "kid": "theirs" }),
        json!({ "x5c": [b64(FOREIGN.public())], "x5t": "x" }),
    ] {
        tokens.push((format!("foreign {change}"), FOREIGN.token(&changed(header.clone(), &change), &claims), INVALID));
    }
    // By no key, or by what everybody knows.
    let der = OURS.public();
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", b64(der));
    for (algorithm, kid) in [("HS256", "ours"), ("RS256", "ours"), ("none", "ours"), ("HS256", "curve")] {
        let header = changed(header.clone(), &json!({ "alg": algorithm, "kid": kid }));
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        for secret in [der, pem.as_bytes(), OURS.jwk("ours").to_string().as_bytes(), b""] {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
            tokens.push((format!("HMAC as {algorithm} {kid}"), format!("{message}.{}", b64(tag)), INVALID));
        }
        tokens.push((format!("unsigned {algorithm}"), format!("{message}."), INVALID));
        tokens.push((format!("without a signature {algorithm}"), message.clone(), INVALID));
        tokens.push((format!("zeros {algorithm}"), format!("{message}.{}", b64([0; 64])), INVALID));
    }
    tokens
}

/// Tokens of a caller who is known, but may not do it.
fn without_the_right(issuer: &Issuer) -> Vec<(String, String, &'static str)> {
    let mut tokens = Vec::new();
    for roles in [
        &[][..],
        &[WRITE],
        &["kafka_consumer:read:"],
        &["kafka_consumer:read::g"],
        &["kafka_consumer"],
        &["KAFKA_CONSUMER:READ"],
        &["kafka_consumer:read "],
        &["kafka_consumer:*"],
        &["*"],
    ] {
        tokens.push((format!("{roles:?}"), issuer.token(&OURS, "ours", roles), "forbidden"));
    }
    let scope = changed(issuer.claims(&[]), &json!({ "scope": READ, "roles": [READ], "groups": [READ] }));
    let header = json!({ "alg": "RS256", "kid": "ours" });
    tokens.push(("scope".to_owned(), OURS.token(&header, &scope), "forbidden"));
    for role in
        ["kafka_consumer:read:orders.*", "kafka_consumer:read:topic-that-is-nowhere:h", "kafka_consumer:read:?*"]
    {
        tokens.push((role.to_owned(), issuer.token(&OURS, "ours", &[role]), "topic_forbidden"));
    }
    tokens
}

#[tokio::test]
async fn no_hostile_token_passes_and_nothing_it_points_to_is_contacted() {
    let (issuer, evil) = (Issuer::start().await, Counter::listen().await);
    let consumer = issuer.function("consume", &Stack::shared().await.bootstrap(), &[]).await;
    let token = |key: &Key, header: &Value, change: &Value| key.token(header, &changed(issuer.claims(&[READ]), change));
    // These are good: what the others lack is what they are refused for.
    for (key, header, change) in [
        (&*OURS, json!({ "alg": "RS256", "kid": "ours" }), json!({})),
        (&*OURS, json!({ "alg": "RS256", "kid": "ours", "typ": "at+jwt" }), json!({ "typ": "-" })),
        (&*CURVE, json!({ "alg": "ES256", "kid": "curve", "typ": "JWT" }), json!({})),
        (&*OURS, json!({ "alg": "RS256", "kid": "ours" }), json!({ "aud": ["account", AUDIENCE], "nbf": now() + 5 })),
        (&*OURS, json!({ "alg": "RS256", "kid": "ours" }), json!({ "exp": now() - 5 })),
        (&*OURS, json!({ "alg": "RS256", "kid": "ours" }), json!({ "sub": "-", "azp": "app" })),
    ] {
        assert_eq!(judged(&consumer, &token(key, &header, &change)).await, accepted(), "{header} {change}");
    }
    let evil_address = format!("http://{}", evil.address);
    for (name, token, code) in hostile(&issuer, &evil_address).into_iter().chain(without_the_right(&issuer)) {
        assert_eq!(judged(&consumer, &token).await, refusal(code), "{name}");
    }
    assert_eq!(evil.count().await, 0, "the attacker's server was contacted");
}

#[tokio::test]
async fn who_is_refused_causes_no_connection_to_kafka() {
    let (issuer, kafka) = (Issuer::start().await, Counter::listen().await);
    let bootstrap = kafka.address.to_string();
    let consumer = issuer.function("consume", &bootstrap, &[("KAFKA_REQUEST_TIMEOUT_MS", "1000")]).await;
    let after_init = kafka.count().await;
    for (name, token, code) in hostile(&issuer, "http://192.0.2.1").into_iter().chain(without_the_right(&issuer)) {
        assert_eq!(judged(&consumer, &token).await, refusal(code), "{name}");
    }
    assert_eq!(problem(&consumer.invoke(probe().build()).await), refusal("missing_token"));
    let good = issuer.token(&OURS, "ours", &[READ]);
    for event in [
        Event::get(CONSUME).query("topic=t&group_id=g&limit=0"),
        Event::get(CONSUME).query("topic=__consumer_offsets&group_id=g"),
        Event::new("HEAD", CONSUME).query("topic=t&group_id=g"),
        Event::get("/elsewhere"),
    ] {
        problem(&consumer.invoke(event.bearer(&good).build()).await);
    }
    assert_eq!(kafka.count().await, after_init);
    // A caller who is allowed does cause one.
    let (status, code) = judged(&consumer, &good).await;
    assert!(status == 503 || status == 504, "{status} {code}");
    assert!(kafka.count().await > after_init);
}

#[tokio::test]
async fn a_new_key_is_found_at_once_and_unknown_names_cost_one_fetch_a_minute() {
    let issuer = Issuer::start().await;
    let consumer = Arc::new(issuer.function("consume", &Stack::shared().await.bootstrap(), &[]).await);
    let cold = issuer.fetches();
    assert_eq!(cold, 1, "the keys are fetched once, at init");
    let old = issuer.token(&OURS, "ours", &[READ]);
    for _ in 0..3 {
        assert_eq!(judged(&consumer, &old).await, accepted());
    }
    assert_eq!(issuer.fetches(), cold, "known keys need no fetch");

    issuer.publish(&[OURS.jwk("ours"), NEXT.jwk("next")]);
    let new = issuer.token(&NEXT, "next", &[READ]);
    let mut calls = JoinSet::new();
    for n in 0..60 {
        let (consumer, new, old) = (Arc::clone(&consumer), new.clone(), old.clone());
        let unknown = issuer.token(&FOREIGN, &format!("unknown-{n}"), &[READ]);
        calls.spawn(async move {
            match n % 3 {
                0 => assert_eq!(judged(&consumer, &unknown).await, refusal("invalid_token")),
                1 => assert_eq!(judged(&consumer, &new).await, accepted()),
                _ => assert_eq!(judged(&consumer, &old).await, accepted()),
            }
        });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("judged as it should be");
    }
    assert_eq!(issuer.fetches(), cold + 1);

    // The issuer withdraws a key: known until the next refresh, and nobody can force one before its time.
    issuer.publish(&[NEXT.jwk("next")]);
    assert_eq!(judged(&consumer, &issuer.token(&FOREIGN, "more", &[READ])).await, refusal("invalid_token"));
    assert_eq!(judged(&consumer, &new).await, accepted());
    assert_eq!(issuer.fetches(), cold + 1);
}

/// Asks again and again until the answer is another than 503.
async fn once_available(function: &Function, token: &str) -> (u64, String) {
    let begun = Instant::now();
    loop {
        let got = judged(function, token).await;
        if got.0 != 503 || begun.elapsed() > Duration::from_secs(30) {
            return got;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_issuer_away_at_the_cold_start_is_503_until_it_comes_and_needs_no_new_sandbox() {
    let issuer = Issuer::away();
    let bootstrap = Stack::shared().await.bootstrap();
    let (consumer, producer) =
        (issuer.function("consume", &bootstrap, &[]).await, issuer.function("produce", &bootstrap, &[]).await);
    let token = issuer.token(&OURS, "ours", &[READ, WRITE]);
    let response = consumer.invoke(probe().bearer(&token).build()).await;
    assert_eq!(problem(&response), refusal("identity_unavailable"));
    assert_eq!(Answer::read(&response).body["retryable"], true);
    let event = || Event::post(PRODUCE).bearer(&token).json(&json!({ "topic": "t", "value": "v" })).build();
    assert_eq!(problem(&producer.invoke(event()).await), refusal("identity_unavailable"));
    // What can be refused without the issuer is.
    assert_eq!(problem(&consumer.invoke(probe().build()).await), refusal("missing_token"));
    assert_eq!(judged(&consumer, "x.y.z").await, refusal("invalid_token"));

    issuer.come().await;
    assert_eq!(once_available(&consumer, &token).await, accepted());
    assert_eq!(judged(&consumer, &issuer.token(&FOREIGN, "ours", &[READ])).await, refusal("invalid_token"));
    assert!(!consumer.exited());
}

#[tokio::test]
async fn an_outage_of_the_issuer_is_not_noticed_while_its_keys_are_known() {
    let issuer = Issuer::start().await;
    let consumer = issuer.function("consume", &Stack::shared().await.bootstrap(), &[]).await;
    issuer.go().await;
    let token = issuer.token(&OURS, "ours", &[READ]);
    assert_eq!(judged(&consumer, &token).await, accepted());
    assert_eq!(judged(&consumer, &issuer.token(&FOREIGN, "ours", &[READ])).await, refusal("invalid_token"));
    // Whether this key is the issuer's, nobody can say now.
    let new = issuer.token(&NEXT, "next", &[READ]);
    assert_eq!(judged(&consumer, &new).await, refusal("identity_unavailable"));
    assert_eq!(judged(&consumer, &token).await, accepted(), "and the others go on");

    issuer.publish(&[NEXT.jwk("next")]);
    issuer.come().await;
    assert_eq!(once_available(&consumer, &new).await, accepted());
    assert_eq!(judged(&consumer, &token).await, refusal("invalid_token"), "withdrawn");
}

#[tokio::test]
async fn roles_are_taken_from_the_configured_claims_and_then_from_nowhere_else() {
    let issuer = Issuer::start().await;
    let more = [("OIDC_ROLE_CLAIMS", r"scope,https://acme\.example/roles")];
    let consumer = issuer.function("consume", &Stack::shared().await.bootstrap(), &more).await;
    let header = json!({ "alg": "RS256", "kid": "ours" });
    for (change, expected) in [
        (json!({ "scope": format!("openid {READ}") }), accepted()),
        (json!({ "https://acme.example/roles": [READ] }), accepted()),
        (json!({ "realm_access": { "roles": [READ] } }), refusal("forbidden")),
        (json!({ "scope": "openid" }), refusal("forbidden")),
    ] {
        let token = OURS.token(&header, &changed(issuer.claims(&[]), &change));
        assert_eq!(judged(&consumer, &token).await, expected, "{change}");
    }
    let consumer = issuer.function("consume", &Stack::shared().await.bootstrap(), &[]).await;
    for (change, expected) in [
        (json!({ "resource_access": { AUDIENCE: { "roles": [READ] } } }), accepted()),
        (
            json!({ "authorization": { "permissions": [{ "rsname": "kafka_consumer", "scopes": ["read"] }] } }),
            accepted(),
        ),
        (json!({ "resource_access": { "account": { "roles": [READ] } } }), refusal("forbidden")),
    ] {
        let token = OURS.token(&header, &changed(issuer.claims(&[]), &change));
        assert_eq!(judged(&consumer, &token).await, expected, "{change}");
    }
    assert_eq!(refused(&consumer, "gateway-full", probe()).await, refusal("invalid_token"), "of another issuer");
}
