//! Versions in a store that this runtime never gave out.

use std::time::Duration;

use super::SECOND;
use crate::error::Refusal;
use crate::fallback::Mode;
use crate::operation::{Held, Outcome, Receipt, Version, Write};
use crate::plane::rehearsal::{Rig, put};
use crate::record::Record;

#[tokio::test(start_paused = true)]
async fn a_foreign_version_that_is_seen_in_time_is_written_over() {
    let rig = Rig::two().await;
    rig.store("vector").put(Record::new("a").with("n", -1), Version(1_000_000_000));
    assert_eq!(rig.put("a", 1).await.expect("is stored").held, Held::Committed);
    assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(1), Some(1)));
}

/// Performs a write, while somebody else writes between its look at what is there and its own turn.
async fn overtaken(rig: &Rig, write: Write, by: Record) -> Result<Receipt, Refusal> {
    rig.tape.takes(SECOND);
    let writing = rig.perform(write, 60 * SECOND);
    tokio::time::sleep(SECOND / 2).await;
    rig.store("vector").put(by, Version(1_000_000_000));
    rig.tape.takes(Duration::ZERO);
    writing.await.expect("no panic").0
}

#[tokio::test(start_paused = true)]
async fn a_write_that_a_foreign_version_swallows_is_never_acknowledged() {
    for mode in [Mode::Disabled, Mode::QueueWrites] {
        let rig = Rig::two().await;
        rig.mode(mode).await;
        let refusal = overtaken(&rig, put("a", 1), Record::new("a").with("n", -1)).await.expect_err("is refused");
        assert!(matches!(refusal, Refusal::RolledBack { retry_after: Some(_), .. }), "{mode:?}: {refusal:?}");
        assert_eq!(rig.store("graph").n("a"), None, "{mode:?}");
        assert!(rig.plane.ledger().is_empty(), "{mode:?}");
        assert_eq!(rig.put("a", 2).await.expect("a new try gets through").held, Held::Committed);
        assert_eq!((rig.store("graph").n("a"), rig.store("vector").n("a")), (Some(2), Some(2)), "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_store_alone_is_no_exception() {
    let rig = Rig::one().await;
    rig.store("engine").put(Record::new("a").with("n", -1), Version(1_000_000_000));
    rig.put("a", 1).await.expect_err("is refused");
    rig.put("a", 2).await.expect("a new try gets through");
    assert_eq!(rig.store("engine").n("a"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_owed_write_that_a_foreign_version_swallows_is_a_dead_letter_however_often_it_is_tried() {
    let rig = Rig::two().await;
    rig.mode(Mode::LocalStorage).await;
    let write = put("a", 1);
    rig.write(write.clone()).await.expect("is queued");
    rig.store("vector").put(Record::new("a").with("n", -1), Version(1_000_000_000));
    rig.mode(Mode::QueueWrites).await;
    rig.drain(SECOND).await;
    for _ in 0..2 {
        assert!(matches!(rig.handle().outcome(write.operation), Outcome::DeadLetter { .. }));
        assert!(rig.handle().retry_dead_letter(write.operation, "vector".into()).await.expect("is written down"));
        rig.drain(SECOND).await;
    }
    assert!(matches!(rig.handle().outcome(write.operation), Outcome::DeadLetter { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_swallowed_in_part_is_undone_whole() {
    let rig = Rig::two().await;
    let batch = Write::store_batch([Record::new("a").with("n", 1), Record::new("b").with("n", 1)]);
    overtaken(&rig, batch, Record::new("b").with("n", -1)).await.expect_err("is refused");
    rig.drain(SECOND).await;
    for (store, b) in [("graph", None), ("vector", Some(-1))] {
        assert_eq!((rig.store(store).n("a"), rig.store(store).n("b")), (None, b), "{store}");
    }
    assert!(rig.plane.ledger().is_empty(), "{:?}", rig.plane.ledger().dead_letters());
}

#[tokio::test(start_paused = true)]
async fn an_absurd_version_does_not_use_the_versions_up() {
    let rig = Rig::two().await;
    rig.store("vector").put(Record::new("a"), Version(u64::MAX));
    rig.put("a", 1).await.expect_err("is refused");
    let before = rig.put("b", 1).await.expect("is stored").version;
    let after = rig.put("b", 2).await.expect("is stored").version;
    assert!(before < after && after.0 < u64::MAX / 2, "{before} {after}");
}
