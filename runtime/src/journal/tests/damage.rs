//! Bytes that are not what they were.

use std::fs;

use super::*;
use crate::guard::quarantine;

/// A closed journal of three generations, whose records are all needed.
fn three_generations(dir: &Path) -> Vec<JournalRecord> {
    let (journal, _) = opened(dir, &small());
    let history: Vec<_> = (1..=20).map(|version| intent(version, 100)).collect();
    for record in &history {
        append(&journal, vec![record.clone()]).unwrap();
    }
    append(&journal, vec![reserved(9_000)]).unwrap();
    close(journal);
    assert_eq!(generation::list(dir).unwrap(), [1, 9, 17]);
    history.into_iter().chain([reserved(9_000)]).collect()
}

fn report(dir: &Path) -> LossReport {
    match SledJournal::open(dir, small(), OnDamage::Refuse) {
        Err(JournalOpenError::Damaged { report, .. }) => report,
        Ok(_) => LossReport::default(),
        Err(error) => panic!("{error}"),
    }
}

/// Every record that is not in the lost rows (here a row is a record) must be there, and no other.
fn check_continued(dir: &Path, history: &[JournalRecord], refused: &LossReport) {
    let (journal, recovered) = SledJournal::open(dir, small(), OnDamage::Continue).unwrap();
    assert_eq!(recovered.loss.rows, refused.rows, "the report does not depend on who asks");
    assert_eq!(recovered.loss.findings, refused.findings);
    let lost = |row: u64| refused.rows.iter().any(|(from, to)| (*from..=*to).contains(&row));
    let mut expected: Vec<_> =
        history.iter().zip(1..).filter(|(_, row)| !lost(*row)).map(|(record, _)| record.clone()).collect();
    if lost(21) {
        expected.push(reserved(9_000));
    }
    assert_eq!(recovered.records, expected);
    append(&journal, vec![intent(100, 1)]).unwrap();
    close(journal);
    expected.push(intent(100, 1));
    let (journal, again) = SledJournal::open(dir, small(), OnDamage::Refuse).unwrap();
    assert!(again.loss.is_empty(), "it is reported once: {:?}", again.loss);
    assert_eq!(again.records, expected);
    close(journal);
}

#[test]
fn a_missing_generation_is_reported_to_the_row_and_the_rest_is_served() {
    for (first, lost) in [(1_u64, (1, 8)), (9, (9, 16)), (17, (17, 21))] {
        let dir = scratch();
        let history = three_generations(dir.path());
        fs::remove_dir_all(generation::path(dir.path(), first)).unwrap();
        let refused = report(dir.path());
        // A void end of one generation cannot be told from the missing begin of the next.
        assert_eq!(refused.rows, [lost]);
        assert_eq!(report(dir.path()), refused, "a refused open changes nothing");
        check_continued(dir.path(), &history, &refused);
    }
}

#[test]
fn an_unreadable_generation_is_quarantined_whole() {
    let dir = scratch();
    let history = three_generations(dir.path());
    let db = generation::path(dir.path(), 9).join("db");
    let bytes = vec![0x5A; fs::metadata(&db).unwrap().len() as usize];
    fs::write(&db, &bytes).unwrap();
    let refused = report(dir.path());
    assert_eq!(refused.rows, [(9, 16)]);
    assert!(!dir.path().join("quarantine").exists());
    let (journal, recovered) = SledJournal::open(dir.path(), small(), OnDamage::Continue).unwrap();
    assert_eq!(recovered.loss.quarantined, ["quarantine/gen-00000000000000000009-1"]);
    assert!(dir.path().join(&recovered.loss.quarantined[0]).join("db").exists());
    assert_eq!(recovered.records.len(), history.len() - 8);
    close(journal);
}

/// Trap 20: sled opens an emptied file without a word, the mark does not.
#[test]
fn a_generation_that_was_emptied_is_no_fresh_start() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    append(&journal, vec![intent(1, 1), intent(2, 1)]).unwrap();
    append(&journal, vec![intent(3, 1)]).unwrap();
    close(journal);
    let first = generation::path(dir.path(), 1);
    fs::remove_dir_all(&first).unwrap();
    drop(generation::open(dir.path(), 1, &crate::guard::GuardOptions::append_only()).unwrap());
    assert_eq!(report(dir.path()).rows, [(1, 2)]);
    fs::remove_dir_all(&first).unwrap();
    assert_eq!(report(dir.path()).rows, [(1, 2)]);
}

#[test]
fn a_missing_mark_is_a_finding() {
    let dir = scratch();
    let history = three_generations(dir.path());
    fs::remove_file(mark::path(dir.path())).unwrap();
    let refused = report(dir.path());
    assert!(refused.rows.is_empty() && !refused.is_empty());
    check_continued(dir.path(), &history, &refused);
}

#[test]
fn an_unreadable_mark_is_a_finding_and_is_moved_aside() {
    let dir = scratch();
    let history = three_generations(dir.path());
    fs::write(mark::path(dir.path()), b"nonsense").unwrap();
    let refused = report(dir.path());
    assert!(!refused.is_empty());
    check_continued(dir.path(), &history, &refused);
    assert!(dir.path().join("quarantine/mark-1").exists());
}

#[test]
fn one_torn_slot_of_the_mark_is_no_damage() {
    for slot in [0, 512] {
        let dir = scratch();
        let history = three_generations(dir.path());
        let mut bytes = fs::read(mark::path(dir.path())).unwrap();
        bytes[slot..slot + 20].fill(0xEE);
        fs::write(mark::path(dir.path()), bytes).unwrap();
        assert_eq!(opened(dir.path(), &small()).1, history);
    }
}

#[test]
fn a_generation_that_was_never_finished_is_made_anew() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    append(&journal, (1..=8).map(|version| intent(version, 1)).collect()).unwrap();
    close(journal);
    let next = generation::path(dir.path(), 2);
    fs::create_dir(&next).unwrap();
    fs::write(next.join("db"), vec![0xA5; 600 << 10]).unwrap();
    fs::write(next.join("conf"), b"torn").unwrap();
    let (journal, records) = opened(dir.path(), &small());
    assert_eq!(records.len(), 8);
    append(&journal, vec![intent(9, 1)]).unwrap();
    close(journal);
    assert_eq!(opened(dir.path(), &small()).1.len(), 9);
}

#[test]
fn a_snapshot_that_was_never_finished_is_no_damage() {
    let dir = scratch();
    let history = three_generations(dir.path());
    for first in [1, 9, 17] {
        let name = "snap.00000000FFFFFFFF.generating";
        fs::write(generation::path(dir.path(), first).join(name), b"half").unwrap();
    }
    assert_eq!(opened(dir.path(), &small()).1, history);
}

/// Trap 24: a second opener writes nothing.
#[test]
fn a_journal_that_is_open_is_locked() {
    let dir = scratch();
    let (journal, _) = opened(dir.path(), &small());
    append(&journal, vec![intent(1, 1)]).unwrap();
    let impatient = JournalConfig { lock_patience: Duration::ZERO, ..small() };
    for on_damage in [OnDamage::Refuse, OnDamage::Continue] {
        let second = SledJournal::open(dir.path(), impatient.clone(), on_damage);
        assert!(matches!(second, Err(JournalOpenError::Locked { .. })));
    }
    append(&journal, vec![intent(2, 1)]).unwrap();
    close(journal);
    // A process that is just being forked elsewhere may hold the lock for a moment more.
    assert_eq!(opened(dir.path(), &small()).1.len(), 2);
}

/// Trap 24: it has no generation open, and may be about to move some aside.
#[test]
fn whoever_is_still_opening_a_journal_holds_others_off() {
    let dir = scratch();
    close(opened(dir.path(), &small()).0);
    let opener = fs::File::open(dir.path().join("lock")).unwrap();
    opener.lock().unwrap();
    let impatient = JournalConfig { lock_patience: Duration::ZERO, ..small() };
    let second = SledJournal::open(dir.path(), impatient.clone(), OnDamage::Refuse);
    assert!(matches!(second, Err(JournalOpenError::Locked { .. })));
    opener.unlock().unwrap();
    opened(dir.path(), &impatient);
}

#[test]
fn an_interrupted_repair_is_done_again() {
    let dir = scratch();
    let history = three_generations(dir.path());
    fs::remove_dir_all(generation::path(dir.path(), 9)).unwrap();
    let refused = report(dir.path());
    // The survivors are written, and some were moved aside, when the power goes.
    let before = scratch();
    copy_dir(dir.path(), &before.path().join("journal"));
    let (journal, _) = SledJournal::open(dir.path(), small(), OnDamage::Continue).unwrap();
    close(journal);
    let fresh = generation::list(dir.path()).unwrap()[0];
    let before = before.path().join("journal");
    copy_dir(&generation::path(dir.path(), fresh), &generation::path(&before, fresh));
    assert_eq!(report(&before).rows, refused.rows);
    quarantine(&generation::path(&before, 1)).unwrap();
    let (journal, recovered) = SledJournal::open(&before, small(), OnDamage::Continue).unwrap();
    assert_eq!(recovered.records.len(), history.len() - 8, "whatever survived the first time survives again");
    close(journal);
}

/// Trap 20: flip bytes everywhere, cut everywhere; the answer is an exact report or no loss, and never a panic.
/// `SEAWALL_SWEEP_STEP=1` takes every byte and every length.
#[test]
fn no_damage_goes_unreported() {
    let original = scratch();
    let history = three_generations(original.path());
    let step = std::env::var("SEAWALL_SWEEP_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(97);
    for first in [1_u64, 17] {
        let db = generation::path(original.path(), first).join("db");
        let length = fs::metadata(&db).unwrap().len() as usize;
        for at in (0..length).step_by(step) {
            sweep(original.path(), &history, first, |bytes| bytes[at] ^= 0x41);
            sweep(original.path(), &history, first, |bytes| bytes.truncate(at));
        }
    }
}

fn sweep(original: &Path, history: &[JournalRecord], first: u64, damage: impl FnOnce(&mut Vec<u8>)) {
    let copy = scratch();
    let dir = copy.path().join("journal");
    copy_dir(original, &dir);
    let db = generation::path(&dir, first).join("db");
    let mut bytes = fs::read(&db).unwrap();
    damage(&mut bytes);
    fs::write(&db, bytes).unwrap();
    let refused = report(&dir);
    assert_eq!(report(&dir), refused, "a refused open can be repeated");
    check_continued(&dir, history, &refused);
}
