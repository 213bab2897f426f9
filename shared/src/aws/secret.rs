//! One request to Secrets Manager. AWS's own client for it would be half a megabyte, and a second way to speak HTTP.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::Client;
use serde::Deserialize;
use serde_json::json;

use crate::config::Arn;
use crate::errors::BoxError;

/// Variables that AWS's tools know as well: an endpoint in the VPC, or a stand-in.
const ENDPOINT: [&str; 2] = ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"];
const HEADERS: [(&str, &str); 2] =
    [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", "secretsmanager.GetSecretValue")];

#[derive(Deserialize)]
struct Secret {
    #[serde(rename = "SecretString")]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "__type")]
    kind: String,
}

/// What a secret holds now.
pub(super) async fn read(client: &Client, credentials: Credentials, arn: &Arn) -> Result<String, BoxError> {
    let given = ENDPOINT.iter().find_map(|name| std::env::var(name).ok().filter(|url| !url.is_empty()));
    let suffix = if arn.partition() == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
    let url = given.unwrap_or_else(|| format!("https://secretsmanager.{}.{suffix}/", arn.region()));
    let body = json!({ "SecretId": arn.as_str() }).to_string();

    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(arn.region())
        .name("secretsmanager")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()?
        .into();
    let request = SignableRequest::new("POST", &url, HEADERS.into_iter(), SignableBody::Bytes(body.as_bytes()))?;
    let (signed, _) = sign(request, &parameters)?.into_parts();
    let mut request = client.post(&url);
    for (name, value) in HEADERS.into_iter().chain(signed.headers()) {
        request = request.header(name, value);
    }
    let response = request.body(body).send().await?;
    let (status, body) = (response.status(), response.bytes().await?);
    if !status.is_success() {
        let kind = serde_json::from_slice(&body).map_or_else(|_| "no reason".to_owned(), |Refusal { kind }| kind);
        return Err(format!("Secrets Manager answered with status {status}, {kind}").into());
    }
    // Not the parser's error: it may quote the secret.
    let Secret { text } = serde_json::from_slice(&body).map_err(|_| "Secrets Manager's answer is not JSON")?;
    text.ok_or_else(|| "the secret holds no text".into())
}
