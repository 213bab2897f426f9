//! Where a value does not fit its schema.

use serde_json::{Value, json};

/// The longest pointer and the longest expectation in an answer.
const LONGEST: usize = 200;

/// One place at which a value does not fit. Says what is there by its type and size, never by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// Where, as a JSON pointer (RFC 6901) into the value.
    pub(super) pointer: String,
    /// What the schema asks for.
    pub(super) expected: String,
    /// What is there.
    pub(super) found: String,
}

impl Mismatch {
    /// For JSON that was read already.
    pub(super) fn new(pointer: &str, expected: impl Into<String>, found: &Value) -> Self {
        Self { pointer: shortened(pointer.into()), expected: shortened(expected.into()), found: kind(found) }
    }

    /// For what is not there.
    pub(super) fn absent(pointer: String, expected: impl Into<String>) -> Self {
        Self { pointer: shortened(pointer), expected: shortened(expected.into()), found: "absent".into() }
    }

    /// For JSON text.
    pub(super) fn of_text(pointer: &str, expected: impl Into<String>, found: &str) -> Self {
        match serde_json::from_str(found) {
            Ok(found) => Self::new(pointer, expected, &found),
            Err(_) => Self { found: shape(found).into(), ..Self::new(pointer, expected, &Value::Null) },
        }
    }

    /// For JSON text that nothing can be compared with: the grammar allows what no reader here takes.
    pub(super) fn unreadable(found: &str) -> Self {
        Self::of_text("", "at most 127 levels, numbers within a double's range, and valid Unicode", found)
    }

    /// As the answer shows it.
    pub(super) fn to_json(&self, field: &str) -> Value {
        json!({ "field": field, "pointer": self.pointer, "expected": self.expected, "found": self.found })
    }
}

/// One step of a JSON pointer.
pub(super) fn step(pointer: &mut String, name: &str) {
    pointer.push('/');
    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What a JSON text is, by how it begins.
fn shape(json: &str) -> &'static str {
    match json.as_bytes().first() {
        Some(b'"') => "string",
        Some(b'[') => "array",
        Some(b'{') => "object",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        _ => "number",
    }
}

/// A value's type and size.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "boolean".into(),
        Value::Number(_) => "number".into(),
        Value::String(text) => format!("string of {} characters", text.chars().count()),
        Value::Array(items) => format!("array of {} items", items.len()),
        Value::Object(members) => format!("object of {} members", members.len()),
    }
}
