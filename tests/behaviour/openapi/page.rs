//! The page of `make dev`, used by a person with a browser.

use std::path::Path;

use serde_json::Value;
use tests::Stack;
use tokio::sync::OnceCell;

use super::served::served;

#[tokio::test]
async fn a_person_produces_and_consumes_from_the_browser() {
    used().await;
}

/// Uses the page, once, and before whatever else is tried on the same topics: a record that others have consumed for the
/// same group is not there for this person.
pub(super) async fn used() {
    static USED: OnceCell<()> = OnceCell::const_new();
    USED.get_or_init(use_it).await;
}

async fn use_it() {
    let stack = Stack::shared().await;
    let page = stack.page(&served().await.gateway).await;
    let browser = stack.browser().await;
    browser.open(&page.url()).await;
    // A closed lock: the token is filled in.
    browser.click(".authorize.locked").await;
    let token = browser.text(".auth-container").await;
    assert!(token.contains("Authorized"), "{token}");
    browser.click(".btn-done").await;

    let produced = execute(&browser, "Producer-produce").await;
    assert_eq!(produced["topic"], "orders");
    let consumed = execute(&browser, "Consumer-consume").await;
    let messages = consumed["messages"].as_array().expect("messages");
    let written = messages
        .iter()
        .find(|message| message["partition"] == produced["partition"] && message["offset"] == produced["offset"]);
    let written = written.unwrap_or_else(|| panic!("{produced} is not in {consumed}"));
    assert_eq!((&written["key"], &written["value"]), (&"order-17".into(), &r#"{"total":12.5}"#.into()));

    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi-page.png");
    std::fs::write(picture, browser.screenshot().await).expect("written");
}

/// Opens an operation, sends what is filled in, and reads the answer.
async fn execute(browser: &tests::Browser, operation: &str) -> Value {
    let block = format!("#operations-{operation}");
    browser.click(&format!("{block} .opblock-summary-control")).await;
    browser.click(&format!("{block} .execute")).await;
    let status = browser.text(&format!("{block} .live-responses-table tbody .response-col_status")).await;
    let body = browser.text(&format!("{block} .live-responses-table .highlight-code code")).await;
    assert!(status.starts_with("200"), "{operation}: {status} {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}
