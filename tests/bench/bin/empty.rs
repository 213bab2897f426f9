//! A Lambda function that does nothing: what the runtime and the simulator themselves cost.

use std::convert::Infallible;

use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    // An answer of the shape that the gateway's functions give, so that its reader has the same work.
    let answer = |_: LambdaEvent<Value>| async { Ok::<_, Infallible>(json!({ "statusCode": 200, "body": "{}" })) };
    lambda_runtime::run(service_fn(answer)).await
}
