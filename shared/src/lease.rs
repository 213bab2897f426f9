//! Lease tokens: what a consume call with `ack=manual` gives out, and an acknowledge call brings back.
//!
//! A token names the records' group, topics and partitions, and holds a secret of 256 random bits. Names are not secret
//! and not trusted: permission is checked again, and the secret's hash in a position's mark decides whether the token
//! means anything there. The secret itself is stored nowhere.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::errors::{Code, Error};
use crate::kafka::position::{Hash, Holder};
use crate::names::{GroupId, TopicName};

/// More partitions than any lease has; a token with more is none of ours.
const PARTITIONS: usize = 100;

/// What a lease's holder has in hand.
#[derive(Clone)]
pub struct Token {
    /// The group.
    pub group: GroupId,
    /// The topics, and the partitions of each.
    pub places: BTreeMap<TopicName, BTreeSet<i32>>,
    secret: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("group", &self.group).field("places", &self.places).finish_non_exhaustive()
    }
}

/// The token's text, before base64. Functions of different releases read each other's: what the first one knew is
/// written as it was.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    One(OneTopic),
    Several(SeveralTopics),
}

/// Version 1.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneTopic {
    v: u32,
    t: String,
    g: String,
    p: BTreeSet<i32>,
    s: String,
}

/// Version 2.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeveralTopics {
    v: u32,
    t: BTreeMap<String, BTreeSet<i32>>,
    g: String,
    s: String,
}

impl Token {
    /// A new token, for no partition yet.
    pub fn new(group: &GroupId) -> Self {
        // Seeded by the operating system, and cryptographically secure (rand's ThreadRng is ChaCha12).
        Self { group: group.clone(), places: BTreeMap::new(), secret: rand::random() }
    }

    /// The same token, for these partitions.
    #[must_use]
    pub fn of(&self, partitions: impl IntoIterator<Item = (TopicName, i32)>) -> Self {
        let mut places = BTreeMap::<_, BTreeSet<_>>::new();
        for (topic, partition) in partitions {
            places.entry(topic).or_default().insert(partition);
        }
        Self { places, ..self.clone() }
    }

    /// The topic, if it is only one.
    pub fn only_topic(&self) -> Option<&TopicName> {
        self.places.keys().next().filter(|_| self.places.len() == 1)
    }

    /// The token as text.
    pub fn encode(&self) -> String {
        let (g, s) = (self.group.as_str().to_owned(), URL_SAFE_NO_PAD.encode(self.secret));
        let mut places: Vec<_> = self.places.iter().map(|(topic, p)| (topic.as_str().to_owned(), p.clone())).collect();
        let text = match (places.pop(), places.is_empty()) {
            (Some((t, p)), true) => Text::One(OneTopic { v: 1, t, g, p, s }),
            (last, _) => Text::Several(SeveralTopics { v: 2, t: places.into_iter().chain(last).collect(), g, s }),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&text).unwrap_or_default())
    }

    /// Reads a token's text. `400 invalid_parameter` for anything that is none.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).ok_or_else(|| Error::new(Code::InvalidParameter, "token: is not a token of a consume call"))
    }

    fn read(text: &str) -> Option<Self> {
        let (known, places, group, secret) = match serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()? {
            Text::One(OneTopic { v, t, g, p, s }) => (v == 1, BTreeMap::from([(t, p)]), g, s),
            Text::Several(SeveralTopics { v, t, g, s }) => (v == 2, t, g, s),
        };
        let count = places.values().map(BTreeSet::len).sum::<usize>();
        let some = |partitions: &BTreeSet<i32>| partitions.first().is_some_and(|first| *first >= 0);
        if !known || places.is_empty() || count > PARTITIONS || !places.values().all(some) {
            return None;
        }
        let places = places.into_iter().map(|(topic, partitions)| Some((TopicName::parse(&topic).ok()?, partitions)));
        Some(Self {
            group: GroupId::parse(&group).ok()?,
            places: places.collect::<Option<_>>()?,
            secret: URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()?,
        })
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

    fn token(places: &[(&str, i32)]) -> Token {
        let topic = |name| TopicName::parse(name).expect("legal");
        let places = places.iter().map(|(name, partition)| (topic(name), *partition));
        Token::new(&GroupId::parse("g:ü").expect("legal")).of(places)
    }

    #[test]
    fn a_token_survives_its_text_and_anything_else_is_refused() {
        assert!(Token::parse(&token(&[]).encode()).is_err(), "for no partition");
        assert!(Token::parse(&token(&[("t", 0), ("u", -1)]).encode()).is_err(), "for no such partition");
        for places in [&[("t", 7), ("t", 0)][..], &[("t", 7), ("0", 0), ("t", 0)]] {
            let token = token(places);
            let read = Token::parse(&token.encode()).expect("a token");
            assert_eq!((&read.group, &read.places), (&token.group, &token.places));
            assert_eq!(read.only_topic().is_some(), token.places.len() == 1);
            assert_eq!(read.holder("me"), token.holder("me"));
            assert_ne!(read.holder("me"), token.holder("you"));
            assert_ne!(self::token(places).holder("me"), token.holder("me"));
            for text in ["", "x", "eyJ9", "e30", &format!("{}=", token.encode()), &"A".repeat(10_000)] {
                assert_eq!(Token::parse(text).expect_err(text).code(), Code::InvalidParameter, "{text}");
            }
            assert!(!format!("{token:?}").contains(&URL_SAFE_NO_PAD.encode(token.secret)));
        }
    }

    #[test]
    fn a_token_of_one_topic_is_what_it_was_before_there_were_others() {
        let json = |token: &Token| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.encode()).expect("base64")).expect("JSON")
        };
        let (one, two) = (token(&[("t", 1), ("t", 0)]), token(&[("t", 1), ("u", 0)]));
        let secret = |token: &Token| URL_SAFE_NO_PAD.encode(token.secret);
        let first = serde_json::json!({ "v": 1, "t": "t", "g": "g:ü", "p": [0, 1], "s": secret(&one) });
        assert_eq!(json(&one), first);
        let second = serde_json::json!({ "v": 2, "t": { "t": [1], "u": [0] }, "g": "g:ü", "s": secret(&two) });
        assert_eq!(json(&two), second);
        for (of, version) in [(&one, 2), (&two, 1), (&two, 3)] {
            let mut other = json(of);
            other["v"] = version.into();
            let text = URL_SAFE_NO_PAD.encode(other.to_string());
            assert!(Token::parse(&text).is_err(), "{other}");
        }
        let many: Vec<_> = (0..101).map(|partition| (if partition < 50 { "t" } else { "u" }, partition)).collect();
        assert!(Token::parse(&token(&many[..100]).encode()).is_ok());
        assert!(Token::parse(&token(&many).encode()).is_err());
    }
}
