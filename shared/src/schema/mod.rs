//! Keys and values with schemas: the registry, its wire format, and the formats `avro`, `jsonschema` and `protobuf`.
//!
//! Nothing is asked or compiled before a call needs it; then it is kept, see [`registry`]. JSON goes in and comes out as
//! text, so that numbers keep their digits. No error says what a value is, only where it does not fit.

mod avro;
mod cache;
mod draft;
mod json_schema;
mod members;
mod mismatch;
mod protobuf;
mod registry;
mod wire;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use self::avro::Avro;
use self::cache::{BELIEVED, NOT_YET};
pub use self::draft::{Draft, Field};
use self::draft::{Pick, Wanted};
use self::json_schema::JsonSchema;
use self::mismatch::Mismatch;
use self::protobuf::Protobuf;
use self::registry::{Reference, Registry, Version};
use crate::config::{SchemaConfig, Validation};
use crate::deadline::Deadline;
use crate::errors::{BoxError, Code, Error};
use crate::names::TopicName;
use crate::record::{self, Format, Formats, Record, compact};

/// More JSON than an answer can carry is not made of a record.
const LARGEST_JSON: usize = 8_000_000;

/// How many schemas are asked for at the same time.
const ABREAST: usize = 4;

/// The kinds of schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Apache Avro.
    Avro,
    /// JSON Schema.
    JsonSchema,
    /// Protocol Buffers.
    Protobuf,
}

impl Kind {
    /// By the registry's name for it, which is left out for Avro.
    fn of_registry(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("AVRO") => Some(Self::Avro),
            Some("JSON") => Some(Self::JsonSchema),
            Some("PROTOBUF") => Some(Self::Protobuf),
            Some(_) => None,
        }
    }
}

/// A schema as it is used here.
enum Schema {
    Avro(Avro),
    JsonSchema(JsonSchema),
    /// Of a reader, who validates nothing.
    AnyJson,
    Protobuf(Protobuf),
    /// What cannot be compiled stays so: an id never changes its meaning.
    Unusable(Option<Kind>),
}

/// How a schema is made of the registry's text: [`Schema::to_write`], or [`Schema::to_read`].
type Compile = fn(Kind, &str, &[Reference]) -> Result<Schema, BoxError>;

impl Schema {
    fn to_write(kind: Kind, text: &str, references: &[Reference]) -> Result<Self, BoxError> {
        match kind {
            Kind::JsonSchema => Ok(Self::JsonSchema(JsonSchema::parse(text, references)?)),
            _ => Self::to_read(kind, text, references),
        }
    }

    /// A function that only reads is linked without the validator of JSON Schemas, a sixth of its binary.
    fn to_read(kind: Kind, text: &str, references: &[Reference]) -> Result<Self, BoxError> {
        Ok(match kind {
            Kind::Avro => Self::Avro(Avro::parse(text, references)?),
            Kind::JsonSchema => Self::AnyJson,
            Kind::Protobuf => Self::Protobuf(Protobuf::parse(text, references)?),
        })
    }

    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Avro(_) => Some(Kind::Avro),
            Self::JsonSchema(_) | Self::AnyJson => Some(Kind::JsonSchema),
            Self::Protobuf(_) => Some(Kind::Protobuf),
            Self::Unusable(kind) => *kind,
        }
    }

    /// What stands behind the id in the wire format; none if the schema cannot be used.
    fn encode(&self, json: &str) -> Option<Result<Vec<u8>, Vec<Mismatch>>> {
        match self {
            Self::Avro(avro) => Some(avro.encode(json).map_err(|mismatch| vec![mismatch])),
            Self::JsonSchema(schema) => Some(schema.check(json).map(|()| compact(json))),
            Self::Protobuf(protobuf) => Some(protobuf.encode(json).map_err(|mismatch| vec![mismatch])),
            Self::AnyJson | Self::Unusable(_) => None,
        }
    }

    fn decode(&self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Avro(avro) => avro.decode(bytes),
            Self::JsonSchema(_) | Self::AnyJson => record::json_text(bytes),
            Self::Protobuf(protobuf) => protobuf.decode(bytes),
            Self::Unusable(_) => None,
        }
    }
}

/// All that has to do with schemas in a sandbox.
#[derive(Debug)]
pub struct Schemas {
    registry: Option<Registry>,
    validation: Validation,
}

impl Schemas {
    /// For records to write. Asks nobody: the registry is reached when it is first needed.
    pub fn to_write(config: &SchemaConfig) -> Self {
        Self::new(config, Schema::to_write)
    }

    /// For records to show. They are not validated again: [`Schemas::encode`] is not for this one.
    pub fn to_read(config: &SchemaConfig) -> Self {
        Self::new(config, Schema::to_read)
    }

    fn new(config: &SchemaConfig, compile: Compile) -> Self {
        let registry = config.registry.as_ref().map(|registry| Registry::new(registry, compile));
        Self { registry, validation: config.validation }
    }

    /// The bytes of a key or a value; none for a null, which is a null in every format.
    ///
    /// Errors: `422 schema_validation_failed` with `errors` (pointer, expected, found) where it does not fit its schema,
    /// `404 schema_not_found` where there is none, `503 schema_registry_unavailable`; and those of [`record::decode`].
    pub async fn encode(
        &self,
        topic: &TopicName,
        draft: &Draft<'_>,
        deadline: Deadline,
    ) -> Result<Option<Vec<u8>>, Error> {
        let json = draft.json.get();
        if json == "null" && draft.verbatim.is_none() {
            return Ok(None);
        }
        let Format::Schema(kind) = draft.format else {
            self.validate(topic, draft, deadline).await?;
            return draft.decode(draft.format);
        };
        let registry = self.registry(draft.field.format_name())?;
        let subject = subject(topic, draft)?;
        let id = self.chosen(registry, &subject, &draft.wanted, deadline).await?;
        let found = match id {
            Some(id) => registry.schema(id, deadline).await?.map(|schema| (id, schema)),
            None => None,
        };
        let Some((id, schema)) = found else { return Err(not_found(draft.field, &subject)) };
        let unusable = |problem: &str| {
            let detail = format!("{}: {problem}", draft.field.schema_name());
            Err(Error::new(Code::UnprocessableRecord, detail).with("subject", &*subject).with("schema_id", id))
        };
        if schema.kind().is_some_and(|other| other != kind) {
            return unusable("the schema is of another type than the format");
        }
        match schema.encode(json) {
            Some(Ok(body)) => Ok(Some(wire::seal(id, &body))),
            Some(Err(wrong)) => Err(invalid(draft.field, &subject, &wrong)),
            None => unusable("the gateway cannot use this schema; its log says why"),
        }
    }

    /// The schema that a call asked for. That an id is of another subject is not told from its not being there.
    async fn chosen(
        &self,
        registry: &Registry,
        subject: &str,
        wanted: &Wanted,
        deadline: Deadline,
    ) -> Result<Option<u32>, Error> {
        match wanted.pick {
            Pick::Version(version) => registry.id(subject, version, NOT_YET, deadline).await,
            Pick::Id(id) => Ok(registry.is_under(id, subject, deadline).await?.then_some(id)),
        }
    }

    /// Whether the registry has a say in how it is written.
    pub fn concern(&self, draft: &Draft<'_>) -> bool {
        matches!(draft.format, Format::Schema(_)) || (self.registry.is_some() && self.validation != Validation::Off)
    }

    /// Plain JSON against the JSON Schema of its subject (`SCHEMA_VALIDATION`).
    async fn validate(&self, topic: &TopicName, draft: &Draft<'_>, deadline: Deadline) -> Result<(), Error> {
        let (Some(registry), Validation::IfRegistered | Validation::Required) = (&self.registry, self.validation)
        else {
            return Ok(());
        };
        let required = self.validation == Validation::Required && draft.field == Field::Value;
        let subject = format!("{topic}-{}", draft.field.name());
        let unfit = |expected: &str| {
            let wrong = Mismatch::of_text("", expected, draft.json.get());
            if required { Err(invalid(draft.field, &subject, &[wrong])) } else { Ok(()) }
        };
        if !matches!(draft.format, Format::Auto | Format::Json) {
            return unfit("JSON that is validated, or a format with a schema");
        }
        let schema = match registry.id(&subject, Version::Latest, BELIEVED, deadline).await? {
            Some(id) => registry.schema(id, deadline).await?,
            None => None,
        };
        match schema.as_deref() {
            Some(Schema::JsonSchema(schema)) => {
                schema.check(draft.json.get()).map_err(|wrong| invalid(draft.field, &subject, &wrong))
            }
            Some(Schema::Unusable(Some(Kind::JsonSchema))) => {
                let detail = format!("{}: the gateway cannot use its schema; its log says why", draft.field.name());
                Err(Error::new(Code::UnprocessableRecord, detail).with("subject", subject))
            }
            Some(_) => unfit("the format of the subject's schema"),
            None if required => Err(not_found(draft.field, &subject)),
            None => Ok(()),
        }
    }

    /// Refuses formats that need a registry where there is none.
    pub fn require(&self, formats: Formats) -> Result<(), Error> {
        for (field, format) in [(Field::Key, formats.key), (Field::Value, formats.value)] {
            if matches!(format, Format::Schema(_)) {
                self.registry(field.format_name())?;
            }
        }
        Ok(())
    }

    fn registry(&self, field: &str) -> Result<&Registry, Error> {
        self.registry.as_ref().ok_or_else(|| {
            let detail = format!("{field}: this format needs a schema registry, and this deployment has none");
            Error::new(Code::InvalidParameter, detail)
        })
    }

    /// How to show records in these formats, with the schemas that they name.
    ///
    /// `503 schema_registry_unavailable` if the registry cannot be asked: call it before anything is committed. What the
    /// registry does not know is no error, it shows with the record.
    pub async fn rendering<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
        formats: Formats,
        deadline: Deadline,
    ) -> Result<Rendering, Error> {
        self.require(formats)?;
        let Some(registry) = &self.registry else { return Ok(Rendering::plain(formats)) };
        let mut ids = HashSet::new();
        for record in records {
            for (bytes, format) in [(&record.key, formats.key), (&record.value, formats.value)] {
                if let (Some(bytes), Format::Schema(_)) = (bytes, format) {
                    ids.extend(wire::open(bytes).map(|(id, _)| id));
                }
            }
        }
        let asked = stream::iter(ids).map(async |id| Ok((id, registry.schema(id, deadline).await?)));
        let found: Vec<(u32, Option<Arc<Schema>>)> = asked.buffer_unordered(ABREAST).try_collect().await?;
        let schemas = found.into_iter().filter_map(|(id, schema)| Some((id, schema?))).collect();
        Ok(Rendering { formats, schemas })
    }
}

/// How some records are shown.
pub struct Rendering {
    /// In these formats.
    pub formats: Formats,
    schemas: HashMap<u32, Arc<Schema>>,
}

impl Rendering {
    /// In formats without a schema; with others, nothing decodes.
    pub fn plain(formats: Formats) -> Self {
        Self { formats, schemas: HashMap::new() }
    }

    /// A key or value as JSON text, or why it cannot be shown so.
    pub fn json(&self, kind: Kind, bytes: &[u8]) -> Result<String, &'static str> {
        let (id, body) = wire::open(bytes).ok_or("is not in the schema registry's wire format")?;
        let schema = self.schemas.get(&id).ok_or("has a schema id that the registry does not know")?;
        match &**schema {
            schema if schema.kind().is_some_and(|other| other != kind) => {
                Err("has a schema of another type than the format")
            }
            Schema::Unusable(_) => Err("has a schema that the gateway cannot use"),
            schema => schema.decode(body).ok_or("does not fit its schema"),
        }
    }
}

/// The subject that a call means.
fn subject(topic: &TopicName, draft: &Draft<'_>) -> Result<String, Error> {
    match &draft.wanted.subject {
        None => Ok(format!("{topic}-{}", draft.field.name())),
        Some(subject) if subject.starts_with(&format!("{topic}-")) => Ok(subject.clone()),
        Some(_) => {
            let detail =
                format!("{}: subject must begin with the topic's name and a hyphen", draft.field.schema_name());
            Err(Error::new(Code::InvalidParameter, detail))
        }
    }
}

fn not_found(field: Field, subject: &str) -> Error {
    let detail = format!("{}: the subject has no such schema", field.name());
    Error::new(Code::SchemaNotFound, detail).with("subject", subject)
}

fn invalid(field: Field, subject: &str, wrong: &[Mismatch]) -> Error {
    let errors: Vec<_> = wrong.iter().map(|mismatch| mismatch.to_json(field.name())).collect();
    Error::new(Code::SchemaValidationFailed, format!("{}: does not fit its schema", field.name()))
        .with("subject", subject)
        .with("errors", errors)
}
