//! `make dev`: the local stack and the functions at their routes, until Ctrl-C.

use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tests::{Error, Gateway, Page, Result, Stack, progress};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async { run(pin!(stopped())).await });
    // A download that is under way need not be waited for: it ends with this process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut stop: Pin<&mut impl Future<Output = ()>>) -> Result<()> {
    let stack = tokio::select! {
        stack = Stack::start() => stack?,
        () = &mut stop => return Ok(()),
    };
    let registry = tokio::select! {
        registry = stack.try_registry() => registry?.to_owned(),
        () = &mut stop => return Ok(()),
    };
    let more = [("SCHEMA_REGISTRY_URL", registry.as_str()), ("LAG_MONITOR_GROUPS", "demo-group=demo")];
    let gateway = Gateway::start(&stack, &more, None).await?;
    let ended = tokio::select! {
        ended = serve(&stack, &gateway) => ended,
        () = &mut stop => Ok(()),
    };
    progress("stopping");
    gateway.stop().await;
    ended
}

async fn serve(stack: &Stack, gateway: &Gateway) -> Result<()> {
    progress("starting the functions");
    tokio::try_join!(
        create_topic(stack, "demo"),
        create_topic(stack, "audit"),
        // Those that the page's examples speak of.
        create_topic(stack, "archive"),
        create_topic(stack, "orders"),
        create_topic(stack, "orders-avro"),
        create_topic(stack, "orders.dlq"),
        gateway.answers("POST", "/kafka/producer/produce"),
        gateway.answers("POST", "/kafka/producer/produce/batch"),
        gateway.answers("GET", "/kafka/consumer/consume"),
        gateway.answers("POST", "/kafka/consumer/consume/batch"),
        gateway.answers("POST", "/kafka/consumer/acknowledge"),
        gateway.answers("POST", "/kafka/consumer/seek"),
        gateway.answers("GET", "/kafka/consumer/fetch"),
        gateway.answers("GET", "/kafka/consumer/lag"),
        gateway.answers("GET", "/kafka/topics"),
        gateway.answers("POST", "/kafka/dlq/redrive"),
    )?;
    let page = Page::start(stack, gateway).await?;
    progress("ready");
    println!("{}", instructions(stack, gateway, &page).await?);
    while !gateway.ended() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(Error::new("cargo lambda watch ended"))
}

async fn instructions(stack: &Stack, gateway: &Gateway, page: &Page) -> Result<String> {
    let (url, token) = (gateway.url(), stack.try_token("gateway-full").await?);
    let token_url = format!("{}/protocol/openid-connect/token", stack.issuer());
    Ok(format!(
        r#"
Kafka {kafka} · issuer {issuer} · Pushgateway {pushgateway}
logs: {logs}

In a browser: {page}

URL={url}
REGISTRY={registry}
TOKEN={token}

curl -sS {url}/kafka/producer/produce -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"topic": "demo", "key": "k1", "value": {{"hello": "world"}}}}'

curl -sS '{url}/kafka/consumer/consume?topic=demo&group_id=demo-group' -H "Authorization: Bearer $TOKEN"

With a schema:

curl -sS {registry}/subjects/demo-value/versions -H 'Content-Type: application/vnd.schemaregistry.v1+json' -d '{{"schema": "{{\"type\":\"record\",\"name\":\"Order\",\"fields\":[{{\"name\":\"id\",\"type\":\"long\"}},{{\"name\":\"note\",\"type\":[\"null\",\"string\"],\"default\":null}}]}}"}}'

curl -sS {url}/kafka/producer/produce -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"topic": "demo", "value": {{"id": 17}}, "value_format": "avro"}}'

curl -sS '{url}/kafka/consumer/consume?topic=demo&group_id=demo-avro&value_format=avro' -H "Authorization: Bearer $TOKEN"

At least once, by a lease: the token to accept it with is in the answer.

curl -sS '{url}/kafka/consumer/consume?topic=demo&group_id=demo-leases&ack=manual' -H "Authorization: Bearer $TOKEN"

curl -sS {url}/kafka/consumer/acknowledge -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d '{{"type": "accept", "token": "<lease.token>"}}'

What lag-monitor does once a minute (it writes to this terminal, and to {pushgateway}/metrics):

curl -sS {url}/2015-03-31/functions/lag-monitor/invocations -d '{{}}'

A new token, good for an hour:
TOKEN=$(curl -sS {token_url} -d grant_type=client_credentials -d client_id=gateway-full -d client_secret=gateway-full-local-only | sed 's/.*"access_token":"\([^"]*\)".*/\1/')

Ctrl-C ends everything."#,
        kafka = stack.bootstrap(),
        issuer = stack.issuer(),
        pushgateway = stack.pushgateway(),
        registry = stack.try_registry().await?,
        logs = stack.logs().display(),
        page = page.url(),
    ))
}

async fn create_topic(stack: &Stack, name: &str) -> Result<()> {
    let failed = |e: rdkafka::error::KafkaError| Error::new(format!("creating the topic {name}: {e}"));
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", stack.bootstrap());
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(failed)?;
    let topic = NewTopic::new(name, 3, TopicReplication::Fixed(1));
    let results = admin.create_topics(&[topic], &AdminOptions::new()).await.map_err(failed)?;
    match results.into_iter().find_map(std::result::Result::err) {
        Some((_, code)) => Err(Error::new(format!("creating the topic {name}: {code}"))),
        None => Ok(()),
    }
}

/// Ctrl-C, or what a terminal or a supervisor sends.
async fn stopped() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (signal(kinds[0]), signal(kinds[1]), signal(kinds[2]))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
