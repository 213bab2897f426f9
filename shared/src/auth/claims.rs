//! Pinned validation: what a token must be, decided by configuration and by the issuer's keys, never by the token.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::jwks::KeySet;
use super::rbac::{Principal, RoleClaims};
use crate::config::OidcConfig;
use crate::errors::{Code, Error};

/// Tokens beyond this are not looked at. API Gateway's own limit for all headers together is 10 KB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// What the issuer's clock and ours may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// The last second of the year 9999. A date beyond it is milliseconds taken for seconds, or an attempt at an overflow.
const LAST_DATE: f64 = 253_402_300_799.0;

/// A token whose form is good and whose content nobody has vouched for yet.
pub(super) struct Token<'a> {
    /// What is signed: the encoded header and payload with the dot between.
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    kid: String,
}

impl<'a> Token<'a> {
    /// Takes the token apart and checks its header.
    pub(super) fn parse(token: &'a str) -> Result<Self, Error> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(invalid("The token is too large"));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("The token is not a signed JWT"));
        };
        let message = &token[..header.len() + 1 + payload.len()];
        let header = object(header).ok_or_else(|| invalid("The token's header cannot be read"))?;

        // Of the header only these count. Keys that a token brings along (`jwk`, `jku`, `x5c`, `x5u`) are never looked at.
        let algorithm = header
            .get("alg")
            .and_then(Value::as_str)
            .and_then(accepted_algorithm)
            .ok_or_else(|| invalid("The token's algorithm is not accepted"))?;
        if header.contains_key("crit") {
            return Err(invalid("The token's header asks for extensions that are not supported (crit)"));
        }
        if !header.get("typ").is_none_or(is_access_token_type) {
            return Err(invalid("The token's header has a type other than JWT and at+jwt"));
        }
        let Some(Value::String(kid)) = header.get("kid") else {
            return Err(invalid("The token's header names no key (kid)"));
        };
        Ok(Self { message, payload, signature, algorithm, kid: kid.clone() })
    }

    /// The name of the key that is said to have signed it.
    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    /// The claims, once a key of the issuer vouches for them.
    pub(super) fn verify(&self, keys: &KeySet) -> Result<Map<String, Value>, Error> {
        let mut fitting = keys.fitting(&self.kid, self.algorithm).peekable();
        if fitting.peek().is_none() {
            return Err(invalid("The token's algorithm does not fit its key"));
        }
        let genuine = |key| {
            jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, self.algorithm)
                .is_ok_and(|genuine| genuine)
        };
        if !fitting.any(genuine) {
            return Err(invalid("The token's signature is not valid"));
        }
        object(self.payload).ok_or_else(|| invalid("The token's claims cannot be read"))
    }
}

/// The algorithms of the contract. HMAC and `none` are not among them, so a public key can never serve as a shared secret.
fn accepted_algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

/// Media types compare without case, and may leave `application/` out (RFC 7515, 4.1.9).
fn is_access_token_type(typ: &Value) -> bool {
    typ.as_str().is_some_and(|typ| {
        let typ = typ.to_ascii_lowercase();
        matches!(typ.strip_prefix("application/").unwrap_or(&typ), "jwt" | "at+jwt")
    })
}

/// What the claims must say.
pub(super) struct Rules {
    issuer: String,
    audience: String,
    roles: RoleClaims,
}

impl Rules {
    pub(super) fn new(config: &OidcConfig) -> Self {
        Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            roles: RoleClaims::new(&config.audience, config.role_claims.as_deref()),
        }
    }

    /// The caller, if every claim is as it must be at that time.
    pub(super) fn principal(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<Principal, Error> {
        if claims.get("iss").and_then(Value::as_str) != Some(self.issuer.as_str()) {
            return Err(invalid("The token is of another issuer"));
        }
        if !self.is_for_us(claims.get("aud")) {
            return Err(invalid("The token's audience is not this service"));
        }
        // Keycloak signs ID and refresh tokens with the same keys and tells them apart here.
        if claims.get("typ").is_some_and(|typ| typ.as_str() != Some("Bearer")) {
            return Err(invalid("The token is not an access token"));
        }
        // Such a token is worth something only together with a proof (DPoP, mTLS) that is not checked here.
        if claims.contains_key("cnf") {
            return Err(invalid("The token is bound to a key of its holder (cnf), which is not supported"));
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = LEEWAY.as_secs_f64();
        let expires = date(claims, "exp")?.ok_or_else(|| invalid("The token never expires (exp)"))?;
        if date(claims, "nbf")?.is_some_and(|not_before| not_before > now + leeway) {
            return Err(invalid("The token is not valid yet (nbf)"));
        }
        if date(claims, "iat")?.is_some_and(|issued| issued > now + leeway) {
            return Err(invalid("The token was issued in the future (iat)"));
        }
        let (kind, name) = identity(claims)?;
        // Last, so that `expired_token` means: the same token, issued anew, would do.
        if now >= expires + leeway {
            return Err(Error::new(Code::ExpiredToken, "The token has expired"));
        }
        Ok(Principal::new(&self.issuer, kind, name, self.roles.grants(claims)))
    }

    fn is_for_us(&self, audience: Option<&Value>) -> bool {
        match audience {
            Some(Value::String(one)) => *one == self.audience,
            Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(&self.audience)),
            _ => false,
        }
    }
}

/// Whom the token speaks for: the subject, or else the client. The kind is part of the identity, for a user may be named
/// like a client.
fn identity(claims: &Map<String, Value>) -> Result<(&'static str, &str), Error> {
    for (claim, kind) in [("sub", "sub"), ("client_id", "client"), ("azp", "client")] {
        match claims.get(claim) {
            None => {}
            Some(Value::String(name)) if !name.is_empty() => return Ok((kind, name)),
            Some(_) => return Err(invalid(format!("The token's {claim} is not a name"))),
        }
    }
    Err(invalid("The token names neither a subject nor a client"))
}

/// A `NumericDate` (RFC 7519, 2): seconds since 1970, with or without a fraction.
fn date(claims: &Map<String, Value>, claim: &str) -> Result<Option<f64>, Error> {
    let Some(value) = claims.get(claim) else { return Ok(None) };
    match value.as_f64() {
        Some(seconds) if (0.0..=LAST_DATE).contains(&seconds) => Ok(Some(seconds)),
        _ => Err(invalid(format!("The token's {claim} is not a date"))),
    }
}

/// `401 invalid_token`. No cause is kept: parsers quote what they stumble over, and that would be the token.
fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Code::InvalidToken, detail)
}

/// Decodes a part of the token to a JSON object.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice::<Unique>(&bytes).ok().map(|Unique(members)| members)
}

/// A JSON object without repeated names (RFC 7515, 4; RFC 7519, 4): where a name comes twice, another parser may have
/// judged by the other value.
struct Unique(Map<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unique, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name is repeated"));
                    }
                }
                Ok(Unique(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}
