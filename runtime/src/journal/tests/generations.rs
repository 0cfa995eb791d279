//! Generations: rolling, removing, carrying forward.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::guard::Step;

fn directories(dir: &Path) -> Vec<u64> {
    generation::list(dir).unwrap()
}

/// Waits for what happens behind the answers.
fn until(mut holds: impl FnMut() -> bool) {
    let mut rounds = 0;
    while !holds() {
        crate::guard::pause(Duration::from_millis(2));
        rounds += 1;
        assert!(rounds < 10_000, "it never came to be");
    }
}

#[test]
fn a_generation_goes_when_nothing_in_it_is_needed() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    for version in 1..=100 {
        append(&journal, vec![intent(version, 10)]).unwrap();
        append(&journal, vec![done(version, "graph"), done(version, "vector"), closed(version)]).unwrap();
        assert!(journal.progress().generations <= 3);
    }
    assert!(directories(dir.path()).len() <= 3);
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1, [closed(98), closed(99), closed(100)]);
}

#[test]
fn an_entry_that_never_ends_is_carried_forward() {
    let dir = scratch();
    let config = JournalConfig { generation_entries: 20, ..small() };
    let (journal, _) = opened(dir.path(), &config);
    let lasting = [reserved(5_000), intent(1, 10), done(1, "graph")];
    append(&journal, lasting.to_vec()).unwrap();
    append(&journal, vec![intent(2, 10), closed(2)]).unwrap();
    for version in 100..500 {
        append(&journal, vec![intent(version, 10)]).unwrap();
        append(&journal, vec![closed(version)]).unwrap();
    }
    until(|| {
        journal.note(vec![reserved(1)]);
        directories(dir.path()).len() <= 6
    });
    assert!(directories(dir.path())[0] > 1, "the generation in which it began is gone");
    close(journal);
    let mut expected = lasting.to_vec();
    expected.extend([closed(497), closed(498), closed(499)]);
    assert_eq!(opened(dir.path(), &config).1, expected, "in the order in which they were appended at first");
}

#[test]
fn entries_that_end_while_they_are_carried_do_not_come_back() {
    let dir = scratch();
    let config = JournalConfig { generation_entries: 20, outcomes: 0, ..small() };
    let (journal, _) = opened(dir.path(), &config);
    for round in 0..60_u64 {
        let version = round * 10;
        append(&journal, (0..10).map(|n| intent(version + n, 10)).collect()).unwrap();
        append(&journal, (1..10).map(|n| closed(version + n)).collect()).unwrap();
        if let Some(old) = round.checked_sub(7) {
            append(&journal, vec![closed(old * 10)]).unwrap();
        }
    }
    close(journal);
    let expected: Vec<_> = (53..60).map(|round| intent(round * 10, 10)).collect();
    assert_eq!(opened(dir.path(), &config).1, expected);
}

/// Holds the thread that reads back, as a slow disk does.
#[derive(Default)]
struct SlowToReadBack {
    began: AtomicBool,
    may_go_on: AtomicBool,
}

impl FaultHook for SlowToReadBack {
    fn before(&self, step: Step) -> io::Result<()> {
        if step == Step::Read && std::thread::current().name() == Some("seawall-journal-carry") {
            self.began.store(true, Ordering::SeqCst);
            until(|| self.may_go_on.load(Ordering::SeqCst));
        }
        Ok(())
    }
}

#[test]
fn the_copy_of_an_entry_that_ended_meanwhile_does_not_outlive_its_end() {
    let dir = scratch();
    let config = JournalConfig { outcomes: 0, ..small() };
    let disk = Arc::new(SlowToReadBack::default());
    let hook = Arc::clone(&disk) as Arc<dyn FaultHook>;
    let (journal, _) = SledJournal::open_with_faults(dir.path(), config.clone(), OnDamage::Refuse, Some(hook)).unwrap();
    let users = Arc::strong_count(&disk);
    let pass = |version: u64| append(&journal, vec![intent(version, 1), closed(version)]).unwrap();
    append(&journal, vec![intent(1, 1)]).unwrap();
    (100..140).for_each(pass);
    until(|| disk.began.load(Ordering::SeqCst));
    // It ends where the copy will not be, and an open entry keeps what comes after.
    append(&journal, vec![closed(1)]).unwrap();
    (200..220).for_each(pass);
    append(&journal, vec![intent(2, 1)]).unwrap();
    disk.may_go_on.store(true, Ordering::SeqCst);
    // The reader lets go of the disk when it has sent all copies.
    until(|| Arc::strong_count(&disk) == users);
    (300..302).for_each(pass);
    close(journal);
    assert_eq!(opened(dir.path(), &config).1, [intent(2, 1)]);
}

#[test]
fn a_journal_of_nothing_but_open_entries_is_not_copied_round_and_round() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    for version in 1..=100 {
        append(&journal, vec![intent(version, 10)]).unwrap();
    }
    let commits = journal.progress().commits;
    assert_eq!(commits, 100);
    assert_eq!(journal.progress().generations, 13);
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1.len(), 100);
}

/// Trap 10: the cursor is durable before a generation is unlinked, and what is left below it is no damage.
#[test]
fn a_directory_that_a_crash_left_below_the_cursor_is_removed_at_the_next_open() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    append(&journal, vec![intent(1, 1)]).unwrap();
    close(journal);
    let leftover = scratch();
    copy_dir(&dir.path().join("gen-00000000000000000001"), &leftover.path().join("gen"));
    let (journal, _) = opened(dir.path(), &small());
    for version in 2..=40 {
        append(&journal, vec![closed(version - 1), intent(version, 1)]).unwrap();
    }
    close(journal);
    let first = directories(dir.path())[0];
    assert!(first > 1);
    // Once whole, once half removed.
    let back = dir.path().join("gen-00000000000000000001");
    copy_dir(&leftover.path().join("gen"), &back);
    let expected = vec![closed(37), closed(38), closed(39), intent(40, 1)];
    assert_eq!(opened(dir.path(), &small()).1.as_slice(), expected.as_slice());
    assert!(!back.exists());
    copy_dir(&leftover.path().join("gen"), &back);
    fs::remove_file(back.join("db")).unwrap();
    assert_eq!(opened(dir.path(), &small()).1, expected);
    assert_eq!(directories(dir.path())[0], first);
}

/// Trap 10, the other half: a failing unlink loses nothing and does not stop the journal.
#[test]
fn a_generation_that_cannot_be_unlinked_stops_nothing() {
    let dir = scratch();
    let hook: Arc<dyn FaultHook> = Arc::new(Never(Step::Remove));
    let (journal, _) = SledJournal::open_with_faults(dir.path(), small(), OnDamage::Refuse, Some(hook)).unwrap();
    for version in 1..=40 {
        append(&journal, vec![intent(version, 1), closed(version)]).unwrap();
    }
    assert!(!journal.progress().failed);
    close(journal);
    assert_eq!(directories(dir.path())[0], 1);
    assert_eq!(opened(dir.path(), &small()).1, [closed(38), closed(39), closed(40)]);
    assert!(directories(dir.path())[0] > 1);
}

/// Fails one kind of step, always.
struct Never(Step);

impl FaultHook for Never {
    fn before(&self, step: Step) -> io::Result<()> {
        if step == self.0 { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

#[test]
fn a_generation_that_cannot_be_read_back_is_kept() {
    let dir = scratch();
    close(opened(dir.path(), &small()).0);
    let opened_blind = |dir: &Path| {
        // Nothing is there to be read yet, so the open itself does not fail.
        fs::remove_dir_all(generation::path(dir, 1)).unwrap();
        let hook: Arc<dyn FaultHook> = Arc::new(Never(Step::Read));
        SledJournal::open_with_faults(dir, small(), OnDamage::Refuse, Some(hook)).unwrap().0
    };
    let journal = opened_blind(dir.path());
    append(&journal, vec![intent(1, 1)]).unwrap();
    for version in 2..=100 {
        append(&journal, vec![intent(version, 1), closed(version)]).unwrap();
    }
    assert!(!journal.progress().failed);
    close(journal);
    assert_eq!(directories(dir.path())[0], 1);
    assert_eq!(opened(dir.path(), &small()).1, [intent(1, 1), closed(98), closed(99), closed(100)]);
}

#[test]
fn generations_roll_by_bytes_too() {
    let dir = scratch();
    let config = JournalConfig { generation_entries: usize::MAX, generation_bytes: 2 << 20, ..small() };
    let (journal, _) = opened(dir.path(), &config);
    for version in 1..=40 {
        append(&journal, vec![intent(version, 200_000)]).unwrap();
    }
    assert!(journal.progress().generations > 3);
    close(journal);
    assert_eq!(opened(dir.path(), &config).1.len(), 40);
}
