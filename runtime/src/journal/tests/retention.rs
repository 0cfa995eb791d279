//! Finished entries that stay for a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use seawall_actors::journal::RetentionError;

use super::super::retention::Moment;
use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn keeping(retention: Duration, retention_bytes: u64) -> JournalConfig {
    JournalConfig { retention, retention_bytes, ..small() }
}

/// A clock that stands still until it is set forward: by milliseconds, over all openings.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

/// What the wall clock shows at first.
const BEGINNING: u64 = 1_000_000_000;

impl Hands {
    fn forward(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(BEGINNING + self.0.load(Ordering::SeqCst))
    }

    fn opened(&self, dir: &Path, config: &JournalConfig) -> (SledJournal, Vec<JournalRecord>) {
        let (hands, opened) = (Arc::clone(&self.0), self.0.load(Ordering::SeqCst));
        let clock = Arc::new(move || {
            let now = hands.load(Ordering::SeqCst);
            Moment { wall: BEGINNING + now, ran: now - opened }
        });
        let opened = SledJournal::open_by_clock(dir, config.clone(), OnDamage::Refuse, None, clock);
        let (journal, recovered) = opened.unwrap();
        assert!(recovered.loss.is_empty());
        (journal, recovered.records)
    }
}

fn entries(journal: &SledJournal, since: SystemTime) -> Result<usize, RetentionError> {
    futures::executor::block_on(journal.retained(since)).map(|retained| retained.entries())
}

fn write(journal: &SledJournal, versions: impl Iterator<Item = u64>) {
    for version in versions {
        append(journal, vec![intent(version, 10)]).unwrap();
        append(journal, vec![done(version, "graph"), closed(version)]).unwrap();
    }
}

#[test]
fn what_is_finished_is_read_back_also_after_restarts_and_is_owed_by_nobody() {
    let (dir, hands) = (scratch(), Hands::default());
    let config = keeping(HOUR, 1 << 30);
    let before = hands.now();
    let (journal, _) = hands.opened(dir.path(), &config);
    append(&journal, vec![intent(1, 10)]).unwrap();
    write(&journal, 2..=40);
    assert_eq!(entries(&journal, before), Ok(39));
    assert_eq!(journal.progress().retained_entries, 39);
    close(journal);
    hands.forward(HOUR / 2);
    let (journal, records) = hands.opened(dir.path(), &config);
    assert_eq!(records, [intent(1, 10), closed(38), closed(39), closed(40)]);
    write(&journal, 41..=50);
    append(&journal, vec![closed(1)]).unwrap();
    assert_eq!(entries(&journal, before), Ok(50));
    assert_eq!(entries(&journal, SystemTime::UNIX_EPOCH), Ok(50), "the journal is whole");
    close(journal);
}

#[test]
fn what_was_only_noted_is_read_back_too() {
    let (dir, hands) = (scratch(), Hands::default());
    let config = JournalConfig { idle_note_delay: Duration::from_secs(10), ..keeping(HOUR, 1 << 30) };
    let (journal, _) = hands.opened(dir.path(), &config);
    append(&journal, vec![intent(1, 10)]).unwrap();
    journal.note(vec![closed(1)]);
    assert_eq!(entries(&journal, hands.now()), Ok(1));
    close(journal);
}

#[test]
fn with_retention_off_nothing_is_kept_and_what_was_finished_then_is_never_promised() {
    let (dir, hands) = (scratch(), Hands::default());
    let (journal, _) = hands.opened(dir.path(), &small());
    assert_eq!(entries(&journal, hands.now()), Err(RetentionError::Off));
    write(&journal, 1..=100);
    assert!(journal.progress().generations <= 3);
    close(journal);
    hands.forward(HOUR);
    let (journal, _) = hands.opened(dir.path(), &keeping(HOUR, 1 << 30));
    write(&journal, 101..=110);
    let refused = entries(&journal, SystemTime::UNIX_EPOCH);
    let available_since = hands.now() + Duration::from_millis(1);
    assert_eq!(refused, Err(RetentionError::TooFarBack { available_since }));
    hands.forward(Duration::from_secs(10));
    write(&journal, 111..=112);
    let found = entries(&journal, hands.now());
    assert!(found.as_ref().is_ok_and(|found| (2..12).contains(found)), "{found:?}");
    close(journal);
}

#[test]
fn at_the_limit_in_bytes_the_oldest_go_and_a_replay_from_before_them_is_refused() {
    let (dir, hands) = (scratch(), Hands::default());
    let (journal, _) = hands.opened(dir.path(), &keeping(HOUR, 32 << 10));
    let before = hands.now();
    for version in 1..=400 {
        hands.forward(Duration::from_millis(100));
        write(&journal, version..=version);
    }
    let progress = journal.progress();
    assert!(progress.retention_cuts > 0, "{progress:?}");
    assert!(progress.disk_bytes < 64 << 10, "{progress:?}");
    assert!(progress.retained_entries > 0 && progress.retained_bytes <= progress.disk_bytes, "{progress:?}");
    let refused = entries(&journal, before);
    let Err(RetentionError::TooFarBack { available_since }) = refused else { panic!("{refused:?}") };
    assert!(available_since > before && available_since < hands.now());
    assert!(entries(&journal, available_since).is_ok_and(|kept| kept > 0));
    close(journal);
    let (journal, _) = hands.opened(dir.path(), &keeping(HOUR, 32 << 10));
    assert!(entries(&journal, before).is_err(), "a restart does not forget that");
    close(journal);
}

#[test]
fn after_its_time_an_entry_goes_with_its_generation() {
    let (dir, hands) = (scratch(), Hands::default());
    let (journal, _) = hands.opened(dir.path(), &keeping(HOUR, 1 << 30));
    write(&journal, 1..=100);
    hands.forward(HOUR - Duration::from_secs(1));
    write(&journal, 101..=101);
    assert!(journal.progress().generations > 3, "{:?}", journal.progress());
    hands.forward(Duration::from_secs(2));
    write(&journal, 102..=103);
    assert!(journal.progress().generations <= 3, "{:?}", journal.progress());
    assert_eq!(journal.progress().retention_cuts, 0);
    assert!(matches!(entries(&journal, SystemTime::UNIX_EPOCH), Err(RetentionError::TooFarBack { .. })));
    close(journal);
}

#[test]
fn an_entry_that_was_open_for_long_is_kept_from_its_end_on() {
    let (dir, hands) = (scratch(), Hands::default());
    let (journal, _) = hands.opened(dir.path(), &keeping(HOUR, 1 << 30));
    append(&journal, vec![intent(1, 10)]).unwrap();
    write(&journal, 2..=60);
    hands.forward(Duration::from_secs(2));
    // Dates what is before it.
    append(&journal, vec![reserved(1)]).unwrap();
    hands.forward(Duration::from_secs(1));
    let since = hands.now();
    append(&journal, vec![closed(1)]).unwrap();
    let found = entries(&journal, since);
    // Its intent is far behind, and what was finished then is not wanted.
    assert!(found.as_ref().is_ok_and(|found| (1..60).contains(found)), "{found:?}");
    close(journal);
}
