//! Lease tokens: what a consume call with `ack=manual` gives out, and an acknowledge call brings back.
//!
//! A token names the records' topic, group and partitions, and holds a secret of 256 random bits. Names are not secret
//! and not trusted: permission is checked again, and the secret's hash in the position's mark decides whether the token
//! means anything there. The secret itself is stored nowhere.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::errors::{Code, Error};
use crate::kafka::position::{Hash, Holder};
use crate::names::{GroupId, TopicName};

/// What a lease's holder has in hand.
#[derive(Clone)]
pub struct Token {
    /// The topic.
    pub topic: TopicName,
    /// The group.
    pub group: GroupId,
    /// The partitions.
    pub partitions: Vec<i32>,
    secret: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("topic", &self.topic).field("group", &self.group).finish_non_exhaustive()
    }
}

/// The token's text, before base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    v: u32,
    t: String,
    g: String,
    p: Vec<i32>,
    s: String,
}

const VERSION: u32 = 1;

impl Token {
    /// A new token, for no partition yet.
    pub fn new(topic: &TopicName, group: &GroupId) -> Self {
        // Seeded by the operating system, and cryptographically secure (rand's ThreadRng is ChaCha12).
        Self { topic: topic.clone(), group: group.clone(), partitions: Vec::new(), secret: rand::random() }
    }

    /// The same token, for these partitions.
    #[must_use]
    pub fn of(&self, partitions: Vec<i32>) -> Self {
        Self { partitions, ..self.clone() }
    }

    /// The token as text.
    pub fn encode(&self) -> String {
        let text = Text {
            v: VERSION,
            t: self.topic.as_str().to_owned(),
            g: self.group.as_str().to_owned(),
            p: self.partitions.clone(),
            s: URL_SAFE_NO_PAD.encode(self.secret),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&text).unwrap_or_default())
    }

    /// Reads a token's text. `400 invalid_parameter` for anything that is none.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let none = || Error::new(Code::InvalidParameter, "token: is not a token of a consume call");
        let text: Text =
            URL_SAFE_NO_PAD.decode(text).ok().and_then(|json| serde_json::from_slice(&json).ok()).ok_or_else(none)?;
        let secret = URL_SAFE_NO_PAD.decode(text.s).ok().and_then(|secret| secret.try_into().ok()).ok_or_else(none)?;
        let mut partitions = text.p;
        partitions.sort_unstable();
        partitions.dedup();
        if text.v != VERSION || partitions.is_empty() || partitions.len() > 100 || partitions[0] < 0 {
            return Err(none());
        }
        let topic = TopicName::parse(&text.t).map_err(|_| none())?;
        let group = GroupId::parse(&text.g).map_err(|_| none())?;
        Ok(Self { topic, group, partitions, secret })
    }

    /// What stands of it in the marks, if `principal` holds it.
    pub fn holder(&self, principal: &str) -> Holder {
        Holder {
            token: Hash::of(&[b"token", &self.secret]),
            principal: Hash::of(&[b"principal", &self.secret, principal.as_bytes()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_anything_else_is_refused() {
        let (topic, group) = (TopicName::parse("t").expect("legal"), GroupId::parse("g:ü").expect("legal"));
        let mut token = Token::new(&topic, &group);
        assert!(Token::parse(&token.encode()).is_err(), "for no partition");
        token.partitions = vec![0, 7];
        let read = Token::parse(&token.encode()).expect("a token");
        assert_eq!((read.topic.as_str(), read.group.as_str(), &read.partitions), ("t", "g:ü", &vec![0, 7]));
        assert_eq!(read.holder("me"), token.holder("me"));
        assert_ne!(read.holder("me"), token.holder("you"));
        assert_ne!(Token::new(&topic, &group).holder("me"), token.holder("me"));
        for text in ["", "x", "eyJ9", "e30", &format!("{}=", token.encode()), &"A".repeat(10_000)] {
            assert_eq!(Token::parse(text).expect_err(text).code(), Code::InvalidParameter, "{text}");
        }
        assert!(!format!("{token:?}").contains(&URL_SAFE_NO_PAD.encode(token.secret)));
    }
}
