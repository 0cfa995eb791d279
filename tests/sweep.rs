//! Deletes are forgotten when nothing that is older can come any more, and no sooner: P2 and P5.

mod support;

use std::time::Duration;

use seawall::backend::ErrorKind;
use seawall::backends::{Fault, Op};
use seawall::config::Config;
use seawall::fallback::Mode;
use seawall::operation::Write;
use support::{Rig, Site, n, record};
use tokio::time::{Instant, sleep, sleep_until};

const AFTER: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

async fn start() -> Rig {
    let mut config = Config::default();
    config.sync.sweep_after = AFTER;
    config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
    let rig = Rig::with(config).await;
    // Everything in it has begun to run.
    sleep(SECOND).await;
    rig
}

/// Whether a store remembers that this key was deleted.
async fn remembers(site: &Site, key: &str) -> bool {
    site.stored(&key.into()).await.is_some()
}

#[tokio::test(start_paused = true)]
async fn deletes_are_forgotten_in_their_time_and_records_are_not() {
    let rig = start().await;
    let handle = rig.handle();
    for k in 0..600 {
        handle.delete(format!("gone-{k}")).await.expect("is deleted");
    }
    handle.store(record("kept", 1)).await.expect("is stored");
    sleep(AFTER).await;
    assert!(remembers(&rig.graph, "gone-0").await, "one on its way may still come");
    sleep(AFTER).await;
    for site in [&rig.graph, &rig.vector] {
        for k in 0..600 {
            assert!(!remembers(site, &format!("gone-{k}")).await, "gone-{k}");
        }
    }
    assert_eq!(n(rig.both("kept").await), Some(1));
    let page = rig.runtime().metrics().expect("metrics are served");
    assert!(page.contains("seawall_backend_swept_total{backend=\"graph\"} 600"), "{page}");
    handle.store(record("gone-0", 2)).await.expect("is stored anew");
    assert_eq!(n(rig.both("gone-0").await), Some(2));
}

#[tokio::test(start_paused = true)]
async fn while_an_older_write_is_owed_to_anybody_no_delete_is_forgotten() {
    let rig = start().await;
    let handle = rig.handle();
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    handle.store(record("owed", 1)).await.expect("is queued");
    handle.delete("gone").await.expect("is queued");
    handle.store(record("later", 1)).await.expect("is queued");
    sleep(10 * AFTER).await;
    assert!(remembers(&rig.graph, "gone").await);
    rig.recover().await;
    assert!(remembers(&rig.graph, "gone").await && remembers(&rig.vector, "gone").await);
    sleep(2 * AFTER).await;
    assert!(!remembers(&rig.graph, "gone").await && !remembers(&rig.vector, "gone").await);
    assert_eq!(n(rig.both("owed").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_lands_long_after_it_was_sent_brings_nothing_back() {
    let rig = start().await;
    let (handle, started) = (rig.handle(), Instant::now());
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.graph).await;
    // With a second key, so that the delete does not stand for it and it is sent.
    handle.store_batch([record("gone", 1), record("other", 1)]).await.expect("is queued");
    handle.delete("gone").await.expect("is queued");
    handle.store(record("later", 1)).await.expect("is queued");
    // All of that is finished shortly before a sweep; one write is still on its way then.
    sleep_until(started + 2 * AFTER - 10 * SECOND).await;
    rig.graph.faults.next(Op::Apply, 1, Fault::LateZombie(30 * SECOND));
    rig.open(&rig.graph).await;
    rig.quiet().await;
    assert!(Instant::now() < started + 2 * AFTER);
    sleep_until(started + 3 * AFTER - SECOND).await;
    assert_eq!(rig.graph.record("gone").await.map(|record| record.key), None);
    sleep(2 * AFTER).await;
    assert_eq!(rig.both("gone").await, None);
    assert!(!remembers(&rig.graph, "gone").await, "and it is forgotten at last");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_forget_now_is_asked_again() {
    let rig = start().await;
    rig.handle().delete("gone").await.expect("is deleted");
    rig.handle().store(record("kept", 1)).await.expect("is stored");
    rig.graph.faults.next(Op::Sweep, 1, Fault::Error(ErrorKind::Refused));
    rig.vector.faults.next(Op::Sweep, 1, Fault::Hung);
    sleep(2 * AFTER + 30 * SECOND).await;
    assert!(remembers(&rig.graph, "gone").await && remembers(&rig.vector, "gone").await);
    sleep(AFTER).await;
    assert!(!remembers(&rig.graph, "gone").await && !remembers(&rig.vector, "gone").await);
    assert_eq!(n(rig.both("kept").await), Some(1));
}

#[tokio::test(start_paused = true)]
async fn deletes_are_kept_for_ever_if_that_is_wanted() {
    let mut config = Config::default();
    config.sync.sweep_after = Duration::ZERO;
    let rig = Rig::with(config).await;
    rig.handle().write(Write::delete("gone")).await.expect("is deleted");
    rig.handle().store(record("kept", 1)).await.expect("is stored");
    sleep(1_000 * AFTER).await;
    assert!(remembers(&rig.graph, "gone").await);
}
