//! Avro's binary encoding to JSON.

use std::fmt::Write as _;

use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, RecordSchema, UnionSchema, UuidSchema};
use apache_avro::{Schema, Uuid};

use super::{DEPTH, Names, ambiguous, decimal, resolved, tag};
use crate::schema::{LARGEST_JSON, wire};

/// The JSON text; none where the bytes are not a value of this schema, and nothing else.
pub(super) fn decode(schema: &Schema, names: &Names, bytes: &[u8]) -> Option<String> {
    let mut decoder = Decoder { names, rest: bytes, out: String::new(), sole: None };
    decoder.value(schema, 0)?;
    decoder.rest.is_empty().then_some(decoder.out)
}

struct Decoder<'a> {
    names: &'a Names,
    rest: &'a [u8],
    out: String,
    /// The name of the only member of the object that was written last.
    sole: Option<String>,
}

impl<'a> Decoder<'a> {
    fn value(&mut self, schema: &Schema, depth: usize) -> Option<()> {
        // A block of a million nulls takes no more than its count.
        if depth > DEPTH || self.out.len() > LARGEST_JSON {
            return None;
        }
        match schema {
            Schema::Ref { .. } => match resolved(schema, self.names) {
                Schema::Ref { .. } => return None,
                named => self.value(named, depth)?,
            },
            Schema::Union(union) => self.union(union, depth)?,
            Schema::Null => self.out.push_str("null"),
            Schema::Boolean => {
                let byte = self.take(1)?;
                self.out.push_str(match byte {
                    [0] => "false",
                    [1] => "true",
                    _ => return None,
                });
            }
            Schema::Int | Schema::Date | Schema::TimeMillis => {
                let number = i32::try_from(self.long()?).ok()?;
                let _ = write!(self.out, "{number}");
            }
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => {
                let number = self.long()?;
                let _ = write!(self.out, "{number}");
            }
            Schema::Float => {
                let number = f32::from_le_bytes(self.take(4)?.try_into().ok()?);
                self.number(f64::from(number), &serde_json::to_string(&number).ok()?);
            }
            Schema::Double => {
                let number = f64::from_le_bytes(self.take(8)?.try_into().ok()?);
                self.number(number, &serde_json::to_string(&number).ok()?);
            }
            Schema::String | Schema::Uuid(UuidSchema::String) => {
                let text = std::str::from_utf8(self.bytes()?).ok()?;
                self.text(text)?;
            }
            Schema::Uuid(UuidSchema::Bytes) => {
                let uuid = Uuid::from_slice(self.bytes()?).ok()?;
                let _ = write!(self.out, "\"{uuid}\"");
            }
            Schema::Uuid(UuidSchema::Fixed(_)) => {
                let uuid = Uuid::from_slice(self.take(16)?).ok()?;
                let _ = write!(self.out, "\"{uuid}\"");
            }
            Schema::Bytes | Schema::BigDecimal => {
                let bytes = self.bytes()?;
                self.latin(bytes)?;
            }
            Schema::Fixed(fixed) | Schema::Duration(fixed) => {
                let bytes = self.take(fixed.size)?;
                self.latin(bytes)?;
            }
            Schema::Decimal(DecimalSchema { scale, inner, .. }) => {
                let bytes = match inner {
                    InnerDecimalSchema::Bytes => self.bytes()?,
                    InnerDecimalSchema::Fixed(fixed) => self.take(fixed.size)?,
                };
                self.out.push_str(&decimal::text(bytes, *scale)?);
            }
            Schema::Enum(symbols) => {
                let index = usize::try_from(self.long()?).ok()?;
                self.text(symbols.symbols.get(index)?)?;
            }
            Schema::Array(array) => {
                self.blocks('[', ']', |this| this.value(&array.items, depth + 1))?;
            }
            Schema::Map(map) => {
                let mut last = None;
                let count = self.blocks('{', '}', |this| {
                    let name = std::str::from_utf8(this.bytes()?).ok()?;
                    last = Some(name);
                    this.text(name)?;
                    this.out.push(':');
                    this.value(&map.types, depth + 1)
                })?;
                self.sole = last.filter(|_| count == 1).map(str::to_owned);
            }
            Schema::Record(record) => self.record(record, depth)?,
        }
        Some(())
    }

    fn record(&mut self, record: &RecordSchema, depth: usize) -> Option<()> {
        self.out.push('{');
        for (index, field) in record.fields.iter().enumerate() {
            if index > 0 {
                self.out.push(',');
            }
            self.text(&field.name)?;
            self.out.push(':');
            self.value(&field.schema, depth + 1)?;
        }
        self.out.push('}');
        self.sole = if let [only] = &*record.fields { Some(only.name.clone()) } else { None };
        Some(())
    }

    /// The plain value; with its tag where it could be taken for another branch's.
    fn union(&mut self, union: &UnionSchema, depth: usize) -> Option<()> {
        let branch = union.variants().get(usize::try_from(self.long()?).ok()?)?;
        let start = self.out.len();
        self.sole = None;
        self.value(branch, depth + 1)?;
        let sole = self.sole.take();
        let like_a_tag = sole.is_some_and(|name| union.variants().iter().any(|branch| tag(branch) == name));
        if !matches!(branch, Schema::Null) && (like_a_tag || ambiguous(union, self.names)) {
            let name = tag(branch);
            self.out.insert_str(start, &format!("{{{}:", serde_json::to_string(&name).ok()?));
            self.out.push('}');
            self.sole = Some(name);
        }
        Some(())
    }

    /// The items of an array or a map, block by block; how many there were.
    fn blocks(&mut self, open: char, close: char, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<usize> {
        self.out.push(open);
        let mut items = 0;
        loop {
            let count = self.long()?;
            if count == 0 {
                break;
            }
            if count < 0 {
                // The block's size in bytes, for those who want to skip it.
                self.long()?;
            }
            for _ in 0..count.unsigned_abs() {
                if items > 0 {
                    self.out.push(',');
                }
                item(self)?;
                items += 1;
            }
        }
        self.out.push(close);
        Some(items)
    }

    fn number(&mut self, number: f64, text: &str) {
        self.out.push_str(match number {
            _ if number.is_finite() => text,
            _ if number.is_nan() => "\"NaN\"",
            _ if number > 0.0 => "\"Infinity\"",
            _ => "\"-Infinity\"",
        });
    }

    fn text(&mut self, text: &str) -> Option<()> {
        self.out.push_str(&serde_json::to_string(text).ok()?);
        Some(())
    }

    /// Bytes in Avro's JSON encoding.
    fn latin(&mut self, bytes: &[u8]) -> Option<()> {
        self.text(&bytes.iter().copied().map(char::from).collect::<String>())
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.long()?).ok()?;
        self.take(count)
    }

    fn long(&mut self) -> Option<i64> {
        let (number, rest) = wire::long(self.rest)?;
        self.rest = rest;
        Some(number)
    }
}
