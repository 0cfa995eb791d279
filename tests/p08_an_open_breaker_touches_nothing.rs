//! P8: an open breaker touches its backend zero times, and refusing costs next to nothing.

mod support;

use std::time::Duration;

use seawall::Refusal;
use seawall::backends::Fault;
use seawall::breaker::{BreakerState, Purpose};
use seawall::fallback::Mode;
use seawall::operation::{Search, Traversal, Write};
use support::{Rig, is_queued, properties, record, refused};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn while_it_is_open_nothing_at_all_reaches_the_store() {
    for mode in Mode::ALL {
        let rig = Rig::start().await;
        rig.handle().store(record("owed", 1)).await.expect("is stored");
        rig.lose(&rig.vector).await;
        rig.mode(Mode::QueueWrites).await;
        rig.handle().store(record("owed", 2)).await.expect("is queued");
        rig.mode(mode).await;
        // Whatever it does now, it would succeed.
        rig.vector.heal();
        let (before, opened) = (rig.vector.faults.counts(), Instant::now());
        let rejected = rig.breaker(&rig.vector).snapshot().rejected;
        while opened.elapsed() < Duration::from_secs(57) {
            let handle = rig.handle();
            for write in [
                Write::store(record("a", 1)),
                Write::update("b", properties("m", 1)),
                Write::delete("c"),
                Write::store_batch([record("d", 1), record("e", 1)]),
            ] {
                let _ = handle.write(write).await;
            }
            let _ = handle.retrieve("a").await;
            let _ = handle.search(Search::near(vec![1.0])).await;
            let _ = handle.traverse(Traversal::from("a")).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Open);
        assert_eq!(rig.vector.faults.counts(), before, "{mode:?}");
        assert!(rig.breaker(&rig.vector).snapshot().rejected > rejected, "the refusals were counted");
    }
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_it_and_not_one_call_more_goes_out() {
    let rig = Rig::start().await;
    rig.vector.set(Fault::Down);
    let before = rig.vector.faults.counts().total;
    for k in 0..50 {
        let _ = rig.handle().store(record(&format!("k{k}"), k)).await;
    }
    assert_eq!(rig.vector.faults.counts().total - before, 5);
    let explained = rig.breaker(&rig.vector).explain();
    assert_eq!((explained.opened_on.len(), explained.state), (5, BreakerState::Open));
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_wait_a_few_probes_go_out_and_a_failure_shuts_it_again() {
    let rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    let before = rig.vector.faults.counts().total;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(rig.vector.faults.counts().total, before);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let probes = rig.vector.faults.counts().total - before;
    assert!((2..=6).contains(&probes), "{probes} calls in three waits");
    assert!(rig.vector.faults.counts().running_max <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_forced_breaker_touches_nothing_for_as_long_as_it_is_forced() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let before = rig.vector.faults.counts();
    for _ in 0..10 {
        assert!(is_queued(&rig.handle().store(record("a", 1)).await.expect("is queued")));
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(rig.vector.faults.counts(), before);
}

#[tokio::test(start_paused = true)]
async fn refusing_takes_no_time_sends_no_message_and_tells_when_to_come_back() {
    let rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    rig.mode(Mode::Disabled).await;
    let breaker = rig.breaker(&rig.vector);
    let rejected = breaker.snapshot().rejected;
    // Nothing is awaited here, so no actor can have had a part in it.
    for _ in 0..10_000 {
        let refusal = breaker.gate().try_acquire(Purpose::Live).expect_err("it is open");
        assert_eq!(refusal.state, BreakerState::Open);
        assert!(refusal.retry_after() <= Duration::from_secs(60));
    }
    assert_eq!(breaker.snapshot().rejected, rejected + 10_000);

    let asked = Instant::now();
    let refusal = refused(rig.handle().store(record("a", 1)).await);
    let Refusal::Unavailable { backend, retry_after: Some(wait), .. } = refusal else { panic!("{refusal}") };
    assert_eq!((backend.as_str(), asked.elapsed()), ("vector", Duration::ZERO));
    assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_done_or_is_owed_is_not_refused_at_once_though_a_breaker_is_open() {
    let rig = Rig::start().await;
    let write = Write::store(record("a", 1));
    let receipt = rig.handle().write(write.clone()).await.expect("is stored");
    rig.lose(&rig.vector).await;
    rig.mode(Mode::Disabled).await;
    let again = rig.handle().write(write).await.expect("it was done before");
    assert_eq!(again, receipt);
    let touched = rig.graph.faults.counts().total;
    refused(rig.handle().store(record("b", 1)).await);
    assert_eq!(rig.graph.faults.counts().total, touched, "nor is another store asked for nothing");
}

#[tokio::test(start_paused = true)]
async fn a_drain_stops_within_one_step_of_the_opening() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    for k in 0..200 {
        rig.handle().store(record(&format!("k{k}"), k)).await.expect("is queued");
    }
    rig.vector.faults.set(seawall::backends::Op::Apply, Fault::Slow(Duration::from_millis(10)));
    rig.open(&rig.vector).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let running = rig.vector.faults.counts().running;
    assert!(running > 0, "it drains");
    rig.breaker(&rig.vector).force_open("a test", None);
    let before = rig.vector.faults.counts().total;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.vector.faults.counts().total, before);
    assert!(rig.handle().status().owed > 0);
    rig.recover().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_store_that_is_well_again_heals_without_any_user() {
    let rig = Rig::start().await;
    rig.lose(&rig.vector).await;
    rig.vector.heal();
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Closed);
}
