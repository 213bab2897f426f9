//! The Kafka clients that a sandbox keeps for consuming, and no more of them than it can hold.
//!
//! A client is about 4 threads and 8 file descriptors on one broker, and some 3 descriptors more for each further one; a
//! Lambda function has 1024 of each. The least recently used are dropped, off the call's path, since librdkafka takes its
//! time to end.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::{OnceCell, OwnedMutexGuard};
use tokio::task::JoinSet;

use super::brokers::Brokers;
use super::client::Settings;
use super::dead_letters::{self, DeadLetters};
use super::decide::{Intent, Verdict};
use super::fetch::AtHand;
use super::handover::{Hint, Slot, Stepped, Tools};
use super::position::{Mark, Position};
use super::{claim, group};
use crate::auth::{Authorized, GroupReader, Read};
use crate::config::{Delivery, KafkaConfig};
use crate::deadline::Deadline;
use crate::errors::{Code, Error};
use crate::kafka::group::Group;
use crate::names::{GroupId, TopicName};

/// How many groups are kept, and how many partitions' slots.
const GROUPS: usize = 8;
const SLOTS: usize = 24;

/// How many groups there may be at a time, with those that calls are at work on: where calls come side by side, each may be
/// of a group of its own.
const PLACES: usize = 24;

/// The most that init spends on asking the brokers.
const LEARNING: Duration = Duration::from_millis(1500);

/// What a blocking step keeps back of its call's time: what it has to say is worth more than that time ran out.
pub const SAY: Duration = Duration::from_millis(50);

/// For how long a call tries again when Kafka cannot be reached, and nothing was done: leaders and coordinators move within
/// moments, and a connection that died while the sandbox was frozen is replaced as soon as it was used. A second one of the
/// same client is found out 3 s after the first (`socket.timeout.ms`), where the group must be described (Kafka before 3.3).
const BLIND: Duration = Duration::from_secs(4);

/// With less time left nothing is tried again: what went wrong is worth more than that time ran out.
const AGAIN: Duration = Duration::from_millis(500);

/// Whether what could not reach Kafka since `begun` is worth another try.
pub fn may_try_again(begun: Instant, deadline: Deadline) -> bool {
    begun.elapsed() < BLIND && deadline.left() >= AGAIN
}

/// Waits a moment before another try of what did nothing, unless the error is the answer.
pub async fn again(error: Error, begun: Instant, deadline: Deadline) -> Result<(), Error> {
    if error.code() != Code::BrokerUnavailable || !may_try_again(begun, deadline) {
        return Err(error);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// A partition of a group; whoever locks it has it in this sandbox.
pub type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

type Key = (GroupId, TopicName, i32);

/// A group that is open, or about to be: by the first call that comes for it, and those that come meanwhile wait.
type Place = Arc<OnceCell<Arc<Group>>>;

/// Runs one blocking step, and gives up on it at the deadline: librdkafka may block for longer than it is told. The step
/// then ends by itself, and drops what it had in hand.
pub async fn blocking<T: Send + 'static>(
    deadline: Deadline,
    step: impl FnOnce(Instant) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    // A little earlier, so that a step that is told in time what is wrong can still say it.
    let until = deadline.within(deadline.left().saturating_sub(SAY)).instant().into_std();
    match tokio::time::timeout_at(deadline.instant(), tokio::task::spawn_blocking(move || step(until))).await {
        Ok(joined) => joined.map_err(Error::internal)?,
        Err(_) => Err(Deadline::exceeded()),
    }
}

/// How a step ended that was taken until it was decided.
#[derive(Debug)]
pub enum Decided {
    /// It is committed.
    Committed {
        /// With this mark.
        mark: Box<Mark>,
        /// The offsets of records that were to be rejected, and are gone.
        gone: Vec<i64>,
    },
    /// The position, as it is, does not allow it.
    Refused(Verdict, Box<Position>),
}

/// The sandbox's groups and partitions.
#[derive(Debug)]
pub struct Consumers {
    brokers: Brokers,
    group_settings: Settings,
    claim_settings: Settings,
    /// This sandbox, in the marks of its commits.
    pub sandbox: u32,
    /// How records are delivered.
    pub delivery: Delivery,
    /// Where those go that are given up.
    pub dead_letters: DeadLetters,
    groups: Mutex<LruCache<GroupId, Place>>,
    slots: Mutex<LruCache<Key, SharedSlot>>,
}

impl Consumers {
    /// No clients yet: which group will call is not known at init.
    pub fn new(config: &KafkaConfig) -> Self {
        Self {
            brokers: Brokers::new(config),
            group_settings: group::settings(config),
            claim_settings: claim::settings(config),
            sandbox: rand::random(),
            delivery: config.delivery,
            dead_letters: DeadLetters::new(config),
            groups: Mutex::new(LruCache::unbounded()),
            slots: Mutex::new(LruCache::unbounded()),
        }
    }

    /// Asks the brokers at init what they are, lest a call waits for it. Where none answers, the first call asks.
    pub async fn learn(&self) {
        if let Err(error) = self.brokers.facts(LEARNING).await {
            tracing::info!(error_chain = error.chain().join(": "), "what the brokers are is asked at the first call");
        }
    }

    /// What a step of this sandbox needs.
    pub fn tools<'a>(&'a self, until: Instant, committing: &'a AtomicBool) -> Tools<'a> {
        Tools { settings: &self.claim_settings, sandbox: self.sandbox, until, committing }
    }

    /// The handle of a group.
    pub async fn group(&self, of: &Authorized<Read>, deadline: Deadline) -> Result<Arc<Group>, Error> {
        self.open(of.group(), deadline).await
    }

    /// The same, where it is still to be seen which topics the caller may read.
    pub async fn group_on_any_topic(&self, of: &GroupReader, deadline: Deadline) -> Result<Arc<Group>, Error> {
        self.open(of.group(), deadline).await
    }

    async fn open(&self, id: &GroupId, deadline: Deadline) -> Result<Arc<Group>, Error> {
        let place = loop {
            if let Some(place) = self.place(id) {
                break place;
            }
            if deadline.left() < 2 * SAY {
                let detail = format!("This sandbox is at work for {PLACES} groups, and takes no other just now");
                return Err(Error::new(Code::Throttled, detail));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let open = async || {
            let facts = self.brokers.facts(deadline.left().saturating_sub(SAY)).await?;
            // To make a client reads the system's certificates.
            let (settings, name) = (self.group_settings.clone(), id.clone());
            let opened = tokio::task::spawn_blocking(move || Group::open(&settings, &name, facts)).await;
            opened.map_err(Error::internal)?.map(Arc::new)
        };
        place.get_or_try_init(open).await.map(Arc::clone)
    }

    /// Where a group is, or is to be opened; none, as long as calls are at work on too many.
    ///
    /// For one more than are kept, those used longest ago go, unless a call is at work on them. A slot holds its group: so
    /// their slots go first, and they themselves when the next one comes.
    fn place(&self, id: &GroupId) -> Option<Place> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = groups.get(id) {
            return Some(Arc::clone(place));
        }
        let surplus = (groups.len() + 1).saturating_sub(GROUPS);
        let oldest: Vec<GroupId> = groups.iter().rev().take(surplus).map(|(id, _)| id.clone()).collect();
        let mut gone = Vec::new();
        for id in oldest {
            let slots = self.idle_slots(&id);
            let unused = |place: &Place| {
                Arc::strong_count(place) == 1 && place.get().is_none_or(|group| Arc::strong_count(group) == 1)
            };
            let group = if groups.peek(&id).is_some_and(unused) { groups.pop(&id) } else { None };
            gone.push((slots, group));
        }
        if !gone.is_empty() {
            tokio::task::spawn_blocking(move || drop(gone));
        }
        if groups.len() >= PLACES {
            return None;
        }
        let place = Place::default();
        groups.put(id.clone(), Arc::clone(&place));
        Some(place)
    }

    /// Takes a group's slots away, but for those that a call has.
    fn idle_slots(&self, group: &GroupId) -> Vec<SharedSlot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = slots.iter().filter(|((of, ..), slot)| of == group && Arc::strong_count(slot) == 1);
        let idle: Vec<Key> = idle.map(|(key, _)| key.clone()).collect();
        idle.iter().filter_map(|key| slots.pop(key)).collect()
    }

    /// The slot of a partition, unless another call of this sandbox has it, or other calls have all the slots.
    pub fn slot(
        &self,
        of: &Authorized<Read>,
        group: &Arc<Group>,
        partition: i32,
    ) -> Result<Option<OwnedMutexGuard<Slot>>, Error> {
        let (topic, key) = (of.topic(), (of.group().clone(), of.topic().clone(), partition));
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&key) {
            return Ok(Arc::clone(slot).try_lock_owned().ok());
        }
        if slots.len() >= SLOTS {
            // One in use stays: a second slot for the same partition would read from the same queue.
            let idle = slots.iter().rev().find(|(_, slot)| Arc::strong_count(slot) == 1).map(|(key, _)| key.clone());
            let Some(evicted) = idle.and_then(|key| slots.pop(&key)) else { return Ok(None) };
            tokio::task::spawn_blocking(move || drop(evicted));
        }
        let slot = Arc::new(tokio::sync::Mutex::new(Slot::new(group, topic, partition, self.delivery)?));
        slots.put(key, Arc::clone(&slot));
        Ok(slot.try_lock_owned().ok())
    }

    /// Takes a step in each of some partitions, side by side: what became of it, by topic and partition.
    pub async fn step_each(
        self: &Arc<Self>,
        group: &Arc<Group>,
        steps: impl IntoIterator<Item = (Authorized<Read>, i32, Intent)>,
        deadline: Deadline,
    ) -> Result<BTreeMap<(TopicName, i32), Result<Decided, Error>>, Error> {
        let mut running = JoinSet::new();
        for (of, partition, intent) in steps {
            let (consumers, group) = (Arc::clone(self), Arc::clone(group));
            running.spawn(async move {
                let decided = consumers.step_until_decided(&of, &group, partition, &intent, deadline).await;
                ((of.topic().clone(), partition), decided)
            });
        }
        let mut results = BTreeMap::new();
        while let Some(joined) = running.join_next().await {
            let (place, decided) = joined.map_err(Error::internal)?;
            results.insert(place, decided);
        }
        Ok(results)
    }

    /// Another function may be taking a step of its own, which ends within milliseconds; and connections that died while the
    /// sandbox was frozen show it only when they are used. An error means that nothing was decided: so it may be tried again.
    async fn step_until_decided(
        self: &Arc<Self>,
        of: &Authorized<Read>,
        group: &Arc<Group>,
        partition: i32,
        intent: &Intent,
        deadline: Deadline,
    ) -> Result<Decided, Error> {
        let mut blind: Option<Instant> = None;
        loop {
            deadline.require()?;
            if let Some(mut slot) = self.slot(of, group, partition)? {
                let (consumers, intent) = (Arc::clone(self), intent.clone());
                let stepped = blocking(deadline, move |until| {
                    let committing = AtomicBool::new(false);
                    slot.settle(consumers.tools(until, &committing), &consumers.dead_letters, &intent)
                });
                match stepped.await {
                    Ok((Stepped::Committed(mark), gone)) => return Ok(Decided::Committed { mark, gone }),
                    Ok((Stepped::Refused(verdict, position), _)) => return Ok(Decided::Refused(verdict, position)),
                    Ok((Stepped::Undecided(error), _)) => return Err(error),
                    Ok((Stepped::Fenced, _)) => {}
                    // That is for an operator to see to.
                    Err(error) if dead_letters::is_refused(&error) => return Err(error),
                    Err(error) => again(error, *blind.get_or_insert_with(Instant::now), deadline).await?,
                }
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(1..15))).await;
        }
    }

    /// A partition of one of these topics that this sandbox has a claim on, with so many records fetched and not handed
    /// out: which one (the topic's index, the partition), from where to where. Of several, the one used longest ago. None,
    /// if it is time to look at all partitions.
    pub fn at_hand(&self, of: &[&Authorized<Read>], count: usize) -> Option<((usize, i32), i64, i64)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for ((group, topic, partition), slot) in slots.iter().rev() {
            let Some(index) = of.iter().position(|of| group == of.group() && topic == of.topic()) else { continue };
            match slot.try_lock().map_or(AtHand::Nothing, |mut slot| slot.at_hand(count, of.len())) {
                AtHand::Records(from, next) => return Some(((index, *partition), from, next)),
                AtHand::Others => return None,
                AtHand::Nothing => {}
            }
        }
        None
    }

    /// The position that was seen, or what this sandbox has made of it since, see [`Slot::newest`].
    pub fn newest(&self, of: &Authorized<Read>, partition: i32, seen: Position) -> Position {
        self.of_slot(of, partition, |slot| slot.newest(&seen)).flatten().unwrap_or(seen)
    }

    /// What is known of a partition.
    pub fn hint(&self, of: &Authorized<Read>, partition: i32) -> Hint {
        self.of_slot(of, partition, Slot::hint).unwrap_or_default()
    }

    /// What a slot says, if there is one, and no call has it.
    fn of_slot<T>(&self, of: &Authorized<Read>, partition: i32, says: impl FnOnce(&Slot) -> T) -> Option<T> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.peek(&(of.group().clone(), of.topic().clone(), partition))?;
        Some(says(&*slot.try_lock().ok()?))
    }
}
