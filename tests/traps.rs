//! The traps that stores and queues fall into, and the tests that keep them shut.
//!
//! [`TRAPS`] names at least one test for each; those that fit nowhere else are here.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use seawall::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, FencedWrite, Health, Stored,
};
use seawall::backends::{Fault, Op, VectorBackend, VectorConfig};
use seawall::breaker::BreakerState;
use seawall::config::Config;
use seawall::event::{EventKind, Update};
use seawall::fallback::Mode;
use seawall::operation::{Held, Outcome, Version, Write};
use seawall::record::Key;
use support::{History, Rig, Site, n, record, refused, until};

/// A trap, and the tests that name it: `file::test`.
const TRAPS: [(&str, &[&str]); 26] = [
    (
        "1: a direct write passes an older one that is queued",
        &[
            "tests/p04_the_last_acknowledged_write_of_a_key_wins.rs::a_write_after_a_queued_one_waits_behind_it_although_the_store_is_back",
            "tests/p04_the_last_acknowledged_write_of_a_key_wins.rs::a_direct_write_behind_a_queued_one_waits_in_every_mode",
        ],
    ),
    (
        "2: a read gives the store's old value while a newer write is queued",
        &[
            "tests/p05_a_read_gives_what_was_acknowledged.rs::in_every_mode_and_state_a_write_is_read_back",
            "tests/p05_a_read_gives_what_was_acknowledged.rs::the_next_process_reads_what_the_last_one_acknowledged",
        ],
    ),
    (
        "3: a timeout is taken for a failure",
        &[
            "tests/p02_a_write_is_in_every_store_or_in_none.rs::a_leg_that_was_done_though_its_reply_was_lost_is_undone_as_well",
            "tests/p02_a_write_is_in_every_store_or_in_none.rs::a_lost_reply_that_a_retry_clears_up_is_a_commit",
        ],
    ),
    (
        "4: a zombie lands after a newer write",
        &[
            "tests/p04_the_last_acknowledged_write_of_a_key_wins.rs::a_zombie_that_lands_after_a_newer_write_changes_nothing",
            "tests/p04_the_last_acknowledged_write_of_a_key_wins.rs::a_zombie_that_lands_after_a_delete_does_not_bring_the_record_back",
        ],
    ),
    (
        "5: a crash between the store's commit and the queue's",
        &[
            "tests/kills.rs::traps_05_and_09_a_service_that_is_killed_at_any_moment_loses_nothing",
            "tests/p09_a_restart_remembers.rs::every_record_of_the_journal_may_be_the_last_before_a_crash",
        ],
    ),
    (
        "6: the undo fails",
        &[
            "tests/traps.rs::trap_06_an_undo_that_fails_is_tried_until_it_works_and_costs_nothing_while_the_breaker_is_open",
            "tests/traps.rs::trap_06_an_undo_that_is_rejected_waits_for_a_person_and_is_never_lost",
        ],
    ),
    (
        "7: the undo goes over a newer write",
        &[
            "tests/p02_a_write_is_in_every_store_or_in_none.rs::an_undo_does_not_overwrite_a_later_write",
            "tests/p02_a_write_is_in_every_store_or_in_none.rs::an_undo_that_lands_late_does_not_overwrite_a_later_write",
        ],
    ),
    (
        "8: an action arrives after its undo",
        &[
            "tests/p02_a_write_is_in_every_store_or_in_none.rs::a_zombie_that_lands_after_the_undo_changes_nothing",
            "runtime/src/backends/records/tests.rs::a_compensation_that_comes_first_keeps_its_write_from_landing_later",
        ],
    ),
    (
        "9: killed in the middle of a drain",
        &["tests/kills.rs::traps_05_and_09_a_service_that_is_killed_at_any_moment_loses_nothing"],
    ),
    (
        "10: unlinked before the cursor is durable",
        &[
            "runtime/src/journal/tests/failure.rs::a_generation_is_unlinked_after_the_mark_is_synced",
            "runtime/src/journal/tests/model.rs::it_keeps_what_a_plain_list_would",
        ],
    ),
    (
        "11: the queue is full",
        &[
            "tests/p06_nothing_grows_without_bound_or_is_dropped_in_silence.rs::a_queue_that_is_full_refuses_and_loses_nothing",
            "tests/p06_nothing_grows_without_bound_or_is_dropped_in_silence.rs::dead_letters_fill_the_queue_and_push_nothing_out",
            "tests/io_errors.rs::trap_11_a_disk_that_is_really_full_refuses_and_goes_on_when_there_is_room",
        ],
    ),
    (
        "12: a poison write blocks the others",
        &[
            "tests/p06_nothing_grows_without_bound_or_is_dropped_in_silence.rs::a_write_that_a_store_will_never_take_is_a_dead_letter_that_blocks_nobody",
            "tests/p06_nothing_grows_without_bound_or_is_dropped_in_silence.rs::what_follows_a_dead_letter_waits_if_it_says_a_part_and_passes_if_it_says_all",
        ],
    ),
    (
        "13: an outage is counted as poison",
        &["tests/p06_nothing_grows_without_bound_or_is_dropped_in_silence.rs::a_long_outage_makes_no_dead_letter"],
    ),
    (
        "14: the clock jumps",
        &[
            "actors/src/fallback/tests/actor.rs::trap_14_waits_follow_the_monotonic_clock_alone",
            "tests/traps.rs::trap_14_nothing_that_decides_looks_at_the_clock_on_the_wall",
        ],
    ),
    (
        "15: a cached record masks a delete, or outlives it",
        &[
            "tests/p04_the_last_acknowledged_write_of_a_key_wins.rs::a_delete_while_the_stores_are_down_outlives_restart_cache_and_replay",
            "actors/src/fallback/tests/cache.rs::trap_15_a_delete_masks_the_record_for_longer_than_the_record_would_have_lived",
        ],
    ),
    (
        "16: a slow fill puts an old record into the cache",
        &[
            "actors/src/fallback/tests/cache.rs::trap_16_no_schedule_of_readers_writers_and_evictions_leaves_an_old_record_behind",
            "tests/p05_a_read_gives_what_was_acknowledged.rs::a_slow_read_of_the_old_value_does_not_spoil_the_cache",
        ],
    ),
    ("17: the herd", &["tests/traps.rs::trap_17_a_store_that_comes_back_is_not_run_over"]),
    ("18: probes succeed, writes fail", &["tests/traps.rs::trap_18_a_probe_that_lies_costs_little_and_loses_nothing"]),
    (
        "19: a failed sync is swallowed or tried again",
        &[
            "runtime/src/journal/tests/sweep.rs::trap_19_whatever_step_of_the_disk_fails_nothing_acknowledged_is_lost",
            "runtime/src/journal/tests/sweep.rs::trap_19_whichever_write_is_short_nothing_acknowledged_is_lost",
            "runtime/src/backends/records/tests.rs::trap_19_whatever_step_of_the_disk_fails_what_was_applied_is_there",
            "tests/io_errors.rs::trap_19_a_failing_disk_is_heard_of_and_lowers_the_mode_until_it_heals",
        ],
    ),
    (
        "20: a cut tail hides a loss",
        &[
            "runtime/src/journal/tests/sweep.rs::trap_20_every_byte_and_every_length_of_a_journal_is_accounted_for",
            "tests/power_loss.rs::a_power_cut_loses_nothing_that_was_acknowledged",
        ],
    ),
    (
        "21: a change of the mode, or a death, lets a write pass another",
        &[
            "tests/modes.rs::modes_that_change_in_the_middle_of_everything_leave_the_stores_equal",
            "tests/actors.rs::under_load_every_actor_is_killed_hundreds_of_times_and_every_request_is_answered",
        ],
    ),
    (
        "22: coalescing takes one leg of a write and not the other",
        &["tests/p04_the_last_acknowledged_write_of_a_key_wins.rs::a_batch_is_never_coalesced_apart"],
    ),
    (
        "23: what a mode kept is never given to the stores, or given over newer data",
        &[
            "tests/modes.rs::from_every_mode_to_every_mode_with_writes_pending",
            "tests/modes.rs::from_every_mode_to_every_mode_over_a_restart",
            "tests/modes.rs::each_of_the_25_changes_keeps_what_both_modes_promise",
            "tests/modes.rs::each_of_the_25_changes_and_then_a_crash_keeps_what_is_durable",
        ],
    ),
    ("24: two processes, one directory", &["runtime/src/journal/tests/damage.rs::a_journal_that_is_open_is_locked"]),
    (
        "25: the format changes between write and replay",
        &["runtime/src/journal/tests/format.rs::format_1_is_what_the_golden_file_says"],
    ),
    (
        "26: an older saved breaker replaces a newer one",
        &[
            "actors/src/breaker/tests/persistence.rs::trap_13_an_older_save_never_replaces_a_newer_one",
            "actors/src/breaker/tests/persistence.rs::nothing_is_saved_without_a_transition",
        ],
    ),
];

#[test]
fn every_trap_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (at, (trap, tests)) in TRAPS.iter().enumerate() {
        assert!(trap.starts_with(&format!("{}:", at + 1)) && !tests.is_empty(), "{trap}");
        for test in *tests {
            support::assert_is_a_test(root, test);
        }
    }
}

/// Leaves an undo owed by the graph: it took the write, the vector store did not, and then the graph failed.
async fn owing_an_undo(rig: &Rig, then: Fault) -> seawall::operation::OperationId {
    rig.handle().store(record("a", 1)).await.expect("is stored");
    rig.vector.faults.set(Op::Apply, Fault::Error(ErrorKind::Permanent));
    rig.graph.faults.next(Op::Apply, 1, Fault::None);
    rig.graph.faults.set(Op::Apply, then);
    let write = Write::store(record("a", 2));
    let operation = write.operation;
    refused(rig.handle().write(write).await);
    assert_eq!(n(rig.graph.record("a").await), Some(2), "the test is right about where things stand");
    operation
}

#[tokio::test(start_paused = true)]
async fn trap_06_an_undo_that_fails_is_tried_until_it_works_and_costs_nothing_while_the_breaker_is_open() {
    for failing_for in [0, 1, 10, 300, 86_400] {
        let rig = Rig::start().await;
        let operation = owing_an_undo(&rig, Fault::Down).await;
        rig.vector.heal();
        tokio::time::sleep(Duration::from_secs(failing_for)).await;
        let outcome = rig.handle().outcome(operation);
        assert!(matches!(outcome, Outcome::Compensating { .. }), "after {failing_for} s: {outcome:?}");
        rig.breaker(&rig.graph).force_open("a test", None);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = rig.graph.faults.counts().of(Op::Apply).made;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(rig.graph.faults.counts().of(Op::Apply).made, before, "an open breaker is asked for nothing");
        assert_eq!(rig.handle().status().dead_letters, 0, "an outage is no reason to give up");
        rig.recover().await;
        assert_eq!(n(rig.both("a").await), Some(1));
        assert!(matches!(rig.handle().outcome(operation), Outcome::RolledBack(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn trap_06_an_undo_that_is_rejected_waits_for_a_person_and_is_never_lost() {
    let mut rig = Rig::start().await;
    let operation = owing_an_undo(&rig, Fault::Error(ErrorKind::Permanent)).await;
    rig.vector.heal();
    until("it is a dead letter", || rig.handle().status().dead_letters == 1).await;
    rig.restart().await;
    // It may have died before that was written down; then it is found out again.
    until("it is a dead letter again", || rig.handle().status().dead_letters == 1).await;
    let letters = rig.handle().dead_letters();
    assert!(letters.len() == 1 && letters[0].undo && letters[0].operation == operation, "{letters:?}");
    [&rig.graph, &rig.vector].into_iter().for_each(Site::heal);
    assert!(rig.handle().retry_dead_letter(operation, "graph".into()).await.expect("is written down"));
    rig.quiet().await;
    assert_eq!(n(rig.both("a").await), Some(1));
    assert!(matches!(rig.handle().outcome(operation), Outcome::RolledBack(_)));
}

/// Clocks on the wall appear in ids (which are only unique), in logs and in what people read; never in what decides.
/// Except for `opened_at` of document 003, which is such a time: what is read from it is never longer than the wait
/// that is configured, and is only used where another program wrote the record.
#[test]
fn trap_14_nothing_that_decides_looks_at_the_clock_on_the_wall() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/src")];
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/src"));
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the sources are there").flatten() {
            let path = entry.path();
            // These write it down as a label.
            if path.ends_with("breakers/redis") || path.ends_with("journal/retention.rs") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source is text");
                for wall in ["SystemTime::now", "UNIX_EPOCH.elapsed", "chrono", "OffsetDateTime", "get_timestamp"] {
                    assert!(!text.contains(wall), "{} asks for the time on the wall: {wall}", path.display());
                }
                files += 1;
            }
        }
    }
    assert!(files > 50);
}

/// A store that breaks down when more calls are in it than it can bear.
struct Fragile {
    inner: VectorBackend,
    bears: usize,
    inside: AtomicUsize,
    broke: AtomicUsize,
}

#[async_trait]
impl Backend for Fragile {
    fn name(&self) -> BackendName {
        "vector".into()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.inside.fetch_sub(1, Ordering::SeqCst);
        if inside > self.bears {
            self.broke.fetch_add(1, Ordering::SeqCst);
            return Err(BackendError::transient("overrun"));
        }
        self.inner.apply(write).await
    }
    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.inner.read(keys).await
    }
    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }
    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.inner.newest_version().await
    }
}

/// A store that bears a fifth more than the drain and the users together are allowed is not run over, a hundred times;
/// the drain begins with one step, and users do not wait for it.
#[tokio::test(start_paused = true)]
async fn trap_17_a_store_that_comes_back_is_not_run_over() {
    const USERS: usize = 4;
    let mut config = Config::default();
    config.sync.concurrency = 16;
    let fragile = Arc::new(Fragile {
        inner: VectorBackend::in_memory(VectorConfig::default()),
        bears: (16 + USERS) * 6 / 5,
        inside: AtomicUsize::new(0),
        broke: AtomicUsize::new(0),
    });
    let vector = Site::new("vector", Arc::clone(&fragile) as _);
    let rig = Rig::over(Site::graph(), vector, config).await;
    rig.mode(Mode::QueueWrites).await;
    let mut slowest = Duration::ZERO;
    for recovery in 0..100_u64 {
        rig.shut(&rig.vector).await;
        for k in 0..200 {
            rig.handle().store(record(&format!("k{k}"), recovery)).await.expect("is queued");
        }
        rig.breaker(&rig.vector).reset();
        let handle = rig.handle();
        let users = (0..USERS).map(|user| {
            let handle = handle.clone();
            async move {
                let mut slowest = Duration::ZERO;
                for k in 0..20 {
                    let asked = tokio::time::Instant::now();
                    handle.store(record(&format!("user-{user}-{k}"), recovery)).await.expect("is taken");
                    slowest = slowest.max(asked.elapsed());
                }
                slowest
            }
        });
        slowest = futures::future::join_all(users).await.into_iter().fold(slowest, Duration::max);
        rig.quiet().await;
        assert_eq!(rig.breaker(&rig.vector).view().state, BreakerState::Closed, "recovery {recovery}");
    }
    assert_eq!(fragile.broke.load(Ordering::SeqCst), 0);
    assert!(slowest <= Duration::from_millis(50), "a user waited {slowest:?} for a store that takes 5 ms");
    assert_eq!(n(rig.both("k7").await), Some(99));
}

/// For an hour probes say that all is well, and every write fails. The store is not hammered, nothing is lost or given
/// up, and the breaker changes its mind no more often than its wait lets it.
#[tokio::test(start_paused = true)]
async fn trap_18_a_probe_that_lies_costs_little_and_loses_nothing() {
    for error in [ErrorKind::Transient, ErrorKind::Unknown, ErrorKind::ReadOnly] {
        let rig = Rig::in_mode(Mode::QueueWrites).await;
        let mut history = History::default();
        rig.vector.faults.set(Op::Apply, Fault::Error(error));
        let mut events = rig.runtime().subscribe();
        let (mut opened, mut told, mut all) = (0, 0, 0);
        for n in 0..120 {
            let receipt = history.write(&rig.handle(), record(&format!("k{n}"), n)).await.expect("is queued");
            assert!(matches!(receipt.held, Held::Queued { .. }), "{receipt:?}");
            tokio::time::sleep(Duration::from_secs(30)).await;
            while let Some(update) = events.try_next() {
                let Update::Event(event) = update else { panic!("{update:?}") };
                all += 1;
                match &event.kind {
                    EventKind::BreakerChanged { to: BreakerState::Open, .. } => opened += 1,
                    EventKind::AccessChanged { .. } | EventKind::LevelChanged { .. } => told += 1,
                    _ => {}
                }
            }
        }
        let asked = rig.vector.faults.counts().of(Op::Apply).made;
        println!("{error:?}: opened {opened}, told {told}, events {all}, asked {asked}");
        assert!(opened <= 61, "{error:?}: opened {opened} times in an hour");
        assert!(asked <= 1_500, "{error:?}: {asked} writes were tried in an hour");
        assert_eq!(rig.handle().status().dead_letters, 0, "{error:?}");
        rig.recover().await;
        history.assert_held(&rig).await;
    }
}
