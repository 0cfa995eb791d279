//! P7: every request gets exactly one reply by its deadline, whatever happens behind it.

mod support;

use std::time::Duration;

use seawall::backend::{Backend, Capabilities, ErrorKind, FencedWrite, Health, Role, Stored};
use seawall::backends::{Fault, Op, Ops};
use seawall::config::Config;
use seawall::fallback::Mode;
use seawall::operation::{Held, OperationId, Outcome, Search, Traversal, Version, Write};
use seawall::record::{Key, Record};
use seawall::{Refusal, Request, Runtime};
use support::{Named, Native, Rig, Site, hasty, n, record, refused, until};
use tokio::time::{Instant, timeout};

const FAULTS: [Fault; 9] = [
    Fault::Hung,
    Fault::AppliedHung,
    Fault::Panic,
    Fault::Down,
    Fault::Reset,
    Fault::AppliedReplyLost,
    Fault::ReadOnly,
    Fault::Slow(Duration::from_secs(3_600)),
    Fault::Error(ErrorKind::Permanent),
];

/// Nothing of any request is left anywhere.
async fn assert_nothing_leaks(rig: &Rig) {
    until("all permits are back", || rig.handle().status().in_flight == 0).await;
    for site in [&rig.graph, &rig.vector] {
        until("all leases are settled", || rig.breaker(site).snapshot().in_flight == 0).await;
        until("no call is left running", || site.faults.counts().running == 0).await;
        let told = rig.breaker(site).snapshot();
        let ended = told.successful + told.failed + told.ignored + told.cancelled + told.panicked + told.expired;
        assert_eq!(told.admitted, ended + told.in_flight, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_a_store_does_a_write_is_answered_by_its_deadline() {
    for mode in Mode::ALL {
        for fault in FAULTS {
            let rig = Rig::in_mode(mode).await;
            rig.graph.set(fault);
            for limit in [Duration::from_millis(300), Duration::from_secs(30)] {
                let asked = Instant::now();
                let write = Write::store(record("a", 1)).with_timeout(limit);
                let gateway = rig.runtime().gateway();
                let ask = ractor::call_t!(gateway, Request::Store, 3_600_000, write);
                ask.unwrap_or_else(|error| panic!("{mode:?} {fault:?}: no reply: {error}")).ok();
                assert!(asked.elapsed() <= limit, "{mode:?} {fault:?}: {:?}", asked.elapsed());
            }
            rig.graph.heal();
            assert_nothing_leaks(&rig).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_a_store_does_a_read_is_answered_by_its_deadline() {
    for fault in FAULTS {
        let rig = Rig::start().await;
        rig.handle().store(record("a", 1).with_embedding(vec![1.0])).await.expect("is stored");
        for site in [&rig.graph, &rig.vector] {
            site.faults.set(Ops::READS, fault);
        }
        let limit = rig.config.gateway.read_timeout;
        let gateway = rig.runtime().gateway();
        let asked = Instant::now();
        let (read, found, walked) = tokio::join!(
            async { ractor::call_t!(gateway, Request::Retrieve, 3_600_000, "a".into()) },
            async { ractor::call_t!(gateway, Request::Search, 3_600_000, Search::like("a")) },
            async { ractor::call_t!(gateway, Request::Traverse, 3_600_000, Traversal::from("a")) },
        );
        assert!(read.is_ok() && found.is_ok() && walked.is_ok(), "{fault:?}");
        assert!(asked.elapsed() <= limit, "{fault:?}: {:?}", asked.elapsed());
        [&rig.graph, &rig.vector].into_iter().for_each(Site::heal);
        assert_nothing_leaks(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_whenever_it_is_touched_breaks_nothing() {
    let rig = Rig::in_mode(Mode::QueueWrites).await;
    rig.vector.set(Fault::Panic);
    for k in 0..20 {
        let receipt = rig.handle().store(record("a", k)).await.expect("is queued");
        assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(rig.runtime().control().actors().iter().all(|actor| actor.alive && actor.restarts == 0));
    rig.vector.heal();
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(19));
    assert_nothing_leaks(&rig).await;
}

/// Drops a write at a moment when it is sure to be in the phase that is set up, and then lets all go on.
async fn drop_in_phase(name: &str, mode: Mode, set_up: impl AsyncFn(&Rig), tear_down: impl AsyncFn(&Rig)) {
    let rig = Rig::in_mode(mode).await;
    rig.handle().store(record("a", 0)).await.expect("is stored");
    set_up(&rig).await;
    let (handle, write) = (rig.handle(), Write::store(record("a", 1)));
    let operation = write.operation;
    let dropped = timeout(Duration::from_millis(100), handle.write(write)).await;
    assert!(dropped.is_err(), "{name}: it was in the middle");
    // And one that is dropped before it is polled, which never begins.
    drop(handle.write(record("a", 9)));
    tear_down(&rig).await;
    assert_nothing_leaks(&rig).await;
    rig.recover().await;
    let expected = match rig.handle().outcome(operation) {
        Outcome::Committed(_) => 1,
        Outcome::RolledBack(_) | Outcome::NotFound => 0,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(n(rig.both("a").await), Some(expected), "{name}");
    rig.handle().write(hasty(record("a", 2))).await.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    assert_nothing_leaks(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_gone_leaves_nothing_behind_in_any_phase() {
    for mode in [Mode::Disabled, Mode::QueueWrites, Mode::MemoryOnly] {
        let heal = async |rig: &Rig| [&rig.graph, &rig.vector].into_iter().for_each(Site::heal);
        let hang = |ops: Ops, fault: Fault| async move |rig: &Rig| rig.vector.faults.set(ops, fault);
        drop_in_phase("reading the pre-image", mode, hang(Op::Read.into(), Fault::Hung), heal).await;
        drop_in_phase("one leg hangs", mode, hang(Op::Apply.into(), Fault::Hung), heal).await;
        drop_in_phase("one leg is done and hangs", mode, hang(Op::Apply.into(), Fault::AppliedHung), heal).await;
        let waiting = async |rig: &Rig| {
            rig.graph.faults.next(Op::Read, 1, Fault::Slow(Duration::from_secs(5)));
            let handle = rig.handle();
            tokio::spawn(async move { handle.store(record("a", 0)).await });
            tokio::task::yield_now().await;
        };
        drop_in_phase("waiting for its turn", mode, waiting, heal).await;
    }
    let hold = async |rig: &Rig| rig.disk.hold();
    let release = async |rig: &Rig| rig.disk.release();
    drop_in_phase("waiting for the sync", Mode::Disabled, hold, release).await;
    drop_in_phase("waiting for the sync", Mode::QueueWrites, hold, release).await;
    let undoing = async |rig: &Rig| {
        rig.vector.faults.next(Op::Apply, 1, Fault::Error(ErrorKind::Permanent));
        rig.graph.faults.next(Op::Apply, 1, Fault::None);
        rig.graph.faults.next(Op::Apply, 1, Fault::Hung);
    };
    let heal = async |rig: &Rig| rig.graph.heal();
    drop_in_phase("being undone", Mode::Disabled, undoing, heal).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_gone_leaves_nothing_behind() {
    let rig = Rig::start().await;
    rig.graph.faults.set(Ops::READS, Fault::Hung);
    for _ in 0..100 {
        assert!(timeout(Duration::from_millis(1), rig.handle().retrieve("a")).await.is_err());
    }
    assert_nothing_leaks(&rig).await;
    let read = rig.handle().retrieve("a").await.expect("the other store answers");
    assert_eq!(read.record, None);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_before_anything_was_done_says_so_and_nothing_is_done() {
    let rig = Rig::start().await;
    rig.graph.faults.set(Op::Read, Fault::Hung);
    let write = hasty(record("a", 1));
    let operation = write.operation;
    let refusal = refused(rig.handle().write(write).await);
    assert!(matches!(refusal, Refusal::DeadlineExceeded), "{refusal}");
    rig.graph.heal();
    rig.quiet().await;
    assert_eq!((rig.handle().outcome(operation), rig.both("a").await), (Outcome::NotFound, None));
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_inside_when_it_stops_are_answered_and_later_ones_are_refused() {
    let mut rig = Rig::start().await;
    rig.graph.faults.set(Op::Apply, Fault::Slow(Duration::from_secs(3)));
    let (handle, gateway) = (rig.handle(), rig.runtime().gateway());
    let inside = tokio::spawn({
        let handle = handle.clone();
        async move { handle.store(record("a", 1)).await }
    });
    until("it is inside", || handle.status().in_flight == 1).await;
    let report = rig.stop().await;
    assert_eq!((report.cancelled, report.owed, report.killed.len()), (0, 0, 0), "{report:?}");
    assert_eq!(inside.await.expect("no panic").expect("is stored").held, Held::Committed);
    assert!(matches!(refused(handle.store(record("a", 2)).await), Refusal::ShuttingDown));
    assert!(matches!(refused(handle.retrieve("a").await), Refusal::ShuttingDown));
    let late = ractor::call_t!(gateway, Request::Retrieve, 1_000, "a".into());
    assert!(!matches!(late, Ok(Ok(_))), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_dropped_answers_those_inside() {
    let mut rig = Rig::start().await;
    rig.graph.faults.set(Op::Apply, Fault::Hung);
    let (handle, write) = (rig.handle(), Write::store(record("a", 1)));
    let operation = write.operation;
    let writer = tokio::spawn({
        let handle = handle.clone();
        async move { handle.write(write).await }
    });
    let (gateway, sent) = (rig.runtime().gateway(), Write::store(record("b", 1)));
    let asker = tokio::spawn(async move { ractor::call_t!(gateway, Request::Store, 60_000, sent) });
    until("they are inside", || handle.status().in_flight == 2).await;
    rig.crash();
    let asked = Instant::now();
    let answer = asker.await.expect("no panic").expect("an answer through the ref as well");
    assert!(matches!(answer, Err(Refusal::Unknown { .. })), "{answer:?}");
    let refusal = refused(writer.await.expect("no panic"));
    assert!(matches!(refusal, Refusal::Unknown { operation: told } if told == operation), "{refusal}");
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert!(handle.retrieve("a").await.is_err());
}

/// A store whose every method panics, those that only describe it at the worst moment included.
struct Cursed(&'static str);

#[async_trait::async_trait]
impl Backend for Cursed {
    fn name(&self) -> seawall::backend::BackendName {
        self.0.into()
    }

    fn role(&self) -> Role {
        if self.0 == "cache" { Role::BestEffort } else { Role::Required }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { vector_search: true, graph_traversal: true, exact_match: true }
    }

    async fn apply(&self, _: &FencedWrite) -> Result<seawall::backend::Applied, seawall::backend::BackendError> {
        panic!("apply")
    }

    async fn read(&self, _: &[Key]) -> Result<Vec<Option<Stored>>, seawall::backend::BackendError> {
        panic!("read")
    }

    async fn probe(&self) -> Result<Health, seawall::backend::BackendError> {
        panic!("probe")
    }

    async fn newest_version(&self) -> Result<Version, seawall::backend::BackendError> {
        panic!("newest")
    }

    fn transactions(&self) -> Option<&dyn seawall::backend::Transactions> {
        panic!("transactions")
    }
}

#[tokio::test(start_paused = true)]
async fn stores_that_panic_in_every_method_still_leave_every_request_its_answer() {
    let (native, _) = Native::new();
    let runtime = Runtime::builder()
        .config(Config { data_dir: "/nonexistent/never-used".into(), ..Config::default() })
        .backend(Cursed("graph"))
        .backend(Named { name: "native", inner: native })
        .backend(Cursed("cache"))
        .journal(std::sync::Arc::new(seawall::ledger::MemoryJournal::new()), Vec::new())
        .start()
        .await
        .expect("starts");
    let handle = runtime.handle();
    for mode in Mode::ALL {
        runtime.control().set_mode(mode, "a test", None).await.expect("is set");
        let asked = Instant::now();
        let _ = handle.store(Record::new("a")).await;
        let _ = handle.retrieve("a").await;
        let _ = handle.search(Search::like("a")).await;
        let _ = handle.traverse(Traversal::from("a")).await;
        let _ = handle.discard_dead_letter(OperationId::generate()).await;
        assert!(asked.elapsed() <= Duration::from_secs(31), "{mode:?}");
    }
    until("all permits are back", || handle.status().in_flight == 0).await;
    assert!(runtime.control().actors().iter().all(|actor| actor.alive));
}
