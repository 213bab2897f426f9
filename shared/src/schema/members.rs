//! A JSON object as it was sent.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::record::Once;

/// An object's members.
pub(super) type Members<'a> = Once<String, &'a RawValue>;

impl<'a> Members<'a> {
    pub(super) fn read(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

/// Whether no object in the text holds a name twice. JSON that passes is read alike by everybody.
pub(super) fn unambiguous(json: &str) -> bool {
    serde_json::from_str::<Unambiguous>(json).is_ok()
}

struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;

        macro_rules! scalars {
            ($($visit:ident: $scalar:ty),+) => {
                $(fn $visit<E: Error>(self, _: $scalar) -> Result<Self::Value, E> { Ok(Unambiguous) })+
            };
        }

        impl<'de> Visitor<'de> for Walk {
            type Value = Unambiguous;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Unambiguous)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                while items.next_element::<Unambiguous>()?.is_some() {}
                Ok(Unambiguous)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut names = HashSet::new();
                while let Some((name, _)) = map.next_entry::<String, Unambiguous>()? {
                    if !names.insert(name) {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                }
                Ok(Unambiguous)
            }
        }

        deserializer.deserialize_any(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_once() {
        assert!(unambiguous(r#"{"a":[{"b":1.5e3},{"b":null}],"c":{"a":"a"},"d":true}"#));
        assert!(!unambiguous(r#"{"a":[{"b":1,"\u0062":2}]}"#));
        assert!(Members::read(r#"{"a":1,"a":1}"#).is_none());
        let names: Vec<_> =
            Members::read(r#"{"b":1,"a":2}"#).expect("an object").0.into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
