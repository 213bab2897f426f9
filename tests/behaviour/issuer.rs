//! An identity provider of the tests' own, with keys made at run time, and listeners that count who comes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::UNIX_EPOCH;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair};
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tests::{Function, free_port};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the functions take for their audience.
pub(crate) const AUDIENCE: &str = "kafka-gateway";

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

/// A private key.
pub(crate) enum Key {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

fn rsa() -> Key {
    Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"))
}

/// The issuer's.
pub(crate) static OURS: LazyLock<Key> = LazyLock::new(rsa);
/// The one the issuer changes to.
pub(crate) static NEXT: LazyLock<Key> = LazyLock::new(rsa);
/// An attacker's.
pub(crate) static FOREIGN: LazyLock<Key> = LazyLock::new(rsa);
/// Also the issuer's.
pub(crate) static CURVE: LazyLock<Key> =
    LazyLock::new(|| Key::Ec(EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key")));

impl Key {
    /// The public half, as an issuer publishes it.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
                let (n, e) = (b64(n.big_endian_without_leading_zero()), b64(e.big_endian_without_leading_zero()));
                json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e })
            }
            Self::Ec(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": kid, "x": b64(x), "y": b64(y) })
            }
        }
    }

    /// The public half in DER.
    pub(crate) fn public(&self) -> &[u8] {
        match self {
            Self::Rsa(key) => key.public_key().as_ref(),
            Self::Ec(key) => key.public_key().as_ref(),
        }
    }

    /// A token of this header and these claims. Signed with SHA-256, whatever the header says.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let encoding = &signature::RSA_PKCS1_SHA256;
                key.sign(encoding, &random, message.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Self::Ec(key) => key.sign(&random, message.as_bytes()).expect("signed").as_ref().to_vec(),
        };
        format!("{message}.{}", b64(signature))
    }
}

/// Discovery and a key set on loopback.
pub(crate) struct Issuer {
    port: u16,
    shared: Arc<Shared>,
    server: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    address: String,
    keys: Mutex<Value>,
    asked: Mutex<Vec<String>>,
}

impl Issuer {
    /// One that is not there yet.
    pub(crate) fn away() -> Self {
        let port = free_port().expect("a port");
        let shared = Shared {
            address: format!("http://127.0.0.1:{port}"),
            keys: Mutex::new(json!([OURS.jwk("ours"), CURVE.jwk("curve")])),
            asked: Mutex::default(),
        };
        Self { port, shared: Arc::new(shared), server: Mutex::default() }
    }

    /// One that answers.
    pub(crate) async fn start() -> Self {
        let issuer = Self::away();
        issuer.come().await;
        issuer
    }

    /// Begins to answer.
    pub(crate) async fn come(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port");
        let shared = Arc::clone(&self.shared);
        let router = Router::new().fallback(async move |request: Request| shared.answer(request.uri().path()));
        let serve = async move { axum::serve(listener, router).await.expect("served") };
        *self.server.lock().expect("whole") = Some(tokio::spawn(serve));
    }

    /// Goes away; the port is closed when this returns.
    pub(crate) async fn go(&self) {
        let server = self.server.lock().expect("whole").take().expect("a server");
        server.abort();
        assert!(server.await.expect_err("aborted").is_cancelled());
    }

    pub(crate) fn publish(&self, keys: &[Value]) {
        *self.shared.keys.lock().expect("whole") = json!(keys);
    }

    /// How often the keys were asked for.
    pub(crate) fn fetches(&self) -> usize {
        self.shared.asked.lock().expect("whole").iter().filter(|path| *path == "/keys").count()
    }

    /// Claims with nothing wrong.
    pub(crate) fn claims(&self, roles: &[&str]) -> Value {
        json!({
            "iss": self.shared.address, "aud": AUDIENCE, "sub": "me", "typ": "Bearer",
            "iat": now(), "exp": now() + 300, "realm_access": { "roles": roles },
        })
    }

    /// A token with nothing wrong.
    pub(crate) fn token(&self, key: &Key, kid: &str, roles: &[&str]) -> String {
        key.token(&json!({ "alg": "RS256", "typ": "JWT", "kid": kid }), &self.claims(roles))
    }

    /// Starts a function that takes this issuer's tokens.
    pub(crate) async fn function(&self, name: &str, bootstrap: &str, more: &[(&str, &str)]) -> Function {
        let own = [
            ("KAFKA_BOOTSTRAP_SERVERS", bootstrap),
            ("OIDC_ISSUER", &self.shared.address),
            ("OIDC_AUDIENCE", AUDIENCE),
        ];
        let env = own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Function::start(name, &env.collect::<BTreeMap<_, _>>()).await
    }
}

impl Shared {
    fn answer(&self, path: &str) -> Response {
        self.asked.lock().expect("whole").push(path.to_owned());
        match path {
            "/.well-known/openid-configuration" => {
                json!({ "issuer": self.address, "jwks_uri": format!("{}/keys", self.address) })
                    .to_string()
                    .into_response()
            }
            "/keys" => json!({ "keys": *self.keys.lock().expect("whole") }).to_string().into_response(),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }
}

/// Takes every connection, counts it, keeps it open, and says nothing.
pub(crate) struct Counter {
    pub(crate) address: SocketAddr,
    count: Arc<AtomicUsize>,
}

impl Counter {
    pub(crate) async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let counter = Self { address: listener.local_addr().expect("bound"), count: Arc::default() };
        let count = Arc::clone(&counter.count);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                open.push(stream);
            }
        });
        counter
    }

    /// How many came so far: what waits in the backlog is counted as well, since a connection of ours comes after it.
    pub(crate) async fn count(&self) -> usize {
        let before = self.count.load(Ordering::SeqCst);
        let own = tokio::net::TcpStream::connect(self.address).await.expect("connected");
        while self.count.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
        drop(own);
        self.count.fetch_sub(1, Ordering::SeqCst) - 1
    }
}
