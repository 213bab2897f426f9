//! The document, read as a machine does.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// `infra/openapi.yaml`. The objects of its answers are closed: a member that the document does not name is an error
/// here, while clients are to take what they do not know.
#[derive(Debug)]
pub(crate) struct Document(Value);

/// One method of one path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation<'a> {
    document: &'a Document,
    pub(crate) path: &'a str,
    method: &'a str,
    pub(crate) value: &'a Value,
}

impl Document {
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/openapi.yaml"));
        let mut documents = YamlLoader::load_from_str(&text.expect("infra/openapi.yaml")).expect("YAML");
        assert_eq!(documents.len(), 1);
        let mut document = json(&documents.remove(0));
        close(&mut document);
        Self(document)
    }

    pub(crate) fn get(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not in the document"))
    }

    /// What a reference stands for; anything else is itself.
    pub(crate) fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.get(reference.strip_prefix('#').expect("within the document")),
            None => value,
        }
    }

    pub(crate) fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let paths = self.get("/paths").as_object().expect("paths");
        paths.iter().flat_map(move |(path, item)| {
            let methods = item.as_object().expect("methods").iter();
            methods.map(move |(method, value)| Operation { document: self, path, method, value })
        })
    }

    /// Panics where a value does not fit one of the document's schemas.
    pub(crate) fn check(&self, schema: &Value, instance: &Value, what: impl Display) {
        // The document itself is the schema's root, so that its references lead somewhere.
        let mut root = self.0.clone();
        root["x-checked"] = schema.clone();
        root["$ref"] = "#/x-checked".into();
        let validator = jsonschema::draft202012::new(&root).unwrap_or_else(|error| panic!("{what}: {error}"));
        let errors: Vec<_> = validator.iter_errors(instance).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {}\n{instance}", errors.join("\n"));
    }
}

impl<'a> Operation<'a> {
    /// The method, in capitals.
    pub(crate) fn method(&self) -> String {
        self.method.to_uppercase()
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method(), self.path)
    }

    fn parameters_of_all(&self) -> impl Iterator<Item = &'a Value> {
        let (document, value) = (self.document, self.value);
        value["parameters"].as_array().into_iter().flatten().map(|parameter| document.resolved(parameter))
    }

    fn bodies(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.value["requestBody"]["content"].as_object().into_iter().flatten()
    }

    /// The names of its requests. All that bears the same name, body and parameters, is one request; and so is the
    /// answer that bears it.
    pub(crate) fn examples(&self) -> BTreeSet<&'a String> {
        let places = self.parameters_of_all().chain(self.bodies().map(|(_, content)| content));
        places.filter_map(|place| place["examples"].as_object()).flat_map(Map::keys).collect()
    }

    /// A request's body and its media type.
    pub(crate) fn body(&self, example: &str) -> Option<(&'a str, &'a Value)> {
        self.bodies().find_map(|(media_type, content)| {
            Some((media_type.as_str(), content["examples"].get(example)?.get("value")?))
        })
    }

    /// A request's parameters.
    pub(crate) fn parameters(&self, example: &str) -> Vec<(&'a Value, &'a Value)> {
        let with = |parameter: &'a Value| Some((parameter, parameter["examples"].get(example)?.get("value")?));
        self.parameters_of_all().filter_map(with).collect()
    }

    /// The status with which a request is answered, and the answer that the document shows for it: where it shows none, it is
    /// the one that has no body.
    pub(crate) fn answer_to(&self, example: &str) -> (String, &'a Value) {
        let responses = self.value["responses"].as_object().expect("responses");
        let mut found: Vec<_> = responses
            .iter()
            .filter_map(|(status, response)| {
                let mut contents = self.document.resolved(response)["content"].as_object()?.values();
                let shown = contents.find_map(|content| content["examples"].get(example))?;
                Some((status.clone(), shown.get("value")?))
            })
            .collect();
        if found.is_empty() {
            let empty = |response: &Value| self.document.resolved(response).get("content").is_none();
            found.extend(responses.iter().find(|(_, it)| empty(it)).map(|(status, _)| (status.clone(), &Value::Null)));
        }
        let [answer] = <[_; 1]>::try_from(found)
            .unwrap_or_else(|found| panic!("{}, example {example}: not one answer, but {found:?}", self.name()));
        answer
    }
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(truth) => (*truth).into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Real(text) => text.parse::<f64>().expect("a number").into(),
        Yaml::String(text) => text.as_str().into(),
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::Hash(members) => {
            let name = |key: &Yaml| key.as_str().unwrap_or_else(|| panic!("{key:?} is no name")).to_owned();
            members.iter().map(|(key, value)| (name(key), json(value))).collect::<Map<_, _>>().into()
        }
        Yaml::Alias(_) | Yaml::BadValue => panic!("not JSON: {yaml:?}"),
    }
}

/// Makes an object of an answer refuse what its schema does not name.
fn close(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.get("type") == Some(&"object".into()) && members.contains_key("properties") {
                members.entry("additionalProperties").or_insert(false.into());
            }
            members.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
