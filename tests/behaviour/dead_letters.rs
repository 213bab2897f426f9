//! Dead letters: records that nobody can use leave their partition, once each, and only they.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::{Event, Function, Stack};

use crate::consume::{committed, fill, offsets, raw_consumer};
use crate::kit::{Raw, write};
use crate::redrive::redrive;
use crate::seek::seek;
use crate::wire::ACKNOWLEDGE;
use crate::world::{Answer, admin, call, consume, function, function_with, topic, topic_on, unique};

const PATIENCE: Duration = Duration::from_secs(10);

/// A letter, as any reader of committed records finds it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Letter {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Letter {
    /// The text of its last header with this name.
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().rfind(|header| header.0 == name).and_then(|header| header.1.as_deref());
        std::str::from_utf8(found.unwrap_or_else(|| panic!("{name}: {self:?}"))).expect("text")
    }

    /// Where its record was.
    pub(crate) fn offset(&self) -> i64 {
        self.header("__connect.errors.offset").parse().expect("an offset")
    }
}

/// All letters of a topic, read as committed, by partition. None, if it has no dead-letter topic.
pub(crate) fn letters(server: &str, topic: &str) -> Vec<Letter> {
    let name = format!("{topic}.dlq");
    let settings = [("isolation.level", "read_committed"), ("enable.partition.eof", "true")];
    let reader: BaseConsumer = raw_consumer(server, "-", &settings);
    let metadata = reader.fetch_metadata(None, PATIENCE).expect("metadata");
    let Some(found) = metadata.topics().iter().find(|topic| topic.name() == name) else { return Vec::new() };
    let mut read = Vec::new();
    for partition in 0..i32::try_from(found.partitions().len()).expect("few") {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, partition, Offset::Beginning).expect("a place");
        reader.assign(&list).expect("assigned");
        loop {
            match reader.poll(PATIENCE).expect("letters, or the end") {
                Err(KafkaError::PartitionEOF(_)) => break,
                Err(error) => println!("reading letters: {error}"),
                Ok(letter) => read.push(Letter {
                    partition,
                    key: letter.key().map(<[u8]>::to_vec),
                    value: letter.payload().map(<[u8]>::to_vec),
                    headers: letter
                        .headers()
                        .into_iter()
                        .flat_map(|headers| headers.iter())
                        .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                        .collect(),
                }),
            }
        }
    }
    read
}

/// The offsets of the records that a topic has letters of.
pub(crate) fn dead(server: &str, topic: &str) -> Vec<i64> {
    let mut dead: Vec<i64> = letters(server, topic).iter().map(Letter::offset).collect();
    dead.sort_unstable();
    dead
}

async fn acknowledge(function: &Function, body: &Value) -> Answer {
    call(function, Event::post(ACKNOWLEDGE).json(body)).await
}

fn reject(answer: &Answer, offsets: &[i64]) -> Value {
    let records: Vec<Value> = offsets.iter().map(|offset| json!({ "partition": 0, "offset": offset })).collect();
    json!({ "token": answer.body["lease"]["token"], "type": "reject", "records": records })
}

fn settle(answer: &Answer, how: &str) -> Value {
    json!({ "token": answer.body["lease"]["token"], "type": how })
}

fn attempts(answer: &Answer) -> Vec<u64> {
    answer.messages().iter().map(|message| message["delivery_attempt"].as_u64().expect("a count")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rejected_is_kept_as_it_was_and_says_why_it_is_there() {
    let (stack, topic, group) = (Stack::shared().await, topic(2).await, unique("group"));
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    let odd = Raw {
        partition: 1,
        key: Some(vec![0xff, 0]),
        value: Some(vec![0, 0xfe]),
        headers: vec![
            header("a", Some(b"1")),
            header("a", None),
            header("dlq.reason", Some(b"older")),
            header("", Some(b"")),
        ],
    };
    let bare = Raw { partition: 1, ..Raw::default() };
    write(&topic, &[Raw::value(1, "0"), odd.clone(), bare, Raw::value(1, "3")]).await;
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
    assert_eq!(offsets(leased.messages()), [0, 1, 2, 3]);
    let mut body = reject(&leased, &[2, 1]);
    body["records"].as_array_mut().expect("records").iter_mut().for_each(|record| record["partition"] = json!(1));
    body["reason"] = json!("cannot be read: ü");
    for _ in 0..2 {
        let expected = json!([{ "topic": topic, "partition": 1, "status": "rejected", "committed": 0 }]);
        assert_eq!(acknowledge(&acker, &body).await.ok()["results"], expected);
    }
    let letters = letters(&stack.bootstrap(), &topic);
    assert_eq!(letters.iter().map(Letter::offset).collect::<Vec<_>>(), [1, 2], "once each");
    assert_eq!((&letters[0].key, &letters[0].value, letters[0].partition), (&odd.key, &odd.value, 1));
    assert_eq!(letters[0].headers[..4], odd.headers[..]);
    assert_eq!((&letters[1].key, &letters[1].value), (&None, &None));
    let block: Vec<(&str, &str)> =
        letters[0].headers[4..].iter().map(|(name, _)| (name.as_str(), letters[0].header(name))).collect();
    let time = leased.messages()[1]["timestamp"].to_string();
    let expected = [
        ("__connect.errors.topic", topic.as_str()),
        ("__connect.errors.partition", "1"),
        ("__connect.errors.offset", "1"),
        ("__connect.errors.exception.class.name", "kafka_gateway.Rejected"),
        ("__connect.errors.exception.message", "cannot be read: ü"),
        ("dlq.group", group.as_str()),
        ("dlq.delivery_attempts", "1"),
        ("dlq.reason", "rejected"),
        ("dlq.timestamp", &time),
    ];
    assert_eq!(block, expected);
    let died = acker.logs().into_iter().find(|line| line["message"] == "records went to the dead-letter topic");
    let died = died.expect("a line");
    assert_eq!((&died["topic"], &died["records"], &died["reason"]), (&json!(topic), &json!(2), &json!("rejected")));
    // The rest stays leased; what is accepted then takes the position past what is settled.
    assert!(consume(&consumer, &topic, &group, "&timeout_ms=0").await.messages().is_empty());
    let part = json!({ "token": leased.body["lease"]["token"], "type": "accept", "through": { "1": 0 } });
    assert_eq!(acknowledge(&acker, &part).await.ok()["results"][0]["committed"], 3);
    assert_eq!(acknowledge(&acker, &settle(&leased, "release")).await.ok()["results"][0]["committed"], 3);
    assert_eq!(offsets(consume(&consumer, &topic, &group, "").await.messages()), [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_never_comes_again_until_the_position_is_set() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 8);
    let (consumer, acker, seeker) = (function("consume").await, function("acknowledge").await, function("seek").await);
    let other = function("consume").await;
    let first = consume(&consumer, &topic, &group, "&ack=manual").await;
    acknowledge(&acker, &reject(&first, &[2, 3, 5])).await.ok();
    acknowledge(&acker, &settle(&first, "release")).await.ok();
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(0));
    let second = consume(&consumer, &topic, &group, "&ack=manual&limit=3").await;
    assert_eq!((offsets(second.messages()), attempts(&second)), (vec![0, 1, 4], vec![2, 2, 2]));
    let (rest, before) = (reject(&second, &[4]), reject(&first, &[2, 3, 5]));
    assert_eq!(acknowledge(&acker, &rest).await.ok()["results"][0]["committed"], 0);
    assert_eq!(acknowledge(&acker, &before).await.ok()["results"][0]["status"], "rejected", "again, after others");
    assert_eq!(acknowledge(&acker, &settle(&second, "accept")).await.ok()["results"][0]["committed"], 6);
    // What was fetched before by another function, and for good, does not hold them either.
    for function in [&other, &consumer] {
        let more = consume(function, &topic, &group, "&limit=1").await;
        assert_eq!(more.messages().len(), 1);
    }
    assert!(consume(&other, &topic, &group, "&timeout_ms=0").await.messages().is_empty());
    assert_eq!(dead(&stack.bootstrap(), &topic), [2, 3, 4, 5]);
    // A seek begins anew, and then they may die again.
    seek(&seeker, &json!({ "group_id": group, "topic": topic, "partitions": { "0": 3 } })).await.ok();
    let again = consume(&other, &topic, &group, "&ack=manual").await;
    assert_eq!((offsets(again.messages()), attempts(&again)), (vec![3, 4, 5, 6, 7], vec![1; 5]));
    acknowledge(&acker, &settle(&again, "reject")).await.ok();
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(8));
    assert_eq!(dead(&stack.bootstrap(), &topic), [2, 3, 3, 4, 4, 5, 5, 6, 7]);
    assert_eq!(acknowledge(&acker, &settle(&again, "accept")).await.status, 200, "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_has_fetched_ahead_leaves_out_what_was_settled_since() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 12);
    let (eager, consumer, acker) =
        (function("consume").await, function("consume").await, function("acknowledge").await);
    assert_eq!(offsets(consume(&eager, &topic, &group, "&limit=2").await.messages()), [0, 1]);
    let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=6").await;
    assert_eq!(offsets(leased.messages()), [2, 3, 4, 5, 6, 7]);
    acknowledge(&acker, &reject(&leased, &[3, 7])).await.ok();
    acknowledge(&acker, &settle(&leased, "release")).await.ok();
    assert_eq!(offsets(consume(&eager, &topic, &group, "&limit=2").await.messages()), [2, 4]);
    assert_eq!(offsets(consume(&eager, &topic, &group, "&limit=4").await.messages()), [5, 6, 8, 9]);
    assert_eq!(dead(&stack.bootstrap(), &topic), [3, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_lease_rejects_and_only_what_is_in_it() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 6);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=4&lease_ms=30000").await;
    let token = stack.token("gateway-reader").await;
    let theirs = Event::post(ACKNOWLEDGE).json(&reject(&leased, &[0])).bearer(&token).build();
    let theirs = Answer::read(&acker.invoke(theirs).await);
    assert_eq!((theirs.status, theirs.code()), (403, "forbidden"));
    let accepted = json!({ "token": leased.body["lease"]["token"], "type": "accept", "through": { "0": 0 } });
    acknowledge(&acker, &accepted).await.ok();
    for offset in [0, 4, 100] {
        let answer = acknowledge(&acker, &reject(&leased, &[1, offset])).await;
        assert_eq!((answer.status, answer.code()), (400, "invalid_parameter"), "{offset}");
    }
    acknowledge(&acker, &settle(&leased, "accept")).await.ok();
    let late = acknowledge(&acker, &reject(&leased, &[1])).await;
    assert_eq!((late.status, late.code()), (409, "lease_lost"), "accepted, and without a letter");
    assert!(letters(&stack.bootstrap(), &topic).is_empty());
    assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(4));
    // Letters have no letters.
    let letters = format!("{topic}.dlq");
    let made = NewTopic::new(&letters, 1, TopicReplication::Fixed(1));
    let made = admin(&stack.bootstrap()).create_topics([&made], &AdminOptions::new()).await.expect("an answer");
    assert!(made.iter().all(Result::is_ok));
    fill(&stack.bootstrap(), &letters, 1, 2);
    let leased = consume(&consumer, &letters, &group, "&ack=manual").await;
    let answer = acknowledge(&acker, &reject(&leased, &[0])).await;
    assert_eq!((answer.status, answer.code(), &answer.body["topic"]), (400, "invalid_parameter", &json!(letters)));
    for _ in 0..6 {
        let leased = consume(&consumer, &letters, &group, "&ack=manual&timeout_ms=0").await;
        if !leased.messages().is_empty() {
            acknowledge(&acker, &settle(&leased, "release")).await.ok();
        }
    }
    acknowledge(&acker, &settle(&leased, "release")).await.ok();
    let again = consume(&consumer, &letters, &group, "&ack=manual").await;
    assert_eq!(again.messages().len(), 2, "together, however often");
}

/// Records at 0, 2, 4 and so on, each with the marker of its transaction behind it.
fn in_transactions(server: &str, topic: &str, count: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", server)
        .set("transactional.id", unique("transactions"))
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("ready");
    for n in 0..count {
        producer.begin_transaction().expect("begun");
        let value = n.to_string();
        let record = BaseRecord::<str, str>::to(topic).payload(&value).partition(0);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
        producer.commit_transaction(PATIENCE).expect("committed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_which_only_markers_are_left_is_over() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    in_transactions(&stack.bootstrap(), &topic, 5);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=3").await;
    assert_eq!(offsets(leased.messages()), [0, 2, 4]);
    acknowledge(&acker, &reject(&leased, &[4])).await.ok();
    acknowledge(&acker, &reject(&leased, &[0])).await.ok();
    let part = json!({ "token": leased.body["lease"]["token"], "type": "accept", "through": { "0": 2 } });
    acknowledge(&acker, &part).await.ok();
    let next = consume(&consumer, &topic, &group, "&ack=manual&limit=1").await;
    assert_eq!(offsets(next.messages()), [6], "at once");
    acknowledge(&acker, &reject(&next, &[6])).await.ok();
    assert_eq!(offsets(consume(&consumer, &topic, &group, "").await.messages()), [8]);
    assert_eq!(dead(&stack.bootstrap(), &topic), [0, 4, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_its_last_record_and_not_with_what_lies_behind() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    in_transactions(&stack.bootstrap(), &topic, 4);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    // Of the last one's marker nothing need be known.
    for (expected, through, positions) in [([0, 2], 2, 4..5), ([4, 6], 6, 7..9)] {
        let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=2").await;
        assert_eq!(offsets(leased.messages()), expected, "at once");
        let accept = json!({ "token": leased.body["lease"]["token"], "type": "accept", "through": { "0": through } });
        for _ in 0..2 {
            let accepted = acknowledge(&acker, &accept).await.ok();
            let committed = accepted["results"][0]["committed"].as_i64().expect("an offset");
            assert!(positions.contains(&committed), "{committed}: with the marker of the last record's transaction");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_its_producer_compressed_fits_as_a_letter_and_on_its_way_back() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", stack.bootstrap())
        .set("compression.type", "zstd")
        .set("message.max.bytes", "20000000")
        .create()
        .expect("a producer");
    // Three times what the topic takes.
    let value = "there is much to say and it is said again. ".repeat(70_000);
    producer.send(BaseRecord::<(), str>::to(&topic).payload(&value)).map_err(|(error, _)| error).expect("queued");
    producer.flush(PATIENCE).expect("written");
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
    acknowledge(&acker, &settle(&leased, "reject")).await.ok();
    assert_eq!(dead(&stack.bootstrap(), &topic), [0]);
    assert_eq!(redrive(&function("redrive").await, &topic, &json!({})).await.ok()["redriven"], 1);
    let again = consume(&consumer, &topic, &group, "").await;
    assert_eq!(again.messages()[0]["value"].as_str().map(str::len), Some(value.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_gone_are_settled_without_a_letter() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 6);
    let (consumer, acker) = (function("consume").await, function("acknowledge").await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=4").await;
    let mut gone = TopicPartitionList::new();
    gone.add_partition_offset(&topic, 0, Offset::Offset(2)).expect("a place");
    admin(&stack.bootstrap()).delete_records(&gone, &AdminOptions::new()).await.expect("deleted");
    let result = acknowledge(&acker, &reject(&leased, &[0, 1, 2])).await.ok()["results"][0].clone();
    assert_eq!((&result["committed"], &result["gone"]), (&json!(3), &json!([0, 1])));
    assert_eq!(dead(&stack.bootstrap(), &topic), [2]);
    gone.set_partition_offset(&topic, 0, Offset::Offset(5)).expect("a place");
    admin(&stack.bootstrap()).delete_records(&gone, &AdminOptions::new()).await.expect("deleted");
    assert_eq!(acknowledge(&acker, &settle(&leased, "reject")).await.ok()["results"][0]["committed"], 4);
    // Another one, that has fetched nothing ahead.
    let other = function("consume").await;
    assert_eq!(offsets(consume(&other, &topic, &group, "").await.messages()), [5]);
    assert_eq!(dead(&stack.bootstrap(), &topic), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_lease_over_several_topics_each_record_names_its_own() {
    let (stack, group) = (Stack::shared().await, unique("group"));
    let (one, two) = (topic(1).await, topic(1).await);
    for topic in [&one, &two] {
        fill(&stack.bootstrap(), topic, 1, 3);
    }
    let (consumer, acker) = (function("consume-batch").await, function("acknowledge").await);
    let body = json!({ "group_id": group, "topics": [{ "topic": one }, { "topic": two }], "ack": "manual" });
    let leased = call(&consumer, Event::post("/kafka/consumer/consume/batch").json(&body)).await;
    assert_eq!(leased.messages().len(), 6);
    let unnamed = acknowledge(&acker, &reject(&leased, &[0])).await;
    assert_eq!((unnamed.status, unnamed.code()), (400, "invalid_parameter"));
    let mut named = reject(&leased, &[0]);
    named["records"][0]["topic"] = json!(two);
    let results = acknowledge(&acker, &named).await.ok()["results"].clone();
    let expected = json!([{ "topic": two, "partition": 0, "status": "rejected", "committed": 1 }]);
    assert_eq!(results, expected, "the other topic stays as it is");
    acknowledge(&acker, &settle(&leased, "reject")).await.ok();
    assert_eq!(dead(&stack.bootstrap(), &one), [0, 1, 2]);
    assert_eq!(dead(&stack.bootstrap(), &two), [0, 1, 2]);
}

/// Takes what comes, one call after the other, and accepts it, unless `poison` is in it: the offsets that were accepted,
/// by partition, and how often the poison was met.
async fn work(consumer: &Function, acker: &Function, topic: &str, group: &str, poison: &str) -> (Vec<i64>, u32) {
    let (mut accepted, mut met) = (Vec::new(), 0);
    loop {
        let leased = consume(consumer, topic, group, "&ack=manual&timeout_ms=500").await;
        if leased.messages().is_empty() {
            return (accepted, met);
        }
        let poisoned = leased.messages().iter().any(|message| message["value"] == poison);
        met += u32::from(poisoned);
        acknowledge(acker, &settle(&leased, if poisoned { "release" } else { "accept" })).await.ok();
        if !poisoned {
            accepted.extend(offsets(leased.messages()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_record_is_given_up_and_its_neighbours_are_not() {
    let (stack, topic) = (Stack::shared().await, topic(1).await);
    fill(&stack.bootstrap(), &topic, 1, 10);
    let acker = function("acknowledge").await;
    for most in 1..=5 {
        let group = unique("group");
        let consumer = function_with("consume", &[("DLQ_MAX_DELIVERIES", &most.to_string())]).await;
        let (accepted, met) = work(&consumer, &acker, &topic, &group, "4").await;
        assert_eq!(accepted, [0, 1, 2, 3, 5, 6, 7, 8, 9], "{most}");
        assert_eq!(met, most);
        let ours = |letter: &&Letter| letter.header("dlq.group") == group;
        let letters: Vec<Letter> = letters(&stack.bootstrap(), &topic).iter().filter(ours).cloned().collect();
        assert_eq!(letters.iter().map(Letter::offset).collect::<Vec<_>>(), [4]);
        assert_eq!(
            (letters[0].header("dlq.reason"), letters[0].header("dlq.delivery_attempts")),
            ("max_deliveries", most.to_string().as_str())
        );
        assert_eq!(committed(&stack.bootstrap(), &group, &topic, 0), Some(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_met_in_vain_is_given_up_by_a_call_without_leases_too() {
    let (stack, topic, group) = (Stack::shared().await, topic(1).await, unique("group"));
    fill(&stack.bootstrap(), &topic, 1, 3);
    let settings = [("DLQ_MAX_DELIVERIES", "2")];
    let (consumer, acker) = (function_with("consume", &settings).await, function("acknowledge").await);
    for _ in 0..2 {
        let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=1").await;
        acknowledge(&acker, &settle(&leased, "release")).await.ok();
    }
    assert_eq!(offsets(consume(&consumer, &topic, &group, "").await.messages()), [1, 2]);
    assert_eq!(dead(&stack.bootstrap(), &topic), [0]);
    // A record that fits into no answer is given up in the same way: each 413 is a delivery.
    let (group, small) = (unique("group"), topic_on(&stack.bootstrap(), 1, &[]).await);
    write(&small, &[Raw::value(0, "x".repeat(4000)), Raw::value(0, "next")]).await;
    for _ in 0..2 {
        let refused = consume(&consumer, &small, &group, "&max_bytes=2048").await;
        assert_eq!((refused.status, refused.code()), (413, "record_too_large"));
        let lease = json!({ "token": refused.body["lease"]["token"], "type": "release" });
        acknowledge(&acker, &lease).await.ok();
    }
    assert_eq!(offsets(consume(&consumer, &small, &group, "&max_bytes=2048").await.messages()), [1]);
    assert_eq!(letters(&stack.bootstrap(), &small)[0].value.as_ref().map(Vec::len), Some(4000));
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_stay_whatever_the_cluster_does_with_topics_by_itself() {
    let by_itself =
        [("log.cleanup.policy", "compact"), ("log.retention.bytes", "1000000"), ("log.retention.ms", "1000")];
    let broker = Stack::shared().await.extra_broker(&by_itself).await;
    let (server, group) = (broker.bootstrap(), unique("group"));
    let topic = topic_on(&server, 1, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]).await;
    fill(&server, &topic, 1, 1);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str())];
    let (consumer, acker) = (function_with("consume", &settings).await, function_with("acknowledge", &settings).await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual").await;
    // It has no key, and a compacted topic would not take it.
    acknowledge(&acker, &settle(&leased, "reject")).await.ok();
    let letters = format!("{topic}.dlq");
    let which = [ResourceSpecifier::Topic(&letters)];
    let described = admin(&server).describe_configs(&which, &AdminOptions::new()).await.expect("an answer").remove(0);
    let config = described.expect("its settings");
    let value = |name: &str| config.get(name).and_then(|entry| entry.value.clone());
    let kept = ["cleanup.policy", "retention.ms", "retention.bytes"].map(value);
    assert_eq!(kept, ["delete", "-1", "-1"].map(|value| Some(value.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_letters_cannot_be_written_nothing_moves() {
    // New topics need three replicas there, and so cannot be made; those of these tests say one.
    let broker = Stack::shared().await.extra_broker(&[("default.replication.factor", "3")]).await;
    let (server, group) = (broker.bootstrap(), unique("group"));
    let topic = topic_on(&server, 2, &[]).await;
    fill(&server, &topic, 2, 8);
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("DLQ_MAX_DELIVERIES", "1")];
    let (consumer, acker) = (function_with("consume", &settings).await, function_with("acknowledge", &settings).await);
    let leased = consume(&consumer, &topic, &group, "&ack=manual&limit=1").await;
    let partition = leased.messages()[0]["partition"].clone();
    let letters_topic = format!("{topic}.dlq");
    let refused = acknowledge(&acker, &settle(&leased, "reject")).await;
    assert_eq!((refused.status, refused.code()), (503, "broker_unavailable"));
    assert_eq!(refused.body["dead_letter_topic"], letters_topic, "{refused:?}");
    let place = i32::try_from(partition.as_i64().expect("a number")).expect("small");
    assert_eq!(committed(&server, &group, &topic, place), Some(0));
    acknowledge(&acker, &settle(&leased, "release")).await.ok();
    // Given up, and it cannot be: the other partition is not held up by that.
    let mut others = Vec::new();
    let stuck = loop {
        let answer = consume(&consumer, &topic, &group, "&limit=1").await;
        if answer.status != 200 {
            break answer;
        }
        assert!(answer.messages().iter().all(|message| message["partition"] != partition), "{answer:?}");
        others.extend(offsets(answer.messages()));
    };
    assert_eq!(others, [0, 1, 2, 3]);
    assert_eq!((stuck.status, stuck.code()), (503, "broker_unavailable"));
    assert_eq!((&stuck.body["partition"], &stuck.body["offset"]), (&partition, &json!(0)), "{stuck:?}");
    assert_eq!(committed(&server, &group, &topic, place), Some(0));
    // Made by hand, but for smaller records, and with fewer partitions.
    let made = NewTopic::new(&letters_topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "200");
    let made = admin(&server).create_topics([&made], &AdminOptions::new()).await.expect("an answer");
    assert!(made.iter().all(Result::is_ok));
    let stuck = consume(&consumer, &topic, &group, "").await;
    assert_eq!((stuck.status, stuck.code()), (413, "record_too_large"), "{stuck:?}");
    assert_eq!((&stuck.body["offset"], &stuck.body["dead_letter_topic"]), (&json!(0), &json!(letters_topic)));
    assert_eq!(committed(&server, &group, &topic, place), Some(0));
    assert!(letters(&server, &topic).is_empty());
    let larger = AlterConfig::new(ResourceSpecifier::Topic(&letters_topic)).set("max.message.bytes", "100000");
    let altered = admin(&server).alter_configs([&larger], &AdminOptions::new()).await.expect("an answer");
    assert!(altered.iter().all(Result::is_ok));
    let rest = consume(&consumer, &topic, &group, "").await;
    assert_eq!(offsets(rest.messages()), [1, 2, 3]);
    assert_eq!(dead(&server, &topic), [0]);
}
