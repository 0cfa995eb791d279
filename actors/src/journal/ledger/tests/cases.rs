//! What a restart finds, what is in doubt, and how operations are said to have ended.

use std::sync::Arc;

use super::{BACKENDS, recover};
use crate::backend::BackendName;
use crate::journal::{Ending, Intent, JournalRecord, Ledger, QueueConfig, StepResult};
use crate::operation::{Change, OperationId, Outcome, Priority, Version};
use crate::record::Record;

/// A write of `a` that both backends owe, and can take back.
fn owed_by_both(version: u64) -> Arc<Intent> {
    let changes: Arc<[Change]> = Arc::from([Change::put(Record::new("a"))]);
    let back: Arc<[Change]> = Arc::from([Change::Delete { key: "a".into() }]);
    Arc::new(Intent {
        version: Version(version),
        operation: OperationId::from(7),
        priority: Priority::Normal,
        changes,
        owes: BACKENDS.map(BackendName::from).to_vec(),
        undo: BACKENDS.map(|name| (name.into(), Arc::clone(&back))).to_vec(),
    })
}

#[test]
fn what_was_taken_back_in_one_backend_is_taken_back_in_all_though_nobody_wrote_why() {
    let mut ledger = recover(&[
        JournalRecord::Intent(owed_by_both(1)),
        JournalRecord::Undone { version: Version(1), backend: "vector".into() },
    ]);
    let outcome = ledger.outcome(OperationId::from(7));
    assert_eq!(outcome, Outcome::Compensating { version: Version(1), owing: vec!["graph".into()] });
    let step = ledger.take(&"graph".into(), true, 1).pop().expect("graph owes it");
    ledger.settle(&"graph".into(), &step, &StepResult::Done);
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::RolledBack(Version(1)));
    assert!(ledger.is_empty());
}

#[test]
fn what_became_of_one_try_is_not_said_of_the_next() {
    let mut ledger = recover(&[JournalRecord::Closed {
        version: Version(1),
        operation: OperationId::from(7),
        ending: Ending::RolledBack,
    }]);
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::RolledBack(Version(1)));
    ledger.begin(&owed_by_both(2), &[], false);
    // Nothing is known of how this one ended.
    ledger.abandon(Version(2));
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::NotFound);
}

#[test]
fn a_remembered_ending_is_forgotten_in_its_turn_and_not_for_an_older_one_of_the_same_operation() {
    let mut ledger = Ledger::new(QueueConfig { outcomes: 2, ..QueueConfig::default() });
    let closed = |version: u64, operation: u128| JournalRecord::Closed {
        version: Version(version),
        operation: OperationId::from(operation),
        ending: Ending::Committed,
    };
    for (version, operation) in [(1, 7), (2, 8), (3, 7)] {
        ledger.apply(&closed(version, operation));
    }
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::Committed(Version(3)));
    ledger.apply(&closed(4, 9));
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::Committed(Version(3)));
    ledger.apply(&closed(5, 10));
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::NotFound);
}

#[test]
fn nothing_is_done_for_what_is_in_doubt_before_it_is_written_down_anew() {
    let mut ledger = Ledger::new(QueueConfig::default());
    ledger.begin(&owed_by_both(1), &BACKENDS.map(BackendName::from), true);
    ledger.leg(Version(1), &"graph".into(), true, false);
    ledger.leg(Version(1), &"vector".into(), false, false);
    ledger.doubt(Version(1));
    ledger.release(Version(1));
    // A restart may find that it is to be undone, and would not know that vector has it.
    assert_eq!(ledger.ready(&"vector".into(), false), 0);
    assert!(ledger.is_unsettled(OperationId::from(7)));
    assert_eq!(ledger.volatile().len(), 1);
    assert!(ledger.set_durable(Version(1)));
    assert_eq!(ledger.ready(&"vector".into(), false), 1);
    assert!(!ledger.is_unsettled(OperationId::from(7)));
}

#[test]
fn what_is_in_doubt_goes_in_place_of_nothing_older() {
    for doom in [false, true] {
        let mut ledger = Ledger::new(QueueConfig::default());
        let older = Intent { operation: OperationId::from(8), ..(*owed_by_both(1)).clone() };
        ledger.begin(&Arc::new(older), &[], true);
        ledger.release(Version(1));
        ledger.begin(&owed_by_both(2), &[], false);
        if doom {
            ledger.doom(Version(2));
        } else {
            ledger.doubt(Version(2));
            ledger.release(Version(2));
        }
        let step = ledger.take(&"graph".into(), false, 9).pop().expect("the older one is owed");
        assert_eq!((step.version, step.supersedes), (Version(1), Vec::new()));
    }
}

#[test]
fn what_a_person_gave_up_does_not_come_back_and_blocks_nothing() {
    let alone = Intent { undo: Vec::new(), ..(*owed_by_both(1)).clone() };
    let later = Arc::new(Intent { operation: OperationId::from(8), undo: Vec::new(), ..(*owed_by_both(2)).clone() });
    let (version, backend) = (Version(1), BackendName::from("vector"));
    let decided =
        |ending| JournalRecord::Decided { version, cause: backend.clone(), reason: "given up".to_owned(), ending };
    // The notes that followed the decision were lost.
    let mut ledger = Ledger::new(QueueConfig::default());
    for record in [
        JournalRecord::Intent(Arc::new(alone)),
        JournalRecord::Done { version, backend: "graph".into() },
        JournalRecord::DeadLetter { version, backend: backend.clone(), reason: "no".to_owned() },
        decided(Ending::RolledBack),
        JournalRecord::Intent(later),
    ] {
        ledger.apply(&record);
    }
    let letters = ledger.dead_letters();
    assert!(letters.iter().all(|letter| letter.undo && !letter.retriable) && !letters.is_empty(), "{letters:?}");
    // Nothing to go back to: trying again changes nothing.
    ledger.apply(&JournalRecord::Revived { version, backend: "graph".into() });
    assert_eq!(ledger.dead_letters(), letters);
    ledger.apply(&decided(Ending::Discarded));
    let _ = ledger.release_all();
    assert_eq!(ledger.dead(), 0);
    assert_eq!(ledger.outcome(OperationId::from(7)), Outcome::Discarded(version));
    assert_eq!(ledger.take(&"graph".into(), false, 1).len(), 1, "what comes after goes on");
}

#[test]
fn what_is_discarded_stays_where_it_arrived_if_there_is_nothing_to_go_back_to() {
    let alone = Intent { undo: Vec::new(), ..(*owed_by_both(1)).clone() };
    let (version, backend) = (Version(1), BackendName::from("vector"));
    let mut ledger = Ledger::new(QueueConfig::default());
    for record in [
        JournalRecord::Intent(Arc::new(alone)),
        JournalRecord::Done { version, backend: "graph".into() },
        JournalRecord::DeadLetter { version, backend: backend.clone(), reason: "no".to_owned() },
    ] {
        ledger.apply(&record);
    }
    let ending = Ending::Discarded;
    let records =
        ledger.discard(&JournalRecord::Decided { version, cause: backend, reason: "given up".to_owned(), ending });
    assert!(matches!(records.as_slice(), [JournalRecord::Closed { ending: Ending::Discarded, .. }]), "{records:?}");
    assert_eq!((ledger.dead(), ledger.len()), (0, 0));
}
