//! What rows are measured on: backends that do nothing, backends that take a millisecond, a runtime over them, and
//! the floor that a message to an actor is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use seawall::backend::{Applied, Backend, BackendError, BackendName, FencedWrite, Health, Stored};
use seawall::config::Config;
use seawall::ledger::MemoryJournal;
use seawall::operation::Version;
use seawall::record::{Key, Record};
use seawall::{Handle, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// A runtime of one thread.
pub(crate) fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a thread needs nothing else")
}

/// Seawall over these backends, with its journal in memory.
pub(crate) async fn start(backends: Vec<Arc<dyn Backend>>, config: Config) -> Runtime {
    let mut builder = Runtime::builder().config(config).journal(Arc::new(MemoryJournal::new()), Vec::new());
    for backend in backends {
        builder = builder.shared_backend(backend);
    }
    builder.start().await.expect("nothing stands in the way of a start")
}

/// The configuration in which nothing is too much.
pub(crate) fn roomy() -> Config {
    let mut config = Config::default();
    config.queue.max_entries = 10_000_000;
    config.queue.max_bytes = 16 << 30;
    config.gateway.max_in_flight = 1_000_000;
    config.gateway.write_timeout = Duration::from_secs(3_600);
    config
}

/// Small records under keys that come round again.
pub(crate) fn records(count: u64) -> Vec<Record> {
    (0..count).map(|n| Record::new(format!("key-{}", n % 1_000)).with("n", n)).collect()
}

/// Stores these, one after the other.
pub(crate) async fn store_all(handle: Handle, records: Vec<Record>) {
    for record in records {
        handle.store(record).await.expect("is stored");
    }
}

/// Waits for something that comes.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(600);
    while !condition() {
        assert!(Instant::now() < patience, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A backend that does nothing, at once.
pub(crate) struct Noop(BackendName);

impl Noop {
    pub(crate) fn alone(name: &str) -> Arc<Self> {
        Arc::new(Self(name.into()))
    }

    pub(crate) fn shared(name: &str) -> Arc<dyn Backend> {
        Self::alone(name)
    }

    /// The two that most rows have.
    pub(crate) fn two() -> Vec<Arc<dyn Backend>> {
        vec![Self::shared("graph"), Self::shared("vector")]
    }
}

#[async_trait]
impl Backend for Noop {
    fn name(&self) -> BackendName {
        self.0.clone()
    }

    async fn apply(&self, _: &FencedWrite) -> Result<Applied, BackendError> {
        Ok(Applied::default())
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        Ok(vec![None; keys.len()])
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(Version(0))
    }
}

/// How long a [`Remote`] takes for a call.
pub(crate) const LATENCY: Duration = Duration::from_millis(1);

/// A backend behind a network: a thread answers each call a millisecond after it came, however many there are. Tokio's
/// own timers are too coarse for that.
pub(crate) struct Remote {
    name: BackendName,
    calls: Sender<(Instant, oneshot::Sender<()>)>,
    /// Writes that were applied: key and version, in their order, while they are kept.
    applied: watch::Sender<Vec<(Key, Version)>>,
}

impl Remote {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        let (calls, inbox) = channel();
        std::thread::spawn(move || answer(&inbox));
        Arc::new(Self { name: name.into(), calls, applied: watch::Sender::default() })
    }

    /// One call.
    pub(crate) async fn call(&self) {
        let (sender, answered) = oneshot::channel();
        self.calls.send((Instant::now() + LATENCY, sender)).expect("the thread lives as long as its backend");
        answered.await.expect("every call is answered");
    }

    /// What was applied since the last look.
    pub(crate) fn take_applied(&self) -> Vec<(Key, Version)> {
        self.applied.send_replace(Vec::new())
    }

    /// Waits until this many writes were applied since the last look.
    pub(crate) async fn has_applied(&self, count: usize) {
        let mut applied = self.applied.subscribe();
        applied.wait_for(|applied| applied.len() >= count).await.expect("its sender is here");
    }
}

/// Calls come in the order in which they are due.
fn answer(inbox: &Receiver<(Instant, oneshot::Sender<()>)>) {
    let mut due: VecDeque<(Instant, oneshot::Sender<()>)> = VecDeque::new();
    loop {
        let wait = due.front().map_or(Duration::from_secs(60), |(at, _)| at.saturating_duration_since(Instant::now()));
        match inbox.recv_timeout(wait) {
            Ok(call) => due.push_back(call),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        while let Some((_, call)) = due.pop_front_if(|(at, _)| *at <= now) {
            let _ = call.send(());
        }
    }
}

#[async_trait]
impl Backend for Remote {
    fn name(&self) -> BackendName {
        self.name.clone()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.call().await;
        self.applied.send_modify(|applied| {
            applied.extend(write.changes.iter().map(|change| (change.key().clone(), write.version)));
        });
        Ok(Applied::default())
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.call().await;
        Ok(vec![None; keys.len()])
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        Ok(Version(0))
    }
}

/// An actor that answers with what it is asked: one `call!` to it is the floor of all that sends a message.
pub(crate) struct Echo;

/// The question.
pub(crate) enum Ask {
    Echo(u64, RpcReplyPort<u64>),
}

impl Echo {
    pub(crate) async fn start() -> ActorRef<Ask> {
        Self::spawn(None, Self, ()).await.expect("an actor without arguments starts").0
    }

    /// Calls it so many times.
    pub(crate) async fn call(actor: ActorRef<Ask>, calls: u64) {
        for n in 0..calls {
            let answer = ractor::call!(actor, Ask::Echo, n).expect("it answers");
            assert_eq!(answer, n);
        }
    }
}

impl Actor for Echo {
    type Msg = Ask;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Ask>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Ask>, Ask::Echo(n, reply): Ask, (): &mut ()) -> Result<(), ActorProcessingErr> {
        let _ = reply.send(n);
        Ok(())
    }
}
