//! The way from header to principal, against an issuer of our own: keys made at run time, a few lines of HTTP, and a clock
//! that stands until it is told.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use aws_lc_rs::{hmac, rsa::KeySize};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::*;

const AUDIENCE: &str = "kafka-gateway";
/// When the tests' clock starts.
const NOW: u64 = 1_800_000_000;
const INVALID: Result<(), Code> = Err(Code::InvalidToken);
const EXPIRED: Result<(), Code> = Err(Code::ExpiredToken);
const MISSING: Result<(), Code> = Err(Code::MissingToken);
const UNAVAILABLE: Result<(), Code> = Err(Code::IdentityUnavailable);

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

enum Private {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

static RSA: LazyLock<Private> = LazyLock::new(|| Private::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")));
static OTHER_RSA: LazyLock<Private> =
    LazyLock::new(|| Private::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")));
static P256: LazyLock<Private> = LazyLock::new(|| {
    Private::P256(EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"))
});
static P384: LazyLock<Private> = LazyLock::new(|| {
    Private::P384(EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"))
});
static ED: LazyLock<Private> = LazyLock::new(|| Private::Ed(Ed25519KeyPair::generate().expect("a key")));

impl Private {
    /// The public half, as an issuer publishes it.
    fn jwk(&self, kid: &str, more: &Value) -> Value {
        let mut jwk = match self {
            Self::Rsa(key) => {
                let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
                json!({"kty": "RSA", "n": b64(n.big_endian_without_leading_zero()),
                       "e": b64(e.big_endian_without_leading_zero())})
            }
            Self::P256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": b64(x), "y": b64(y)})
            }
            Self::P384(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(48);
                json!({"kty": "EC", "crv": "P-384", "x": b64(x), "y": b64(y)})
            }
            Self::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key())}),
        };
        jwk["kid"] = json!(kid);
        merge(&mut jwk, more);
        jwk
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let encoding: &'static dyn signature::RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut signature).expect("signed");
                signature
            }
            Self::P256(key) | Self::P384(key) => key.sign(&random, message).expect("signed").as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token of these very texts.
    fn token_of(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(claims));
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", b64(signature))
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        self.token_of(header["alg"].as_str().unwrap_or_default(), &header.to_string(), &claims.to_string())
    }
}

/// Adds members, or takes them away where the new value is the word `-`.
fn merge(object: &mut Value, changes: &Value) {
    let object = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        if value == "-" {
            object.remove(name);
        } else {
            object.insert(name.clone(), value.clone());
        }
    }
}

#[derive(Clone)]
enum Reply {
    Json(Value),
    /// A head to be sent as it is.
    Head(String),
    Silence,
}

/// What the issuer answers by path, and what it was asked.
struct Issuer {
    address: String,
    replies: Mutex<HashMap<String, Reply>>,
    asked: Mutex<Vec<String>>,
    /// Every answer takes a permit.
    gate: Semaphore,
}

impl Issuer {
    async fn new() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let issuer = Arc::new(Self {
            replies: Mutex::default(),
            asked: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            address,
        });
        issuer.answers("/.well-known/openid-configuration", Reply::Json(issuer.discovery()));
        issuer.publishes(&[RSA.jwk("rsa", &json!({"alg": "RS256", "use": "sig"}))]);
        let served = Arc::clone(&issuer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let issuer = Arc::clone(&served);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await.expect("a request"));
                    }
                    let request = String::from_utf8(request).expect("text");
                    let path = request.split(' ').nth(1).expect("a path").to_owned();
                    issuer.asked.lock().expect("whole").push(path.clone());
                    let reply = issuer.replies.lock().expect("whole").get(&path).cloned();
                    issuer.gate.acquire().await.expect("open").forget();
                    let answer = match reply.unwrap_or(Reply::Head("404 Not Found".to_owned())) {
                        Reply::Json(body) => {
                            let body = body.to_string();
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                        }
                        Reply::Head(head) => format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n"),
                        Reply::Silence => std::future::pending().await,
                    };
                    // The caller may have gone.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        issuer
    }

    fn discovery(&self) -> Value {
        json!({"issuer": self.address, "jwks_uri": format!("{}/keys", self.address)})
    }

    fn answers(&self, path: &str, reply: Reply) {
        self.replies.lock().expect("whole").insert(path.to_owned(), reply);
    }

    fn publishes(&self, keys: &[Value]) {
        self.answers("/keys", Reply::Json(json!({"keys": keys})));
    }

    fn is_away(&self) {
        self.answers("/keys", Reply::Head("503 Service Unavailable".to_owned()));
    }

    /// How often the keys were asked for.
    fn fetches(&self) -> usize {
        self.asked.lock().expect("whole").iter().filter(|path| *path == "/keys").count()
    }

    fn config(&self) -> OidcConfig {
        OidcConfig { issuer: self.address.clone(), audience: AUDIENCE.to_owned(), jwks_uri: None, role_claims: None }
    }

    fn claims(&self) -> Value {
        json!({"iss": self.address, "aud": AUDIENCE, "sub": "me", "exp": NOW + 300, "iat": NOW, "typ": "Bearer",
               "realm_access": {"roles": ["kafka_producer:write"]}})
    }

    /// A token that has nothing wrong with it, signed by that key.
    fn token(&self, key: &Private, kid: &str, algorithm: &str) -> String {
        key.token(&json!({"alg": algorithm, "typ": "JWT", "kid": kid}), &self.claims())
    }
}

/// An authenticator on its issuer, with the hands of its clock.
struct Stage {
    issuer: Arc<Issuer>,
    authenticator: Arc<Authenticator>,
    seconds: Arc<AtomicU64>,
}

impl Stage {
    async fn new() -> Self {
        let issuer = Issuer::new().await;
        let config = issuer.config();
        Self::with(issuer, &config).await
    }

    async fn with(issuer: Arc<Issuer>, config: &OidcConfig) -> Self {
        let seconds = Arc::new(AtomicU64::new(NOW));
        let hands = Arc::clone(&seconds);
        let clock: Clock =
            Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(hands.load(Ordering::Relaxed)));
        Self {
            issuer,
            authenticator: Arc::new(
                Authenticator::start_at(config, crate::app::http_client().expect("a client"), clock).await,
            ),
            seconds,
        }
    }

    fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn ask(&self, token: &str) -> Result<Principal, Error> {
        let deadline = Instant::now() + Duration::from_secs(20);
        self.authenticator.authenticate(&[&format!("Bearer {token}")], deadline).await
    }

    async fn verdict(&self, token: &str) -> Result<(), Code> {
        self.ask(token).await.map(drop).map_err(|error| error.code())
    }

    /// The verdict on a token whose time never runs out, signed by that key.
    async fn verdict_on_key(&self, key: &Private, kid: &str) -> Result<(), Code> {
        let mut claims = self.issuer.claims();
        merge(&mut claims, &json!({"exp": NOW * 2, "iat": "-"}));
        self.verdict(&key.token(&json!({"alg": "RS256", "kid": kid}), &claims)).await
    }
}

#[tokio::test]
async fn every_algorithm_of_the_contract_works_with_its_own_kind_of_key() {
    let stage = Stage::new().await;
    let keys: [(&Private, &str, &[&str]); 4] = [
        (&RSA, "any-rsa", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (&P256, "p256", &["ES256"]),
        (&P384, "p384", &["ES384"]),
        (&ED, "ed", &["EdDSA"]),
    ];
    stage.issuer.publishes(&keys.map(|(key, kid, _)| key.jwk(kid, &json!({}))));
    for (key, kid, own) in keys {
        for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"] {
            let expected = if own.contains(&algorithm) { Ok(()) } else { INVALID };
            let token = stage.issuer.token(key, kid, algorithm);
            assert_eq!(stage.verdict(&token).await, expected, "{kid} {algorithm}");
        }
    }
    let principal = stage.ask(&stage.issuer.token(&RSA, "any-rsa", "RS256")).await.expect("good");
    assert_eq!(principal.subject(), "me");
    assert_eq!(principal.id(), json!([stage.issuer.address, "sub", "me"]).to_string());
    assert!(principal.clone().may::<Write>().is_ok());
    assert_eq!(principal.may::<Read>().expect_err("no such role").code(), Code::Forbidden);
}

#[tokio::test]
async fn the_header_must_carry_one_bearer_token() {
    let stage = Stage::new().await;
    let token = stage.issuer.token(&RSA, "rsa", "RS256");
    let soon = Instant::now() + Duration::from_secs(20);
    let good = format!("Bearer {token}");
    let verdict = async |values: &[&str]| {
        stage.authenticator.authenticate(values, soon).await.map(drop).map_err(|error| error.code())
    };
    for scheme in ["Bearer ", "bearer ", "BEARER   ", " Bearer "] {
        assert_eq!(verdict(&[&format!("{scheme}{token} ")]).await, Ok(()), "{scheme}");
    }
    assert_eq!(verdict(&[]).await, MISSING);
    for value in ["", " ", "Basic dXNlcjpwYXNz", &token, "Bearer\t", &format!("DPoP {token}"), "Bearerx y"] {
        let expected = if value == "Bearer\t" { INVALID } else { MISSING };
        assert_eq!(verdict(&[value]).await, expected, "{value}");
    }
    for value in ["Bearer", "Bearer ", "Bearer a", "Bearer a.b", "Bearer a.b.c", "Bearer ..", "Bearer a.b.c.d.e"] {
        assert_eq!(verdict(&[value]).await, INVALID, "{value}");
    }
    assert_eq!(verdict(&[&good, &good]).await, INVALID);
    assert_eq!(verdict(&[&format!("{good},{good}")]).await, INVALID);
    assert_eq!(verdict(&[&format!("{good}=")]).await, INVALID, "padded");
    assert_eq!(verdict(&[&format!("Bearer ü{token}")]).await, INVALID);
    assert_eq!(verdict(&[&format!("Bearer {}", "a".repeat(20_000))]).await, INVALID);
}

#[tokio::test]
async fn hostile_headers_are_refused_and_nothing_they_point_to_is_fetched() {
    let stage = Stage::new().await;
    let evil = &stage.issuer.address;
    stage.issuer.answers("/evil", Reply::Json(json!({"keys": [OTHER_RSA.jwk("rsa", &json!({}))]})));
    let jwk = OTHER_RSA.jwk("rsa", &json!({}));

    // Signed by the true key: only the header is wrong.
    for (header, expected) in [
        (json!({}), Ok(())),
        (json!({"typ": "-"}), Ok(())),
        (json!({"typ": "at+jwt"}), Ok(())),
        (json!({"typ": "AT+JWT"}), Ok(())),
        (json!({"typ": "application/at+jwt"}), Ok(())),
        (json!({"jku": "x", "x5u": "y", "jwk": {}, "x5c": 7}), Ok(())),
        (json!({"typ": "logout+jwt"}), INVALID),
        (json!({"typ": "dpop+jwt"}), INVALID),
        (json!({"typ": "text/jwt"}), INVALID),
        (json!({"typ": ""}), INVALID),
        (json!({"typ": null}), INVALID),
        (json!({"typ": ["JWT"]}), INVALID),
        (json!({"crit": ["exp"]}), INVALID),
        (json!({"crit": []}), INVALID),
        (json!({"crit": null}), INVALID),
        (json!({"kid": "-"}), INVALID),
        (json!({"kid": null}), INVALID),
        (json!({"kid": ["rsa"]}), INVALID),
        (json!({"kid": "RSA"}), INVALID),
        (json!({"kid": "../../rsa"}), INVALID),
        (json!({"alg": "-"}), INVALID),
        (json!({"alg": "none"}), INVALID),
        (json!({"alg": "None"}), INVALID),
        (json!({"alg": "rs256"}), INVALID),
        (json!({"alg": "HS256"}), INVALID),
        (json!({"alg": "ES256"}), INVALID),
        (json!({"alg": "ES512"}), INVALID),
        (json!({"alg": "PS256"}), INVALID),
        (json!({"alg": ["RS256"]}), INVALID),
    ] {
        let mut full = json!({"alg": "RS256", "typ": "JWT", "kid": "rsa"});
        merge(&mut full, &header);
        let token = RSA.token(&full, &stage.issuer.claims());
        assert_eq!(stage.verdict(&token).await, expected, "{header}");
    }

    // Signed by a foreign key that the header brings along.
    for header in [
        json!({}),
        json!({"jwk": jwk}),
        json!({"jku": format!("{evil}/evil")}),
        json!({"x5u": format!("{evil}/evil")}),
        json!({"x5c": ["MIIB"]}),
        json!({"jku": format!("{evil}/evil"), "kid": "other"}),
        json!({"jwk": jwk, "kid": "-"}),
    ] {
        let mut full = json!({"alg": "RS256", "kid": "rsa"});
        merge(&mut full, &header);
        let token = OTHER_RSA.token(&full, &stage.issuer.claims());
        assert_eq!(stage.verdict(&token).await, INVALID, "{header}");
    }
    assert!(!stage.issuer.asked.lock().expect("whole").contains(&"/evil".to_owned()));
}

#[tokio::test]
async fn forged_signatures_are_refused() {
    let stage = Stage::new().await;
    stage.issuer.publishes(&[
        RSA.jwk("rsa", &json!({})),
        P256.jwk("p256", &json!({})),
        json!({"kty": "oct", "kid": "secret", "k": b64("secret")}),
    ]);
    let claims = stage.issuer.claims().to_string();
    let unsigned = |header: Value| format!("{}.{}", b64(header.to_string()), b64(&claims));

    for algorithm in ["none", "None", "NONE", "", "RS256"] {
        let message = unsigned(json!({"alg": algorithm, "kid": "rsa"}));
        assert_eq!(stage.verdict(&format!("{message}.")).await, INVALID, "{algorithm}");
        assert_eq!(stage.verdict(&message).await, INVALID, "{algorithm}");
    }

    // The public key as the secret of an HMAC, in each shape that an issuer publishes it.
    let Private::Rsa(rsa) = &*RSA else { unreachable!() };
    let der = rsa.public_key().as_ref();
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", b64(der));
    let jwk = RSA.jwk("rsa", &json!({})).to_string();
    for secret in [der, pem.as_bytes(), jwk.as_bytes(), b"secret"] {
        for (algorithm, digest) in
            [("HS256", hmac::HMAC_SHA256), ("HS512", hmac::HMAC_SHA512), ("RS256", hmac::HMAC_SHA256)]
        {
            for kid in ["rsa", "secret"] {
                let message = unsigned(json!({"alg": algorithm, "kid": kid}));
                let tag = hmac::sign(&hmac::Key::new(digest, secret), message.as_bytes());
                assert_eq!(stage.verdict(&format!("{message}.{}", b64(tag))).await, INVALID, "{algorithm} {kid}");
            }
        }
    }

    // A good token, then with any part of another, or of nothing.
    let good = stage.issuer.token(&RSA, "rsa", "RS256");
    assert_eq!(stage.verdict(&good).await, Ok(()));
    let mut claims = stage.issuer.claims();
    claims["sub"] = json!("admin");
    let other = RSA.token(&json!({"alg": "RS256", "kid": "rsa"}), &claims);
    let (good, other): (Vec<_>, Vec<_>) = (good.split('.').collect(), other.split('.').collect());
    for forged in [
        [good[0], other[1], good[2]],
        [good[0], good[1], other[2]],
        [other[0], good[1], good[2]],
        [good[0], good[1], ""],
        [good[0], "", good[2]],
        ["", good[1], good[2]],
    ] {
        assert_eq!(stage.verdict(&forged.join(".")).await, INVALID);
    }

    // All zeros once passed for an ECDSA signature in Java.
    let message = unsigned(json!({"alg": "ES256", "kid": "p256"}));
    assert_eq!(stage.verdict(&format!("{message}.{}", b64([0; 64]))).await, INVALID);
}

#[tokio::test]
async fn every_claim_must_be_as_it_should() {
    let stage = Stage::new().await;
    let issuer = stage.issuer.address.clone();
    #[allow(clippy::cast_precision_loss)]
    let now = NOW as f64;
    for (change, expected) in [
        (json!({"iss": "-"}), INVALID),
        (json!({"iss": format!("{issuer}/")}), INVALID),
        (json!({"iss": issuer.to_uppercase()}), INVALID),
        (json!({"iss": [issuer]}), INVALID),
        (json!({"iss": "https://evil.example"}), INVALID),
        (json!({"aud": "-"}), INVALID),
        (json!({"aud": null}), INVALID),
        (json!({"aud": "account"}), INVALID),
        (json!({"aud": "kafka-gateway2"}), INVALID),
        (json!({"aud": []}), INVALID),
        (json!({"aud": [["kafka-gateway"]]}), INVALID),
        (json!({"aud": {"kafka-gateway": 1}}), INVALID),
        (json!({"aud": ["account", "kafka-gateway"]}), Ok(())),
        (json!({"exp": "-"}), INVALID),
        (json!({"exp": null}), INVALID),
        (json!({"exp": (NOW + 300).to_string()}), INVALID),
        (json!({"exp": -1}), INVALID),
        (json!({"exp": u64::MAX}), INVALID),
        (json!({"exp": f64::MAX}), INVALID),
        (json!({"exp": NOW * 1000}), INVALID),
        (json!({"exp": true}), INVALID),
        (json!({"exp": 0}), EXPIRED),
        (json!({"exp": NOW - 30}), EXPIRED),
        (json!({"exp": NOW - 29}), Ok(())),
        (json!({"exp": now - 29.5}), Ok(())),
        (json!({"exp": now - 30.5}), EXPIRED),
        (json!({"nbf": NOW + 30}), Ok(())),
        (json!({"nbf": NOW + 31}), INVALID),
        (json!({"nbf": now + 30.5}), INVALID),
        (json!({"nbf": "soon"}), INVALID),
        (json!({"nbf": null}), INVALID),
        (json!({"iat": "-"}), Ok(())),
        (json!({"iat": NOW + 30}), Ok(())),
        (json!({"iat": NOW + 31}), INVALID),
        (json!({"iat": -5}), INVALID),
        (json!({"iat": {}}), INVALID),
        (json!({"typ": "-"}), Ok(())),
        (json!({"typ": "ID"}), INVALID),
        (json!({"typ": "Refresh"}), INVALID),
        (json!({"typ": "Offline"}), INVALID),
        (json!({"typ": null}), INVALID),
        (json!({"cnf": {"jkt": "x"}}), INVALID),
        (json!({"cnf": null}), INVALID),
        (json!({"sub": "-"}), INVALID),
        (json!({"sub": ""}), INVALID),
        (json!({"sub": 5, "azp": "app"}), INVALID),
        (json!({"sub": "-", "azp": "app"}), Ok(())),
        (json!({"sub": "-", "client_id": "app"}), Ok(())),
        // Expired is only what is otherwise good.
        (json!({"exp": NOW - 100, "aud": "account"}), INVALID),
    ] {
        let mut claims = stage.issuer.claims();
        merge(&mut claims, &change);
        let token = RSA.token(&json!({"alg": "RS256", "kid": "rsa"}), &claims);
        assert_eq!(stage.verdict(&token).await, expected, "{change}");
    }

    let mut claims = stage.issuer.claims();
    merge(&mut claims, &json!({"sub": "-", "azp": "app"}));
    let by_azp = stage.ask(&RSA.token(&json!({"alg": "RS256", "kid": "rsa"}), &claims)).await.expect("good");
    merge(&mut claims, &json!({"azp": "-", "client_id": "app"}));
    let by_client = stage.ask(&RSA.token(&json!({"alg": "RS256", "kid": "rsa"}), &claims)).await.expect("good");
    assert_eq!((by_azp.subject(), by_azp.id()), ("app", by_client.id()));
    assert_eq!(by_azp.id(), json!([issuer, "client", "app"]).to_string());
}

#[tokio::test]
async fn texts_that_parsers_may_read_differently_are_refused() {
    let stage = Stage::new().await;
    let claims = stage.issuer.claims().to_string();
    let header = r#"{"alg":"RS256","kid":"rsa"}"#;
    for (header, claims) in [
        (r#"{"alg":"none","alg":"RS256","kid":"rsa"}"#.to_owned(), claims.clone()),
        (r#"{"alg":"RS256","kid":"x","kid":"rsa"}"#.to_owned(), claims.clone()),
        (header.to_owned(), claims.replacen('{', r#"{"aud":"account","#, 1)),
        (header.to_owned(), claims.replacen('{', r#"{"exp":1,"#, 1)),
        (header.to_owned(), claims.replacen('{', r#"{"s\u0075b":"admin","#, 1)),
        (header.to_owned(), claims.replacen('{', r#"{"realm_access":{},"#, 1)),
        (header.to_owned(), claims.replacen('{', r#"{"x":1e400,"#, 1)),
        (header.to_owned(), claims.replacen('{', r#"{"x":NaN,"#, 1)),
        (header.to_owned(), format!("{claims}{{}}")),
        (header.to_owned(), format!("[{claims}]")),
        (header.to_owned(), "null".to_owned()),
        (header.to_owned(), format!("\u{feff}{claims}")),
        (header.to_owned(), format!("{}1{}", "[".repeat(5000), "]".repeat(5000))),
        (format!("[{header}]"), claims.clone()),
    ] {
        assert_eq!(stage.verdict(&RSA.token_of("RS256", &header, &claims)).await, INVALID, "{header} {claims}");
    }
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_never_what_was_in_the_token() {
    let stage = Stage::new().await;
    stage.issuer.is_away();
    for change in
        [json!({"aud": "s3cret"}), json!({"exp": "s3cret"}), json!({"iss": "s3cret"}), json!({"typ": "s3cret"})]
    {
        for kid in ["rsa", "s3cret"] {
            let mut claims = stage.issuer.claims();
            merge(&mut claims, &change);
            let token = RSA.token(&json!({"alg": "RS256", "kid": kid}), &claims);
            let error = stage.ask(&token).await.expect_err("refused");
            let text = format!("{error:?} {:?}", error.chain());
            assert!(!text.contains("s3cret") && !text.contains(&token[..20]), "{text}");
        }
    }
}

#[tokio::test]
async fn keys_that_are_of_no_use_are_left_out() {
    let stage = Stage::new().await;
    let short = |bytes: usize, first: u8| {
        let mut n = vec![0xff; bytes];
        n[0] = first;
        b64(n)
    };
    let unusable = [
        json!(5),
        json!({}),
        json!({"kty": "RSA", "kid": "no"}),
        json!({"kty": "XYZ", "kid": "no"}),
        json!({"kty": "oct", "kid": "no", "k": "AAAA"}),
        RSA.jwk("no", &json!({"use": "enc"})),
        RSA.jwk("no", &json!({"key_ops": ["encrypt"]})),
        RSA.jwk("no", &json!({"alg": "RSA-OAEP"})),
        RSA.jwk("no", &json!({"alg": "HS256"})),
        RSA.jwk("no", &json!({"alg": "ES256"})),
        RSA.jwk("no", &json!({"alg": "what"})),
        RSA.jwk("no", &json!({"n": short(128, 0xff)})),
        RSA.jwk("no", &json!({"n": short(256, 0x7f)})),
        RSA.jwk("no", &json!({"n": b64([0; 256])})),
        RSA.jwk("no", &json!({"n": ""})),
        RSA.jwk("no", &json!({"e": "AAAA"})),
        RSA.jwk("-", &json!({"kid": "-"})),
        P256.jwk("no", &json!({"crv": "P-384"})),
        P256.jwk("no", &json!({"crv": "P-521"})),
        P256.jwk("no", &json!({"crv": "Ed25519"})),
        ED.jwk("no", &json!({"crv": "P-256"})),
        ED.jwk("no", &json!({"crv": "X25519"})),
    ];
    for key in &unusable {
        let set = jwks::KeySet::read(vec![key.clone()]);
        assert_eq!(set.len(), 0, "{key}");
    }
    let mut keys = unusable.to_vec();
    // Beside them, one name for keys of two kinds, and one for two keys of the same kind.
    keys.extend([RSA.jwk("two", &json!({})), P256.jwk("two", &json!({"key_ops": ["verify"]}))]);
    keys.extend([OTHER_RSA.jwk("same", &json!({})), RSA.jwk("same", &json!({}))]);
    keys.push(RSA.jwk("only", &json!({"alg": "PS256"})));
    let Private::Rsa(rsa) = &*RSA else { unreachable!() };
    let padded = [&[0][..], rsa.public_key().modulus().big_endian_without_leading_zero()].concat();
    keys.push(RSA.jwk("padded", &json!({"n": b64(padded)})));
    stage.issuer.publishes(&keys);
    for (key, kid, algorithm, expected) in [
        (&RSA, "two", "RS256", Ok(())),
        (&P256, "two", "ES256", Ok(())),
        (&RSA, "same", "RS256", Ok(())),
        (&OTHER_RSA, "same", "RS256", Ok(())),
        (&RSA, "only", "PS256", Ok(())),
        (&RSA, "only", "RS256", INVALID),
        (&RSA, "padded", "RS256", Ok(())),
        (&RSA, "no", "RS256", INVALID),
        (&RSA, "-", "RS256", INVALID),
    ] {
        let token = stage.issuer.token(key, kid, algorithm);
        assert_eq!(stage.verdict(&token).await, expected, "{kid} {algorithm}");
    }
}

#[tokio::test]
async fn discovery_is_believed_only_about_its_own_issuer() {
    let issuer = Issuer::new().await;
    let stage = Stage::with(Arc::clone(&issuer), &issuer.config()).await;
    let token = issuer.token(&RSA, "rsa", "RS256");
    assert_eq!(stage.verdict(&token).await, Ok(()));

    let address = &issuer.address;
    let keys = format!("{address}/keys");
    let moved = format!("302 Found\r\nlocation: {keys}");
    issuer.answers("/moved", Reply::Head(moved.clone()));
    issuer.answers("/large", Reply::Json(json!({"keys": [], "x": "x".repeat(600_000)})));
    issuer.answers("/empty", Reply::Json(json!({"keys": []})));
    for (discovery, cause) in [
        (Reply::Json(json!({"issuer": "https://evil.example", "jwks_uri": keys})), "of the issuer"),
        (Reply::Json(json!({"issuer": format!("{address}/"), "jwks_uri": keys})), "of the issuer"),
        (Reply::Json(json!({"issuer": address})), "not the JSON"),
        (Reply::Json(json!({"issuer": address, "jwks_uri": "file:///etc/passwd"})), "not an address"),
        (Reply::Json(json!({"issuer": address, "jwks_uri": "/keys"})), "not an address"),
        (Reply::Json(json!({"issuer": address, "jwks_uri": format!("{address}/moved")})), "status 302"),
        (Reply::Json(json!({"issuer": address, "jwks_uri": format!("{address}/large")})), "too large"),
        (Reply::Json(json!({"issuer": address, "jwks_uri": format!("{address}/empty")})), "no key"),
        (Reply::Head(moved), "status 302"),
    ] {
        issuer.answers("/.well-known/openid-configuration", discovery);
        let stage = Stage::with(Arc::clone(&issuer), &issuer.config()).await;
        let error = stage.ask(&token).await.expect_err("no keys");
        assert_eq!(error.code(), Code::IdentityUnavailable);
        assert!(error.chain()[1].contains(cause), "{:?}", error.chain());
    }

    // With an address of the keys configured, nobody is asked for it.
    let config = OidcConfig { jwks_uri: Some(keys), ..issuer.config() };
    issuer.asked.lock().expect("whole").clear();
    let stage = Stage::with(Arc::clone(&issuer), &config).await;
    assert_eq!(stage.verdict(&token).await, Ok(()));
    assert_eq!(*issuer.asked.lock().expect("whole"), ["/keys"]);
}

#[tokio::test]
async fn rotated_keys_are_found_at_once_and_unknown_names_cost_one_fetch_a_minute() {
    let stage = Stage::new().await;
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    assert_eq!(stage.issuer.fetches(), 1);

    stage.issuer.publishes(&[OTHER_RSA.jwk("new", &json!({}))]);
    assert_eq!(stage.verdict_on_key(&OTHER_RSA, "new").await, Ok(()));
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, INVALID, "withdrawn");
    assert_eq!(stage.issuer.fetches(), 2);

    stage.pass(59);
    for kid in ["a", "b", "rsa"] {
        assert_eq!(stage.verdict_on_key(&RSA, kid).await, INVALID);
    }
    assert_eq!(stage.issuer.fetches(), 2);
    stage.pass(1);
    for kid in ["a", "b", "rsa"] {
        assert_eq!(stage.verdict_on_key(&RSA, kid).await, INVALID);
    }
    assert_eq!(stage.issuer.fetches(), 3);
    // A known name with a bad signature is no reason to ask.
    stage.pass(60);
    assert_eq!(stage.verdict_on_key(&RSA, "new").await, INVALID);
    assert_eq!(stage.issuer.fetches(), 3);
}

#[tokio::test]
async fn a_stampede_is_one_fetch_and_known_keys_do_not_wait_for_it() {
    let stage = Arc::new(Stage::new().await);
    stage.issuer.publishes(&[RSA.jwk("rsa", &json!({})), OTHER_RSA.jwk("new", &json!({}))]);
    stage.issuer.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut calls = tokio::task::JoinSet::new();
    for call in 0..100 {
        let stage = Arc::clone(&stage);
        // Half of them come with the key that the fetch is going to bring.
        calls.spawn(async move {
            let (kid, expected) =
                if call % 2 == 0 { ("new".to_owned(), Ok(())) } else { (format!("kid-{call}"), INVALID) };
            assert_eq!(stage.verdict_on_key(&OTHER_RSA, &kid).await, expected, "{kid}");
        });
    }
    while stage.issuer.asked.lock().expect("whole").len() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    assert!(calls.try_join_next().is_none(), "the fetch is still held up");
    stage.issuer.gate.add_permits(1000);
    while let Some(call) = calls.join_next().await {
        call.expect("as expected");
    }
    assert_eq!(stage.issuer.fetches(), 2);
}

#[tokio::test]
async fn a_stampede_on_an_empty_cache_is_one_fetch() {
    let issuer = Issuer::new().await;
    issuer.is_away();
    let stage = Arc::new(Stage::with(Arc::clone(&issuer), &issuer.config()).await);
    issuer.publishes(&[RSA.jwk("rsa", &json!({}))]);
    stage.pass(3);
    let mut calls = tokio::task::JoinSet::new();
    for call in 0..100 {
        let stage = Arc::clone(&stage);
        calls.spawn(async move {
            let (kid, expected) =
                if call % 2 == 0 { ("rsa".to_owned(), Ok(())) } else { (format!("kid-{call}"), INVALID) };
            assert_eq!(stage.verdict_on_key(&RSA, &kid).await, expected, "{kid}");
        });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("as expected");
    }
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn keys_are_refreshed_every_ten_minutes_by_the_wall_clock() {
    let stage = Stage::new().await;
    stage.pass(599);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    assert_eq!(stage.issuer.fetches(), 1);
    stage.pass(1);
    for _ in 0..3 {
        assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    }
    assert_eq!(stage.issuer.fetches(), 2);
    // A withdrawn key ends with the refresh, not with its name.
    stage.issuer.publishes(&[OTHER_RSA.jwk("new", &json!({}))]);
    stage.pass(600);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, INVALID);
    assert_eq!(stage.issuer.fetches(), 3);
}

#[tokio::test]
async fn one_call_refreshes_what_is_due_and_the_others_go_on() {
    let stage = Arc::new(Stage::new().await);
    stage.issuer.gate.forget_permits(Semaphore::MAX_PERMITS);
    stage.pass(600);
    let first = Arc::clone(&stage);
    let first = tokio::spawn(async move { first.verdict_on_key(&RSA, "rsa").await });
    while stage.issuer.asked.lock().expect("whole").len() < 3 {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    }
    assert!(!first.is_finished(), "the refresh is still held up");
    stage.issuer.gate.add_permits(1000);
    assert_eq!(first.await.expect("no panic"), Ok(()));
    assert_eq!(stage.issuer.fetches(), 2);
}

#[tokio::test]
async fn a_clock_that_is_set_back_does_not_keep_keys_for_ever() {
    let stage = Stage::new().await;
    stage.seconds.store(NOW - 1_000_000, Ordering::Relaxed);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    stage.pass(600);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    assert_eq!(stage.issuer.fetches(), 2);
    stage.issuer.is_away();
    stage.seconds.store(NOW - 2_000_000, Ordering::Relaxed);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    stage.pass(24 * 3600);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, UNAVAILABLE);
}

#[tokio::test]
async fn an_outage_is_lived_through_for_a_day_and_costs_little() {
    let stage = Stage::new().await;
    stage.issuer.is_away();
    stage.pass(600);
    for _ in 0..5 {
        assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    }
    assert_eq!(stage.issuer.fetches(), 2, "the failure is remembered");
    stage.pass(30);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    assert_eq!(stage.issuer.fetches(), 3);

    // An unknown name is not the caller's fault while nobody can be asked.
    stage.pass(3);
    for _ in 0..5 {
        assert_eq!(stage.verdict_on_key(&RSA, "unknown").await, UNAVAILABLE);
    }
    assert_eq!(stage.issuer.fetches(), 4);

    stage.seconds.store(NOW + 24 * 3600 - 1, Ordering::Relaxed);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    stage.pass(1);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, UNAVAILABLE);
    stage.issuer.publishes(&[RSA.jwk("rsa", &json!({}))]);
    stage.pass(3);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
}

#[tokio::test]
async fn an_issuer_that_was_away_at_the_start_is_found_without_a_restart() {
    let issuer = Issuer::new().await;
    issuer.is_away();
    let stage = Stage::with(Arc::clone(&issuer), &issuer.config()).await;
    for _ in 0..5 {
        let error = stage.ask(&issuer.token(&RSA, "rsa", "RS256")).await.expect_err("no keys");
        assert_eq!(error.code(), Code::IdentityUnavailable);
        assert_eq!(error.chain()[1], "the key set was answered with status 503");
    }
    assert_eq!(issuer.fetches(), 1);
    issuer.publishes(&[RSA.jwk("rsa", &json!({}))]);
    stage.pass(3);
    assert_eq!(stage.verdict_on_key(&RSA, "rsa").await, Ok(()));
    assert_eq!(issuer.fetches(), 2);

    // What cannot be right needs no key.
    issuer.is_away();
    let stage = Stage::with(Arc::clone(&issuer), &issuer.config()).await;
    assert_eq!(stage.verdict(&issuer.token(&RSA, "rsa", "HS256")).await, INVALID);
}

#[tokio::test]
async fn a_call_that_is_dropped_or_out_of_time_leaves_the_cache_in_order() {
    let stage = Stage::new().await;
    stage.issuer.answers("/keys", Reply::Silence);
    let token = stage.issuer.token(&RSA, "new", "RS256");
    let header = format!("Bearer {token}");
    let headers = [header.as_str()];

    // Dropped in the middle of the fetch.
    let call = stage.authenticator.authenticate(&headers, Instant::now() + Duration::from_secs(20));
    let started = async {
        while stage.issuer.fetches() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = call => panic!("the issuer is silent"),
        () = started => {}
    }
    assert_eq!(stage.verdict(&token).await, UNAVAILABLE);
    assert_eq!(stage.issuer.fetches(), 2, "nor does the drop make the next call try at once");

    // Out of time in the middle of the fetch, and of the wait for another's.
    stage.pass(3);
    let soon = Instant::now() + Duration::from_millis(800);
    let (one, two) = tokio::join!(
        stage.authenticator.authenticate(&headers, soon),
        stage.authenticator.authenticate(&headers, soon)
    );
    for result in [one, two] {
        assert_eq!(result.expect_err("no time").code(), Code::IdentityUnavailable);
    }
    assert_eq!(stage.issuer.fetches(), 3);

    // A refresh that is only due gives in to the deadline too, and the old keys serve.
    stage.pass(700);
    let known = format!("Bearer {}", {
        let mut claims = stage.issuer.claims();
        merge(&mut claims, &json!({"exp": NOW * 2}));
        RSA.token(&json!({"alg": "RS256", "kid": "rsa"}), &claims)
    });
    let soon = Instant::now() + Duration::from_millis(800);
    assert!(stage.authenticator.authenticate(&[&known], soon).await.is_ok());
    assert_eq!(stage.issuer.fetches(), 4);

    stage.issuer.publishes(&[RSA.jwk("new", &json!({}))]);
    stage.pass(3);
    assert_eq!(stage.verdict_on_key(&RSA, "new").await, Ok(()));
}
