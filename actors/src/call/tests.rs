//! What a permit allows, what it costs, and who gives way to whom.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{BudgetConfig, CallConfig, Denied, RetryConfig};
use crate::backend::{BackendError, Happened};
use crate::breaker::{BreakerConfig, BreakerState, Purpose};
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::operation::{Held, Source};
use crate::plane::rehearsal::{Act, Rig, Scripted, Settings, put};
use crate::plane::{Cause, FailedCall, Tries};

const SECOND: Duration = Duration::from_secs(1);

/// A store that is called so, and whose breaker never opens by itself.
async fn one(call: CallConfig) -> Rig {
    let breaker = BreakerConfig { failure_threshold: 10_000, ..BreakerConfig::default() };
    let settings = Settings { call, breaker, ..Settings::default() };
    Rig::with(settings, |log| vec![Scripted::new("engine", log)]).await
}

async fn two(call: CallConfig) -> Rig {
    let settings = Settings { call, ..Settings::default() };
    Rig::with(settings, |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await
}

fn crowded(max_concurrent: usize) -> CallConfig {
    CallConfig { max_concurrent, ..CallConfig::default() }
}

/// So many retries and not one more, whatever happens.
fn tokens(capacity: u32) -> RetryConfig {
    RetryConfig { budget: BudgetConfig { capacity, per_call: 0.0, per_second: 0.0 }, ..RetryConfig::default() }
}

fn down() -> Act {
    Act::Fail(BackendError::transient("down"))
}

/// Reads from the engine with a permit of its own.
async fn read(rig: &Rig, tries: Tries) -> Result<usize, FailedCall> {
    let mut permit = rig.gate("engine").permit(Purpose::Live)?;
    let until = Instant::now() + 60 * SECOND;
    let keys = ["a".into()];
    let keys = permit.call(until, tries, |backend| backend.read(&keys)).await?;
    Ok(keys.len())
}

/// Calls that reached the engine, of all kinds.
fn reached(rig: &Rig) -> u64 {
    rig.gate("engine").breaker.snapshot().admitted
}

#[tokio::test(start_paused = true)]
async fn trap_16_behind_an_open_breaker_nothing_is_called_and_no_token_is_spent() {
    let rig = one(CallConfig { retry: tokens(1), ..CallConfig::default() }).await;
    let breaker = &rig.gate("engine").breaker;
    breaker.force_open("a test", Some(10 * SECOND));
    let asked = Instant::now();
    let refused = read(&rig, Tries::Several).await.expect_err("it is open");
    assert!(matches!(refused.cause, Cause::Denied(Denied::Breaker(_))), "{refused:?}");
    assert_eq!((refused.retry_after(), asked.elapsed()), (Some(10 * SECOND), Duration::ZERO));
    assert_eq!((reached(&rig), breaker.snapshot().rejected, rig.gate("engine").stats().retries), (0, 1, 0));
    // The one token is still there.
    breaker.lift();
    rig.store("engine").reads(down());
    read(&rig, Tries::Several).await.expect_err("it is down");
    assert_eq!((reached(&rig), rig.gate("engine").stats().retries), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn trap_16_a_breaker_that_opens_in_between_ends_the_tries_at_once_and_for_nothing() {
    let breaker = BreakerConfig { failure_threshold: 2, ..BreakerConfig::default() };
    let call = CallConfig { retry: tokens(2), ..CallConfig::default() };
    let settings = Settings { call, breaker, ..Settings::default() };
    let rig = Rig::with(settings, |log| vec![Scripted::new("engine", log)]).await;
    rig.store("engine").reads(Act::Fail(BackendError::unknown("reset")));
    let asked = Instant::now();
    let failed = read(&rig, Tries::Several).await.expect_err("it is down");
    assert!(matches!(failed.cause, Cause::Denied(Denied::Breaker(_))), "{failed:?}");
    assert_eq!(failed.happened, Happened::Perhaps, "what was tried before is not forgotten");
    assert!(failed.retry_after().is_some_and(|wait| wait > 59 * SECOND));
    assert!(asked.elapsed() <= SECOND / 20, "one wait, and none to be refused: {:?}", asked.elapsed());
    let snapshot = rig.gate("engine").breaker.snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected, rig.gate("engine").stats().retries), (2, 1, 1));
    // One of two tokens is left.
    rig.gate("engine").breaker.force_closed("a test", None);
    read(&rig, Tries::Several).await.expect_err("it is down");
    assert_eq!((reached(&rig), rig.gate("engine").stats().retries), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_the_budget_that_all_callers_share() {
    let rig = one(CallConfig { retry: tokens(5), ..CallConfig::default() }).await;
    rig.store("engine").all(down());
    for n in 0..20 {
        let refusal = rig.put(&format!("k{n}"), n).await.expect_err("it is down");
        assert!(refusal.to_string().contains("down"), "the last error is told: {refusal}");
    }
    assert_eq!(rig.store("engine").calls(), 20 + 5);
    let asked = Instant::now();
    read(&rig, Tries::Several).await.expect_err("it is down");
    assert_eq!(asked.elapsed(), Duration::ZERO, "nobody waits for a try that is not made");
    let stats = rig.gate("engine").stats();
    assert_eq!((stats.retries, stats.budget_exhausted), (5, 20));
}

#[tokio::test(start_paused = true)]
async fn calls_and_time_fill_the_budget_again() {
    let budget = BudgetConfig { capacity: 1, per_call: 0.5, per_second: 0.0 };
    let mut call = CallConfig { retry: RetryConfig { budget, ..RetryConfig::default() }, ..CallConfig::default() };
    let rig = one(call.clone()).await;
    rig.store("engine").writes(down());
    for n in 0..10 {
        rig.put("a", n).await.expect_err("it is down");
    }
    assert_eq!(rig.gate("engine").stats().retries, 5);
    call.retry.budget = BudgetConfig { capacity: 1, per_call: 0.0, per_second: 0.1 };
    let rig = one(call).await;
    rig.store("engine").writes(down());
    for n in 0..10 {
        sleep(5 * SECOND).await;
        rig.put("a", n).await.expect_err("it is down");
    }
    assert!((5..=6).contains(&rig.gate("engine").stats().retries), "{:?}", rig.gate("engine").stats());
}

#[tokio::test(start_paused = true)]
async fn an_error_that_another_try_cannot_change_is_told_at_once() {
    let rig = one(CallConfig::default()).await;
    for error in [BackendError::permanent("too wide"), BackendError::read_only("full")] {
        rig.store("engine").reads(Act::Fail(error));
        let (before, asked) = (reached(&rig), Instant::now());
        read(&rig, Tries::Several).await.expect_err("it fails");
        assert_eq!((reached(&rig) - before, asked.elapsed()), (1, Duration::ZERO));
    }
    // And one that asks for more time than there is.
    rig.store("engine").reads(Act::Fail(BackendError::refused("busy").with_retry_after(60 * SECOND)));
    let before = reached(&rig);
    let failed = read(&rig, Tries::Several).await.expect_err("it fails");
    assert_eq!((reached(&rig) - before, failed.retry_after()), (1, Some(60 * SECOND)));
    rig.store("engine").reads(Act::Fail(BackendError::refused("busy").with_retry_after(10 * SECOND)));
    let asked = Instant::now();
    read(&rig, Tries::Several).await.expect_err("it fails");
    assert_eq!(asked.elapsed(), 30 * SECOND, "its own wait, three times");
}

#[tokio::test(start_paused = true)]
async fn a_read_is_tried_again_only_where_no_other_store_can_answer() {
    let rig = two(CallConfig::default()).await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("graph").reads(down());
    let asked = Instant::now();
    let answer = rig.handle().retrieve("a").await.expect("the other store answers");
    assert_eq!((answer.source, asked.elapsed()), (Source::Backend("vector".into()), Duration::ZERO));
    assert_eq!(rig.gate("graph").stats().retries, 0);

    let rig = one(CallConfig::default()).await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("engine").reads(down());
    let handle = rig.handle();
    let heal = async {
        sleep(SECOND / 10).await;
        rig.store("engine").reads(Act::Well);
    };
    let (read, ()) = tokio::join!(handle.retrieve("a"), heal);
    assert_eq!(read.expect("a later try is answered").source, Source::Backend("engine".into()));
    assert!(rig.gate("engine").stats().retries > 0);
}

#[tokio::test(start_paused = true)]
async fn one_call_too_many_is_refused_at_once_and_is_no_failure() {
    let rig = one(crowded(2)).await;
    rig.store("engine").all(Act::Slow(SECOND));
    let handle = rig.handle();
    let asked = Instant::now();
    let reads = (0..10).map(|n| {
        let handle = handle.clone();
        async move { (handle.retrieve(format!("k{n}")).await, asked.elapsed()) }
    });
    let (answered, refused): (Vec<_>, Vec<_>) =
        futures::future::join_all(reads).await.into_iter().partition(|(read, _)| read.is_ok());
    assert_eq!((answered.len(), refused.len()), (2, 8));
    for (refusal, after) in refused {
        let refusal = refusal.expect_err("it is one of the refused");
        assert!(matches!(refusal, Refusal::Unavailable { .. }) && refusal.retry_after().is_some(), "{refusal:?}");
        assert_eq!(after, Duration::ZERO);
    }
    let snapshot = rig.gate("engine").breaker.snapshot();
    assert_eq!((snapshot.total_requests, snapshot.admitted, snapshot.failed), (2, 2, 0));
    let stats = rig.gate("engine").stats();
    assert_eq!((stats.in_flight, stats.bulkhead_rejections, stats.retries), (0, 8, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_place_is_as_one_whose_breaker_is_open() {
    let rig = two(crowded(1)).await;
    rig.put("a", 1).await.expect("is stored");
    rig.take_log();
    let place = rig.gate("vector").bulkhead.enter(Purpose::Live).expect("there is one");
    // Refused before anything was done.
    let asked = Instant::now();
    let refusal = rig.put("b", 1).await.expect_err("there is no place");
    assert!(matches!(&refusal, Refusal::Unavailable { backend, .. } if backend.as_str() == "vector"), "{refusal:?}");
    assert_eq!((refusal.retry_after().is_some(), asked.elapsed()), (true, Duration::ZERO));
    assert_eq!((rig.take_log(), rig.gate("graph").bulkhead.all()), (Vec::new(), 0));
    // Owed where the mode may queue, and read from the other store.
    rig.mode(Mode::QueueWrites).await;
    let receipt = rig.put("b", 1).await.expect("is queued");
    assert_eq!(receipt.held, Held::Queued { owing: vec!["vector".into()] });
    drop(place);
    rig.drain(SECOND).await;
    assert_eq!(rig.store("vector").n("b"), Some(1));
    let _place = rig.gate("graph").bulkhead.enter(Purpose::Live).expect("there is one");
    rig.plane.fallback.cache().forget(&"a".into());
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!(read.source, Source::Backend("vector".into()));
    assert_eq!(rig.gate("graph").breaker.snapshot().failed + rig.gate("vector").breaker.snapshot().failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_let_in_keeps_its_places_until_it_is_done() {
    let rig = two(crowded(1)).await;
    rig.tape.takes(SECOND);
    let writing = rig.perform(put("a", 1), 60 * SECOND);
    sleep(SECOND / 2).await;
    let refusal = rig.put("b", 1).await.expect_err("the first is still at it");
    assert!(matches!(refusal, Refusal::Unavailable { .. }), "{refusal:?}");
    assert_eq!(writing.await.expect("no panic").0.expect("is stored").held, Held::Committed);
    rig.put("b", 1).await.expect("there is a place again");
    assert_eq!(rig.plane.sagas.totals().rolled_back, 0);
}

#[tokio::test(start_paused = true)]
async fn the_drain_takes_what_users_leave_and_never_the_last_place() {
    let rig = one(crowded(4)).await;
    rig.mode(Mode::LocalStorage).await;
    for n in 0..40 {
        rig.put(&format!("k{n:02}"), n).await.expect("is queued");
    }
    rig.store("engine").writes(Act::Slow(SECOND));
    let users =
        |n: usize| (0..n).map(|_| rig.gate("engine").bulkhead.enter(Purpose::Live).unwrap()).collect::<Vec<_>>();
    let four = users(4);
    rig.mode(Mode::QueueWrites).await;
    let _workers = rig.workers().await;
    sleep(10 * SECOND).await;
    assert_eq!(rig.store("engine").calls(), 0, "users have all places");
    drop(four);
    for second in 0..5 {
        sleep(SECOND).await;
        let stats = rig.gate("engine").stats();
        assert!((1..=3).contains(&stats.in_flight), "after {second} s: {stats:?}");
    }
    let user = users(1);
    sleep(60 * SECOND).await;
    drop(user);
    let stats = rig.gate("engine").stats();
    assert_eq!((rig.plane.ledger().owed(&"engine".into()), stats.in_flight, stats.bulkhead_rejections), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_compensation_without_a_place_is_done_when_there_is_one() {
    let rig = two(crowded(1)).await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("vector").script([Act::SlowlyFail(SECOND, BackendError::permanent("too wide"))]);
    let writing = rig.perform(put("a", 2), 60 * SECOND);
    sleep(SECOND / 2).await;
    // The leg of the graph is done, and its place is somebody else's.
    assert_eq!((rig.store("graph").n("a"), rig.store("graph").calls()), (Some(2), 2));
    let place = rig.gate("graph").bulkhead.enter(Purpose::Live).expect("is free");
    let (answer, after) = writing.await.expect("no panic");
    assert!(matches!(answer, Err(Refusal::Rejected { .. })) && after == SECOND, "{answer:?} after {after:?}");
    let _workers = rig.workers().await;
    sleep(10 * SECOND).await;
    assert_eq!(rig.store("graph").calls(), 2, "it is not touched without a place");
    drop(place);
    sleep(SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("graph").calls()), (Some(1), 3));
    assert!(rig.plane.ledger().is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_call_has_the_time_of_its_backend_or_what_is_left_of_the_whole() {
    for (timeout, until, expected) in [(2, 5, 2), (10, 5, 5)] {
        let rig = one(CallConfig { timeout: timeout * SECOND, ..CallConfig::default() }).await;
        rig.store("engine").reads(Act::Hang);
        let asked = Instant::now();
        let mut permit = rig.gate("engine").permit(Purpose::Live).expect("is let in");
        let keys = ["a".into()];
        let hung = permit.call_once(asked + until * SECOND, |backend| backend.read(&keys));
        let failed = hung.await.expect_err("it hangs");
        assert_eq!((failed.happened, asked.elapsed()), (Happened::Perhaps, expected * SECOND));
        assert_eq!(rig.gate("engine").breaker.view().state, BreakerState::Closed);
    }
}
