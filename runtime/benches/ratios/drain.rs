//! Giving a backend what it is owed: row 10.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use seawall::breaker::BreakerState;
use seawall::fallback::Access;
use seawall::operation::{Version, Write};
use seawall::record::{Key, Properties};
use seawall::{Handle, Runtime};
use tempfile::TempDir;

use crate::measure::{Effort, Spread, p99, spawned, wall};
use crate::stage::{Noop, Remote, current_thread, roomy, until};
use crate::table::{Aim, Row, both};

/// Calls that the drain makes side by side, which is the default.
const IN_FLIGHT: usize = 16;
/// Writes to each key.
const DEPTH: u64 = 10;

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    let owed = effort.pick(100_000, 5_000);
    let tokio = current_thread();
    let (mut shares, mut tails, mut rates, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.pick(5, 2) {
        let stage = tokio.block_on(Stage::start());
        let before = spawned(&tokio, own_rate(Arc::clone(&stage.backend), owed / 5));
        let (seconds, _) = tokio.block_on(stage.drain(owed, false));
        let after = spawned(&tokio, own_rate(Arc::clone(&stage.backend), owed / 5));
        let (own, rate) = ((before + after) / 2.0, owed as f64 / seconds);
        shares.push(rate / own);
        rates.push((1e9 / rate, 1e9 / own));
        let quiet = p99(spawned(&tokio, live(stage.runtime.handle(), effort.pick(1_000, 200))));
        let (_, disturbed) = tokio.block_on(stage.drain(owed, true));
        let disturbed = p99(disturbed);
        tails.push(disturbed / quiet);
        waits.push((disturbed * 1e9, quiet * 1e9));
    }
    let median = |of: Vec<f64>| Spread::of(of).map_or(f64::NAN, |all| all.median);
    let medians = |pairs: Vec<(f64, f64)>| {
        let (one, other): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        both(median(one), median(other))
    };
    let what = format!("rate of draining {owed} owed writes to a backend of 1 ms");
    let against = "the backend's own rate with 16 calls in flight";
    let live = "p99 of a live store during the drain";
    vec![
        Row::ratio("10a", what, against, Spread::of(shares), medians(rates), Aim::AtLeast(0.92)),
        Row::ratio("10b", live, "without a drain", Spread::of(tails), medians(waits), Aim::AtMost(1.5)),
    ]
}

/// Seawall on a durable journal, over one backend that is slow and one that is not.
struct Stage {
    runtime: Runtime,
    backend: Arc<Remote>,
    _dir: TempDir,
}

impl Stage {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("there is a directory for temporary files");
        let backend = Remote::new("graph");
        let runtime = Runtime::builder()
            .config(roomy())
            .data_dir(dir.path())
            .shared_backend(Arc::clone(&backend) as _)
            .shared_backend(Noop::shared("vector"))
            .start()
            .await
            .expect("nothing stands in the way of a start");
        Self { runtime, backend, _dir: dir }
    }

    /// Has so many writes owed, lets them go, and gives how long that took; with the waits of live stores meanwhile.
    async fn drain(&self, owed: u64, with_live: bool) -> (f64, Vec<f64>) {
        let control = self.runtime.control();
        let breaker = control.breaker("graph").expect("it is there");
        breaker.force_open("to have something owed", None);
        let lost = || control.fallback().backends.iter().any(|(_, access)| *access == Access::None);
        until("the level follows the breaker", lost).await;
        owe(&self.runtime.handle(), owed).await;
        self.backend.take_applied();
        let began = wall();
        breaker.reset();
        assert_eq!(breaker.view().state, BreakerState::Closed);
        let live = with_live.then(|| tokio::spawn(live_until_drained(self.runtime.handle())));
        self.backend.has_applied(usize::try_from(owed).expect("they fit into memory")).await;
        let seconds = wall() - began;
        let waits = match live {
            Some(live) => live.await.expect("a live caller does not panic"),
            None => Vec::new(),
        };
        until("nothing is owed", || self.runtime.handle().status().owed == 0).await;
        in_order(&self.backend.take_applied());
        (seconds, waits)
    }
}

/// Has this many updates owed, several to each key: those of one key can neither be skipped nor overtake each other.
async fn owe(handle: &Handle, owed: u64) {
    let updates = (0..owed).map(|n| {
        let handle = handle.clone();
        let properties = Properties::new().with("n", n);
        let write = Write::update(format!("owed-{}", n % (owed / DEPTH)), properties);
        async move { handle.write(write).await.expect("is queued") }
    });
    stream::iter(updates).buffer_unordered(256).for_each(|_| std::future::ready(())).await;
}

/// Every write of a key came after the one before it.
fn in_order(applied: &[(Key, Version)]) {
    let mut last: HashMap<&Key, Version> = HashMap::new();
    for (key, version) in applied {
        let before = last.insert(key, *version);
        assert!(before.is_none_or(|before| before < *version), "{key}: {version} after {before:?}");
    }
}

/// Calls a second, when it is called directly.
async fn own_rate(backend: Arc<Remote>, calls: u64) -> f64 {
    let began = wall();
    let all = (0..calls).map(|_| backend.call());
    stream::iter(all).buffer_unordered(IN_FLIGHT).for_each(|()| std::future::ready(())).await;
    calls as f64 / (wall() - began)
}

/// How long this many live stores take, with pauses between them.
async fn live(handle: Handle, count: u64) -> Vec<f64> {
    let mut waits = Vec::new();
    for n in 0..count {
        waits.push(live_store(&handle, n).await);
    }
    waits
}

async fn live_until_drained(handle: Handle) -> Vec<f64> {
    let mut waits = Vec::new();
    while handle.status().owed > IN_FLIGHT {
        waits.push(live_store(&handle, waits.len() as u64).await);
    }
    waits
}

async fn live_store(handle: &Handle, n: u64) -> f64 {
    let began = wall();
    handle.update(format!("live-{n}"), Properties::new().with("n", n)).await.expect("is stored");
    let waited = wall() - began;
    tokio::time::sleep(Duration::from_millis(2)).await;
    waited
}
