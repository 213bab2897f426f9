//! What must be true of proto3 JSON before prost-reflect reads it, since it writes something else than was sent where it is not:
//! numbers that a double cannot hold, fields that stand twice, required fields (proto2) that do not stand there. What a
//! `google.protobuf.Any` holds is not looked into.
//!
//! The rules: <https://protobuf.dev/programming-guides/json/>.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use prost_reflect::{Cardinality, Kind};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Place, field};

/// From here on (2⁵³) a double is not sure to be the whole number that was written.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Reads a value at a place of the schema (none, where there is nothing to say of it), for its faults alone: whether it is
/// something other than `null`, which is as if it were not there. What the place asks for beyond its type is left in
/// `expected`.
pub(super) struct Strict<'a> {
    pub(super) place: Option<Place>,
    pub(super) expected: &'a RefCell<Option<String>>,
}

impl Strict<'_> {
    fn below(&self, name: &str) -> Self {
        let place = self.place.as_ref().filter(|place| !is_free(place));
        Self { place: place.and_then(|place| place.below(name)), ..*self }
    }

    fn refuse<E: Error>(&self, expected: String) -> E {
        self.expected.replace(Some(expected));
        E::custom("not as the schema has it")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(self.place.as_ref().is_some_and(has_null))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
        Ok(true)
    }

    /// Whole numbers come here if they have a point or an exponent, or more than 64 bits.
    fn visit_f64<E: Error>(self, number: f64) -> Result<bool, E> {
        match self.place {
            Some(Place::One(kind)) if number.abs() >= EXACT && scalar(&kind) == Scalar::Integer => {
                Err(E::custom("not sure to be this number"))
            }
            _ => Ok(true),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        let Some(Place::One(kind)) = &self.place else { return Ok(true) };
        let finite = match scalar(kind) {
            Scalar::Double => text.parse().is_ok_and(f64::is_finite),
            Scalar::Float => text.parse().is_ok_and(f32::is_finite),
            Scalar::Integer | Scalar::Other => return Ok(true),
        };
        if finite || matches!(text, "NaN" | "Infinity" | "-Infinity") { Ok(true) } else { Err(E::custom("no number")) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        while items.next_element_seed(self.below(""))?.is_some() {}
        Ok(true)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let message = match &self.place {
            Some(place @ Place::One(Kind::Message(message))) if !is_free(place) => Some(message),
            _ => None,
        };
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let below = self.below(&name);
            // A field has two names.
            let name = message.and_then(|message| field(message, &name)).map_or(name, |field| field.name().to_owned());
            let is_there = map.next_value_seed(below)?;
            if is_there && !names.insert(name) {
                return Err(self.refuse("an object, each field once".into()));
            }
        }
        let required = |field: &prost_reflect::FieldDescriptor| field.cardinality() == Cardinality::Required;
        let missing =
            message.and_then(|message| message.fields().filter(required).find(|field| !names.contains(field.name())));
        match missing {
            Some(field) => Err(self.refuse(format!("the field {}, which is required", field.name()))),
            None => Ok(true),
        }
    }
}

/// Whether the JSON of a message has its own members, and not the message's fields.
fn is_free(place: &Place) -> bool {
    matches!(place, Place::One(Kind::Message(message)) if matches!(
        message.full_name(),
        "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" | "google.protobuf.Any"
    ))
}

/// Whether `null` is a value there.
fn has_null(place: &Place) -> bool {
    match place {
        Place::One(Kind::Message(message)) => message.full_name() == "google.protobuf.Value",
        Place::One(Kind::Enum(kind)) => kind.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

#[derive(PartialEq, Eq)]
enum Scalar {
    Integer,
    Double,
    Float,
    Other,
}

/// What a kind is in JSON; the wrappers of scalars are like those.
fn scalar(kind: &Kind) -> Scalar {
    match kind {
        Kind::Double => Scalar::Double,
        Kind::Float => Scalar::Float,
        Kind::Bool | Kind::String | Kind::Bytes | Kind::Enum(_) => Scalar::Other,
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.DoubleValue" => Scalar::Double,
            "google.protobuf.FloatValue" => Scalar::Float,
            "google.protobuf.Int64Value" | "google.protobuf.UInt64Value" => Scalar::Integer,
            _ => Scalar::Other,
        },
        _ => Scalar::Integer,
    }
}
