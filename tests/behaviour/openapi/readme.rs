//! The README's examples run, one after the other as they stand there, and answer what is shown: an error is the same error,
//! and everything else has the same members.

use std::collections::BTreeSet;
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

fn members(object: &Map<String, Value>) -> BTreeSet<&str> {
    object.keys().map(String::as_str).collect()
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
    for (Example { command, shown }, answer) in examples.iter().zip(answers) {
        let Some(expected) = object(shown) else {
            assert_eq!(answer, shown.trim(), "{command}");
            continue;
        };
        let answered = object(answer).unwrap_or_else(|| panic!("{command}\n{answer}"));
        assert_eq!(members(&answered), members(&expected), "{command}\n{answer}");
        assert_eq!(answered.get("code"), expected.get("code"), "{command}\n{answer}");
        for list in ["messages", "results"] {
            let filled =
                |object: &Map<String, Value>| object.get(list).is_some_and(|list| list != &Value::Array(vec![]));
            assert_eq!(filled(&answered), filled(&expected), "{command}\n{answer}");
        }
    }
}
