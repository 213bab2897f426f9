//! A key or a value as a produce call sends it.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::registry::Version;
use crate::errors::{Code, Error};
use crate::http::request::one_of;
use crate::record::{self, Format};

/// Which part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The key.
    Key,
    /// The value.
    Value,
}

impl Field {
    /// Its member in requests, and the end of its default subject.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
        }
    }

    /// The member, or parameter, that names its format.
    pub fn format_name(self) -> &'static str {
        match self {
            Self::Key => "key_format",
            Self::Value => "value_format",
        }
    }

    /// The member that names its schema.
    pub fn schema_name(self) -> &'static str {
        match self {
            Self::Key => "key_schema",
            Self::Value => "value_schema",
        }
    }
}

/// A key or a value, still as it was sent, with all that says how it is to be written.
#[derive(Debug)]
pub struct Draft<'a> {
    pub(super) field: Field,
    pub(super) json: Cow<'a, RawValue>,
    /// The bytes to write, where they are not made of the JSON.
    pub(super) verbatim: Option<&'a [u8]>,
    pub(super) format: Format,
    pub(super) wanted: Wanted,
}

/// Which schema: by default the latest of the default subject.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) subject: Option<String>,
    pub(super) pick: Pick,
}

#[derive(Debug)]
pub(super) enum Pick {
    Version(Version),
    Id(u32),
}

impl<'a> Draft<'a> {
    /// Reads the members of a request. `400 invalid_parameter` for what they may not say.
    pub fn read(
        field: Field,
        json: &'a RawValue,
        format: Option<&RawValue>,
        schema: Option<&RawValue>,
    ) -> Result<Self, Error> {
        let format = match format {
            None => Format::Auto,
            Some(json) => {
                let word: Option<String> = serde_json::from_str(json.get()).ok();
                one_of(field.format_name(), word.as_deref(), Format::WORDS)?
            }
        };
        let wanted = match schema {
            None => Wanted { subject: None, pick: Pick::Version(Version::Latest) },
            Some(_) if !matches!(format, Format::Schema(_)) => {
                let (schema, format) = (field.schema_name(), field.format_name());
                let detail = format!("{schema}: goes with {format} avro, jsonschema or protobuf only");
                return Err(Error::new(Code::InvalidParameter, detail));
            }
            Some(json) => wanted(field, json)?,
        };
        Ok(Self { field, json: Cow::Borrowed(json), verbatim: None, format, wanted })
    }

    /// JSON whose text is written byte for byte, `null` too.
    pub fn json(field: Field, json: &'a RawValue, text: &'a [u8]) -> Self {
        Self::plain(field, Cow::Borrowed(json), Some(text), Format::Json)
    }

    /// Text.
    pub fn text(field: Field, text: &str) -> Result<Self, Error> {
        let json = to_raw_value(text).map_err(Error::internal)?;
        Ok(Self::plain(field, Cow::Owned(json), None, Format::String))
    }

    /// Bytes of any kind.
    pub fn bytes(field: Field, bytes: &'a [u8]) -> Result<Self, Error> {
        let json = to_raw_value(&STANDARD.encode(bytes)).map_err(Error::internal)?;
        Ok(Self::plain(field, Cow::Owned(json), Some(bytes), Format::Binary))
    }

    /// Nothing at all.
    pub fn none(field: Field) -> Self {
        Self::plain(field, Cow::Borrowed(RawValue::NULL), None, Format::Auto)
    }

    fn plain(field: Field, json: Cow<'a, RawValue>, verbatim: Option<&'a [u8]>, format: Format) -> Self {
        let wanted = Wanted { subject: None, pick: Pick::Version(Version::Latest) };
        Self { field, json, verbatim, format, wanted }
    }

    /// The bytes without a schema: where the format has one, the JSON itself.
    pub fn as_sent(&self) -> Result<Option<Vec<u8>>, Error> {
        let format = if matches!(self.format, Format::Schema(_)) { Format::Json } else { self.format };
        self.decode(format)
    }

    pub(super) fn decode(&self, format: Format) -> Result<Option<Vec<u8>>, Error> {
        match self.verbatim {
            Some(bytes) => Ok(Some(bytes.to_vec())),
            None => record::decode(&self.json, format, self.field.name()),
        }
    }
}

/// A topic's name and a record's. It goes into the registry's URL, and comes back in each record's answer.
const LONGEST_SUBJECT: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedIn {
    subject: Option<String>,
    version: Option<Value>,
    id: Option<u32>,
}

fn wanted(field: Field, json: &RawValue) -> Result<Wanted, Error> {
    let bad = |problem: &str| Error::new(Code::InvalidParameter, format!("{}: {problem}", field.schema_name()));
    let shape = "must be {\"subject\"?, \"version\"?, \"id\"?}, with a number or \"latest\" for the version";
    let WantedIn { subject, version, id } = record::object(json).map_err(|_| bad(shape))?;
    let version = match version {
        None => None,
        Some(Value::String(word)) if word == "latest" => Some(Version::Latest),
        Some(number) => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
            Some(Version::Number(number.ok_or_else(|| bad(shape))?))
        }
    };
    if subject.as_ref().is_some_and(|subject| subject.len() > LONGEST_SUBJECT) {
        return Err(bad(&format!("subject must have at most {LONGEST_SUBJECT} bytes")));
    }
    let pick = match (version, id) {
        (Some(_), Some(_)) => return Err(bad("version and id exclude each other")),
        (None, Some(id)) => Pick::Id(id),
        (version, None) => Pick::Version(version.unwrap_or(Version::Latest)),
    };
    Ok(Wanted { subject, pick })
}
