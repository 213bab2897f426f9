//! JSON Schema: whether a value is valid.
//!
//! A schema can refer to the references that are registered with it, and to nothing else: nothing is fetched or opened.

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{Draft, Retrieve, Uri, ValidationError, Validator};
use serde_json::Value;

use super::members::unambiguous;
use super::mismatch::{Mismatch, step};
use super::registry::Reference;
use crate::errors::BoxError;

/// How many mismatches one answer names.
const MOST: usize = 10;

/// A schema, ready to validate with.
pub(super) struct JsonSchema(Validator);

impl JsonSchema {
    pub(super) fn parse(text: &str, references: &[Reference]) -> Result<Self, BoxError> {
        let named = |reference: &Reference| Ok((reference.name.clone(), serde_json::from_str(&reference.schema)?));
        let references = References(references.iter().map(named).collect::<Result<_, BoxError>>()?);
        let schema: Value = serde_json::from_str(text)?;
        let mut options = jsonschema::options().with_retriever(references);
        // What does not say of which draft it is: Confluent's and Apicurio's Java libraries read it so.
        if schema.get("$schema").is_none() {
            options = options.with_draft(Draft::Draft7);
        }
        Ok(Self(options.build(&schema).map_err(|error| error.to_string())?))
    }

    /// What is wrong with a JSON text.
    pub(super) fn check(&self, json: &str) -> Result<(), Vec<Mismatch>> {
        let value: Value = serde_json::from_str(json).map_err(|_| vec![Mismatch::unreadable(json)])?;
        let mut wrong: Vec<_> = self.0.iter_errors(&value).take(MOST).map(|error| mismatch(&value, &error)).collect();
        if wrong.is_empty() && !unambiguous(json) {
            wrong.push(Mismatch::new("", "no name twice in one object", &value));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// The schemas that a `$ref` may name, by the name they are registered with.
struct References(Vec<(String, Value)>);

impl Retrieve for References {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, BoxError> {
        // A relative name has been resolved against the schema's own by now.
        let means = |name: &str| uri.as_str() == name || uri.as_str().ends_with(&format!("/{name}"));
        // Of `item.json` and `v2/item.json` the longer one, if both could be meant.
        let found = self.0.iter().filter(|(name, _)| means(name)).max_by_key(|(name, _)| name.len());
        found.map(|(_, schema)| schema.clone()).ok_or_else(|| "no reference of this name is registered".into())
    }
}

fn mismatch(value: &Value, error: &ValidationError<'_>) -> Mismatch {
    let mut pointer = error.instance_path().as_str().to_owned();
    // jsonschema's own messages quote the value; these do not.
    let expected = match error.kind() {
        Kind::Required { property } => {
            step(&mut pointer, property.as_str().unwrap_or_default());
            return Mismatch::absent(pointer, "required");
        }
        Kind::Type { kind } => format!("type {}", types(kind)),
        Kind::Enum { options } => format!("one of {options}"),
        Kind::Constant { expected_value } => format!("const {expected_value}"),
        Kind::Minimum { limit } => format!("minimum {limit}"),
        Kind::Maximum { limit } => format!("maximum {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("exclusiveMinimum {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("exclusiveMaximum {limit}"),
        Kind::MultipleOf { multiple_of } => format!("multipleOf {multiple_of}"),
        Kind::MinLength { limit } => format!("minLength {limit}"),
        Kind::MaxLength { limit } => format!("maxLength {limit}"),
        Kind::MinItems { limit } => format!("minItems {limit}"),
        Kind::MaxItems { limit } => format!("maxItems {limit}"),
        Kind::MinProperties { limit } => format!("minProperties {limit}"),
        Kind::MaxProperties { limit } => format!("maxProperties {limit}"),
        Kind::Pattern { pattern } => format!("pattern {pattern}"),
        Kind::Format { format } => format!("format {format}"),
        Kind::AdditionalProperties { .. } | Kind::UnevaluatedProperties { .. } => "no members but the schema's".into(),
        other => other.keyword().to_owned(),
    };
    Mismatch::new(&pointer, expected, value.pointer(&pointer).unwrap_or(value))
}

fn types(kind: &jsonschema::error::TypeKind) -> String {
    match kind {
        jsonschema::error::TypeKind::Single(one) => one.to_string(),
        jsonschema::error::TypeKind::Multiple(several) => {
            several.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" or ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(schema: &str, json: &str) -> Vec<(String, String, String)> {
        let schema = JsonSchema::parse(schema, &[]).expect("a schema");
        let wrong = schema.check(json).expect_err(json);
        wrong.into_iter().map(|Mismatch { pointer, expected, found }| (pointer, expected, found)).collect()
    }

    #[test]
    fn what_is_wrong_is_named_and_never_shown() {
        let schema = r#"{"type":"object","required":["id"],"additionalProperties":false,"properties":{
            "id":{"type":"integer","minimum":1},"mail":{"type":["string","null"],"pattern":"^[^@]+@[^@]+$"},
            "kind":{"enum":["a","b"]}}}"#;
        let named = |pointer: &str, expected: &str, found: &str| (pointer.into(), expected.into(), found.into());
        assert_eq!(wrong(schema, r#"{"id":0}"#), [named("/id", "minimum 1", "number")]);
        assert_eq!(wrong(schema, "{}"), [named("/id", "required", "absent")]);
        assert_eq!(wrong(schema, r#"{"id":"s3cret"}"#), [named("/id", "type integer", "string of 6 characters")]);
        let several = wrong(schema, r#"{"id":1,"mail":"s3cret","kind":"s3cret","s3cret":1}"#);
        assert_eq!(several.len(), 3, "{several:?}");
        assert!(!format!("{several:?}").contains("s3cret"));
        // Which of two names counts is not for us to say.
        assert_eq!(wrong(schema, r#"{"id":1,"id":"x"}"#).len(), 1);
        assert_eq!(
            wrong(schema, r#"{"id":"x","id":1}"#),
            [named("", "no name twice in one object", "object of 1 members")]
        );
    }

    #[test]
    fn what_no_reader_takes_is_not_taken_for_null() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for (json, found) in [(r#"{"n":1e999}"#, "object"), (r#"{"s":"\ud800"}"#, "object"), (&deep, "array")] {
            for schema in [r#"{"type":"null"}"#, "{}"] {
                let [(pointer, expected, what)] = &wrong(schema, json)[..] else { panic!("one mismatch: {json}") };
                assert!(pointer.is_empty() && expected.starts_with("at most 127 levels"), "{pointer} {expected}");
                assert_eq!(what, found);
            }
        }
    }

    #[test]
    fn references_are_the_registered_ones_and_no_others() {
        let reference = Reference { name: "id.json".into(), schema: r#"{"type":"integer"}"#.into() };
        for schema in [
            r#"{"properties":{"id":{"$ref":"id.json"}}}"#,
            r#"{"$id":"https://shop.example/order.json","properties":{"id":{"$ref":"id.json"}}}"#,
        ] {
            let schema = JsonSchema::parse(schema, std::slice::from_ref(&reference)).expect("a schema");
            assert!(schema.check(r#"{"id":1}"#).is_ok());
            assert!(schema.check(r#"{"id":"x"}"#).is_err());
        }
        let strict = Reference { name: "v2/id.json".into(), schema: r#"{"type":"string"}"#.into() };
        for (name, fits) in [("id.json", "1"), ("v2/id.json", "\"x\"")] {
            let both = [reference.clone(), strict.clone()];
            let schema = JsonSchema::parse(&format!(r#"{{"$ref":"{name}"}}"#), &both).expect("a schema");
            assert!(schema.check(fits).is_ok(), "{name}");
        }
        for unknown in ["other.json", "http://127.0.0.1:1/x.json", "file:///etc/hostname"] {
            assert!(JsonSchema::parse(&format!(r#"{{"$ref":"{unknown}"}}"#), &[]).is_err(), "{unknown}");
        }
    }

    #[test]
    fn a_schema_of_no_draft_is_of_draft_7() {
        let positions = r#""properties":{"a":{"items":[{"type":"integer"}]}}"#;
        let older = JsonSchema::parse(&format!("{{{positions}}}"), &[]).expect("a schema");
        assert!(older.check(r#"{"a":[1]}"#).is_ok() && older.check(r#"{"a":["x"]}"#).is_err());
        let newest = "https://json-schema.org/draft/2020-12/schema";
        assert!(JsonSchema::parse(&format!(r#"{{"$schema":"{newest}",{positions}}}"#), &[]).is_err());
    }

    #[test]
    fn hostile_schemas_and_values_end() {
        for schema in
            [r##"{"$ref":"#"}"##, r##"{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"anyOf":[{"$ref":"#"}]}}}"##]
        {
            let _ = JsonSchema::parse(schema, &[]).map(|schema| schema.check("1"));
        }
        let nested = format!("{}1{}", r#"{"a":"#.repeat(120), "}".repeat(120));
        let recursive =
            JsonSchema::parse(r##"{"properties":{"a":{"$ref":"#"}},"type":"object"}"##, &[]).expect("a schema");
        assert!(recursive.check(&nested).is_err());
        // A pattern that backtracks for ever says that it cannot tell.
        let slow = JsonSchema::parse(r#"{"pattern":"^(a|a)*\\1b$"}"#, &[]);
        if let Ok(slow) = slow {
            assert!(slow.check(&format!("\"{}\"", "a".repeat(40))).is_err());
        }
        assert!(JsonSchema::parse("[]", &[]).is_err());
        assert!(JsonSchema::parse("{", &[]).is_err());
    }
}
