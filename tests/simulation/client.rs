//! Clients: they write, read, send again, give up, and remember what they were told.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use ractor::ActorRef;
use ractor::rpc::CallResult;
use seawall::operation::{
    Change, Direction, Found, Held, OperationId, Outcome, Priority, Receipt, Search, Source, Traversal, Write,
};
use seawall::record::{Key, Properties, Record};
use seawall::{Handle, Refusal, Request};
use tokio::time::{Instant, sleep, timeout};

use crate::scene::{Life, Scene, trace};
use crate::store::COPY;
use crate::weather::{MS, time_between, time_up_to};

/// By how much the clock of a timer may be late.
const GRACE: Duration = Duration::from_millis(2);
/// How long a client waits that waits for ever.
const FOR_EVER: Duration = Duration::from_secs(3_600);

pub(crate) struct Client {
    pub(crate) number: u64,
    pub(crate) scene: Arc<Scene>,
    pub(crate) life: Arc<Life>,
    pub(crate) handle: Handle,
    pub(crate) gateway: ActorRef<Request>,
    pub(crate) random: fastrand::Rng,
}

impl Client {
    pub(crate) async fn run(mut self, requests: u32) {
        for _ in 0..requests {
            if self.random.bool() {
                sleep(time_up_to(&mut self.random, self.scene.weather.pause)).await;
            }
            match self.random.u8(0..20) {
                0..=5 => self.read().await,
                6 => self.look_around().await,
                7..=8 if self.scene.weather.bursts => self.burst().await,
                _ => self.write().await,
            }
        }
    }

    async fn read(&mut self) {
        let key = self.key();
        let (scene, floor, began) = (Arc::clone(&self.scene), self.scene.history.floor(&key), Instant::now());
        let answer = if self.random.u8(0..6) == 0 {
            self.ask(|reply| Request::Retrieve(key.clone(), reply)).await
        } else {
            timeout(FOR_EVER, self.handle.retrieve(key.clone())).await.ok()
        };
        self.life.must_live().await;
        trace!(scene, "client {}: read {key}: {answer:?}", self.number);
        let Some(answer) = answer else { return scene.problem(format!("a read of {key} was not answered")) };
        self.in_time("a read", began, scene.weather.config.gateway.read_timeout);
        scene.history.read(&key, floor, answer.ok(), scene.weather.copy);
    }

    /// Searches and walks: what they find of a key is not older than what was acknowledged.
    async fn look_around(&mut self) {
        let (scene, began) = (Arc::clone(&self.scene), Instant::now());
        let floors: Vec<_> = (0..scene.weather.keys).map(key).map(|key| (scene.history.floor(&key), key)).collect();
        let near = self.key();
        let answer = match self.random.u8(0..3) {
            0 => self.handle.search(Search::near(vec![1.0, 0.5])).await,
            1 => self.handle.search(Search::like(near)).await,
            _ => self.handle.traverse(Traversal::from(near).direction(Direction::Both)).await,
        };
        self.life.must_live().await;
        self.in_time("a search", began, scene.weather.config.gateway.read_timeout);
        let Ok(Found { hits, source, pending, .. }) = answer else { return };
        trace!(scene, "client {}: found {} from {source:?}, {pending} pending", self.number, hits.len());
        let may_be_old = pending > 0 || source == Source::Backend(COPY.into());
        for hit in hits.iter().filter(|_| !may_be_old) {
            let floor = floors.iter().find(|(_, key)| *key == hit.record.key).map(|(floor, _)| *floor);
            if floor.is_some_and(|floor| hit.version < floor) && !scene.history.is_tainted(&hit.record.key) {
                scene.problem(format!("found {} at {} in {source:?} after {floor:?}", hit.record.key, hit.version));
            }
        }
    }

    async fn write(&mut self) {
        let mut write = self.draw();
        if self.random.u8(0..5) == 0 {
            let limit = self.limit(&write);
            write = write.with_timeout(time_between(&mut self.random, MS, limit));
        }
        for _ in 0..3 {
            let again = match self.attempt(write.clone()).await {
                // Sent again although it is there: a caller that lost the answer.
                Some(Ok(_)) => self.random.u8(0..10) == 0,
                Some(Err(Refusal::Unknown { .. } | Refusal::RolledBack { .. })) | None => self.random.bool(),
                Some(Err(_)) => self.random.u8(0..8) == 0,
            };
            if !again {
                return;
            }
            if self.random.bool() {
                sleep(time_up_to(&mut self.random, self.scene.weather.pause)).await;
            }
        }
    }

    /// Sends a write once. `None`: it gave up waiting.
    async fn attempt(&mut self, write: Write) -> Option<Result<Receipt, Refusal>> {
        let (id, limit, began) = (write.operation, self.limit(&write), Instant::now());
        let scene = Arc::clone(&self.scene);
        trace!(scene, "client {}: {id} {}", self.number, outline(&write.changes));
        scene.history.asked(&write);
        let patience = if self.random.u8(0..10) == 0 { time_up_to(&mut self.random, limit) } else { FOR_EVER };
        let answer = if self.random.u8(0..6) == 0 {
            timeout(patience, self.ask(|reply| Request::Store(write, reply))).await.ok().flatten()
        } else {
            timeout(patience, self.handle.write(write)).await.ok()
        };
        self.life.must_live().await;
        trace!(scene, "client {}: {id}: {answer:?}", self.number);
        match &answer {
            Some(answer) => {
                self.in_time("a write", began, limit);
                scene.history.told(id, answer);
                if let Ok(receipt) = answer {
                    self.ask_again(receipt);
                }
            }
            None => {
                scene.history.gave_up(id);
                if patience == FOR_EVER {
                    scene.problem(format!("{id} was not answered"));
                }
            }
        }
        answer
    }

    /// What became of a write is what its receipt says, or what that has come to since.
    fn ask_again(&self, receipt: &Receipt) {
        let outcome = self.handle.outcome(receipt.operation);
        let fits = match (&outcome, &receipt.held) {
            (Outcome::Committed(version), _) => *version == receipt.version,
            (_, Held::Committed) => false,
            (Outcome::Pending { version, .. } | Outcome::DeadLetter { version, .. }, _) => *version == receipt.version,
            (Outcome::Discarded(_), _) => self.scene.weather.storm.letters,
            _ => false,
        };
        if !fits {
            self.scene.problem(format!("{receipt:?}, but {outcome:?}"));
        }
    }

    /// More at once than may be in flight.
    async fn burst(&mut self) {
        let writes: Vec<Write> = (0..self.random.usize(3..20)).map(|_| self.draw()).collect();
        let scene = Arc::clone(&self.scene);
        writes.iter().for_each(|write| scene.history.asked(write));
        let answers = join_all(writes.into_iter().map(|write| {
            let handle = self.handle.clone();
            async move { (write.operation, handle.write(write).await) }
        }));
        let (began, limit) = (Instant::now(), scene.weather.config.gateway.write_timeout);
        let answers = answers.await;
        self.life.must_live().await;
        self.in_time("a burst", began, limit);
        for (id, answer) in answers {
            trace!(scene, "client {}: {id}: {answer:?}", self.number);
            scene.history.told(id, &answer);
        }
    }

    /// Asks the actor instead of the handle.
    async fn ask<T: Send + 'static>(&self, request: impl FnOnce(ractor::RpcReplyPort<T>) -> Request) -> Option<T> {
        match self.gateway.call(request, None).await {
            Ok(CallResult::Success(answer)) => Some(answer),
            // The runtime has stopped: that is said, too.
            _ => std::future::pending().await,
        }
    }

    fn draw(&mut self) -> Write {
        let number = self.random.u32(..);
        let first = self.random.u64(0..self.scene.weather.keys);
        let keys = if self.random.u8(0..5) == 0 { 1 + self.random.u64(0..self.scene.weather.keys) } else { 1 };
        let changes = (0..keys).map(|n| self.change(key((first + n) % self.scene.weather.keys), number)).collect();
        Write {
            operation: OperationId::from(self.random.u128(..)),
            changes,
            priority: [Priority::Low, Priority::Normal, Priority::High][self.random.usize(0..3)],
            timeout: None,
        }
    }

    fn change(&mut self, key: Key, number: u32) -> Change {
        match self.random.u8(0..8) {
            0..=2 => {
                let mut record = Record::new(key).with("put", number);
                if self.random.bool() {
                    record = record.with_embedding(vec![self.random.f32(), self.random.f32()]);
                }
                if self.random.bool() {
                    record = record.with_relation("next", self.key());
                }
                Change::put(record)
            }
            3..=5 => {
                // A property of its own, one that all change, and sometimes one that goes.
                let mut properties = Properties::new().with(format!("by-{}", self.number), number).with("last", number);
                if self.random.u8(0..4) == 0 {
                    properties.set("put", serde_json::Value::Null);
                }
                Change::Merge { key, properties }
            }
            _ => Change::Delete { key },
        }
    }

    fn key(&mut self) -> Key {
        key(self.random.u64(0..self.scene.weather.keys))
    }

    fn limit(&self, write: &Write) -> Duration {
        write.timeout.unwrap_or(self.scene.weather.config.gateway.write_timeout)
    }

    fn in_time(&self, what: &str, began: Instant, limit: Duration) {
        if began.elapsed() > limit + GRACE {
            self.scene.problem(format!("{what} took {:?} of {limit:?}", began.elapsed()));
        }
    }
}

pub(crate) fn key(n: u64) -> Key {
    Key::new(format!("key-{n}"))
}

fn outline(changes: &[Change]) -> String {
    let one = |change: &Change| match change {
        Change::Put(record) => format!("put {}", record.key),
        Change::Merge { key, .. } => format!("merge {key}"),
        Change::Delete { key } => format!("delete {key}"),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}
