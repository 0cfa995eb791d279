//! What is read from the disk, from arbitrary bytes.

use std::sync::Arc;
use std::time::Duration;

use seawall_actors::journal::{Intent, JournalRecord, Ledger, QueueConfig};
use seawall_actors::operation::{Change, OperationId, Priority, Version};

use super::codec::{self, Encoded, Meaning};
use super::generation::{self, Scan};
use super::index::Index;
use super::mark::{self, Found};
use super::retention::Retention;
use super::row;

/// A record is read or refused; what was read can be written, and is then read as the same.
pub(crate) fn record(data: &[u8]) {
    let Ok((lsn, record)) = codec::open_envelope(data) else { return };
    let Ok(written) = Encoded::of(&record) else { return };
    let envelope = codec::envelope(lsn, &written.bytes);
    let (again, read) = codec::open_envelope(&envelope).expect("what was written is read");
    let twice = Encoded::of(&read).expect("what was read is written");
    // Not the records themselves: an embedding may hold what is no number, which equals nothing.
    assert_eq!((again, twice.bytes), (lsn, written.bytes));
}

/// A generation of arbitrary rows, with good checksums or bad ones: every row before the end either gives its
/// records or is told as lost, and what is found can be recovered from.
pub(crate) fn rows(data: &[u8]) {
    let Some((&[first, until, acknowledged], mut rest)) = data.split_first_chunk() else { return };
    let first = u64::from(first);
    let until = (until > 0).then(|| first + u64::from(until));
    let mut rows = Vec::new();
    while let Some((&[jump, chunk, chunks, damage, length], tail)) = rest.split_first_chunk() {
        let number = rows.last().map_or(first, |(key, _): &([u8; 8], _)| u64::from_be_bytes(*key) + 1);
        // Rows come in their order, as sled gives them; some are missing, and one may be very far away.
        let number = if jump == u8::MAX { u64::MAX } else { number.saturating_add(u64::from(jump / 16)) };
        let (payload, tail) = tail.split_at(tail.len().min(usize::from(length) * 4));
        let mut value = row::encode(number, chunk.into(), chunks.into(), payload);
        if damage > 0 {
            let at = usize::from(damage) % value.len();
            value[at] ^= damage;
        }
        rows.push((number.to_be_bytes(), value));
        if number == u64::MAX {
            break;
        }
        rest = tail;
    }
    let rows = rows.into_iter().map(|(key, value)| Ok::<_, &str>((key.to_vec(), value)));
    let scan = generation::scan_rows(rows, first, until, acknowledged.into());
    check(&scan, first);
    recover(scan);
}

fn check(scan: &Scan, first: u64) {
    assert!(scan.end >= first);
    assert!(scan.lost.is_empty() || !scan.findings.is_empty(), "no loss without a word");
    for (from, to) in &scan.lost {
        assert!(first <= *from && from <= to, "{from} to {to}");
    }
}

/// As an open does: whatever the records say together, nothing panics, and what is needed is what is counted.
fn recover(scan: Scan) {
    let mut index = Index::new(3, Retention::new(Duration::from_secs(60), true));
    let mut ledger = Ledger::new(QueueConfig::default());
    for (lsn, record) in &scan.records {
        index.add(*lsn, 1, Meaning::of(record));
    }
    let mut needed = 0;
    for (lsn, record) in &scan.records {
        needed += usize::from(index.is_needed_in(1, *lsn, Meaning::of(record)));
        ledger.apply(record);
    }
    assert!(index.needed() <= needed, "{} records are needed, {needed} are there", index.needed());
    let _ = ledger.release_all();
    assert!(ledger.dead_letters().iter().all(|letter| letter.version <= ledger.highest()));
}

/// A mark is one that was written, or unreadable.
pub(crate) fn mark(data: &[u8]) {
    if let Found::Mark(mark) = mark::parse(data) {
        let slot = mark.encode();
        assert!(data.windows(slot.len()).any(|found| found == slot), "{mark:?} was never written");
        assert!(matches!(mark::parse(&slot), Found::Mark(read) if read == mark));
    }
}

/// What was let in is read back as it was written.
pub(crate) fn kept(changes: &[Change]) {
    let intent = JournalRecord::Intent(Arc::new(Intent {
        version: Version(1),
        operation: OperationId::from(1),
        priority: Priority::Normal,
        changes: Arc::from(changes),
        owes: vec!["graph".into()],
        undo: vec![("graph".into(), Arc::from(changes))],
    }));
    let written = Encoded::of(&intent).expect("what was let in is written");
    let (_, read) = codec::open_envelope(&codec::envelope(1, &written.bytes)).expect("what was written is read");
    assert!(read == intent, "it is not what was written");
}
