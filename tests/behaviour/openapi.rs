//! `infra/openapi.yaml` says what the functions do: its examples are sent to them, and its tables are those of the code.

mod document;
mod examples;
mod fuzz;
mod page;
mod readme;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use kafka_gateway::errors::Code;
use serde_json::Value;

use self::document::Document;

/// A route: its path, parameters as `{…}`, and its method in capitals.
type Route = (String, String);

/// The routes that `cargo lambda watch` serves, and their functions.
fn watched() -> BTreeMap<Route, String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = cargo.output().expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let paths = metadata["metadata"]["lambda"]["watch"]["router"].as_object().expect("watch.router");
    let routes = paths.iter().flat_map(|(path, targets)| {
        let targets = targets.as_array().expect("one target a method");
        targets.iter().map(move |target| {
            let word = |name: &str| target[name].as_str().expect("a word").to_owned();
            ((path.clone(), word("method")), word("function"))
        })
    });
    routes.collect()
}

#[test]
fn the_document_the_router_and_the_functions_name_the_same_routes() {
    let document = Document::read();
    let watched = watched();
    let documented: BTreeSet<Route> =
        document.operations().map(|operation| (operation.path.to_owned(), operation.method())).collect();
    assert_eq!(documented, watched.keys().cloned().collect(), "infra/openapi.yaml and watch.router in Cargo.toml");

    let functions = concat!(env!("CARGO_MANIFEST_DIR"), "/../functions");
    let functions = std::fs::read_dir(functions).expect("the functions").map(|entry| entry.expect("an entry"));
    let mut functions: BTreeSet<String> =
        functions.map(|entry| entry.file_name().into_string().expect("a name")).collect();
    assert!(functions.remove("lag-monitor"), "the only one without a route");
    assert_eq!(functions, watched.into_values().collect(), "functions/ and watch.router in Cargo.toml");
}

#[test]
fn the_document_and_the_code_have_the_same_errors() {
    let document = Document::read();
    let mut known: BTreeSet<(u64, String)> = BTreeSet::new();
    for (name, response) in document.get("/components/responses").as_object().expect("responses") {
        let content = &response["content"]["application/problem+json"];
        let rules = &content["schema"]["properties"];
        let status = rules["status"]["const"].as_u64().expect("a status");
        let words: BTreeSet<&str> = match &rules["code"]["enum"] {
            Value::Null => [rules["code"]["const"].as_str().expect("a code")].into(),
            words => words.as_array().expect("codes").iter().map(|word| word.as_str().expect("a word")).collect(),
        };
        let examples = content["examples"].as_object().expect("an example of each code");
        assert_eq!(words, examples.keys().map(String::as_str).collect(), "{name}");
        let has = |header: &str| response["headers"].get(header).is_some();
        for word in words {
            let code = Code::ALL.iter().find(|code| code.word() == word);
            let code = code.unwrap_or_else(|| panic!("{word} is not in errors.rs"));
            let example = &examples[word]["value"];
            assert_eq!(example["type"], format!("/problems/{word}"));
            assert_eq!(example["title"], code.title(), "{word}");
            assert_eq!((status, &example["status"]), (code.status().into(), &code.status().into()), "{word}");
            assert_eq!(example["error_code"], code.error_code(), "{word}");
            assert_eq!(example["retryable"], code.retryable(), "{word}");
            assert_eq!(has("retry-after"), code.retry_after().is_some(), "{word}");
            assert_eq!(has("www-authenticate"), code.status() == 401, "{word}");
            assert!(known.insert((status, word.to_owned())), "{word} is in two responses");
        }
    }
    let all = Code::ALL.iter().map(|code| (u64::from(code.status()), code.word().to_owned()));
    assert_eq!(known, all.collect(), "infra/openapi.yaml and errors.rs");
}

#[test]
fn the_document_keeps_its_own_rules() {
    let document = Document::read();
    assert_eq!(document.get("/info/version"), env!("CARGO_PKG_VERSION"));
    for operation in document.operations() {
        let name = operation.name();
        // What may happen to any call.
        for status in ["400", "401", "403", "404", "405", "429", "500", "503", "504"] {
            assert!(operation.value["responses"].get(status).is_some(), "{name}: {status}");
        }
        let examples = operation.examples();
        assert!(!examples.is_empty(), "{name} has no example");
        for example in &examples {
            let (status, _) = operation.answer_to(example);
            if let Some((media_type, body)) = operation.body(example) {
                let schema = &operation.value["requestBody"]["content"][media_type]["schema"];
                document.check(schema, body, format_args!("{name}, example {example}"));
            }
            for (parameter, value) in operation.parameters(example) {
                document.check(&parameter["schema"], value, format_args!("{name}, example {example}: {parameter}"));
            }
            assert!(operation.value["responses"].get(&status).is_some());
        }
        for (status, response) in operation.value["responses"].as_object().expect("responses") {
            let response = document.resolved(response);
            for (media_type, content) in response["content"].as_object().into_iter().flatten() {
                for (example, shown) in content["examples"].as_object().into_iter().flatten() {
                    let what = format_args!("{name}, {status} {media_type}, example {example}");
                    document.check(&content["schema"], &shown["value"], what);
                    let of_operation = operation.value["responses"][status].get("$ref").is_none();
                    assert!(!of_operation || examples.contains(example), "{what} answers to no request");
                }
            }
        }
    }
}
