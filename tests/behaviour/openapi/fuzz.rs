//! The document's requests, and thousands that are made up from it, by schemathesis.

use std::path::Path;
use std::time::Duration;

use tests::Stack;

use super::page;
use super::served::served;

/// Of their own environment, since it is large.
const TOOLS: (&str, &[&str]) = ("openapi", &["schemathesis==4.32.5", "openapi-spec-validator==0.9.0"]);

#[tokio::test]
async fn schemathesis_finds_nothing_that_is_not_explained() {
    page::used().await;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (stack, served) = (Stack::shared().await, served().await);
    let (url, token) = (served.gateway.url(), stack.token("gateway-full").await);
    let document = here.join("../infra/openapi.yaml").display().to_string();
    let script = here.join("behaviour/python/openapi.py");
    let tried = stack.python_spawn_with(TOOLS, script, &[&document, &url, &token]).await;
    let ended = tried.wait(Duration::from_mins(10)).await;
    assert!(ended.is_some_and(|status| status.success()), "{}", tried.output());
}
