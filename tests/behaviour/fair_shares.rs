//! The room of an answer: who gets how much of it, and that no answer takes more; and where `fetch` begins in partitions that
//! differ.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tests::{Event, Stack};

use crate::consume::offsets;
use crate::consume_batch::{ask, batch, by_topic, settle};
use crate::fetch::{FETCH, fetch, go_on};
use crate::http::{nasty_records, posted};
use crate::kit::{Raw, write};
use crate::world::{Answer, function, produce, topic, unique};

#[tokio::test]
async fn large_records_of_one_topic_leave_room_for_the_small_ones_of_another() {
    let (large, small) = (topic(1).await, topic(1).await);
    let consumer = function("consume-batch").await;
    write(&large, &vec![Raw::value(0, vec![b'x'; 40_000]); 12]).await;
    write(&small, &vec![Raw::value(0, vec![b'y'; 100]); 16_000]).await;
    for ack in ["auto", "manual"] {
        let group = unique("group");
        let token = Stack::shared().await.token("gateway-full").await;
        let acker = function("acknowledge").await;
        let (mut counts, mut without) = (BTreeMap::<String, usize>::new(), 0);
        // Room for one large record in a half, and for all small ones only in many answers.
        let more = json!({ "ack": ack, "max_bytes": 100_000, "limit": 1000, "timeout_ms": 0 });
        while counts.get(&large) < Some(&12) {
            let event = ask(&[&large, &small], &group, &more).bearer(&token);
            let response = consumer.invoke(event.build()).await;
            assert!(posted(&response) <= 100_000, "{}", posted(&response));
            let answer = Answer::read(&response);
            let got = by_topic(&answer);
            let of_small = got.get(&small).map_or(0, Vec::len);
            assert!(of_small >= 100, "{ack}: {of_small} beside a large one");
            match got.get(&large).map(Vec::len) {
                Some(count) => {
                    assert_eq!(count, 1, "{ack}: a half holds one");
                    without = 0;
                }
                // A call without leases may first go on with what is fetched ahead: with two topics twice in a row.
                None => without += 1,
            }
            assert!(without == 0 || ack == "auto" && without <= 2, "{ack}: {without} answers without a large one");
            for (topic, offsets) in got {
                *counts.entry(topic).or_default() += offsets.len();
            }
            if ack == "manual" {
                settle(&acker, &answer, json!({ "type": "accept" })).await.ok();
            }
        }
        assert!(counts[&small] >= 1200, "{counts:?}");
    }
    // What one does not need, the other gets at the next call: then all of the room is its own.
    let group = unique("group");
    let (most, alone) = (json!({ "max_bytes": 100_000, "limit": 1000 }), topic(1).await);
    write(&alone, &vec![Raw::value(0, vec![b'x'; 40_000]); 4]).await;
    let empty = topic(1).await;
    let both = batch(&consumer, &[&alone, &empty], &group, most).await;
    assert_eq!(by_topic(&both)[&alone], [0, 1], "an empty topic takes no room");
}

#[tokio::test]
async fn no_answer_of_fetch_is_larger_than_max_bytes_and_none_is_lost() {
    let (fetcher, topic) = (function("fetch").await, topic(3).await);
    let mut records = Vec::new();
    let sizes = (0..10).flat_map(|_| [(3, 0), (36, 1), (60, 0)]).chain([(300, 1), (700, 2), (4000, 2)]);
    for (index, (size, partition)) in sizes.enumerate() {
        records.extend(nasty_records(size, partition, index % 2 == 1));
    }
    // One that no answer of the smaller sizes can carry. It is named beside the others, or alone.
    records.push(Raw::value(1, vec![b'x'; 60_000]));
    records.push(Raw::value(1, "behind it"));
    write(&topic, &records).await;
    let token = Stack::shared().await.token("gateway-full").await;
    for format in ["auto", "string", "json", "binary"] {
        for max_bytes in [15_000, 40_000, 200_000] {
            let (mut offset, mut count, mut largest, mut too_large) = ("earliest".to_owned(), 0, 0, 0);
            loop {
                let query = format!(
                    "topic={topic}&offset={offset}&timeout_ms=0&format={format}&max_bytes={max_bytes}&limit=1000"
                );
                let response = fetcher.invoke(Event::get(FETCH).query(&query).bearer(&token).build()).await;
                let size = posted(&response);
                assert!(size <= max_bytes, "{size} of {max_bytes}, {format}");
                largest = largest.max(size);
                let answer = Answer::read(&response);
                if answer.status == 413 {
                    assert_eq!((&answer.body["partition"], &answer.body["size"]), (&json!(1), &json!(60_000)));
                    too_large += 1;
                } else {
                    let messages = answer.messages();
                    if messages.is_empty() {
                        break;
                    }
                    count += messages.len();
                }
                offset = go_on(&answer.body);
            }
            assert_eq!(count + too_large, records.len(), "{format} {max_bytes}");
            assert_eq!(too_large, usize::from(max_bytes < 60_000), "{format} {max_bytes}");
            assert!(largest > max_bytes / 2 || max_bytes > 50_000, "the room is used: {largest} of {max_bytes}");
        }
    }
}

#[tokio::test]
async fn fetch_begins_in_each_partition_where_that_one_says() {
    let topic = topic(4).await;
    let (producer, fetcher) = (function("produce").await, function("fetch").await);
    let start = 1_700_000_000_000_u64;
    // Ends 3, 10 and 1, and nothing in the last; each with times of its own, one of them out of order.
    let times: [(u64, &[u64]); 3] = [(0, &[0, 10, 20]), (1, &[5, 6, 7, 8, 9, 15, 12, 16, 40, 50]), (2, &[100])];
    for (partition, after) in times {
        for seconds in after {
            let record =
                json!({ "topic": topic, "partition": partition, "value": "v", "timestamp": start + 1000 * seconds });
            produce(&producer, &record).await.ok();
        }
    }
    let at = |seconds: u64| format!("&timestamp={}", start + 1000 * seconds);
    for (query, begins) in [
        ("&offset=earliest".to_owned(), [0, 0, 0, 0]),
        ("&offset=latest".to_owned(), [3, 10, 1, 0]),
        ("&offset=-1".to_owned(), [2, 9, 0, 0]),
        ("&offset=-2".to_owned(), [1, 8, 0, 0]),
        ("&offset=-5".to_owned(), [0, 5, 0, 0]),
        ("&offset=-1000".to_owned(), [0, 0, 0, 0]),
        (at(0), [0, 0, 0, 0]),
        (at(8), [1, 3, 0, 0]),
        (at(10), [1, 5, 0, 0]),
        (at(15), [2, 5, 0, 0]),
        // Where there is no such record it begins at the end.
        (at(21), [3, 8, 0, 0]),
        (at(99), [3, 10, 0, 0]),
        (at(101), [3, 10, 1, 0]),
    ] {
        let answer = fetch(&fetcher, &topic, &format!("{query}&timeout_ms=0")).await;
        for (partition, (begin, end)) in begins.iter().zip([3, 10, 1, 0]).enumerate() {
            let of: Vec<Value> =
                answer.messages().iter().filter(|message| message["partition"] == partition).cloned().collect();
            assert_eq!(offsets(&of), (*begin..end).collect::<Vec<i64>>(), "{query}, partition {partition}");
        }
        assert_eq!(answer.body["next"], json!({ "0": 3, "1": 10, "2": 1, "3": 0 }), "{query}");
        // The same of one partition alone.
        let alone = fetch(&fetcher, &topic, &format!("{query}&partition=1&timeout_ms=0")).await;
        assert_eq!(offsets(alone.messages()), (begins[1]..10).collect::<Vec<i64>>(), "{query}");
        assert_eq!(alone.body["next"], json!({ "1": 10 }), "{query}");
    }
    // One record each, and go on from there.
    let first = fetch(&fetcher, &topic, &format!("{}&limit=2", at(8))).await;
    let rest = fetch(&fetcher, &topic, &format!("&offset={}&timeout_ms=0", go_on(&first.body))).await;
    assert_eq!(first.messages().len() + rest.messages().len(), 2 + 7 + 1);
    // A record that comes into the empty partition is its first.
    produce(&producer, &json!({ "topic": topic, "partition": 3, "value": "new" })).await.ok();
    let later = fetch(&fetcher, &topic, &format!("&offset={}&timeout_ms=5000", go_on(&rest.body))).await;
    assert_eq!(offsets(later.messages()), [0]);
    assert_eq!(later.messages()[0]["partition"], 3);
}
