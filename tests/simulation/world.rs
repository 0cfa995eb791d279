//! One run: processes that live one after another on the same stores and the same disk.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall::breaker::MemoryStateStore;
use seawall::event::Snapshot;
use seawall::ledger::JournalRecord;
use seawall::saga::Durability;
use seawall::{Runtime, StartError};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::Client;
use crate::disk::Disk;
use crate::history::Taint;
use crate::scene::{Life, Scene, trace};
use crate::store::{States, Store, Wire};
use crate::trouble::trouble;
use crate::verdict;
use crate::weather::{End, MS, time_up_to};

/// How long clients may take to be served.
const SERVED: Duration = Duration::from_secs(2 * 3_600);
/// How long a life may take to come to its chosen action.
const CRASHED: Duration = Duration::from_secs(120);
/// How long what is dropped may take to be gone.
const LEAVE: Duration = Duration::from_secs(60);
/// A process that lives on.
const LIVES_ON: u64 = u64::MAX;

pub(crate) struct World {
    pub(crate) scene: Arc<Scene>,
    pub(crate) stores: Vec<Arc<Store>>,
    states: Arc<MemoryStateStore>,
    random: fastrand::Rng,
}

/// One process while it runs.
pub(crate) struct Process {
    pub(crate) runtime: Runtime,
    life: Arc<Life>,
    pub(crate) disk: Arc<Disk>,
    /// What its events add up to.
    pub(crate) seen: Arc<Mutex<Snapshot>>,
    clients: JoinSet<()>,
    _committer: JoinSet<()>,
}

/// Why a part of a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// At its chosen action.
    Crashed,
    /// An actor died too often.
    Escalated,
    /// Its clients are served.
    Served,
    /// Its time is up.
    Late,
}

impl World {
    pub(crate) fn new(scene: Arc<Scene>, mut random: fastrand::Rng) -> Self {
        let stores = Store::all(&scene, &mut random);
        Self { scene, stores, states: Arc::default(), random }
    }

    /// Runs all lives, and judges the end.
    pub(crate) async fn run(&mut self) {
        let mut found = Vec::new();
        for end in self.scene.weather.ends.clone() {
            trace!(self.scene, "a life that ends as {end:?}");
            found = self.live(end, found).await;
            sleep(time_up_to(&mut self.random, 500 * MS)).await;
        }
        trace!(self.scene, "the last life");
        while let Err(left) = self.last_life(found).await {
            found = left;
            sleep(time_up_to(&mut self.random, 500 * MS)).await;
        }
        // Of all that lived here, nothing lives on.
        sleep(LEAVE).await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        if tasks > 0 {
            self.scene.problem(format!("{tasks} tasks are left"));
        }
    }

    /// A life that ends before everything is done. Gives what the next one finds.
    async fn live(&mut self, end: End, found: Vec<JournalRecord>) -> Vec<JournalRecord> {
        let actions = if let End::Crash(actions) = end { actions } else { LIVES_ON };
        let mut process = match self.start(Life::of(actions), found).await {
            Ok(process) => process,
            Err(left) => return left,
        };
        let limit = match end {
            End::Crash(_) => CRASHED,
            End::Drop(time) | End::Shutdown(time) | End::CrashInShutdown(time, _) => time,
        };
        let turn = self.storm(&mut process, limit).await;
        match (turn, end) {
            (Turn::Served | Turn::Late, End::Shutdown(_)) => self.shut_down(process, LIVES_ON).await,
            (Turn::Served | Turn::Late, End::CrashInShutdown(_, actions)) => self.shut_down(process, actions).await,
            _ => self.bury(process),
        }
    }

    /// The life in which everything comes to rest. Gives what the next one finds, if it fails before.
    async fn last_life(&mut self, found: Vec<JournalRecord>) -> Result<(), Vec<JournalRecord>> {
        let mut process = self.start(Life::of(LIVES_ON), found).await?;
        match self.storm(&mut process, SERVED).await {
            Turn::Served => {}
            Turn::Escalated => return Err(self.bury(process)),
            turn => self.scene.problem(format!("the clients do not end: {turn:?}")),
        }
        let escalated = tokio::select! {
            biased;
            _ = process.runtime.failed() => true,
            () = verdict::rest(self, &process) => false,
        };
        if escalated {
            return Err(self.bury(process));
        }
        verdict::judge(self, &process).await;
        let Process { runtime, disk, _committer, .. } = process;
        let left = runtime.handle().status().dead_letters;
        let report = runtime.shutdown().await;
        trace!(self.scene, "{report:?}");
        if !report.killed.is_empty()
            || report.cancelled > 0
            || !report.journal_closed
            || (left == 0) != (report.owed == 0)
        {
            self.scene.problem(format!("the shutdown was not clean: {report:?}, {left} dead letters"));
        }
        drop(disk);
        Ok(())
    }

    async fn start(&mut self, life: Life, found: Vec<JournalRecord>) -> Result<Process, Vec<JournalRecord>> {
        let life = Arc::new(life);
        let records = found.clone();
        let (disk, committer) = Disk::open(&self.scene, &life, found, self.random.u64(..));
        let states = States::new(&self.states, &life, self.random.fork());
        let mut builder = Runtime::builder()
            .config(self.scene.weather.config.clone())
            .journal(Arc::clone(&disk) as _, records)
            .breaker_states(Arc::new(states));
        for store in &self.stores {
            builder = builder.backend(Wire::new(store, &life, &disk));
        }
        let mut starting = Box::pin(builder.start());
        let started = tokio::select! {
            biased;
            () = life.ended() => None,
            started = &mut starting => Some(started),
        };
        let runtime = match started {
            Some(Ok(runtime)) => runtime,
            failed => {
                trace!(self.scene, "died in its start");
                if let Some(Err(error)) = failed
                    && !matches!(error, StartError::JournalWrite(_))
                {
                    self.scene.problem(format!("it does not start: {error}"));
                }
                life.kill();
                return Err(self.mourn(&disk));
            }
        };
        let seen = verdict::follow(&runtime, &self.scene, &life);
        // Nobody tells of those that were there before.
        for letter in runtime.handle().dead_letters() {
            self.scene.history.parked(letter.operation);
        }
        let mut process = Process { runtime, life, disk, seen, clients: JoinSet::new(), _committer: committer };
        self.send_clients(&mut process);
        Ok(process)
    }

    fn send_clients(&mut self, process: &mut Process) {
        let weather = &self.scene.weather;
        let requests = self.random.u32(1..=weather.requests);
        for number in 0..weather.clients {
            let client = Client {
                number,
                scene: Arc::clone(&self.scene),
                life: Arc::clone(&process.life),
                handle: process.runtime.handle(),
                gateway: process.runtime.gateway(),
                random: self.random.fork(),
            };
            process.clients.spawn(client.run(requests));
        }
    }

    /// Trouble, until the clients are served, the process dies, or the time is up.
    async fn storm(&mut self, process: &mut Process, limit: Duration) -> Turn {
        let Process { runtime, life, clients, .. } = process;
        let until = Instant::now() + limit;
        let turn = tokio::select! {
            biased;
            () = life.ended() => Turn::Crashed,
            _ = runtime.failed() => Turn::Escalated,
            () = served(clients) => Turn::Served,
            () = sleep_until(until) => Turn::Late,
            never = trouble(&self.scene, &self.stores, &mut self.random, runtime) => match never {},
        };
        trace!(self.scene, "{turn:?}");
        turn
    }

    /// Stops in order, unless it crashes meanwhile, before it has done this many things.
    async fn shut_down(&mut self, process: Process, actions: u64) -> Vec<JournalRecord> {
        let Process { runtime, life, disk, clients, _committer, .. } = process;
        life.shorten(actions);
        let mut ending = Box::pin(runtime.shutdown());
        let report = tokio::select! {
            biased;
            () = life.ended() => None,
            report = &mut ending => Some(report),
        };
        trace!(self.scene, "{report:?}");
        life.kill();
        drop((ending, clients));
        self.mourn(&disk)
    }

    /// A process dies.
    fn bury(&mut self, process: Process) -> Vec<JournalRecord> {
        process.life.kill();
        // Before anything is dropped: what a task does when it is dropped does not reach a dead disk.
        let left = self.mourn(&process.disk);
        drop(process);
        left
    }

    /// What is left of a process that is dead.
    fn mourn(&self, disk: &Disk) -> Vec<JournalRecord> {
        let left = disk.remains();
        trace!(self.scene, "{} records are left", left.len());
        let weather = &self.scene.weather;
        let taint = match weather.config.saga.durability {
            _ if weather.required == 1 => Taint::Nothing,
            Durability::Overlapped => Taint::Unacknowledged,
            Durability::Strict if weather.may_be_volatile() => Taint::Forgotten,
            Durability::Strict => Taint::Nothing,
        };
        self.scene.history.crashed(&left, taint);
        left
    }
}

/// Resolves when all clients are. A panic in one is a panic here.
async fn served(clients: &mut JoinSet<()>) {
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}
