//! The API as a page: Swagger UI with `infra/openapi.yaml`, a token filled in, and the functions behind it, so that all
//! is of one origin.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

use crate::error::{Context as _, Error, Result};
use crate::install::{swagger_ui, workspace_root};
use crate::keycloak::Tokens;
use crate::run::free_port;
use crate::stack::Stack;
use crate::watch::Gateway;

/// API Gateway's own limit.
const LARGEST_BODY: usize = 10_000_000;

/// The page's server. Ended when dropped.
#[derive(Debug)]
pub struct Page {
    port: u16,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    files: PathBuf,
    issuer: String,
    tokens: Tokens,
    gateway: String,
    client: reqwest::Client,
}

impl Page {
    /// Serves it on a free port of this machine alone: it gives a token to whoever asks.
    pub async fn start(stack: &Stack, gateway: &Gateway) -> Result<Self> {
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy().build().context("HTTP client")?;
        let (files, issuer) = (swagger_ui().await?, stack.issuer());
        let shared = Arc::new(Shared { files, issuer, tokens: Tokens::default(), gateway: gateway.url(), client });
        let port = free_port()?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("the page's port")?;
        let answer = async move |request: Request| {
            shared.answer(request).await.unwrap_or_else(|e| (StatusCode::BAD_GATEWAY, e.to_string()).into_response())
        };
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, Router::new().fallback(answer)).await;
        });
        Ok(Self { port, server })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    async fn answer(&self, request: Request) -> Result<Response> {
        let read = |path: PathBuf| fs::read(&path).context(path.display());
        let path = request.uri().path();
        let (content_type, content) = match path {
            "/" => ("text/html; charset=utf-8", include_str!("page.html").into()),
            // Read again each time: who edits it sees it.
            "/openapi.yaml" => ("application/yaml", read(workspace_root().join("infra/openapi.yaml"))?),
            "/swagger-ui.css" => ("text/css", read(self.files.join("swagger-ui.css"))?),
            "/swagger-ui-bundle.js" => ("text/javascript", read(self.files.join("swagger-ui-bundle.js"))?),
            "/token" => ("text/plain", self.tokens.get(&self.issuer, "gateway-full").await?.into()),
            _ if path.starts_with("/kafka/") => return self.forward(request).await,
            _ => return Ok(StatusCode::NOT_FOUND.into_response()),
        };
        Ok(([(CONTENT_TYPE, HeaderValue::from_static(content_type))], content).into_response())
    }

    /// Asks the functions.
    async fn forward(&self, request: Request) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let failed = |e: axum::Error| Error::new(e.to_string());
        let body = to_bytes(body, LARGEST_BODY).await.map_err(failed)?;
        let mut headers = parts.headers;
        // Of this connection, and not of the next one.
        for name in [HOST, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        let url = format!("{}{}", self.gateway, parts.uri);
        let answer = self.client.request(parts.method, url).headers(headers).body(body).send().await;
        let answer = answer.context("the functions")?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(TRANSFER_ENCODING);
        let mut response = Response::new(Body::from(answer.bytes().await.context("the functions")?));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }
}
