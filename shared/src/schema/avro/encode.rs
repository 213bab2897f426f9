//! JSON to Avro's binary encoding.

use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, RecordSchema, UnionSchema, UuidSchema};
use apache_avro::{Schema, Uuid};
use serde_json::value::RawValue;

use super::{DEPTH, Kind, Names, decimal, kinds, resolved, tag};
use crate::schema::members::Members;
use crate::schema::mismatch::{Mismatch, step};
use crate::schema::wire;

pub(super) fn encode(schema: &Schema, names: &Names, json: &str) -> Result<Vec<u8>, Mismatch> {
    let work = FREE_WORK + WORK_PER_BYTE * json.len();
    let mut encoder = Encoder { names, out: Vec::new(), work, default: false };
    encoder.value(schema, json, &At { above: None, depth: 0 })?;
    Ok(encoder.out)
}

/// How many bytes may be read, those of a value again for each branch of a union that is tried: unions in unions
/// multiply.
const FREE_WORK: usize = 1_000_000;
const WORK_PER_BYTE: usize = 256;

/// A place in the value.
struct At<'a> {
    above: Option<(&'a At<'a>, &'a str)>,
    depth: usize,
}

impl<'a> At<'a> {
    fn member(&'a self, name: &'a str) -> Self {
        Self { above: Some((self, name)), depth: self.depth + 1 }
    }

    fn pointer(&self) -> String {
        let Some((above, name)) = self.above else { return String::new() };
        let mut pointer = above.pointer();
        step(&mut pointer, name);
        pointer
    }
}

struct Encoder<'a> {
    names: &'a Names,
    out: Vec<u8>,
    work: usize,
    /// Whether it is a schema's default that is encoded: a decimal is written as its bytes there.
    default: bool,
}

impl Encoder<'_> {
    fn value(&mut self, schema: &Schema, json: &str, at: &At<'_>) -> Result<(), Mismatch> {
        let wrong = |expected: &str| Mismatch::of_text(&at.pointer(), expected, json);
        self.work = self.work.checked_sub(json.len()).ok_or_else(|| wrong("tags in unions: too many branches fit"))?;
        if at.depth > DEPTH {
            return Err(wrong("less nesting"));
        }
        match schema {
            Schema::Ref { .. } => match resolved(schema, self.names) {
                Schema::Ref { .. } => return Err(wrong("a type that the schema defines")),
                named => self.value(named, json, at)?,
            },
            Schema::Union(union) => self.union(union, json, at)?,
            Schema::Null => expect(json == "null", || wrong("null"))?,
            Schema::Boolean => match json {
                "true" => self.out.push(1),
                "false" => self.out.push(0),
                _ => return Err(wrong("boolean")),
            },
            Schema::Int | Schema::Date | Schema::TimeMillis => {
                self.long(i64::from(json.parse::<i32>().map_err(|_| wrong("int"))?));
            }
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => self.long(json.parse().map_err(|_| wrong("long"))?),
            Schema::Float => {
                let number = number(json, str::parse::<f32>, f32::is_finite).ok_or_else(|| wrong("float"))?;
                self.out.extend(number.to_le_bytes());
            }
            Schema::Double => {
                let number = number(json, str::parse::<f64>, f64::is_finite).ok_or_else(|| wrong("double"))?;
                self.out.extend(number.to_le_bytes());
            }
            Schema::String => self.bytes(text(json).ok_or_else(|| wrong("string"))?.as_bytes()),
            Schema::Uuid(kind) => {
                let text = text(json).ok_or_else(|| wrong("uuid"))?;
                let bytes = Uuid::parse_str(&text).map_err(|_| wrong("uuid"))?.into_bytes();
                match kind {
                    UuidSchema::String => self.bytes(text.as_bytes()),
                    UuidSchema::Bytes => self.bytes(&bytes),
                    UuidSchema::Fixed(_) => self.out.extend(bytes),
                }
            }
            Schema::Bytes | Schema::BigDecimal => {
                let bytes = latin(json).ok_or_else(|| wrong("bytes: a string of characters from U+0000 to U+00FF"))?;
                self.bytes(&bytes);
            }
            Schema::Fixed(fixed) | Schema::Duration(fixed) => {
                let bytes = latin(json).filter(|bytes| bytes.len() == fixed.size);
                let expected = || wrong(&format!("fixed: {} characters from U+0000 to U+00FF", fixed.size));
                self.out.extend(bytes.ok_or_else(expected)?);
            }
            Schema::Decimal(decimal) => self.decimal(decimal, json, &wrong)?,
            Schema::Enum(symbols) => {
                let text = text(json);
                let index = symbols.symbols.iter().position(|symbol| Some(symbol) == text.as_ref());
                let expected = || wrong(&format!("one of {}", symbols.symbols.join(", ")));
                self.count(index.ok_or_else(expected)?);
            }
            Schema::Array(array) => {
                let items: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| wrong("array"))?;
                self.block(items.len());
                for (index, item) in items.iter().enumerate() {
                    self.value(&array.items, item.get(), &at.member(&index.to_string()))?;
                }
                self.count(0);
            }
            Schema::Map(map) => {
                let members = Members::read(json).ok_or_else(|| wrong("map: an object, each name once"))?;
                self.block(members.0.len());
                for (name, value) in &members.0 {
                    self.bytes(name.as_bytes());
                    self.value(&map.types, value.get(), &at.member(name))?;
                }
                self.count(0);
            }
            Schema::Record(record) => self.record(record, json, at)?,
        }
        Ok(())
    }

    fn record(&mut self, record: &RecordSchema, json: &str, at: &At<'_>) -> Result<(), Mismatch> {
        let name = record.name.fullname(None);
        let members = Members::read(json).ok_or_else(|| {
            Mismatch::of_text(&at.pointer(), format!("record {name}: an object, each name once"), json)
        })?;
        for field in &record.fields {
            let at = at.member(&field.name);
            if let Some((_, value)) = members.0.iter().find(|(name, _)| *name == field.name) {
                self.value(&field.schema, value.get(), &at)?;
            } else if let Some(default) = &field.default {
                let outer = std::mem::replace(&mut self.default, true);
                let written = self.value(&field.schema, &default.to_string(), &at);
                self.default = outer;
                written?;
            } else {
                let expected = tag(resolved(&field.schema, self.names));
                return Err(Mismatch::absent(at.pointer(), expected));
            }
        }
        let unknown = |(name, _): &&(String, &RawValue)| !record.fields.iter().any(|field| field.name == *name);
        match members.0.iter().find(unknown) {
            None => Ok(()),
            Some((member, value)) => {
                let expected = format!("no such field in record {name}");
                Err(Mismatch::of_text(&at.member(member).pointer(), expected, value.get()))
            }
        }
    }

    /// Avro's own JSON encoding, where it is one and fits; otherwise the first branch that fits.
    fn union(&mut self, union: &UnionSchema, json: &str, at: &At<'_>) -> Result<(), Mismatch> {
        let start = self.out.len();
        let mut wrong = Vec::new();
        if let Some([(name, value)]) = Members::read(json).as_ref().map(|members| members.0.as_slice())
            && let Some(index) = union.variants().iter().position(|branch| tag(branch) == *name)
        {
            self.count(index);
            match self.value(&union.variants()[index], value.get(), &at.member(name)) {
                Ok(()) => return Ok(()),
                Err(mismatch) => wrong.push(mismatch),
            }
            self.out.truncate(start);
        }
        for (index, branch) in union.variants().iter().enumerate() {
            self.count(index);
            let tried = At { above: at.above, depth: at.depth + 1 };
            let Err(mismatch) = self.value(branch, json, &tried) else { return Ok(()) };
            self.out.truncate(start);
            if kinds(branch, self.names).contains(&Kind::of(json)) {
                wrong.push(mismatch);
            }
        }
        // What is wrong deep inside says more than the list, where it is plain which branch was meant.
        if wrong.len() == 1 {
            return wrong.pop().map_or(Ok(()), Err);
        }
        let names: Vec<_> = union.variants().iter().map(tag).collect();
        Err(Mismatch::of_text(&at.pointer(), format!("one of {}", names.join(", ")), json))
    }

    fn decimal(
        &mut self,
        decimal: &DecimalSchema,
        json: &str,
        wrong: &dyn Fn(&str) -> Mismatch,
    ) -> Result<(), Mismatch> {
        let DecimalSchema { precision, scale, inner } = decimal;
        let expected = || wrong(&format!("decimal of {precision} digits, {scale} of them behind the point"));
        let bytes = if self.default {
            latin(json)
        } else {
            let digits = text(json).unwrap_or_else(|| json.to_owned());
            let number = decimal::unscaled(&digits, *precision, *scale).ok_or_else(expected)?;
            match inner {
                InnerDecimalSchema::Bytes => Some(number.to_signed_bytes_be()),
                InnerDecimalSchema::Fixed(fixed) => decimal::to_fixed(&number, fixed.size),
            }
        };
        match (bytes.ok_or_else(expected)?, inner) {
            (bytes, InnerDecimalSchema::Bytes) => self.bytes(&bytes),
            (bytes, InnerDecimalSchema::Fixed(_)) => self.out.extend(bytes),
        }
        Ok(())
    }

    fn long(&mut self, number: i64) {
        wire::push_long(&mut self.out, number);
    }

    fn count(&mut self, count: usize) {
        self.long(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.out.extend(bytes);
    }

    /// The items of an array or a map are one block, and an empty block is the end.
    fn block(&mut self, items: usize) {
        if items > 0 {
            self.count(items);
        }
    }
}

fn expect(fits: bool, wrong: impl FnOnce() -> Mismatch) -> Result<(), Mismatch> {
    if fits { Ok(()) } else { Err(wrong()) }
}

fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// The bytes of a string in Avro's JSON encoding.
fn latin(json: &str) -> Option<Vec<u8>> {
    text(json)?.chars().map(|character| u8::try_from(u32::from(character)).ok()).collect()
}

/// A number, or the name of one that JSON does not have. What is out of range is refused.
fn number<T: Copy, E>(json: &str, parse: fn(&str) -> Result<T, E>, finite: fn(T) -> bool) -> Option<T> {
    match json {
        "\"NaN\"" | "\"Infinity\"" | "\"-Infinity\"" => parse(json.trim_matches('"')).ok(),
        _ => parse(json).ok().filter(|number| finite(*number)),
    }
}
