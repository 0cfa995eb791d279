//! Rows and records as bytes.

use proptest::prelude::*;
use seawall_actors::record::{Key, Properties, Relation};
use serde_json::json;

use super::*;
use crate::guard::GuardedDb;

/// Every variant, with every kind of value.
fn every_variant() -> Vec<JournalRecord> {
    let properties = Properties::new()
        .with("max", u64::MAX)
        .with("min", i64::MIN)
        .with("float", -1.5e-300)
        .with("whole float", 2.0)
        .with("null", serde_json::Value::Null)
        .with("text", "äß\u{1F30A}")
        .with("nested", json!({ "list": [1, -1, true, null, { "deeper": [[]] }], "empty": {} }));
    let record = Record {
        key: Key::new("put"),
        properties: properties.clone(),
        embedding: Some(vec![0.1, -2.5, f32::MAX].into()),
        relations: vec![Relation::new("depends", "other")],
    };
    let version = Version(7);
    let backend = name("graph");
    vec![
        JournalRecord::Reserved { up_to: Version(1_024) },
        JournalRecord::Intent(Arc::new(Intent {
            version,
            operation: operation(7),
            priority: Priority::High,
            changes: Arc::from([
                Change::put(record.clone()),
                Change::Merge { key: Key::new("merge"), properties },
                Change::Delete { key: Key::new("delete") },
            ]),
            owes: vec![name("graph"), name("vector")],
            undo: vec![(name("graph"), Arc::from([Change::put(record), Change::Delete { key: Key::new("merge") }]))],
        })),
        JournalRecord::Done { version, backend: backend.clone() },
        JournalRecord::Decided { version, cause: name("vector"), reason: "no room".into(), ending: Ending::RolledBack },
        JournalRecord::Undone { version, backend: backend.clone() },
        JournalRecord::DeadLetter { version, backend: backend.clone(), reason: "refused".into() },
        JournalRecord::Revived { version, backend },
        closed(7),
        JournalRecord::Closed { version: Version(8), operation: operation(8), ending: Ending::RolledBack },
        JournalRecord::Closed { version: Version(9), operation: operation(9), ending: Ending::Discarded },
        intent(10, 9_000),
        JournalRecord::Redriven(Arc::new(Intent {
            version: Version(11),
            operation: operation(11),
            priority: Priority::Low,
            changes: Arc::from([Change::Delete { key: Key::new("lost") }]),
            owes: vec![name("graph")],
            undo: Vec::new(),
        })),
        JournalRecord::Tick { wall: 1_700_000_000_000, ran: 60_000 },
    ]
}

fn rows(records: &[JournalRecord]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let dir = scratch();
    let mut packer = row::Packer::new(100);
    for (lsn, record) in (5_000..).zip(records) {
        packer.push(lsn, &Encoded::of(record).unwrap().bytes);
    }
    let db = GuardedDb::open(dir.path(), crate::guard::GuardOptions::append_only()).unwrap();
    db.apply(packer.finish().0).unwrap();
    db.iter().map(|row| row.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

fn read(rows: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<(u64, JournalRecord)>, String> {
    let mut records = Vec::new();
    let mut stream = Vec::new();
    for (key, value) in rows {
        let row = row::decode(key, value)?;
        stream.extend_from_slice(row.payload);
        if row.chunk + 1 == row.chunks {
            records.extend(row::unpack(&std::mem::take(&mut stream))?);
        }
    }
    Ok(records)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Trap 25: what was written by a released version can be read by every later one.
#[test]
fn format_1_is_what_the_golden_file_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/journal-v1.hex");
    let written: String =
        rows(&every_variant()).iter().map(|(key, value)| format!("{} {}\n", hex(key), hex(value))).collect();
    if std::env::var_os("SEAWALL_BLESS").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert!(golden == written, "the format changed: give it a new version, and keep reading this one");
    let bytes = |text: &str| -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    let rows: Vec<_> = golden.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let rows: Vec<_> = rows.into_iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
    let expected: Vec<_> = (5_000..).zip(every_variant()).collect();
    assert_eq!(read(&rows).unwrap(), expected);
}

#[test]
fn small_records_share_a_row_and_no_row_is_too_large() {
    let many: Vec<_> = (0..1_000).map(|version| done(version, "graph")).collect();
    let rows = rows(&many);
    assert!(rows.len() < 20, "{} rows", rows.len());
    assert!(rows.iter().all(|(key, value)| key.len() + value.len() <= crate::guard::MAX_ROW_BYTES));
    assert_eq!(read(&rows).unwrap().len(), 1_000);
}

#[test]
fn any_flipped_bit_of_a_row_is_found() {
    let rows = rows(&[done(1, "graph"), closed(1)]);
    let (key, value) = &rows[0];
    for bit in 0..value.len() * 8 {
        let mut damaged = value.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(row::decode(key, &damaged).is_err());
    }
    for length in 0..value.len() {
        assert!(row::decode(key, &value[..length]).is_err());
    }
    assert!(row::decode(&101_u64.to_be_bytes(), value).is_err(), "a row under another key is damaged");
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(|float| json!(float)),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::btree_map(".{0,6}", inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn properties_come_back_as_they_were(value in json_value()) {
        let change = Change::put(Record::new("key").with("value", value));
        let JournalRecord::Intent(template) = intent(1, 0) else { unreachable!() };
        let record = JournalRecord::Intent(Arc::new(Intent { changes: Arc::from([change]), ..(*template).clone() }));
        let envelope = codec::envelope(3, &Encoded::of(&record).unwrap().bytes);
        prop_assert_eq!(codec::open_envelope(&envelope), Ok((3, record)));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(key in any::<[u8; 8]>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = row::decode(&key, &bytes);
        let _ = row::unpack(&bytes);
        let _ = codec::open_envelope(&bytes);
    }
}

/// Checksums do not help against what was never written by a journal.
#[test]
fn numbers_that_leave_no_room_for_the_next_are_damage_and_no_panic() {
    for mark in [(u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let dir = scratch();
        let (journal, _) = opened(dir.path(), &small());
        append(&journal, vec![intent(1, 1)]).unwrap();
        close(journal);
        mark::MarkFile::create(dir.path(), mark::Mark { row: mark.0, first: mark.1, reserved: 1 }).unwrap();
        let refused = SledJournal::open(dir.path(), small(), OnDamage::Refuse).map(drop);
        assert!(matches!(refused, Err(JournalOpenError::Damaged { .. })), "{refused:?}");
        let (_, recovered) = SledJournal::open(dir.path(), small(), OnDamage::Continue).unwrap();
        assert_eq!(recovered.records, [intent(1, 1)]);
    }
    let record = Encoded::of(&intent(1, 1)).unwrap().bytes;
    assert!(codec::open_envelope(&codec::envelope(u64::MAX, &record)).is_err());
}
