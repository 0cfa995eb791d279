//! P6: everything has a limit; at it the caller gets a prompt typed refusal with a hint, and nothing is lost.

mod support;

use std::time::Duration;

use seawall::backends::{Fault, Op};
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::Mode;
use seawall::limits::{InvalidInput, Limits};
use seawall::operation::{Change, Held, OperationId, Outcome, Priority, Search, Traversal, Write};
use seawall::record::{Record, Relation};
use seawall::{Refusal, Request};
use support::{History, Rig, is_pending, n, properties, record, refused, until};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn one_request_too_many_is_refused_at_once_with_a_hint_and_let_in_later() {
    let mut config = Config::default();
    config.gateway.max_in_flight = 3;
    let rig = Rig::with(config).await;
    rig.graph.faults.set(Op::Read, Fault::Hung);
    let handle = rig.handle();
    let inside: Vec<_> = (0..3)
        .map(|k| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.store(record(&format!("k{k}"), k)).await })
        })
        .collect();
    until("they are inside", || handle.status().in_flight == 3).await;
    let asked = Instant::now();
    for refusal in [
        refused(handle.store(record("x", 1)).await),
        refused(handle.retrieve("x").await),
        refused(handle.search(Search::like("x")).await),
        refused(ractor::call_t!(rig.runtime().gateway(), Request::Retrieve, 1_000, "x".into()).expect("an answer")),
    ] {
        assert!(matches!(refusal, Refusal::Overloaded { limit: 3, .. }), "{refusal}");
        assert!(refusal.retry_after().is_some_and(|hint| !hint.is_zero()));
    }
    assert_eq!(asked.elapsed(), Duration::ZERO, "nobody had to wait for that");
    rig.graph.heal();
    for task in inside {
        // Healing ends what hung with an error, so these were refused for another reason.
        let _ = task.await.expect("no panic");
    }
    until("all permits are back", || handle.status().in_flight == 0).await;
    handle.store(record("x", 1)).await.expect("is stored");
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_refuses_and_loses_nothing() {
    let mut config = Config::default();
    (config.queue.max_entries, config.sync.batch) = (10, 10);
    let rig = Rig::with(config).await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let (handle, mut history) = (rig.handle(), History::default());
    for k in 0..10 {
        history.write(&handle, record(&format!("k{k}"), k)).await.expect("is queued");
    }
    for _ in 0..3 {
        let refusal = refused(history.write(&handle, record("too-many", 1)).await);
        let Refusal::QueueFull { entries: 10, retry_after, .. } = refusal else { panic!("{refusal}") };
        assert_eq!(retry_after, Duration::from_secs(1));
    }
    assert_eq!(handle.status().owed, 10);
    assert_eq!(rig.graph.record("too-many").await, None, "no store was touched for it");
    rig.recover().await;
    history.assert_held(&rig).await;
    handle.store(record("too-many", 2)).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_full_by_its_bytes_as_well() {
    let mut config = Config::default();
    config.queue.max_bytes = 1 << 20;
    let rig = Rig::with(config).await;
    rig.mode(Mode::LocalStorage).await;
    let (handle, mut history) = (rig.handle(), History::default());
    let large = |key: String| Record::new(key).with("text", "x".repeat(200_000));
    for k in 0..5 {
        history.write(&handle, large(format!("k{k}"))).await.expect("is queued");
    }
    let refusal = refused(history.write(&handle, large("k5".into())).await);
    let Refusal::QueueFull { entries: 5, bytes, .. } = refusal else { panic!("{refusal}") };
    assert!((1_000_000..1 << 20).contains(&bytes), "{bytes}");
    handle.store(record("small", 1)).await.expect("what fits is taken");
    rig.recover().await;
    assert_eq!(handle.status().owed_bytes, 0);
    history.assert_held(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_a_store_will_never_take_is_a_dead_letter_that_blocks_nobody() {
    let mut rig = Rig::in_mode(Mode::QueueWrites).await;
    let mut events = rig.runtime().subscribe();
    rig.shut(&rig.vector).await;
    let receipt = rig.handle().store(record("poison", 1)).await.expect("is queued");
    rig.handle().store(record("fine", 1)).await.expect("is queued");
    rig.vector.faults.next(Op::Apply, 1, Fault::Error(seawall::backend::ErrorKind::Permanent));
    rig.open(&rig.vector).await;
    rig.quiet().await;
    assert_eq!(n(rig.both("fine").await), Some(1));
    let letters = rig.handle().dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].operation, letters[0].keys.as_slice()), (receipt.operation, &["poison".into()][..]));
    assert_eq!((letters[0].backend.as_str(), letters[0].undo), ("vector", false));
    assert!(letters[0].reason.contains("Permanent"), "{}", letters[0].reason);
    assert!(matches!(rig.handle().outcome(receipt.operation), Outcome::DeadLetter { .. }));
    let mut told = false;
    while let Some(Update::Event(event)) = events.try_next() {
        told |= matches!(event.kind, EventKind::DeadLetterAdded { operation, .. } if operation == receipt.operation);
    }
    assert!(told);
    assert_eq!(n(rig.read("poison").await.0), Some(1), "it was acknowledged, and is still read");

    // It survives, and can be tried again.
    assert!(rig.stop().await.journal_closed);
    rig.restart().await;
    assert_eq!(rig.handle().dead_letters(), letters);
    assert!(!rig.handle().retry_dead_letter(receipt.operation, "graph".into()).await.expect("an answer"));
    assert!(!rig.handle().retry_dead_letter(OperationId::generate(), "vector".into()).await.expect("an answer"));
    assert!(rig.handle().retry_dead_letter(receipt.operation, "vector".into()).await.expect("is retried"));
    rig.quiet().await;
    assert_eq!(rig.handle().dead_letters(), []);
    assert_eq!(n(rig.both("poison").await), Some(1));
    assert_eq!(rig.handle().outcome(receipt.operation), Outcome::Committed(receipt.version));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_discarded_leaves_the_stores_equal() {
    let rig = Rig::start().await;
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.mode(Mode::QueueWrites).await;
    rig.vector.faults.next(Op::Apply, 1, Fault::Down);
    rig.vector.faults.next(Op::Apply, 1, Fault::Error(seawall::backend::ErrorKind::Permanent));
    let receipt = rig.handle().store(record("a", 2)).await.expect("is queued");
    until("it is a dead letter", || rig.handle().status().dead_letters == 1).await;
    let discarded = |reply| Request::DiscardDeadLetter(receipt.operation, reply);
    assert!(ractor::call_t!(rig.runtime().gateway(), discarded, 5_000).expect("an answer").expect("is discarded"));
    rig.quiet().await;
    assert_eq!(rig.handle().outcome(receipt.operation), Outcome::Discarded(receipt.version));
    assert_eq!((rig.handle().status().owed, rig.handle().status().dead_letters), (0, 0));
    assert_eq!(n(rig.both("a").await), Some(1), "the store that had taken it went back");
    assert_eq!(n(rig.read("a").await.0), Some(1));
    assert!(!rig.handle().discard_dead_letter(receipt.operation).await.expect("an answer"), "there is none any more");
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_dead_letter_waits_if_it_says_a_part_and_passes_if_it_says_all() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    let handle = rig.handle();
    rig.shut(&rig.vector).await;
    let mut letters = Vec::new();
    for key in ["part", "all"] {
        letters.push(handle.store(record(key, 1)).await.expect("is queued").operation);
    }
    rig.vector.faults.set(Op::Apply, Fault::Error(seawall::backend::ErrorKind::Permanent));
    rig.open(&rig.vector).await;
    until("both are dead letters", || handle.status().dead_letters == 2).await;
    rig.vector.heal();
    let part = handle.update("part", properties("more", 2)).await.expect("is queued").operation;
    let all = handle.store(record("all", 2)).await.expect("is taken").operation;
    until("the whole record passes", || matches!(handle.outcome(all), Outcome::Committed(_))).await;
    assert_eq!(handle.store(record("other", 1)).await.expect("is stored").held, Held::Committed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(is_pending(&handle.outcome(part)), "{:?}", handle.outcome(part));
    assert_eq!(rig.vector.record("part").await, None);
    for letter in letters {
        assert!(handle.retry_dead_letter(letter, "vector".into()).await.expect("is retried"));
    }
    rig.quiet().await;
    assert_eq!(rig.both("part").await.expect("is there").properties, record("part", 1).with("more", 2).properties);
    assert_eq!(n(rig.both("all").await), Some(2), "the letter is older than what passed it");
    assert_eq!(handle.status().owed, 0);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_fill_the_queue_and_push_nothing_out() {
    let mut config = Config::default();
    (config.queue.max_entries, config.sync.batch) = (5, 5);
    let rig = Rig::with(config).await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    let handle = rig.handle();
    let mut letters = Vec::new();
    for k in 0..5 {
        letters.push(handle.store(record(&format!("k{k}"), k)).await.expect("is queued").operation);
    }
    rig.vector.faults.set(Op::Apply, Fault::Error(seawall::backend::ErrorKind::Permanent));
    rig.open(&rig.vector).await;
    until("all are dead letters", || handle.status().dead_letters == 5).await;
    rig.vector.heal();
    for _ in 0..20 {
        let refusal = refused(handle.store(record("too-many", 1)).await);
        assert!(matches!(refusal, Refusal::QueueFull { entries: 5, .. }), "{refusal}");
    }
    assert_eq!((handle.status().owed, handle.dead_letters().len()), (5, 5));
    assert!(handle.discard_dead_letter(letters[0]).await.expect("an answer"));
    until("there is room again", || handle.status().owed == 4).await;
    handle.store(record("one-more", 1)).await.expect("is stored");
}

/// A day without a store, and hours of every other kind of outage: none says that a write is wrong.
#[tokio::test(start_paused = true)]
async fn a_long_outage_makes_no_dead_letter() {
    use seawall::backend::ErrorKind::{ReadOnly, Transient, Unknown};
    let others = [Fault::Hung, Fault::Reset, Fault::Error(Transient), Fault::Error(Unknown), Fault::Error(ReadOnly)];
    let outages = others.map(|fault| (fault, 2));
    for (fault, hours) in outages.into_iter().chain([(Fault::Down, 24)]) {
        let rig = Rig::in_mode(Mode::QueueWrites).await;
        rig.vector.set(fault);
        rig.handle().store(record("a", 1)).await.expect("is queued");
        tokio::time::sleep(Duration::from_secs(hours * 3_600)).await;
        assert_eq!((rig.handle().status().owed, rig.handle().status().dead_letters), (1, 0), "{fault:?}");
        rig.vector.heal();
        rig.quiet().await;
        assert_eq!(n(rig.both("a").await), Some(1), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_sleeps_is_told_how_much_it_missed_and_the_numbers_have_no_gaps() {
    let rig = Rig::start().await;
    let mut events = rig.runtime().subscribe();
    let start = events.start().sequence;
    let breaker = rig.breaker(&rig.vector);
    for _ in 0..2_000 {
        breaker.force_open("a test", None);
        breaker.lift();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let total = rig.runtime().snapshot().sequence - start;
    assert!(total >= 4_000);
    let (mut missed, mut last) = (0, start);
    while let Some(update) = events.try_next() {
        match update {
            Update::Lagged { missed: more } => {
                missed += more;
                last += more;
            }
            Update::Event(event) => {
                assert_eq!(event.sequence, last + 1);
                last = event.sequence;
            }
        }
    }
    assert!(missed >= total - 1_024, "{missed} of {total}");
    assert_eq!(last, start + total, "missed and received together are all there were");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_keeps_up_sees_every_change_follow_from_the_one_before() {
    let rig = Rig::start().await;
    let mut events = rig.runtime().subscribe();
    let mut state = events.start().clone();
    rig.lose(&rig.vector).await;
    rig.recover().await;
    rig.mode(Mode::ReadOnly).await;
    let mut breaker = state.breakers.get(&"vector".into()).copied().unwrap_or_default();
    while let Some(update) = events.try_next() {
        let Update::Event(event) = update else { panic!("it kept up: {update:?}") };
        if let EventKind::BreakerChanged { backend, from, to, .. } = &event.kind
            && backend.as_str() == "vector"
        {
            assert_eq!(*from, breaker);
            breaker = *to;
        }
        assert!(state.apply(&event), "{event:?} follows {}", state.sequence);
    }
    assert_eq!(state, rig.runtime().snapshot());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_refused_at_the_door_and_no_store_hears_of_it() {
    let limits =
        Limits { dimension: Some(3), batch: 3, key_bytes: 16, write_bytes: 1_024, nesting: 1, depth: 4, hits: 100 };
    let config = Config { limits, ..Config::default() };
    let rig = Rig::with(config).await;
    let (handle, touched) = (rig.handle(), || rig.graph.faults.counts().total + rig.vector.faults.counts().total);
    let before = touched();
    let long = "k".repeat(17);
    let mut empty = Write::delete("a");
    empty.changes.clear();
    let batch = |keys: &[&str]| Write::store_batch(keys.iter().map(|key| record(key, 1)));
    let embedded = |embedding: Vec<f32>| Write::store(record("a", 1).with_embedding(embedding));
    let mut nameless = record("a", 1);
    nameless.relations.push(Relation::new("", "b"));
    let not_finite = |component| InvalidInput::NotFinite { component };
    let wrong = |dimension| InvalidInput::WrongDimension { dimension, expected: 3 };
    let writes = [
        (Write::store(record("", 1)), InvalidInput::EmptyKey),
        (Write::delete(""), InvalidInput::EmptyKey),
        (Write::update(long.as_str(), properties("n", 1)), InvalidInput::KeyTooLong { bytes: 17, limit: 16 }),
        (Write::store(record("a", 1).with_relation("to", "")), InvalidInput::EmptyKey),
        (
            Write::store(record("a", 1).with_relation("to", long.as_str())),
            InvalidInput::KeyTooLong { bytes: 17, limit: 16 },
        ),
        (Write::store(nameless), InvalidInput::EmptyRelationKind),
        (empty, InvalidInput::EmptyBatch),
        (batch(&["a", "b", "c", "d"]), InvalidInput::BatchTooLong { changes: 4, limit: 3 }),
        (batch(&["a", "b", "a"]), InvalidInput::DuplicateKey),
        (embedded(vec![]), InvalidInput::EmptyEmbedding),
        (embedded(vec![1.0, 2.0]), wrong(2)),
        (embedded(vec![1.0, f32::NAN, 2.0]), not_finite(1)),
        (embedded(vec![1.0, 2.0, f32::NEG_INFINITY]), not_finite(2)),
        (Write::store(record("a", 1).with("deep", vec![vec![1]])), InvalidInput::TooDeep { limit: 1 }),
        (Write::update("a", properties("deep", vec![vec![1]])), InvalidInput::TooDeep { limit: 1 }),
        (Write::delete("a").with_timeout(Duration::ZERO), InvalidInput::ZeroTimeout),
    ];
    for (write, expected) in writes {
        let Refusal::Invalid(found) = refused(handle.write(write).await) else { panic!("{expected}") };
        assert_eq!(found, expected);
    }
    let huge = Write::store(Record::new("a").with("text", "x".repeat(2_000))).with_priority(Priority::High);
    let refusal = refused(handle.write(huge).await);
    let Refusal::Invalid(InvalidInput::WriteTooLarge { bytes, limit: 1_024 }) = refusal else { panic!("{refusal}") };
    assert!(bytes >= 2_000);

    for (key, expected) in [("", InvalidInput::EmptyKey), (&long, InvalidInput::KeyTooLong { bytes: 17, limit: 16 })] {
        let Refusal::Invalid(found) = refused(handle.retrieve(key).await) else { panic!("{expected}") };
        assert_eq!(found, expected);
    }
    let searches = [
        (Search::near(vec![f32::NAN, 0.0, 0.0]), not_finite(0)),
        (Search::near(vec![1.0]), wrong(1)),
        (Search::near(Vec::new()), InvalidInput::EmptyEmbedding),
        (Search::like(""), InvalidInput::EmptyKey),
        (Search::like("a").limit(0), InvalidInput::Hits { hits: 0, limit: 100 }),
        (Search::like("a").limit(101), InvalidInput::Hits { hits: 101, limit: 100 }),
    ];
    for (search, expected) in searches {
        let Refusal::Invalid(found) = refused(handle.search(search).await) else { panic!("{expected}") };
        assert_eq!(found, expected);
    }
    let walks = [
        (Traversal::from(""), InvalidInput::EmptyKey),
        (Traversal::from("a").depth(0), InvalidInput::Depth { depth: 0, limit: 4 }),
        (Traversal::from("a").depth(5), InvalidInput::Depth { depth: 5, limit: 4 }),
        (Traversal::from("a").limit(0), InvalidInput::Hits { hits: 0, limit: 100 }),
        (Traversal::from("a").along(""), InvalidInput::EmptyRelationKind),
    ];
    for (walk, expected) in walks {
        let Refusal::Invalid(found) = refused(handle.traverse(walk).await) else { panic!("{expected}") };
        assert_eq!(found, expected);
    }
    let unknown = rig.runtime().control().breaker("nobody").err();
    assert_eq!(unknown, Some(InvalidInput::UnknownBackend("nobody".into())));
    assert_eq!(touched(), before);
    assert_eq!(handle.status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_just_within_the_limits_is_taken() {
    let limits = Limits { dimension: Some(2), batch: 2, key_bytes: 4, ..Limits::default() };
    let rig = Rig::with(Config { limits, ..Config::default() }).await;
    let most = [record("kkkk", 1).with_embedding(vec![f32::MAX, f32::MIN_POSITIVE]), record("öö", 1)];
    rig.handle().store_batch(most).await.expect("is stored");
    let nothing = Write {
        changes: vec![Change::Merge { key: "a".into(), properties: Default::default() }],
        ..Write::delete("a")
    };
    rig.handle().write(nothing).await.expect("an update of nothing makes a record");
    assert_eq!(rig.both("a").await, Some(Record::new("a")));
}

#[tokio::test(start_paused = true)]
async fn remembered_outcomes_are_bounded() {
    let mut config = Config::default();
    config.queue.outcomes = 5;
    let rig = Rig::with(config).await;
    let mut receipts = Vec::new();
    for n in 0..20 {
        receipts.push(rig.handle().store(record("a", n)).await.expect("is stored"));
    }
    let known = receipts.iter().filter(|receipt| rig.handle().outcome(receipt.operation) != Outcome::NotFound);
    assert_eq!(known.count(), 5);
}
