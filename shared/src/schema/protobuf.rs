//! Protobuf: proto3 JSON to messages and back, by the schema's `.proto` text.

mod strict;

use std::cell::RefCell;
use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{DynamicMessage, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use protox::Compiler;
use protox::file::{File, FileResolver, GoogleFileResolver};
use serde::de::DeserializeSeed;
use serde_json::Value;
use serde_path_to_error::{Path, Segment, Track};

use self::strict::Strict;
use super::mismatch::{Mismatch, step};
use super::registry::Reference;
use super::{LARGEST_JSON, wire};
use crate::errors::BoxError;

/// The schema's own file; references have the names that `import` knows them by.
const MAIN: &str = "kafka-gateway.proto";

/// A schema with its imports.
pub(super) struct Protobuf(FileDescriptor);

impl Protobuf {
    pub(super) fn parse(text: &str, references: &[Reference]) -> Result<Self, BoxError> {
        let mut files: HashMap<_, _> =
            references.iter().map(|reference| (reference.name.clone(), reference.schema.clone())).collect();
        files.insert(MAIN.to_owned(), text.to_owned());
        let mut compiler = Compiler::with_file_resolver(Files(files));
        compiler.include_imports(true).open_file(MAIN).map_err(|error| error.to_string())?;
        let file = compiler.descriptor_pool().get_file_by_name(MAIN).ok_or("the compiler lost the file")?;
        Ok(Self(file))
    }

    /// Proto3 JSON to the file's first message, with the way to it.
    pub(super) fn encode(&self, json: &str) -> Result<Vec<u8>, Mismatch> {
        let unfit = |expected| Mismatch::of_text("", expected, json);
        let descriptor = self.0.messages().next().ok_or_else(|| unfit("a message: the schema has none"))?;
        let beyond_types = RefCell::new(None);
        let strict = Strict { place: Some(Place::One(Kind::Message(descriptor.clone()))), expected: &beyond_types };
        let read = read(json, strict).and_then(|_| read(json, descriptor.clone()));
        let message = read.map_err(|path| match serde_json::from_str(json) {
            Ok(value) => mismatch(descriptor, &path, &value, beyond_types.take()),
            Err(_) => Mismatch::unreadable(json),
        })?;
        // The way to the first message is written as a single zero.
        let mut out = vec![0];
        message.encode(&mut out).map_err(|_| unfit("a smaller message"))?;
        Ok(out)
    }

    /// A message, with the way to it, to proto3 JSON.
    pub(super) fn decode(&self, bytes: &[u8]) -> Option<String> {
        let (descriptor, body) = self.message(bytes)?;
        let message = DynamicMessage::decode(descriptor, body).ok()?;
        serde_json::to_string(&message).ok().filter(|json| json.len() <= LARGEST_JSON)
    }

    /// The message that a record says it is: how many steps, then each; none stands for the first message.
    fn message<'a>(&self, bytes: &'a [u8]) -> Option<(MessageDescriptor, &'a [u8])> {
        let (steps, mut rest) = wire::long(bytes)?;
        if steps == 0 {
            return Some((self.0.messages().next()?, rest));
        }
        let mut found: Option<MessageDescriptor> = None;
        for _ in 0..steps {
            let (index, behind) = wire::long(rest)?;
            let index = usize::try_from(index).ok()?;
            found = match found {
                None => self.0.messages().nth(index),
                Some(outer) => outer.child_messages().nth(index),
            };
            found.as_ref()?;
            rest = behind;
        }
        Some((found?, rest))
    }
}

struct Files(HashMap<String, String>);

impl FileResolver for Files {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.0.get(name) {
            Some(source) => match descriptor(name, source) {
                Some(file) => Ok(file),
                None => File::from_source(name, source),
            },
            None => GoogleFileResolver::new().open_file(name),
        }
    }
}

/// A file's descriptor in base64, as some of Confluent's clients register it. A `.proto` text is no base64.
fn descriptor(name: &str, source: &str) -> Option<File> {
    let mut descriptor = FileDescriptorProto::decode(&*STANDARD.decode(source).ok()?).ok()?;
    descriptor.name = Some(name.to_owned());
    Some(File::from_file_descriptor_proto(descriptor))
}

/// Reads JSON; where that fails, as far as it came.
fn read<'de, Seed: DeserializeSeed<'de>>(json: &'de str, seed: Seed) -> Result<Seed::Value, Path> {
    let (mut deserializer, mut track) = (serde_json::Deserializer::from_str(json), Track::new());
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let read = seed.deserialize(tracked);
    read.map_err(|_| track.path())
}

/// What stood where reading stopped, and what should have. prost-reflect's own messages quote the value.
fn mismatch(root: MessageDescriptor, path: &Path, json: &Value, beyond_types: Option<String>) -> Mismatch {
    let (mut pointer, mut place, mut value) = (String::new(), Place::One(Kind::Message(root)), json);
    for segment in path {
        let name = match segment {
            Segment::Map { key } => key.clone(),
            Segment::Seq { index } => index.to_string(),
            Segment::Enum { .. } | Segment::Unknown => break,
        };
        step(&mut pointer, &name);
        value = json.pointer(&pointer).unwrap_or(&Value::Null);
        match place.below(&name) {
            Some(below) => place = below,
            None => break,
        }
    }
    if let Some(expected) = beyond_types {
        return Mismatch::new(&pointer, expected, value);
    }
    if let (Place::One(Kind::Message(message)), Value::Object(members)) = (&place, value)
        && let Some((name, value)) = members.iter().find(|(name, _)| field(message, name).is_none())
    {
        step(&mut pointer, name);
        return Mismatch::new(&pointer, format!("no such field in message {}", message.full_name()), value);
    }
    Mismatch::new(&pointer, place.expected(), value)
}

/// What a schema has at a place of a value.
enum Place {
    One(Kind),
    List(Kind),
    Map(Kind),
}

impl Place {
    fn below(&self, name: &str) -> Option<Self> {
        match self {
            Self::One(Kind::Message(message)) => field(message, name).map(|field| Self::of(&field)),
            Self::One(_) => None,
            Self::List(kind) | Self::Map(kind) => Some(Self::One(kind.clone())),
        }
    }

    fn of(field: &FieldDescriptor) -> Self {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => Self::Map(entry.map_entry_value_field().kind()),
            kind if field.is_list() => Self::List(kind),
            kind => Self::One(kind),
        }
    }

    fn expected(&self) -> String {
        let (prefix, kind) = match self {
            Self::One(kind) => ("", kind),
            Self::List(kind) => ("array of ", kind),
            Self::Map(kind) => ("map of ", kind),
        };
        match kind {
            Kind::Message(message) => format!("{prefix}message {}", message.full_name()),
            Kind::Enum(names) => {
                let names: Vec<_> = names.values().map(|value| value.name().to_owned()).collect();
                format!("{prefix}one of {}", names.join(", "))
            }
            scalar => format!("{prefix}{scalar:?}"),
        }
    }
}

fn field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_json_name(name).or_else(|| message.get_field_by_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = r#"syntax = "proto3";
        package shop;
        import "google/protobuf/timestamp.proto";
        import "google/protobuf/struct.proto";
        import "google/protobuf/wrappers.proto";
        import "shop/money.proto";
        message Order {
            message Line { string sku = 1; int32 count = 2; double unit_price = 3; }
            enum State { OPEN = 0; PAID = 1; }
            int64 id = 1;
            repeated Line lines = 2;
            State state = 3;
            map<string, double> rates = 4;
            Money total = 5;
            google.protobuf.Timestamp at = 6;
            bytes raw = 7;
            oneof how { string card = 8; bool cash = 9; }
            repeated float weights = 10;
            google.protobuf.Int64Value boxed = 11;
            google.protobuf.Struct any = 12;
        }
        message Other { uint32 n = 1; }"#;

    fn order() -> Protobuf {
        let schema = r#"syntax = "proto3"; package shop; message Money { uint64 units = 1; }"#.into();
        Protobuf::parse(ORDER, &[Reference { name: "shop/money.proto".into(), schema }]).expect("a schema")
    }

    #[test]
    fn proto3_json_comes_back_as_it_was() {
        let sent = r#"{"id":"9223372036854775807","lines":[{"sku":"a","count":2}],"state":"PAID","rates":{"x":"NaN"},"total":{"units":"18446744073709551615"},"at":"2026-01-01T00:00:00Z","raw":"AP8=","card":"c"}"#;
        let bytes = order().encode(sent).expect("fits");
        assert_eq!(bytes[0], 0, "the first message");
        assert_eq!(order().decode(&bytes).expect("whole"), sent);
        assert_eq!(order().decode(&bytes[..bytes.len() - 1]), None);
        // Names as in the .proto, and numbers instead of strings, are taken as well.
        assert!(order().encode(r#"{"id":5,"state":1,"cash":true}"#).is_ok());
        // Members of a Struct are nobody's fields.
        let free = r#"{"any":{"numberValue":"12 apples","string_value":{"fields":1e300}}}"#;
        let back = order().decode(&order().encode(free).expect("fits")).expect("whole");
        assert!(back.contains(r#""numberValue":"12 apples""#), "{back}");
        // Also whole numbers that are written with a point or an exponent, as far as a double holds them.
        let bytes = order().encode(r#"{"id":-9007199254740991.0,"lines":[{"count":1e3}],"boxed":7}"#).expect("fits");
        let back = order().decode(&bytes).expect("whole");
        assert_eq!(back, r#"{"id":"-9007199254740991","lines":[{"count":1000}],"boxed":"7"}"#);
    }

    #[test]
    fn what_proto2_requires_must_be_there() {
        let file = Protobuf::parse(
            r#"syntax = "proto2"; import "google/protobuf/struct.proto";
                message A { required int32 a = 1; optional B b = 2; optional V v = 3; }
                message B { required string c = 1; }
                message V { required google.protobuf.Value v = 1; }"#,
            &[],
        );
        let file = file.expect("a schema");
        assert!(file.encode(r#"{"a":1,"v":{"v":null}}"#).is_ok(), "null is a value there");
        assert!(file.encode(r#"{"a":0}"#).is_ok() && file.encode(r#"{"a":1,"b":{"c":""}}"#).is_ok());
        for (json, pointer, field) in [("{}", "", "a"), (r#"{"a":1,"b":{}}"#, "/b", "c"), (r#"{"a":null}"#, "", "a")] {
            let wrong = file.encode(json).expect_err(json);
            assert_eq!(
                (&*wrong.pointer, &*wrong.expected),
                (pointer, &*format!("the field {field}, which is required"))
            );
        }
    }

    #[test]
    fn a_record_says_which_message_it_is() {
        assert_eq!(order().decode(&[2, 2, 8, 7]).as_deref(), Some(r#"{"n":7}"#), "Other");
        assert_eq!(order().decode(&[4, 0, 0, 16, 3]).as_deref(), Some(r#"{"count":3}"#), "Order.Line");
        assert_eq!(order().decode(&[2, 0, 8, 7]).as_deref(), Some(r#"{"id":"7"}"#), "Order, the long way");
        for unknown in [&[2, 4, 8, 7][..], &[1], &[], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0]] {
            assert_eq!(order().decode(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_and_never_shown() {
        for (json, pointer, expected, found) in [
            (r#"{"id":"s3cret"}"#, "/id", "int64", "string of 6 characters"),
            (r#"{"lines":[{"count":1},{"count":"s3cret"}]}"#, "/lines/1/count", "int32", "string of 6 characters"),
            (r#"{"rates":{"a":true}}"#, "/rates/a", "double", "boolean"),
            (r#"{"state":"s3cret"}"#, "/state", "one of OPEN, PAID", "string of 6 characters"),
            (r#"{"lines":[{"s3":1}]}"#, "/lines/0/s3", "no such field in message shop.Order.Line", "number"),
            (r#"{"at":"s3cret"}"#, "/at", "message google.protobuf.Timestamp", "string of 6 characters"),
            (r#"{"card":"x","cash":true}"#, "", "message shop.Order", "object of 2 members"),
            ("[]", "", "message shop.Order", "array of 0 items"),
            (r#"{"id":-9223372036854775809}"#, "/id", "int64", "number"),
            (r#"{"id":9223372036854775808.0}"#, "/id", "int64", "number"),
            (r#"{"id":9007199254740993.0}"#, "/id", "int64", "number"),
            (r#"{"total":{"units":18446744073709551616}}"#, "/total/units", "uint64", "number"),
            (r#"{"weights":[1,1e39]}"#, "/weights/1", "float", "number"),
            (r#"{"weights":["1e39"]}"#, "/weights/0", "float", "string of 4 characters"),
            (r#"{"rates":{"a":"1e400"}}"#, "/rates/a", "double", "string of 5 characters"),
            (r#"{"rates":{"a":"inf"}}"#, "/rates/a", "double", "string of 3 characters"),
            (r#"{"boxed":1e300}"#, "/boxed", "message google.protobuf.Int64Value", "number"),
            (r#"{"id":1,"id":1}"#, "", "an object, each field once", "object of 1 members"),
            (
                r#"{"lines":[{"unitPrice":1,"unit_price":1}]}"#,
                "/lines/0",
                "an object, each field once",
                "object of 2 members",
            ),
            (r#"{"rates":{"a":1e999}}"#, "", &Mismatch::unreadable("{}").expected, "object"),
        ] {
            let wrong = order().encode(json).expect_err(json);
            let expected = Mismatch { pointer: pointer.into(), expected: expected.into(), found: found.into() };
            assert_eq!(wrong, expected, "{json}");
        }
    }

    #[test]
    fn hostile_schemas_and_messages_end() {
        let nested = format!("syntax=\"proto3\"; {}{}", "message a {".repeat(100_000), "}".repeat(100_000));
        assert!(Protobuf::parse(&nested, &[]).is_err());
        for text in ["", "syntax = \"proto3\";", "import \"nowhere.proto\";", "import \"kafka-gateway.proto\";", "}"] {
            assert!(
                Protobuf::parse(text, &[]).is_ok_and(|file| file.encode("{}").is_err())
                    || Protobuf::parse(text, &[]).is_err()
            );
        }
        let tree = Protobuf::parse("syntax=\"proto3\"; message T { T t = 1; }", &[]).expect("a schema");
        let mut bytes = Vec::new();
        for _ in 0..10_000 {
            let mut outer = vec![10];
            prost_reflect::prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend(bytes);
            bytes = outer;
        }
        assert_eq!(tree.decode(&[&[0][..], &bytes].concat()), None);
    }
}
