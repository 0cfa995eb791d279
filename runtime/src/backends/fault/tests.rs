use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, ErrorKind, Fence, FencedWrite, Health, Stored, Transaction,
    Transactions,
};
use seawall_actors::operation::{Change, OperationId, Search, Traversal, Version};
use seawall_actors::record::{Key, Properties, Record};
use tokio::time::{Instant, sleep, timeout};

use super::{Fault, FaultPlan, Faults, FaultyBackend, Op, Ops};
use crate::backends::{GraphBackend, GraphConfig};

const SECOND: Duration = Duration::from_secs(1);

fn faulty() -> (FaultyBackend<GraphBackend>, Faults) {
    let faults = Faults::new();
    (FaultyBackend::new(GraphBackend::in_memory(GraphConfig::default()), &faults), faults)
}

fn put(version: u64) -> FencedWrite {
    let changes = Arc::new([Change::put(Record::new("k").with("n", version))]);
    FencedWrite { operation: OperationId::generate(), version: Version(version), fence: Fence::Write, changes }
}

async fn held(backend: &impl Backend) -> u64 {
    let held = backend.read(&["k".into()]).await.expect("reads").remove(0);
    held.map_or(0, |held| held.version.0)
}

fn kind(result: Result<impl Sized, BackendError>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

#[tokio::test(start_paused = true)]
async fn each_fault_answers_and_acts_as_it_says() {
    use ErrorKind::{Permanent, ReadOnly, Refused, Transient, Unknown};
    let cases = [
        (Fault::None, None, true),
        (Fault::Down, Some(Transient), false),
        (Fault::Error(Refused), Some(Refused), false),
        (Fault::Error(Permanent), Some(Permanent), false),
        (Fault::Reset, Some(Unknown), false),
        (Fault::AppliedReplyLost, Some(Unknown), true),
        (Fault::LateZombie(SECOND), Some(Unknown), false),
        (Fault::ReadOnly, Some(ReadOnly), false),
        (Fault::FailsNofM { n: 1, m: 2 }, Some(Transient), false),
        (Fault::FailsNofM { n: 0, m: 2 }, None, true),
    ];
    for (fault, expected, done) in cases {
        let (backend, faults) = faulty();
        faults.set(Op::Apply, fault);
        let start = Instant::now();
        assert_eq!(kind(backend.apply(&put(1)).await), expected, "{fault:?}");
        assert_eq!(start.elapsed(), Duration::ZERO, "{fault:?}");
        assert_eq!(held(backend.inner().as_ref()).await, u64::from(done), "{fault:?}");
        assert_eq!(held(&backend).await, u64::from(done), "reads are left alone");
    }
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_call_meets_its_faults() {
    let (backend, faults) = faulty();
    faults.set(Ops::ALL, Fault::Down);
    let down = Some(ErrorKind::Transient);
    assert_eq!(kind(backend.apply(&put(1)).await), down);
    assert_eq!(kind(backend.read(&["k".into()]).await), down);
    assert_eq!(kind(backend.search(&Search::like("k")).await), down);
    assert_eq!(kind(backend.traverse(&Traversal::from("k")).await), down);
    assert_eq!(kind(backend.find(&Properties::new(), 1).await), down);
    assert_eq!(kind(backend.probe().await), down);
    assert_eq!(kind(backend.newest_version().await), down);
    assert_eq!(kind(backend.sweep(Version(1), 1).await), down);
    let counts = faults.counts();
    assert_eq!((counts.total, counts.running, counts.running_max), (8, 0, 1));
    for op in Op::ALL.into_iter().filter(|op| *op != Op::Commit) {
        let of = counts.of(op);
        assert_eq!((of.made, of.faulted, of.reached), (1, 1, 0), "{op:?}");
    }
    faults.heal(Ops::READS);
    assert_eq!(held(&backend).await, 0);
    assert_eq!(kind(backend.probe().await), down);
}

#[tokio::test(start_paused = true)]
async fn a_slow_backend_takes_its_time_and_a_dropped_call_is_not_running() {
    let (backend, faults) = faulty();
    faults.set(Ops::ALL, Fault::Slow(SECOND));
    let start = Instant::now();
    backend.apply(&put(1)).await.expect("late, but done");
    assert_eq!(start.elapsed(), SECOND);
    assert!(timeout(SECOND / 2, backend.apply(&put(2))).await.is_err());
    assert_eq!(faults.counts().running, 0);
    assert_eq!(held(backend.inner().as_ref()).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hung_call_waits_until_it_is_healed() {
    let (backend, faults) = faulty();
    let backend = Arc::new(backend);
    faults.set(Op::Apply, Fault::Hung);
    faults.next(Op::Probe, 1, Fault::Hung);
    let spawn_apply = |backend: &Arc<FaultyBackend<_>>| {
        let backend = Arc::clone(backend);
        tokio::spawn(async move { backend.apply(&put(1)).await })
    };
    let (hung, probe) = (
        spawn_apply(&backend),
        tokio::spawn({
            let backend = Arc::clone(&backend);
            async move { backend.probe().await }
        }),
    );
    sleep(3_600 * SECOND).await;
    assert_eq!((faults.counts().running, hung.is_finished()), (2, false));
    faults.heal(Op::Apply);
    assert_eq!(kind(hung.await.expect("no panic")), Some(ErrorKind::Transient));
    sleep(SECOND).await;
    assert!(!probe.is_finished(), "a probe is another kind of call");
    faults.set(Op::Probe, Fault::Down);
    assert_eq!(kind(probe.await.expect("no panic")), Some(ErrorKind::Transient));
    assert_eq!(held(backend.as_ref()).await, 0);
    faults.set(Op::Apply, Fault::AppliedHung);
    let hung = spawn_apply(&backend);
    sleep(SECOND).await;
    assert_eq!(held(backend.as_ref()).await, 1);
    faults.heal(Ops::ALL);
    assert_eq!(kind(hung.await.expect("no panic")), Some(ErrorKind::Unknown));
}

#[tokio::test(start_paused = true)]
async fn a_zombie_lands_late_and_under_its_fence() {
    let (backend, faults) = faulty();
    faults.keep_history();
    faults.next(Op::Apply, 2, Fault::LateZombie(SECOND));
    assert_eq!(kind(backend.apply(&put(1)).await), Some(ErrorKind::Unknown));
    backend.apply(&put(5)).await.expect_err("a zombie too");
    sleep(SECOND / 2).await;
    backend.apply(&put(3)).await.expect("no zombie");
    assert_eq!(held(&backend).await, 3);
    sleep(SECOND).await;
    assert_eq!(held(&backend).await, 5);
    let history = faults.history();
    let versions: Vec<_> = history.iter().map(|accepted| accepted.version.0).collect();
    assert_eq!(versions, [3, 1, 5]);
    assert_eq!(history[1].applied, Applied { superseded_by: Some(Version(3)) });
    assert_eq!(history[2].at - history[0].at, SECOND / 2);
    assert_eq!(faults.counts().of(Op::Apply).reached, 3);
}

#[tokio::test(start_paused = true)]
async fn n_of_m_calls_fail_and_scripts_come_before_what_is_set() {
    let (backend, faults) = faulty();
    faults.set(Op::Probe, Fault::FailsNofM { n: 2, m: 3 });
    let mut probes = Vec::new();
    for _ in 0..6 {
        probes.push(backend.probe().await.is_ok());
    }
    assert_eq!(probes, [false, false, true, false, false, true]);
    faults.set(Op::Probe, Fault::ReadOnly);
    faults.next(Op::Probe, 3, Fault::FailsNofM { n: 1, m: 3 });
    faults.next(Op::Probe, 1, Fault::Down);
    assert_eq!(kind(backend.probe().await), Some(ErrorKind::Transient));
    assert_eq!(backend.probe().await.expect("probes"), Health::Healthy);
    assert_eq!(backend.probe().await.expect("probes"), Health::Healthy);
    assert_eq!(kind(backend.probe().await), Some(ErrorKind::Transient));
    assert_eq!(backend.probe().await.expect("probes"), Health::ReadOnly);
    faults.heal(Ops::ALL);
    assert_eq!(backend.probe().await.expect("probes"), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_the_caller_and_breaks_nothing() {
    let (backend, faults) = faulty();
    faults.next(Op::Apply, 1, Fault::Panic);
    let write = put(1);
    assert!(std::panic::AssertUnwindSafe(backend.apply(&write)).catch_unwind().await.is_err());
    backend.apply(&write).await.expect("applies");
    assert_eq!(faults.counts().running, 0);
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_one_course_of_events_whatever_else_is_called() {
    let plan = || FaultPlan::new().with(Ops::WRITES, 0.3, Fault::Down).with(Ops::ALL, 0.2, Fault::Reset);
    let course = async |seed, probes: bool| {
        let faults = Faults::seeded(seed, plan());
        let backend = FaultyBackend::new(GraphBackend::in_memory(GraphConfig::default()), &faults);
        let mut course = Vec::new();
        for version in 1..=400 {
            course.push(kind(backend.apply(&put(version)).await));
            if probes {
                let _ = backend.probe().await;
            }
        }
        course
    };
    let first = course(7, false).await;
    assert_eq!(first, course(7, true).await);
    assert_ne!(first, course(8, false).await);
    let share = |kind| first.iter().filter(|met| **met == kind).count();
    assert!((80..160).contains(&share(Some(ErrorKind::Transient))));
    assert!((45..120).contains(&share(Some(ErrorKind::Unknown))));
}

#[tokio::test(start_paused = true)]
async fn calls_at_the_same_time_are_counted() {
    let faults = Faults::new();
    let inner: Arc<dyn Backend> = Arc::new(GraphBackend::in_memory(GraphConfig::default()));
    let backend = FaultyBackend::around(inner, &faults);
    faults.set(Ops::ALL, Fault::Slow(SECOND));
    futures::future::join_all((0..9).map(|_| backend.probe())).await;
    assert_eq!((faults.counts().running_max, faults.counts().running), (9, 0));
}

/// A backend whose transactions all succeed.
struct Transactional(GraphBackend);

struct Open(FencedWrite, Arc<GraphBackend>);

#[async_trait::async_trait]
impl Backend for Transactional {
    fn name(&self) -> BackendName {
        self.0.name()
    }
    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.0.apply(write).await
    }
    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.0.read(keys).await
    }
    async fn probe(&self) -> Result<Health, BackendError> {
        self.0.probe().await
    }
    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.0.newest_version().await
    }
    fn transactions(&self) -> Option<&dyn Transactions> {
        Some(self)
    }
}

#[async_trait::async_trait]
impl Transactions for Transactional {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        Ok(Box::new(Open(write.clone(), Arc::new(GraphBackend::in_memory(GraphConfig::default())))))
    }
}

#[async_trait::async_trait]
impl Transaction for Open {
    async fn commit(self: Box<Self>) -> Result<Applied, BackendError> {
        self.1.apply(&self.0).await
    }
    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_can_lose_its_reply() {
    let faults = Faults::new();
    faults.keep_history();
    let backend = FaultyBackend::new(Transactional(GraphBackend::in_memory(GraphConfig::default())), &faults);
    let transactions = backend.transactions().expect("has them");
    faults.next(Op::Commit, 1, Fault::AppliedReplyLost);
    faults.next(Op::Commit, 1, Fault::Reset);
    for accepted in [1, 1, 2] {
        let begun = transactions.begin(&put(1)).await.expect("begins");
        let committed = begun.commit().await;
        assert_eq!(kind(committed).is_none(), accepted == 2);
        assert_eq!(faults.history().len(), accepted);
    }
    faults.set(Op::Apply, Fault::Down);
    assert!(transactions.begin(&put(2)).await.is_err());
}
