//! The journal against a plain list.

use proptest::prelude::*;

use super::*;

#[test]
fn what_was_appended_is_there_after_a_reopen_in_order() {
    let dir = scratch();
    let (journal, records) = opened(dir.path(), &small());
    assert_eq!(records, []);
    let history = vec![reserved(1_000), intent(1, 10), intent(2, 10), done(1, "graph"), done(2, "vector")];
    append(&journal, history[..3].to_vec()).unwrap();
    append(&journal, history[3..].to_vec()).unwrap();
    let progress = journal.progress();
    assert_eq!((progress.submitted, progress.answered, progress.commits), (2, 2, 2));
    assert_eq!((progress.generations, progress.failed), (1, false));
    assert!(progress.disk_bytes > 0);
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1, history);
}

#[test]
fn a_large_record_is_chunked_and_makes_no_blob_file() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &JournalConfig::default());
    let mut history = Vec::new();
    for version in 1..=20 {
        history.push(intent(version, 300_000));
        history.push(intent(version + 100, 10));
    }
    history.push(intent(999, 8 << 20));
    for pair in history.chunks(2) {
        append(&journal, pair.to_vec()).unwrap();
    }
    let blobs = dir.path().join("gen-00000000000000000001/blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
    close(journal);
    assert!(opened(dir.path(), &JournalConfig::default()).1 == history);
}

#[test]
fn a_note_becomes_durable_without_an_append() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    append(&journal, vec![intent(1, 1)]).unwrap();
    journal.note(vec![done(1, "graph")]);
    while journal.progress().commits < 2 {
        std::thread::yield_now();
    }
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1, [intent(1, 1), done(1, "graph")]);
}

#[test]
fn notes_ride_along_in_the_order_in_which_they_came() {
    let dir = scratch();
    let config = JournalConfig { idle_note_delay: Duration::from_secs(10), ..small() };
    let (journal, _) = opened(dir.path(), &config);
    append(&journal, vec![intent(1, 1)]).unwrap();
    journal.note(vec![done(1, "graph")]);
    append(&journal, vec![done(1, "vector")]).unwrap();
    assert_eq!(journal.progress().commits, 2);
    journal.note(vec![closed(1)]);
    close(journal);
    assert_eq!(opened(dir.path(), &config).1, [closed(1)], "a close makes notes durable");
}

#[test]
fn a_closed_journal_says_so() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    futures::executor::block_on(async {
        let before = journal.append(vec![intent(1, 1)]);
        journal.close().await;
        assert_eq!(before.await.unwrap(), Ok(()));
        assert_eq!(journal.append(vec![intent(2, 1)]).await.unwrap(), Err(JournalError::Closed));
        journal.close().await;
    });
    let progress = journal.progress();
    assert_eq!(progress.submitted, progress.answered);
    assert_eq!(opened(dir.path(), &small()).1, [intent(1, 1)]);
}

#[test]
fn a_journal_that_is_dropped_keeps_what_was_appended() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    let appended = journal.append(vec![intent(1, 1)]);
    journal.note(vec![done(1, "graph")]);
    drop(journal);
    assert_eq!(appended.blocking_recv().unwrap(), Ok(()));
    assert_eq!(opened(dir.path(), &small()).1, [intent(1, 1), done(1, "graph")]);
}

#[test]
fn many_callers_share_a_commit() {
    let dir = scratch();
    let config = JournalConfig { linger: Duration::from_millis(5), ..JournalConfig::default() };
    let (journal, _) = opened(dir.path(), &config);
    let answers: Vec<_> = (1..=640).map(|version| journal.append(vec![intent(version, 10)])).collect();
    answers.into_iter().for_each(|answer| answer.blocking_recv().unwrap().unwrap());
    let commits = journal.progress().commits;
    assert!(commits <= 20, "{commits} commits for 640 appends");
}

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<JournalRecord>),
    Note(Vec<JournalRecord>),
    Reopen,
    Drop,
}

fn record() -> impl Strategy<Value = JournalRecord> + Clone {
    let version = 1..24_u64;
    prop_oneof![
        5 => (version.clone(), prop_oneof![9 => 0..200_usize, 1 => 4_000..20_000_usize]).prop_map(|(v, n)| intent(v, n)),
        4 => version.clone().prop_map(|v| done(v, "graph")),
        5 => version.clone().prop_map(closed),
        1 => version.prop_map(|v| reserved(v * 1_000)),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let records = proptest::collection::vec(record(), 1..5);
    prop_oneof![
        12 => records.clone().prop_map(Action::Append),
        4 => records.prop_map(Action::Note),
        1 => Just(Action::Reopen),
        1 => Just(Action::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_keeps_what_a_plain_list_would(actions in proptest::collection::vec(action(), 1..60)) {
        let dir = scratch();
        let config = JournalConfig { generation_entries: 5, ..small() };
        let mut history = Vec::new();
        let mut journal = Some(opened(dir.path(), &config).0);
        for action in actions {
            match action {
                Action::Append(records) => {
                    history.extend(records.clone());
                    append(journal.as_ref().unwrap(), records).unwrap();
                }
                Action::Note(records) => {
                    history.extend(records.clone());
                    journal.as_ref().unwrap().note(records);
                }
                Action::Reopen | Action::Drop => {
                    let last = journal.take().unwrap();
                    if matches!(action, Action::Reopen) { close(last) } else { drop(last) }
                    let (reopened, records) = opened(dir.path(), &config);
                    prop_assert_eq!(&records, &needed(&history, config.outcomes));
                    journal = Some(reopened);
                }
            }
        }
        close(journal.take().unwrap());
        let records = opened(dir.path(), &config).1;
        prop_assert_eq!(&records, &needed(&history, config.outcomes));
    }
}
