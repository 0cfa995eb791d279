//! What is checked at the door, that every request is answered once, and what reads are worth.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, RpcReplyPort, call_t};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::answer::{Answer, Port};
use super::{Door, Gateway, GatewayConfig, Request};
use crate::backend::{BackendError, Capabilities, Capability};
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::operation::{Held, Outcome, Search, Source, StandIn, Traversal, Write};
use crate::plane::rehearsal::{Act, Rig, Scripted, Settings, put};
use crate::record::{Properties, Record};

const SECOND: Duration = Duration::from_secs(1);

fn down() -> Act {
    Act::Fail(BackendError::transient("down"))
}

fn n(record: Option<Record>) -> Option<i64> {
    record?.properties.get("n")?.as_i64()
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_once_and_a_dropped_one_answers_for_itself() {
    let (sender, receiver) = oneshot::channel();
    Answer::<u8>::new(Port::Caller(sender), Refusal::ShuttingDown).give(Ok(1));
    assert!(matches!(receiver.await, Ok(Ok(1))));
    let (sender, receiver) = oneshot::channel();
    drop(Answer::<u8>::new(Port::Caller(sender), Refusal::ShuttingDown));
    assert!(matches!(receiver.await, Ok(Err(Refusal::ShuttingDown))));
    let (sender, receiver) = ractor::concurrency::oneshot();
    drop(Answer::<u8>::new(Port::Ractor(RpcReplyPort::from(sender)), Refusal::DeadlineExceeded));
    assert!(matches!(receiver.await, Ok(Err(Refusal::DeadlineExceeded))));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_permit_is_refused_at_once() {
    let gateway = GatewayConfig { max_in_flight: 2, ..GatewayConfig::default() };
    let settings = Settings { gateway, ..Settings::default() };
    let rig = Rig::with(settings, |log| vec![Scripted::new("graph", log), Scripted::new("vector", log)]).await;
    rig.store("graph").all(Act::Slow(SECOND));
    let handle = rig.handle();
    let began = Instant::now();
    let writes = [handle.write(put("a", 1)), handle.write(put("b", 1)), handle.write(put("c", 1))];
    let answers = futures::future::join_all(writes).await;
    let refused = answers.iter().filter(|answer| matches!(answer, Err(Refusal::Overloaded { limit: 2, .. }))).count();
    assert_eq!((refused, answers.iter().filter(|answer| answer.is_ok()).count()), (1, 2));
    assert!(began.elapsed() < 5 * SECOND);
    assert_eq!(handle.status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_stops_nothing() {
    let rig = Rig::two().await;
    rig.store("graph").writes(Act::Slow(SECOND));
    let write = put("a", 1);
    let handle = rig.handle();
    assert!(tokio::time::timeout(SECOND / 10, handle.write(write.clone())).await.is_err());
    sleep(2 * SECOND).await;
    assert!(matches!(handle.outcome(write.operation), Outcome::Committed(_)));
    assert_eq!(handle.status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_stops_to_poll_keeps_nobody_waiting() {
    let rig = Rig::two().await;
    let handle = rig.handle();
    rig.store("graph").script([Act::Slow(SECOND)]);
    let mut first = Box::pin(handle.write(put("a", 1)));
    assert!(futures::poll!(&mut first).is_pending());
    let second = tokio::time::timeout(10 * SECOND, handle.write(put("a", 2))).await;
    assert!(second.is_ok_and(|second| second.is_ok()), "it waits for somebody who does not move");
    assert!(first.await.is_ok());
    assert_eq!(rig.store("graph").n("a"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_never_has_to_wait_lets_others_run() {
    let rig = Rig::two().await;
    let handle = rig.handle();
    handle.write(put("a", 1)).await.expect("is stored");
    rig.mode(Mode::LocalStorage).await;
    let other = tokio::spawn(async {});
    let mut reads = 0;
    while !other.is_finished() && reads < 10_000 {
        handle.retrieve("a").await.expect("the cache knows");
        reads += 1;
    }
    assert!(other.is_finished(), "nobody else had a turn in {reads} reads");
}

#[tokio::test(start_paused = true)]
async fn the_ref_survives_whatever_a_request_says() {
    let rig = Rig::two().await;
    let door = Door::new(Arc::clone(&rig.plane), Arc::default(), GatewayConfig::default());
    let (gateway, _) = Actor::spawn(None, Gateway, Arc::new(door)).await.expect("it starts");
    let write = put("a", 1).with_timeout(Duration::MAX);
    assert!(call_t!(gateway, Request::Store, 5_000, write).expect("a reply").is_ok());
    for wrong in [put("", 1), put("a", 1).with_timeout(Duration::ZERO), Write::store_batch([])] {
        let answer = call_t!(gateway, Request::Store, 5_000, wrong).expect("a reply");
        assert!(matches!(answer, Err(Refusal::Invalid(_))), "{answer:?}");
    }
    let read = call_t!(gateway, Request::Retrieve, 5_000, "a".into()).expect("a reply").expect("is read");
    assert_eq!(n(read.record), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_answered_for_by_the_deadline_when_the_journal_hangs() {
    let rig = Rig::two().await;
    rig.mode(Mode::LocalStorage).await;
    let write = put("a", 1);
    rig.write(write.clone()).await.expect("is queued");
    rig.store("graph").writes(Act::Fail(BackendError::permanent("too wide")));
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    rig.tape.takes(3_600 * SECOND);
    let began = Instant::now();
    let answer = rig.handle().discard_dead_letter(write.operation).await;
    assert!(matches!(answer, Err(Refusal::JournalUnavailable { .. })), "{answer:?}");
    assert_eq!(began.elapsed(), GatewayConfig::default().write_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_hung_store_leaves_time_to_ask_another() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("graph").reads(Act::Hang);
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!((n(read.record), read.source), (Some(1), Source::Backend("vector".into())));
    rig.mode(Mode::QueueWrites).await;
    rig.store("vector").reads(Act::Hang);
    let read = rig.handle().retrieve("a").await.expect("the cache knows");
    assert!(matches!(read.source, Source::Cache { .. }) && read.stale && n(read.record) == Some(1));
}

/// `v1` is a dead letter at one store, `v2` is everywhere, and nobody can be asked.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_never_hides_what_came_after_it() {
    let rig = Rig::two().await;
    rig.mode(Mode::LocalStorage).await;
    let letter = put("a", 1);
    rig.write(letter.clone()).await.expect("is queued");
    rig.store("graph").script([Act::Fail(BackendError::permanent("not now"))]);
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    rig.put("a", 2).await.expect("is queued");
    rig.drain(SECOND).await;
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(2), Some(2)));
    let handle = rig.handle();
    for retried in [false, true] {
        assert_eq!(n(handle.retrieve("a").await.expect("is read").record), Some(2));
        rig.plane.fallback.cache().forget(&"a".into());
        rig.stores.iter().for_each(|store| store.all(down()));
        let read = handle.retrieve("a").await;
        assert!(matches!(read, Err(Refusal::Unavailable { .. })), "{read:?}");
        rig.stores.iter().for_each(|store| store.all(Act::Well));
        if !retried {
            assert!(handle.retry_dead_letter(letter.operation, "graph".into()).await.expect("is written down"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_merge_whose_base_is_out_of_reach_is_shown_as_partial() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.mode(Mode::QueueWrites).await;
    rig.plane.fallback.cache().forget(&"a".into());
    rig.stores.iter().for_each(|store| store.all(down()));
    rig.write(Write::update("a", Properties::new().with("m", 2))).await.expect("is queued");
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert!(read.partial && read.source == Source::Owed);
    rig.store("vector").reads(Act::Well);
    rig.gate("vector").breaker.reset();
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert!(!read.partial);
    assert_eq!(n(read.record), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_missed_a_write_gives_way_to_the_cache() {
    let stores = |log: &_| vec![Scripted::new("engine", log), Scripted::new("copy", log).best_effort()];
    let rig = Rig::with(Settings::default(), stores).await;
    rig.mode(Mode::QueueWrites).await;
    rig.put("a", 1).await.expect("is stored");
    sleep(SECOND).await;
    assert_eq!(rig.store("copy").n("a"), Some(1));
    rig.store("copy").script([down()]);
    rig.put("a", 2).await.expect("is stored");
    sleep(SECOND).await;
    rig.store("engine").reads(down());
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!((n(read.record), read.stale), (Some(2), true));
    rig.plane.fallback.cache().forget(&"a".into());
    let read = rig.handle().retrieve("a").await.expect("is read");
    assert_eq!((n(read.record), read.stale), (Some(1), true), "and says so when there is nothing better");
}

#[tokio::test(start_paused = true)]
async fn hits_are_as_new_as_what_is_owed_and_still_fit_the_filter() {
    let rig = Rig::two().await;
    rig.write(Write::store(Record::new("a").with("n", 1).with("open", true))).await.expect("is stored");
    rig.write(Write::store(Record::new("b").with("n", 1).with("open", true))).await.expect("is stored");
    rig.mode(Mode::LocalStorage).await;
    rig.write(Write::update("a", Properties::new().with("open", false))).await.expect("is queued");
    rig.write(Write::update("b", Properties::new().with("n", 2))).await.expect("is queued");
    rig.mode(Mode::QueueWrites).await;
    let search = Search::near(vec![1.0_f32]).filter("open", true);
    let found = rig.handle().search(search).await.expect("is found");
    let hits: Vec<_> = found.hits.into_iter().map(|hit| (hit.record.key.to_string(), n(Some(hit.record)))).collect();
    assert_eq!(hits, [("b".to_owned(), Some(2))]);
    assert_eq!(found.pending, 2);
}

#[tokio::test(start_paused = true)]
async fn a_search_does_not_show_what_is_being_undone() {
    let rig = Rig::two().await;
    rig.put("a", 1).await.expect("is stored");
    rig.store("vector").script([Act::Fail(BackendError::permanent("too wide"))]);
    rig.store("graph").script([Act::Well]);
    rig.store("graph").writes(down());
    rig.put("a", 2).await.expect_err("is refused");
    assert_eq!(rig.store("graph").n("a"), Some(2));
    let found = rig.handle().traverse(Traversal::from("x")).await.expect("is found");
    assert_eq!(found.hits.into_iter().map(|hit| n(Some(hit.record))).collect::<Vec<_>>(), [Some(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_capability_is_stood_in_for_or_told() {
    let graph = Capabilities { graph_traversal: true, ..Capabilities::default() };
    let vector = Capabilities { vector_search: true, ..Capabilities::default() };
    let stores = |log: &_| {
        vec![Scripted::new("graph", log).capabilities(graph), Scripted::new("vector", log).capabilities(vector)]
    };
    let rig = Rig::with(Settings::default(), stores).await;
    rig.put("a", 1).await.expect("is stored");
    let handle = rig.handle();
    rig.store("graph").reads(down());
    let found = handle.traverse(Traversal::from("a")).await.expect("is stood in for");
    assert_eq!(found.degraded.map(|degraded| degraded.served_by), Some(StandIn::VectorSearch));
    rig.store("vector").reads(down());
    let lost = handle.traverse(Traversal::from("a")).await;
    let capability = Capability::GraphTraversal;
    assert!(matches!(lost, Err(Refusal::CapabilityUnavailable { capability: c, .. }) if c == capability), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_key_goes_in_turn_and_is_read_in_turn() {
    let rig = Rig::two().await;
    rig.store("graph").writes(Act::Slow(SECOND));
    let handle = rig.handle();
    let writes: Vec<_> = (0..5).map(|n| handle.write(put("a", n))).collect();
    let receipts = futures::future::join_all(writes).await;
    let versions: Vec<_> = receipts.into_iter().map(|receipt| receipt.expect("is stored")).collect();
    assert!(versions.windows(2).all(|pair| pair[0].version < pair[1].version));
    assert!(versions.iter().all(|receipt| receipt.held == Held::Committed));
    assert_eq!(n(handle.retrieve("a").await.expect("is read").record), Some(4));
}

#[tokio::test(start_paused = true)]
async fn a_best_effort_store_that_hangs_is_not_told_without_end() {
    let gateway = GatewayConfig { max_in_flight: 10_000, ..GatewayConfig::default() };
    let settings = Settings { gateway, ..Settings::default() };
    let stores = |log: &_| vec![Scripted::new("engine", log), Scripted::new("copy", log).best_effort()];
    let rig = Rig::with(settings, stores).await;
    rig.store("copy").writes(Act::Hang);
    for n in 0..1_000 {
        rig.put(&format!("k{n}"), n).await.expect("is stored");
    }
    tokio::task::yield_now().await;
    assert!(rig.plane.tasks.running() <= 300, "{}", rig.plane.tasks.running());
}

#[tokio::test(start_paused = true)]
async fn a_search_says_what_its_store_had_not_been_given_when_it_was_asked() {
    let rig = Rig::two().await;
    rig.mode(Mode::LocalStorage).await;
    rig.put("a", 1).await.expect("is queued");
    rig.mode(Mode::QueueWrites).await;
    rig.stores.iter().for_each(|store| store.reads(Act::Slow(2 * SECOND)));
    let handle = rig.handle();
    let (found, ()) = tokio::join!(handle.search(Search::near(vec![1.0_f32])), rig.drain(SECOND));
    assert!(rig.plane.ledger().is_empty(), "drained before the answer came");
    assert_eq!(found.expect("is found").pending, 1);
}
