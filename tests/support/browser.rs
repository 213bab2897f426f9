//! Chromium without a window, driven as a person would: by W3C's web driver protocol, which is JSON over HTTP.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::error::{Context as _, Error, Result};
use crate::install::chromium;
use crate::process::{Process, supervised};
use crate::run::free_port;

/// How long anything on a page may take to be there, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The member in which the protocol hides an element's id.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window.
#[derive(Debug)]
pub struct Browser {
    // Both are children of this process, so that both end with it: the driver's own children would not.
    _chromium: Process,
    _driver: Process,
    client: reqwest::Client,
    session: String,
}

impl Browser {
    pub(crate) async fn start(data: &Path, log: &Path) -> Result<Self> {
        chromium()?;
        let (debug_port, port) = (free_port()?, free_port()?);
        let mut command = supervised("chromium");
        // Root has no sandbox; and nothing is to be asked for at its maker's.
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--disable-quic", "--window-size=1400,2400"]);
        command.arg(format!("--remote-debugging-port={debug_port}"));
        command.arg(format!("--user-data-dir={}", data.display())).arg("about:blank");
        let browser = Process::start("chromium", command, log)?;
        let mut command = supervised("chromedriver");
        command.arg(format!("--port={port}"));
        let driver = Process::start("chromedriver", command, log)?;
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy().build().context("HTTP client")?;
        let sessions = format!("http://127.0.0.1:{port}/session");
        let attach = json!({ "goog:chromeOptions": { "debuggerAddress": format!("127.0.0.1:{debug_port}") } });
        let attach = json!({ "capabilities": { "alwaysMatch": attach } });
        let begun = Instant::now();
        let session = loop {
            match ask(client.post(&sessions), Some(&attach)).await {
                Ok(answer) => break answer["sessionId"].as_str().unwrap_or_default().to_owned(),
                Err(_) if begun.elapsed() < PATIENCE && browser.exited().is_none() && driver.exited().is_none() => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(Error::new(format!("{error}\n{}", browser.failure("cannot be driven")))),
            }
        };
        let browser = Self { _chromium: browser, _driver: driver, client, session: format!("{sessions}/{session}") };
        // From here on whoever asks for an element waits for it.
        browser.post("timeouts", &json!({ "implicit": PATIENCE.as_millis() })).await?;
        Ok(browser)
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.posted("url", &json!({ "url": url })).await;
    }

    /// Clicks on what this CSS selector finds first, as soon as it is there.
    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.posted(&format!("element/{element}/click"), &json!({})).await;
    }

    /// The text that is seen there, as soon as there is any.
    pub async fn text(&self, selector: &str) -> String {
        let begun = Instant::now();
        loop {
            let element = self.find(selector).await;
            let text = ask(self.client.get(format!("{}/element/{element}/text", self.session)), None).await;
            match text.as_ref().map(|text| text.as_str().unwrap_or_default()) {
                Ok("") | Err(_) if begun.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
                Ok(text) => return text.to_owned(),
                Err(error) => panic!("{selector}: {error}"),
            }
        }
    }

    /// The window as a PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let taken = ask(self.client.get(format!("{}/screenshot", self.session)), None).await;
        let taken = taken.unwrap_or_else(|e| panic!("screenshot: {e}"));
        STANDARD.decode(taken.as_str().unwrap_or_default()).expect("base64")
    }

    async fn find(&self, selector: &str) -> String {
        let found = self.posted("element", &json!({ "using": "css selector", "value": selector })).await;
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}")).to_owned()
    }

    async fn posted(&self, command: &str, body: &Value) -> Value {
        self.post(command, body).await.unwrap_or_else(|e| panic!("{command} {body}: {e}"))
    }

    async fn post(&self, command: &str, body: &Value) -> Result<Value> {
        ask(self.client.post(format!("{}/{command}", self.session)), Some(body)).await
    }
}

/// A command's value.
async fn ask(request: reqwest::RequestBuilder, body: Option<&Value>) -> Result<Value> {
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    let response = request.send().await.context("chromedriver")?;
    let succeeded = response.status().is_success();
    let text = response.text().await.context("chromedriver")?;
    let mut answer: Value = serde_json::from_str(&text).context("chromedriver")?;
    let value = answer["value"].take();
    if succeeded { Ok(value) } else { Err(Error::new(value["message"].as_str().unwrap_or(&text))) }
}
