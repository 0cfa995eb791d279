//! The journal against a plain list.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::*;
use crate::guard::Step;

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

/// What can happen to a journal.
#[derive(Clone, Debug)]
enum Action {
    Append(Vec<JournalRecord>),
    Note(Vec<JournalRecord>),
    /// It is closed, and opened again.
    Close,
    /// It is dropped without a close, and opened again.
    Drop,
    /// The process is killed: at rest, or before the n-th step of the disk once these records are appended. Opening
    /// it again is killed, too, each time before the n-th step.
    Crash {
        under_way: Option<(Vec<JournalRecord>, i64)>,
        opens: Vec<i64>,
    },
}

/// Everything that was ever handed to the journal.
#[derive(Clone, Debug)]
struct Log {
    generation_entries: usize,
    outcomes: usize,
    idle_note_delay: Duration,
    batches: Vec<(Vec<JournalRecord>, Fate)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Noted, and not known to be durable.
    Pending,
    /// Has to be there from now on.
    Durable,
    /// A crash may have kept it, but not without everything before it.
    Perhaps,
}

impl Log {
    fn seal(&mut self, fate: Fate) {
        for (_, pending) in self.batches.iter_mut().filter(|(_, fate)| *fate == Fate::Pending) {
            *pending = fate;
        }
    }

    fn config(&self) -> JournalConfig {
        let Self { generation_entries, outcomes, idle_note_delay, .. } = *self;
        JournalConfig { generation_entries, outcomes, idle_note_delay, ..small() }
    }

    /// The versions of which there is an intent and no end.
    fn open(&self) -> Vec<u64> {
        let mut open = Vec::new();
        for record in self.batches.iter().flat_map(|(records, _)| records) {
            match record {
                JournalRecord::Intent(intent) => open.push(intent.version.0),
                JournalRecord::Closed { version, .. } => open.retain(|open| *open != version.0),
                _ => {}
            }
        }
        open
    }
}

/// Records of entries that are open, and of any others.
fn records(log: &Log) -> BoxedStrategy<Vec<JournalRecord>> {
    let version = 1..24_u64;
    let open = log.open();
    let known = if open.is_empty() { version.clone().boxed() } else { prop::sample::select(open).boxed() };
    let version = prop_oneof![1 => version.clone(), 3 => known.clone()];
    let bytes = prop_oneof![9 => 0..200_usize, 1 => 4_000..20_000_usize];
    let ending = prop::sample::select(vec![Ending::Committed, Ending::RolledBack, Ending::Discarded]);
    let backend = || name("graph");
    let reason = String::new;
    let record = prop_oneof![
        5 => (1..24_u64, bytes).prop_map(|(v, n)| intent(v, n)),
        3 => version.clone().prop_map(|v| done(v, "graph")),
        1 => (version.clone(), ending.clone()).prop_map(move |(v, ending)| JournalRecord::Decided {
            version: Version(v), cause: backend(), reason: reason(), ending
        }),
        1 => version.clone().prop_map(move |v| JournalRecord::Undone { version: Version(v), backend: backend() }),
        1 => version.clone().prop_map(move |v| JournalRecord::DeadLetter {
            version: Version(v), backend: backend(), reason: reason()
        }),
        1 => version.clone().prop_map(move |v| JournalRecord::Revived { version: Version(v), backend: backend() }),
        5 => (version, ending).prop_map(|(v, ending)| JournalRecord::Closed {
            version: Version(v), operation: operation(v), ending
        }),
        1 => (1..24_u64).prop_map(|v| reserved(v * 1_000)),
    ];
    proptest::collection::vec(record, 1..5).boxed()
}

impl ReferenceStateMachine for Log {
    type State = Self;
    type Transition = Action;

    fn init_state() -> BoxedStrategy<Self> {
        let delay = prop_oneof![Just(Duration::from_millis(1)), Just(Duration::from_secs(10))];
        let init = (2..9_usize, 0..4_usize, delay);
        init.prop_map(|(generation_entries, outcomes, idle_note_delay)| Self {
            generation_entries,
            outcomes,
            idle_note_delay,
            batches: Vec::new(),
        })
        .boxed()
    }

    fn transitions(log: &Self) -> BoxedStrategy<Action> {
        let under_way = prop::option::weighted(0.8, (records(log), 0..12_i64));
        let opens = proptest::collection::vec(0..12_i64, 0..3);
        prop_oneof![
            12 => records(log).prop_map(Action::Append),
            4 => records(log).prop_map(Action::Note),
            1 => Just(Action::Close),
            1 => Just(Action::Drop),
            3 => (under_way, opens).prop_map(|(under_way, opens)| Action::Crash { under_way, opens }),
        ]
        .boxed()
    }

    fn apply(mut log: Self, action: &Action) -> Self {
        match action {
            Action::Append(records) => {
                log.batches.push((records.clone(), Fate::Pending));
                log.seal(Fate::Durable);
            }
            Action::Note(records) => log.batches.push((records.clone(), Fate::Pending)),
            Action::Close | Action::Drop => log.seal(Fate::Durable),
            Action::Crash { under_way, .. } => {
                let under_way = under_way.iter().map(|(records, _)| (records.clone(), Fate::Pending));
                log.batches.extend(under_way);
                log.seal(Fate::Perhaps);
            }
        }
        log
    }
}

/// All that lies in a directory.
type Photo = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn photograph(dir: &Path) -> Photo {
    let mut photo = Photo::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        // What is removed meanwhile is not there.
        let Ok(entries) = std::fs::read_dir(dir.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path.clone());
                photo.insert(path, None);
            } else if let Ok(bytes) = std::fs::read(entry.path()) {
                photo.insert(path, Some(bytes));
            }
        }
    }
    photo
}

/// A photo of a moment: while one is made, nothing moves.
fn photograph_at_rest(dir: &Path) -> Photo {
    let mut last = photograph(dir);
    loop {
        let next = photograph(dir);
        if next == last {
            return next;
        }
        last = next;
    }
}

fn develop(photo: &Photo) -> tempfile::TempDir {
    let dir = scratch();
    for (path, bytes) in photo {
        let path = dir.path().join(path);
        match bytes {
            None => std::fs::create_dir_all(path).unwrap(),
            Some(bytes) => {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
    dir
}

/// Takes a photo before the n-th step from when it is told to: that is what a SIGKILL at that moment leaves. That step
/// and all after it fail, for nobody is there any more.
struct Death {
    dir: PathBuf,
    within: Mutex<(Option<i64>, Option<Photo>)>,
}

impl Death {
    fn in_dir(dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), within: Mutex::default() })
    }

    fn arm(&self, steps: i64) {
        self.within.lock().unwrap().0 = Some(steps);
    }

    /// What it left; or what there is now, should it have been about to come later.
    fn come(&self) -> Photo {
        let photo = std::mem::take(&mut *self.within.lock().unwrap()).1;
        photo.unwrap_or_else(|| photograph_at_rest(&self.dir))
    }
}

impl FaultHook for Death {
    fn before(&self, _: Step) -> io::Result<()> {
        // The thread that reads back does not hold up the others, so that its steps are no moment.
        if std::thread::current().name() == Some("seawall-journal-carry") {
            return Ok(());
        }
        let (left, photo) = &mut *self.within.lock().unwrap();
        match left {
            None => return Ok(()),
            Some(1..) => {
                *left = left.map(|left| left - 1);
                return Ok(());
            }
            Some(_) => photo.get_or_insert_with(|| photograph(&self.dir)),
        };
        Err(io::Error::from_raw_os_error(5))
    }
}

/// A journal, and which of what was perhaps kept turned out to be.
struct Lives {
    dir: tempfile::TempDir,
    config: JournalConfig,
    death: Arc<Death>,
    journal: Option<SledJournal>,
    kept: Vec<bool>,
}

impl Lives {
    fn in_dir(dir: tempfile::TempDir, config: JournalConfig) -> (Self, Vec<JournalRecord>) {
        let death = Death::in_dir(dir.path());
        let hook: Arc<dyn FaultHook> = death.clone();
        let (journal, recovered) =
            SledJournal::open_with_faults(dir.path(), config.clone(), OnDamage::Refuse, Some(hook)).unwrap();
        assert!(recovered.loss.is_empty());
        (Self { dir, config, death, journal: Some(journal), kept: Vec::new() }, recovered.records)
    }

    fn journal(&self) -> &SledJournal {
        self.journal.as_ref().unwrap()
    }

    /// Opens it again, after what it left in this directory, and compares.
    fn again(self, dir: tempfile::TempDir, log: &Log, acknowledged: bool) -> Self {
        let (mut next, found) = Self::in_dir(dir, self.config);
        let known = self.kept.len();
        next.kept = self.kept;
        next.kept.extend(log.batches[known..].iter().map(|(_, fate)| *fate == Fate::Durable));
        let perhaps: Vec<usize> = (known..log.batches.len()).filter(|at| log.batches[*at].1 == Fate::Perhaps).collect();
        let least = if acknowledged { perhaps.len() } else { 0 };
        let fits = (least..=perhaps.len()).any(|count| {
            perhaps.iter().enumerate().for_each(|(n, at)| next.kept[*at] = n < count);
            let kept = log.batches.iter().zip(&next.kept).filter(|(_, kept)| **kept);
            let history: Vec<_> = kept.flat_map(|((records, _), _)| records.clone()).collect();
            found == needed(&history, log.outcomes)
        });
        assert!(fits, "none of {} that are possible: {found:?}", perhaps.len() + 1 - least);
        next
    }

    fn crash(mut self, log: &Log, under_way: Option<(Vec<JournalRecord>, i64)>, opens: &[i64]) -> Self {
        let mut acknowledged = false;
        if let Some((records, steps)) = under_way {
            self.death.arm(steps);
            acknowledged = append(self.journal(), records).is_ok();
        }
        let mut photo = self.death.come();
        self.journal = None;
        for steps in opens {
            let dir = develop(&photo);
            let death = Death::in_dir(dir.path());
            death.arm(*steps);
            let hook: Arc<dyn FaultHook> = death.clone();
            let opened = SledJournal::open_with_faults(dir.path(), self.config.clone(), OnDamage::Refuse, Some(hook));
            photo = death.come();
            drop(opened);
        }
        self.again(develop(&photo), log, acknowledged)
    }
}

impl StateMachineTest for Lives {
    type SystemUnderTest = Self;
    type Reference = Log;

    fn init_test(log: &Log) -> Self {
        Self::in_dir(scratch(), log.config()).0
    }

    fn apply(mut lives: Self, log: &Log, action: Action) -> Self {
        match action {
            Action::Append(records) => append(lives.journal(), records).unwrap(),
            Action::Note(records) => lives.journal().note(records),
            Action::Close | Action::Drop => {
                let journal = lives.journal.take().unwrap();
                if matches!(action, Action::Close) {
                    close(journal)
                } else {
                    drop(journal)
                }
                let dir = std::mem::replace(&mut lives.dir, scratch());
                return lives.again(dir, log, true);
            }
            Action::Crash { under_way, opens } => return lives.crash(log, under_way, &opens),
        }
        lives
    }

    fn teardown(lives: Self, mut log: Log) {
        log.seal(Fate::Durable);
        let lives = Self::apply(lives, &log, Action::Close);
        close(lives.journal.unwrap());
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..cases(24) })]

    #[test]
    fn it_keeps_what_a_plain_list_would(sequential 1..60 => Lives);
}
