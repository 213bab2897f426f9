//! What may be asked of a lease, and where there are none.

use serde_json::{Value, json};
use tests::Stack;

use crate::consume::{committed, fill, offsets};
use crate::kit::{Raw, write};
use crate::world::{consume, function, function_with, topic, unique};

#[tokio::test]
async fn a_lease_s_time_has_bounds_and_goes_with_leases_only() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 2);
    let consumer = function("consume").await;
    for more in [
        "&lease_ms=30000",
        "&ack=auto&lease_ms=30000",
        "&ack=manual&lease_ms=999",
        "&ack=manual&lease_ms=600001",
        "&ack=manual&lease_ms=0",
        "&ack=manual&lease_ms=-1",
        "&ack=manual&lease_ms=soon",
        "&ack=manual&lease_ms=",
        "&ack=manual&lease_ms=2000&lease_ms=2000",
    ] {
        let answer = consume(&consumer, &topic, &group, more).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{more}");
        let said = answer.body["detail"].as_str().expect("a detail");
        assert!(said.contains("lease_ms"), "{more}: {said}");
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), None, "nothing is taken on the way");
    for (lease_ms, more) in [(1000, "&lease_ms=1000"), (600_000, "&lease_ms=600000"), (30_000, "")] {
        let group = unique("group");
        let leased = consume(&consumer, &topic, &group, &format!("&ack=manual{more}")).await;
        assert_eq!(offsets(leased.messages()), [0, 1]);
        let ends = leased.body["lease"]["expires_at"].as_u64().expect("a time");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let left = i128::from(ends) - i128::try_from(now.as_millis()).expect("small");
        assert!(left <= lease_ms && left > lease_ms - 30_000, "{left} of {lease_ms}");
    }
}

#[tokio::test]
async fn with_shared_delivery_there_are_no_leases() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    write(&topic, &[Raw::value(0, "x".repeat(4000)), Raw::value(0, "next")]).await;
    let shared = function_with("consume", &[("KAFKA_CONSUME_DELIVERY", "shared")]).await;
    for more in ["&ack=manual", "&ack=manual&lease_ms=5000"] {
        let answer = consume(&shared, &topic, &group, more).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{answer:?}");
        assert!(answer.body["detail"].as_str().is_some_and(|said| said.contains("ack")), "{answer:?}");
    }
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), None);
    // So a record that is too large says only where it is.
    let large = consume(&shared, &topic, &group, "&max_bytes=2048").await;
    assert_eq!((large.status, large.code()), (413, "record_too_large"));
    assert_eq!((&large.body["offset"], large.body.get("lease")), (&json!(0), None::<&Value>), "{large:?}");
    assert_eq!(consume(&shared, &topic, &group, "").await.messages().len(), 2);
}
