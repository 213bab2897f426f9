//! Avro: JSON to the binary encoding and back, by schema.
//!
//! apache-avro parses the schemas. The binary encoding is written and read here, straight from and to JSON text: numbers
//! keep all their digits and maps their order on the way, and what a hostile or cut-off record can do is bounded.
//! (apache-avro 0.22 takes a string or a union that is cut off for a null, and its reader has no limit of depth.)
//!
//! The mapping is in the README. What is written as JSON here always reads back as the same bytes.

mod decimal;
mod decode;
mod encode;

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{Name, ResolvedSchema, UnionSchema};

use super::mismatch::Mismatch;
use super::registry::Reference;
use crate::errors::BoxError;

/// How deep values may be nested, in both directions.
const DEPTH: usize = 100;

/// A schema, with all that it refers to.
pub(super) struct Avro {
    root: Schema,
    names: Names,
}

type Names = HashMap<Name, Schema>;

impl Avro {
    pub(super) fn parse(text: &str, references: &[Reference]) -> Result<Self, BoxError> {
        let texts = references.iter().map(|reference| reference.schema.as_str());
        let (root, others) = Schema::parse_str_with_list(text, texts)?;
        let all = others.iter().chain([&root]).collect();
        let resolved = ResolvedSchema::new_with_schemata(all)?;
        let names = resolved.get_names().iter().map(|(name, schema)| (name.clone(), (*schema).clone())).collect();
        Ok(Self { root, names })
    }

    /// JSON to Avro's binary encoding.
    pub(super) fn encode(&self, json: &str) -> Result<Vec<u8>, Mismatch> {
        encode::encode(&self.root, &self.names, json)
    }

    /// Avro's binary encoding to JSON.
    pub(super) fn decode(&self, bytes: &[u8]) -> Option<String> {
        decode::decode(&self.root, &self.names, bytes)
    }
}

/// What a named type's reference stands for. The parser has made sure that it is there.
fn resolved<'a>(schema: &'a Schema, names: &'a Names) -> &'a Schema {
    match schema {
        Schema::Ref { name } => names.get(name).unwrap_or(schema),
        other => other,
    }
}

/// The name of a branch in Avro's JSON encoding of unions.
fn tag(branch: &Schema) -> String {
    let primitive = match branch {
        Schema::Null => "null",
        Schema::Boolean => "boolean",
        Schema::Int | Schema::Date | Schema::TimeMillis => "int",
        Schema::Long
        | Schema::TimeMicros
        | Schema::TimestampMillis
        | Schema::TimestampMicros
        | Schema::TimestampNanos
        | Schema::LocalTimestampMillis
        | Schema::LocalTimestampMicros
        | Schema::LocalTimestampNanos => "long",
        Schema::Float => "float",
        Schema::Double => "double",
        Schema::Array(_) => "array",
        Schema::Map(_) => "map",
        other => match (other.name(), other) {
            (Some(name), _) => return name.fullname(None),
            (None, Schema::String | Schema::Uuid(_)) => "string",
            _ => "bytes",
        },
    };
    primitive.to_owned()
}

/// What a value looks like as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Number,
    Text,
    Array,
    Object,
}

impl Kind {
    fn of(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't' | b'f') => Self::Boolean,
            Some(b'"') => Self::Text,
            Some(b'[') => Self::Array,
            Some(b'{') => Self::Object,
            _ => Self::Number,
        }
    }
}

/// What a type's values may look like.
fn kinds(schema: &Schema, names: &Names) -> &'static [Kind] {
    match resolved(schema, names) {
        Schema::Null => &[Kind::Null],
        Schema::Boolean => &[Kind::Boolean],
        Schema::Array(_) => &[Kind::Array],
        Schema::Map(_) | Schema::Record(_) => &[Kind::Object],
        // NaN and the infinities are text.
        Schema::Float | Schema::Double | Schema::Decimal(_) => &[Kind::Number, Kind::Text],
        Schema::String
        | Schema::Bytes
        | Schema::BigDecimal
        | Schema::Uuid(_)
        | Schema::Enum(_)
        | Schema::Fixed(_)
        | Schema::Duration(_) => &[Kind::Text],
        _ => &[Kind::Number],
    }
}

/// Whether JSON alone does not tell the branches apart.
fn ambiguous(union: &UnionSchema, names: &Names) -> bool {
    let mut seen = Vec::new();
    union.variants().iter().flat_map(|branch| kinds(branch, names)).any(|kind| {
        let again = seen.contains(&kind);
        seen.push(kind);
        again
    })
}

#[cfg(test)]
mod tests;
