//! Whole outages on real servers: Neo4j (or ArcadeDB in its place), the engine of Qdrant and Redis, where
//! `SEAWALL_SERVERS` says that there are any (see `servers`), killed, frozen, cut off and put back under load.
//!
//! Each scenario ends in the same judgement (`torture::told`): once nothing is owed, both stores hold what was
//! acknowledged, once and in its order, deletes stay deleted, what was refused is nowhere, every request was answered.
//!
//! ```text
//! stage.rs     the servers, the connections to them, and a runtime
//! load.rs      callers, and what they were told
//! service.rs   a process with a runtime that is killed
//! ```
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../servers/mod.rs"]
mod servers;
#[path = "../torture/mod.rs"]
mod torture;

mod load;
mod stage;

use seawall::breaker::BreakerState;
use tokio::time::{Instant, sleep};

use load::WRITE_TIMEOUT;
use stage::{Own, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_that_is_killed_in_mid_saga_is_put_right_when_it_is_back() {
    let Some(mut stage) = Stage::start(Own::Graph).await else { return };
    let load = stage.load();
    stage.acknowledges(100).await;
    stage.graph.as_mut().unwrap().kill();
    stage.until("the breaker sees it", || stage.is("graph", BreakerState::Open)).await;
    stage.acknowledges(100).await;
    assert!(stage.status().owed > 0, "nothing was cut off: {:?}", stage.status());
    stage.graph.as_mut().unwrap().restart().await;
    stage.recovers().await;
    stage.acknowledges(100).await;
    load.stop().await;
    stage.assert_kept().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vector_store_that_hangs_for_longer_than_every_timeout_is_put_right_when_it_goes_on() {
    let Some(stage) = Stage::start(Own::Nothing).await else { return };
    let load = stage.load();
    stage.acknowledges(100).await;
    stage.vector.freeze().await;
    let frozen = Instant::now();
    stage.until("the breaker sees it", || stage.is("vector", BreakerState::Open)).await;
    stage.acknowledges(100).await;
    // The longest patience that anybody has here.
    sleep(WRITE_TIMEOUT.mul_f64(1.1).saturating_sub(frozen.elapsed())).await;
    stage.acknowledges(10).await;
    stage.vector.thaw();
    stage.recovers().await;
    stage.acknowledges(100).await;
    load.stop().await;
    stage.assert_kept().await;
}
