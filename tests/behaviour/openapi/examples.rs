//! The document's requests, sent to the functions; their answers must be the document's.

use std::collections::{BTreeMap, BTreeSet};

use form_urlencoded::Serializer;
use serde_json::Value;
use tests::{Broker, Event, Function, Stack};

use super::document::{Document, Operation};
use super::served::broker_for_examples;
use super::watched;
use crate::world::{Answer, unique};

struct World {
    document: Document,
    functions: BTreeMap<String, Function>,
    _broker: Broker,
}

#[tokio::test]
async fn every_example_is_answered_as_the_document_says() {
    let stack = Stack::shared().await;
    let broker = broker_for_examples().await;
    let mut env = stack.kafka_env();
    env.insert("KAFKA_BOOTSTRAP_SERVERS".into(), broker.bootstrap());
    env.insert("SCHEMA_REGISTRY_URL".into(), stack.registry().await.into());
    let mut functions = BTreeMap::new();
    for name in watched().into_values().collect::<BTreeSet<_>>() {
        let function = Function::start(&name, &env).await;
        functions.insert(name, function);
    }
    let world = World { document: Document::read(), functions, _broker: broker };
    for operation in world.document.operations() {
        let function = world.function(&operation);
        for example in operation.examples() {
            world.try_example(function, &operation, example).await;
        }
        world.refuse(function, &operation).await;
    }
}

impl World {
    fn function(&self, operation: &Operation<'_>) -> &Function {
        &self.functions[&watched()[&(operation.path.to_owned(), operation.method())]]
    }

    async fn try_example(&self, function: &Function, operation: &Operation<'_>, example: &str) {
        let what = format!("{}, example {example}", operation.name());
        let mut body = operation.body(example).map(|(media_type, body)| (media_type, body.clone()));
        let (status, shown) = operation.answer_to(example);
        // A lease cannot be written into a document: where one is to be settled, it is one of now.
        if let Some((_, body)) = &mut body
            && body.get("token").is_some()
            && example != "lease_lost"
        {
            body["token"] = self.lease().await;
        }
        let event = request(operation, operation.parameters(example), body);
        let answer = ask(function, event, Some("gateway-full")).await;
        assert_eq!(answer.status.to_string(), status, "{what}: {answer:?}");
        self.check(operation, &answer, &what);
        if answer.status < 300 {
            let members = |body: &Value| body.as_object().map(|body| body.keys().cloned().collect::<Vec<_>>());
            assert_eq!(members(&answer.body), members(shown), "{what}");
        } else {
            assert_eq!(answer.body["code"], shown["code"], "{what}");
        }
    }

    /// What is refused before anything else is looked at.
    async fn refuse(&self, function: &Function, operation: &Operation<'_>) {
        let call = |method: &str, path: &str| Event::new(method, path);
        let path = concrete(operation, &[]);
        let (method, elsewhere) = (operation.method(), format!("{path}/no/such/route"));
        for (event, client, expected) in [
            (call(&method, &path), None, (401, "missing_token")),
            (call(&method, &path).bearer("none"), None, (401, "invalid_token")),
            (call(&method, &path), Some("gateway-none"), (403, "forbidden")),
            (call("PATCH", &path), Some("gateway-full"), (405, "method_not_allowed")),
            (call(&method, &elsewhere), Some("gateway-full"), (404, "route_not_found")),
        ] {
            let answer = ask(function, event, client).await;
            let what = format!("{}: {expected:?}", operation.name());
            self.check(operation, &answer, &what);
            assert_eq!((answer.status, answer.code()), expected, "{what}");
        }
    }

    /// Holds an answer against the document: its status, type, headers and body.
    fn check(&self, operation: &Operation<'_>, answer: &Answer, what: &str) {
        let response = &operation.value["responses"][answer.status.to_string()];
        assert!(!response.is_null(), "{what}: {} is not in the document", answer.status);
        let response = self.document.resolved(response);
        if let Some(contents) = response.get("content") {
            let content_type = answer.headers["content-type"].as_str().expect("a content type");
            let content = &contents[content_type];
            assert!(!content.is_null(), "{what}: {content_type} is not in the document");
            self.document.check(&content["schema"], &answer.body, what);
        } else {
            assert_eq!((&answer.headers["content-type"], &answer.body), (&Value::Null, &Value::Null), "{what}");
        }
        for (name, header) in response["headers"].as_object().expect("headers") {
            let schema = &self.document.resolved(header)["schema"];
            self.document.check(schema, &answer.headers[name], format_args!("{what}: header {name}"));
        }
    }

    /// A token for the records of `orders`.
    async fn lease(&self) -> Value {
        let query = format!("topic=orders&group_id={}&ack=manual", unique("lease"));
        let event = Event::get("/kafka/consumer/consume").query(&query);
        let answer = ask(&self.functions["consume"], event, Some("gateway-full")).await;
        answer.ok()["lease"]["token"].clone()
    }
}

/// The operation's path, with these parameters in it, or anything.
fn concrete(operation: &Operation<'_>, parameters: &[(&Value, &Value)]) -> String {
    let Some((before, name)) = operation.path.split_once('{') else { return operation.path.to_owned() };
    let name = name.trim_end_matches('}');
    let given = parameters.iter().find(|(parameter, _)| parameter["in"] == "path" && parameter["name"] == name);
    format!("{before}{}", given.map_or("any".to_owned(), |(_, value)| text(value)))
}

fn request(operation: &Operation<'_>, parameters: Vec<(&Value, &Value)>, body: Option<(&str, Value)>) -> Event {
    let mut event = Event::new(&operation.method(), &concrete(operation, &parameters));
    let mut query = Serializer::new(String::new());
    for (parameter, value) in parameters {
        let (name, value) = (parameter["name"].as_str().expect("a name"), text(value));
        match parameter["in"].as_str() {
            Some("query") => drop(query.append_pair(name, &value)),
            Some("header") => event = event.header(name, &value),
            _ => {}
        }
    }
    event = event.query(&query.finish());
    match body {
        Some((media_type, body)) => event.header("content-type", media_type).body(body.to_string()),
        None => event,
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn ask(function: &Function, event: Event, client: Option<&str>) -> Answer {
    let event = match client {
        Some(client) => event.bearer(&Stack::shared().await.token(client).await),
        None => event,
    };
    Answer::read(&function.invoke(event.build()).await)
}
