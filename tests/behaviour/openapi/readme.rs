//! The README's examples run, one after the other as they stand there, and answer what is shown, but for what differs from run
//! to run.

use std::process::Command;

use serde_json::{Map, Value};
use tests::Stack;

use super::served::served;

/// A command with the answer that is shown beneath it.
#[derive(Debug)]
struct Example {
    command: String,
    shown: String,
}

/// The commands of all blocks that call the functions.
fn examples() -> Vec<Example> {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```console\n").skip(1).filter_map(|block| block.split("```").next());
    let mut examples: Vec<Example> = Vec::new();
    for block in blocks.filter(|block| block.contains("$URL")) {
        let mut continues = false;
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                continues = command.ends_with('\\');
                examples.push(Example { command: command.to_owned(), shown: String::new() });
            } else if let Some(example) = examples.last_mut() {
                let text = if continues { &mut example.command } else { &mut example.shown };
                text.push('\n');
                text.push_str(line);
                continues &= line.ends_with('\\');
            }
        }
    }
    examples.retain(|example| !example.command.starts_with('#'));
    examples
}

/// The JSON object in an answer, behind headers if there are any. What the README leaves out (`…`) is left out.
fn object(answer: &str) -> Option<Map<String, Value>> {
    let text: String = answer.lines().skip_while(|line| !line.starts_with('{')).collect();
    serde_json::from_str(&text.replace(", …", "")).ok()
}

/// Members whose values are times, names of this run, or places that depend on what else there is.
const OF_THE_RUN: [&str; 8] =
    ["timestamp", "expires_at", "token", "request_id", "trace_id", "id", "schema_id", "replicas"];

/// What is in commands whose answers depend on what other tests have left, or on which partition comes first.
const LOOSE: [&str; 4] = ["/kafka/topics?", "\"orders\"", "topic=orders", "\"reports\""];

/// An answer without what differs from run to run.
fn lasting(answer: Value) -> Value {
    match answer {
        Value::Object(members) => {
            // Bytes that do not decode hold the schema's id, and this header a time.
            let passing = members.contains_key("value_error") || members.get("name") == Some(&"dlq.timestamp".into());
            let lasting = |(name, value): (String, Value)| match &*name {
                of_the_run if OF_THE_RUN.contains(&of_the_run) => (name, Value::Null),
                "value" if passing => (name, Value::Null),
                _ => (name, lasting(value)),
            };
            Value::Object(members.into_iter().map(lasting).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(lasting).collect()),
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_s_examples_run_and_answer_what_is_shown() {
    const END: &str = "@@end@@";
    let (stack, served, examples) = (Stack::shared().await, served().await, examples());
    assert!(examples.len() > 30, "{}", examples.len());
    // One shell for all: what one line sets, the next ones use.
    let lines: Vec<String> =
        examples.iter().map(|Example { command, .. }| format!("{command}\necho; echo {END}\n")).collect();
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("exec 2>&1\n{}", lines.concat())]);
    bash.env("URL", served.gateway.url()).env("REGISTRY", stack.registry().await);
    bash.env("TOKEN", stack.token("gateway-full").await);
    let output = tokio::task::block_in_place(|| bash.output()).expect("bash");
    let output = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<&str> = output.split(END).map(str::trim).collect();
    assert_eq!(answers.len(), examples.len() + 1, "{output}");
    let mut wrong = Vec::new();
    for (Example { command, shown }, answer) in examples.iter().zip(answers) {
        let same = match object(shown) {
            None => answer == shown.trim(),
            // An error is the same error, and everything else has the same members.
            Some(expected) if shown.contains('…') || LOOSE.iter().any(|loose| command.contains(loose)) => {
                let filled = |object: &Map<String, Value>| {
                    ["messages", "results"]
                        .map(|list| object.get(list).is_some_and(|list| list != &Value::Array(vec![])))
                };
                object(answer).is_some_and(|answered| {
                    answered.keys().eq(expected.keys())
                        && answered.get("code") == expected.get("code")
                        && filled(&answered) == filled(&expected)
                })
            }
            Some(expected) => {
                object(answer).is_some_and(|answered| lasting(answered.into()) == lasting(expected.into()))
            }
        };
        if !same {
            wrong.push(format!("{command}\n  shown: {shown}\n  answered: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
