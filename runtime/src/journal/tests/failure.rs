//! A disk that fails.

use std::sync::Mutex;
use std::sync::atomic::AtomicI64;

use super::*;
use crate::guard::Step;

/// Fails the n-th of all steps (counted from 0) and as many as are told after it.
#[derive(Default)]
struct Fail {
    countdown: AtomicI64,
    times: AtomicI64,
    only: Mutex<Option<Step>>,
}

impl Fail {
    fn at(countdown: i64, times: i64, only: Option<Step>) -> Arc<Self> {
        Arc::new(Self { countdown: AtomicI64::new(countdown), times: AtomicI64::new(times), only: Mutex::new(only) })
    }
}

impl FaultHook for Fail {
    fn before(&self, step: Step) -> io::Result<()> {
        if self.only.lock().unwrap().is_some_and(|only| only != step) {
            return Ok(());
        }
        let at = self.countdown.fetch_sub(1, Ordering::SeqCst);
        if at <= 0 && at > -self.times.load(Ordering::SeqCst) {
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }
}

fn opened_on(dir: &Path, fault: &Arc<Fail>) -> Result<SledJournal, JournalOpenError> {
    let fault: Arc<dyn FaultHook> = fault.clone();
    SledJournal::open_with_faults(dir, small(), OnDamage::Refuse, Some(fault)).map(|(journal, _)| journal)
}

fn wait_until_open(journal: &SledJournal) {
    let mut rounds = 0;
    while journal.progress().failed {
        crate::guard::pause(Duration::from_millis(5));
        rounds += 1;
        assert!(rounds < 10_000, "it never reopened");
    }
}

/// Traps 19 and 5: whichever step fails, nothing is acknowledged that is not there, and nothing that failed is.
#[test]
fn a_failure_at_any_step_loses_nothing_acknowledged_and_revives_nothing_failed() {
    for at in 0..48 {
        let dir = scratch();
        let fault = Fail::at(at, 1, None);
        let Ok(journal) = opened_on(dir.path(), &fault) else {
            assert_eq!(opened(dir.path(), &small()).1, [], "a failed open leaves a journal that opens");
            continue;
        };
        let mut history = Vec::new();
        for version in 1..=12 {
            let records = vec![intent(version, 10)];
            match append(&journal, records.clone()) {
                Ok(()) => history.extend(records),
                Err(error) => {
                    assert!(matches!(error, JournalError::Failed(_)));
                    wait_until_open(&journal);
                }
            }
        }
        assert!(history.len() >= 11, "one failure fails one append");
        close(journal);
        assert_eq!(opened(dir.path(), &small()).1, history, "step {at}");
    }
}

#[test]
fn what_was_synced_but_answered_as_failed_is_void_after_the_reopening() {
    let dir = scratch();
    // The rows are durable, the mark cannot be written: the caller is told that it failed.
    let fault = Fail::at(0, 0, Some(Step::Mark));
    let journal = opened_on(dir.path(), &fault).unwrap();
    append(&journal, vec![intent(1, 1)]).unwrap();
    fault.countdown.store(0, Ordering::SeqCst);
    fault.times.store(1, Ordering::SeqCst);
    assert!(append(&journal, vec![intent(2, 1), reserved(77), closed(1)]).is_err());
    wait_until_open(&journal);
    append(&journal, vec![intent(3, 1)]).unwrap();
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1, [intent(1, 1), intent(3, 1)]);
}

#[test]
fn a_failed_journal_says_so_and_comes_back() {
    let dir = scratch();
    let fault = Fail::at(0, 0, Some(Step::Sync));
    let journal = opened_on(dir.path(), &fault).unwrap();
    append(&journal, vec![intent(1, 1)]).unwrap();
    journal.note(vec![done(1, "graph")]);
    fault.countdown.store(0, Ordering::SeqCst);
    fault.times.store(3, Ordering::SeqCst);
    assert!(matches!(append(&journal, vec![intent(2, 1)]), Err(JournalError::Failed(_))));
    assert!(journal.progress().failed, "whoever was refused can see why");
    assert!(matches!(append(&journal, vec![intent(3, 1)]), Err(JournalError::Failed(_))), "while it has failed");
    wait_until_open(&journal);
    append(&journal, vec![intent(4, 1)]).unwrap();
    close(journal);
    let kept = opened(dir.path(), &small()).1;
    assert!(kept == [intent(1, 1), done(1, "graph"), intent(4, 1)], "notes survive a failure: {kept:?}");
}

#[test]
fn a_journal_that_cannot_be_reopened_can_be_closed() {
    let dir = scratch();
    let fault = Fail::at(0, 0, None);
    let journal = opened_on(dir.path(), &fault).unwrap();
    append(&journal, vec![intent(1, 1)]).unwrap();
    fault.countdown.store(0, Ordering::SeqCst);
    fault.times.store(i64::MAX, Ordering::SeqCst);
    assert!(append(&journal, vec![intent(2, 1)]).is_err());
    close(journal);
    let kept = opened(dir.path(), &small()).1;
    assert_eq!(kept[0], intent(1, 1));
}

#[test]
fn what_could_not_be_read_back_is_refused_at_the_door() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    let mut value = serde_json::Value::Null;
    for _ in 0..200 {
        value = serde_json::Value::Array(vec![value]);
    }
    let JournalRecord::Intent(deep) = intent(1, 1) else { unreachable!() };
    let record = Record::new("deep").with("nested", value);
    let deep = Intent { changes: Arc::from([Change::put(record)]), ..(*deep).clone() };
    assert!(append(&journal, vec![JournalRecord::Intent(Arc::new(deep))]).is_err());
    append(&journal, vec![intent(2, 1)]).unwrap();
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1, [intent(2, 1)]);
}

/// Writes down every step.
#[derive(Default)]
struct Recorder(Mutex<Vec<Step>>);

impl FaultHook for Recorder {
    fn before(&self, step: Step) -> io::Result<()> {
        self.0.lock().unwrap().push(step);
        Ok(())
    }
}

#[test]
fn an_answer_comes_after_the_sync_and_the_mark() {
    let dir = scratch();
    let recorder = Arc::new(Recorder::default());
    let hook: Arc<dyn FaultHook> = recorder.clone();
    let (journal, _) = SledJournal::open_with_faults(dir.path(), small(), OnDamage::Refuse, Some(hook)).unwrap();
    let commit = [Step::Apply, Step::Flush, Step::Sync, Step::Mark];
    recorder.0.lock().unwrap().clear();
    append(&journal, vec![intent(1, 1)]).unwrap();
    let steps = std::mem::take(&mut *recorder.0.lock().unwrap());
    assert_eq!(steps, [&commit[..], &[Step::MarkSync]].concat(), "the first answer out of a generation");
    append(&journal, vec![intent(2, 1)]).unwrap();
    assert_eq!(std::mem::take(&mut *recorder.0.lock().unwrap())[..4], commit);
    close(journal);
}

/// Trap 10: the cursor is on the disk before anything is unlinked.
#[test]
fn a_generation_is_unlinked_after_the_mark_is_synced() {
    let dir = scratch();
    let recorder = Arc::new(Recorder::default());
    let hook: Arc<dyn FaultHook> = recorder.clone();
    let (journal, _) = SledJournal::open_with_faults(dir.path(), small(), OnDamage::Refuse, Some(hook)).unwrap();
    for version in 1..=40 {
        append(&journal, vec![intent(version, 1), closed(version)]).unwrap();
    }
    close(journal);
    let steps = recorder.0.lock().unwrap();
    let removals: Vec<_> = (0..steps.len()).filter(|at| steps[*at] == Step::Remove).collect();
    assert!(removals.len() >= 5);
    assert!(removals.iter().all(|at| steps[at - 2..*at] == [Step::Mark, Step::MarkSync]));
}
