//! One broker behind a proxy, and calls that something happens to at a single request or answer on that wire.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tests::{Api, At, Broker, Event, Function, Proxy, Stack};
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use crate::consume::{committed, fill, offsets};
use crate::world::{Answer, CONSUME, call, consume, function_with, topic_on, unique};

pub(crate) const ACKNOWLEDGE: &str = "/kafka/consumer/acknowledge";

/// How many records the topic has, and how many of them the call gets that something happens to.
pub(crate) const RECORDS: i64 = 12;
pub(crate) const BATCH: i64 = 4;

/// So many calls must be enough to get all that is left.
pub(crate) const CALLS: usize = 40;

/// What happens to the function there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is killed; the frame never arrives.
    Killed,
    /// Its connection breaks; the frame never arrives.
    Cut,
    /// It is frozen until others have consumed everything; the frame arrives.
    Frozen,
}

/// One fault at one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) api: Api,
    pub(crate) passing: usize,
    pub(crate) at: At,
    pub(crate) fault: Fault,
}

impl Case {
    /// Whether the broker commits what the function was about to commit, whatever comes after.
    pub(crate) fn commits(self) -> bool {
        self.api == Api::EndTxn && (self.at == At::Answer || self.fault == Fault::Frozen)
    }
}

/// All faults at these steps. To freeze before a request is sent is to freeze at the answer before it.
pub(crate) fn cases(steps: &[(Api, usize)]) -> Vec<Case> {
    let ways = [
        (At::Request, Fault::Killed),
        (At::Answer, Fault::Killed),
        (At::Request, Fault::Cut),
        (At::Answer, Fault::Cut),
        (At::Answer, Fault::Frozen),
    ];
    let at = |&(api, passing): &(Api, usize)| ways.map(|(at, fault)| Case { api, passing, at, fault });
    steps.iter().flat_map(at).collect()
}

/// A broker behind a proxy, a topic, and functions that nothing happens to.
pub(crate) struct Wire {
    pub(crate) broker: Broker,
    pub(crate) proxy: Proxy,
    pub(crate) topic: String,
    pub(crate) consumer: Function,
    acker: Function,
}

impl Wire {
    pub(crate) async fn shared() -> &'static Wire {
        static SHARED: OnceCell<Wire> = OnceCell::const_new();
        SHARED.get_or_init(Wire::start).await
    }

    async fn start() -> Wire {
        let (broker, proxy) = Stack::shared().await.proxied_broker().await;
        let server = broker.bootstrap();
        let topic = topic_on(&server, 1, &[]).await;
        fill(&server, &topic, 1, usize::try_from(RECORDS).expect("small"));
        let settings = [("KAFKA_BOOTSTRAP_SERVERS", server.as_str()), ("AWS_LAMBDA_MAX_CONCURRENCY", "64")];
        let (consumer, acker) = (function_with("consume", &settings), function_with("acknowledge", &settings));
        let (consumer, acker) = tokio::join!(consumer, acker);
        Wire { broker, proxy, topic, consumer, acker }
    }

    /// A function whose requests can be told from all others': its `client.id`.
    pub(crate) async fn victim(&self, name: &str) -> (Function, String) {
        let id = unique("victim");
        let properties = format!("client.id={id}");
        let settings = [("KAFKA_BOOTSTRAP_SERVERS", self.proxy.bootstrap()), ("KAFKA_PROPERTIES", properties)];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        (function_with(name, &settings).await, id)
    }

    /// Calls a new function and lets the fault happen. `others` go on when it has: what they bring, and the function's
    /// answer, if it lived to give one.
    pub(crate) async fn strike<T>(
        &self,
        case: Case,
        (name, event): (&str, Event),
        others: impl AsyncFnOnce() -> T,
    ) -> (Option<Answer>, T) {
        let victim = self.victim(name).await;
        self.strike_again(&victim, case, event, others).await
    }

    /// The same with a function that is there.
    pub(crate) async fn strike_again<T>(
        &self,
        (victim, id): &(Function, String),
        case: Case,
        event: Event,
        others: impl AsyncFnOnce() -> T,
    ) -> (Option<Answer>, T) {
        let caught = self.proxy.catch(id, (case.api, case.at), "", case.passing);
        let token = Stack::shared().await.token("gateway-full").await;
        let call = victim.try_invoke(event.bearer(&token).build(), Duration::from_secs(29));
        tokio::pin!(call);
        let held = tokio::select! {
            biased;
            held = caught => held.expect("the proxy lives"),
            answer = &mut call => panic!("it never sends that: {answer:?}"),
        };
        let answer = |answer: Value| Answer::read(&answer);
        match case.fault {
            Fault::Killed => {
                victim.kill();
                drop(held);
                // It may have answered by then, where it did not need what was caught.
                let answered = call.await.ok().map(answer);
                (answered, others().await)
            }
            Fault::Cut => {
                drop(held);
                let answered = call.await.map(answer).expect("an answer");
                (Some(answered), others().await)
            }
            Fault::Frozen => {
                victim.freeze();
                held.pass();
                let brought = others().await;
                victim.thaw();
                (Some(call.await.map(answer).expect("an answer")), brought)
            }
        }
    }

    /// Calls a new function; what it sends or is answered there is held until something has happened.
    pub(crate) async fn meanwhile(
        &self,
        (api, passing, at): (Api, usize, At),
        (name, event): (&str, Event),
        happens: impl AsyncFnOnce(),
    ) -> Answer {
        let (victim, id) = self.victim(name).await;
        let caught = self.proxy.catch(&id, (api, at), "", passing);
        let token = Stack::shared().await.token("gateway-full").await;
        let (answer, ()) = tokio::join!(victim.invoke(event.bearer(&token).build()), async {
            let held = caught.await.expect("it is sent");
            happens().await;
            held.pass();
        });
        Answer::read(&answer)
    }

    pub(crate) fn consuming(&self, group: &str, more: &str) -> Event {
        Event::get(CONSUME).query(&format!("topic={}&group_id={group}&limit={BATCH}&timeout_ms=0{more}", self.topic))
    }

    pub(crate) async fn acknowledge(&self, body: &Value) -> Answer {
        call(&self.acker, Event::post(ACKNOWLEDGE).json(body)).await
    }

    /// Consumes up to the last record; the offsets in the order they came.
    pub(crate) async fn drain(&self, group: &str) -> Vec<i64> {
        let mut got = Vec::new();
        for _ in 0..CALLS {
            if got.last() == Some(&(RECORDS - 1)) {
                break;
            }
            got.extend(offsets(consume(&self.consumer, &self.topic, group, "&timeout_ms=3000").await.messages()));
        }
        got
    }

    pub(crate) fn committed(&self, group: &str) -> Option<i64> {
        committed(&self.broker.bootstrap(), group, &self.topic, 0)
    }
}

/// Runs `one` for all cases, a few side by side, and says which of them failed.
pub(crate) async fn each<F>(cases: Vec<Case>, one: impl Fn(&'static Wire, Case) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (wire, places) = (Wire::shared().await, Arc::new(Semaphore::new(8)));
    let mut running = JoinSet::new();
    for case in cases {
        let (one, places) = (one(wire, case), Arc::clone(&places));
        running.spawn(async move {
            let _place = places.acquire().await;
            tokio::spawn(one).await.map_err(|error| format!("{case:?}: {error}"))?;
            Ok(())
        });
    }
    let failed: Vec<String> = running.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
