//! Finished entries stay for a time, with the generations that hold them.
//!
//! Nothing is copied and nothing is held in memory for that: a generation just goes later. Time is kept twice. The wall
//! clock may jump, so it never decides alone; the time for which the journal ran does not, and decides when something
//! goes. A [`Tick`](seawall_actors::journal::JournalRecord::Tick) now and then says both, as the latest moment of
//! everything before it. Where the two disagree about what is asked for, the earlier beginning is taken.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use seawall_actors::journal::{JournalError, Retained, RetentionError};
use tokio::time::Instant;

use super::generation;
use super::inbox::{Command, RetainedReply};
use crate::guard::GuardOptions;

/// One tick a second at the most, in milliseconds, and about a thousand in the time for which entries are kept.
const TICK: u64 = 1_000;
const TICKS: u64 = 1_000;

/// A moment, in milliseconds: by the wall clock since 1970, and by how long the journal has been open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) wall: u64,
    pub(super) ran: u64,
}

/// What time it is, and for how long a journal has been open since it was opened last.
pub(super) type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// The clock of this machine, from now on.
pub(super) fn clock() -> Clock {
    let opened = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "a label, which decides nothing alone")]
    let wall = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Arc::new(move || Moment { wall: millis(wall()), ran: millis(opened.elapsed()) })
}

impl Moment {
    pub(super) fn wall_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.wall)
    }

    fn later(self, other: Self) -> Self {
        Self { wall: self.wall.max(other.wall), ran: self.ran.max(other.ran) }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// From when on somebody wants to have finished entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    wall: u64,
    ran: u64,
}

impl Since {
    pub(super) fn new(since: SystemTime, now: Moment) -> Self {
        let wall = millis(since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        Self { wall, ran: now.ran.saturating_sub(now.wall.saturating_sub(wall)) }
    }

    /// Whether what happened at this moment at the latest may have happened since.
    fn reaches(self, latest: Moment) -> bool {
        latest.wall >= self.wall || latest.ran >= self.ran
    }
}

/// What a generation is kept for.
#[derive(Debug, Default)]
struct Held {
    /// When the last of its entries was finished, or the last of those that were finished in it.
    last: Moment,
    /// Entries that were begun in it and are finished.
    entries: u64,
}

/// Which generations hold finished entries that are to stay. Memory follows the generations, not the entries.
#[derive(Debug)]
pub(super) struct Retention {
    keep: Duration,
    held: BTreeMap<u64, Held>,
    /// Where ticks lie: place in the log, generation, and what they say.
    ticks: VecDeque<(u64, u64, Moment)>,
    /// Now, as far as is known.
    pub(super) now: Moment,
    /// The latest moment at which something that is not there any more may have been finished.
    missing: Option<Moment>,
    /// Something before the next tick is missing.
    undated: bool,
}

impl Retention {
    /// For entries that are kept for so long. `whole` says that the log is there from its first record on.
    pub(super) fn new(keep: Duration, whole: bool) -> Self {
        Self {
            keep,
            held: BTreeMap::new(),
            ticks: VecDeque::new(),
            now: Moment::default(),
            missing: None,
            undated: !whole,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.keep.is_zero()
    }

    /// For how many milliseconds a tick is good.
    pub(super) fn interval(&self) -> u64 {
        (millis(self.keep) / TICKS).max(TICK)
    }

    pub(super) fn tick(&mut self, lsn: u64, generation: u64, moment: Moment) {
        self.now = self.now.later(moment);
        self.ticks.push_back((lsn, generation, moment));
        if std::mem::take(&mut self.undated) {
            self.miss(moment);
        }
    }

    /// An entry was finished in a generation; `begun` where its intent is. Without one it cannot be had again.
    pub(super) fn finished(&mut self, begun: Option<u64>, generation: u64) {
        if !self.is_on() {
            return;
        }
        let now = self.now;
        match begun {
            Some(begun) => {
                let held = self.held.entry(begun).or_default();
                (held.last, held.entries) = (held.last.later(now), held.entries + 1);
            }
            None => self.undated = true,
        }
        let held = self.held.entry(generation).or_default();
        held.last = held.last.later(now);
    }

    /// Whether a generation has to stay for what is finished in it.
    pub(super) fn holds(&self, generation: u64) -> bool {
        self.is_on()
            && self
                .held
                .get(&generation)
                .is_some_and(|held| self.now.ran < held.last.ran.saturating_add(millis(self.keep)))
    }

    /// A generation goes.
    pub(super) fn removed(&mut self, generation: u64) {
        if let Some(held) = self.held.remove(&generation) {
            self.miss(held.last);
        }
        self.ticks.retain(|(_, at, _)| *at != generation);
    }

    fn miss(&mut self, moment: Moment) {
        self.missing = Some(self.missing.map_or(moment, |missing| missing.later(moment)));
    }

    /// Entries that can be had again.
    pub(super) fn entries(&self) -> u64 {
        self.held.values().map(|held| held.entries).sum()
    }

    /// The place in the log from which on everything is wanted.
    ///
    /// # Errors
    /// From when on all is there, when that is later.
    pub(super) fn start(&self, since: Since) -> Result<u64, SystemTime> {
        if self.undated {
            return Err(self.now.wall_time());
        }
        if let Some(missing) = self.missing.filter(|missing| since.reaches(*missing)) {
            return Err(missing.wall_time() + Duration::from_millis(1));
        }
        let after = self.ticks.iter().position(|(_, _, moment)| since.reaches(*moment)).unwrap_or(self.ticks.len());
        // What is after the tick before that one may be as late.
        Ok(after.checked_sub(1).map_or(0, |before| self.ticks[before].0))
    }
}

/// Reads finished entries on a thread of its own, which answers whoever asked and then tells the committer.
///
/// # Errors
/// When there is no thread to be had.
pub(super) fn read_for(
    reply: RetainedReply,
    dir: &Path,
    generations: Vec<(u64, u64)>,
    options: &GuardOptions,
    start: u64,
    to: &Sender<Command>,
) -> Result<JoinHandle<()>, String> {
    let (dir, options, to) = (dir.to_owned(), options.clone(), to.clone());
    let reader = move || {
        let read = catch_unwind(AssertUnwindSafe(|| read(&dir, &generations, &options, start)));
        let read = read.unwrap_or_else(|_| Err(JournalError::Failed("reading finished writes panicked".to_owned())));
        // Whoever asked may have gone, and the committer as well.
        let _ = reply.send(read.map_err(RetentionError::from));
        let _ = to.send(Command::ReadEnded);
    };
    let spawned = std::thread::Builder::new().name("seawall-journal-read".into()).spawn(reader);
    spawned.map_err(|error| error.to_string())
}

/// Reads the finished entries out of sealed generations, each given with its first row and the one after its last.
pub(super) fn read(
    dir: &Path,
    generations: &[(u64, u64)],
    options: &GuardOptions,
    start: u64,
) -> Result<Retained, JournalError> {
    let mut retained = Retained::default();
    for &(first, until) in generations {
        let db = generation::open(dir, first, options).map_err(|error| JournalError::Failed(error.to_string()))?;
        let mut scan = generation::scan(&db, first, Some(until), 0);
        drop(db);
        if let Some(finding) = scan.findings.first() {
            return Err(JournalError::Failed(format!("finished writes cannot be read: {finding}")));
        }
        scan.records.sort_by_key(|(lsn, _)| *lsn);
        for (lsn, record) in scan.records {
            retained.record(record, lsn >= start);
        }
    }
    retained.finish();
    Ok(retained)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn wall(minutes: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(minutes * MINUTE)
    }

    /// Ticks at these minutes of the wall clock, one in each minute that it ran.
    fn ticking(walls: &[u64]) -> (Retention, Moment) {
        let mut retention = Retention::new(Duration::from_secs(3_600), true);
        for (ran, wall) in (1..).zip(walls) {
            retention.tick(ran, 1, Moment { wall: wall * MINUTE, ran: ran * MINUTE });
        }
        let now = retention.ticks.back().map(|(_, _, moment)| *moment).unwrap();
        (retention, now)
    }

    fn start(walls: &[u64], since: u64) -> Result<u64, SystemTime> {
        let (retention, now) = ticking(walls);
        retention.start(Since::new(wall(since), now))
    }

    #[test]
    fn a_replay_begins_at_the_tick_before_what_is_asked_for() {
        let walls = [1_000, 1_001, 1_002, 1_003];
        assert_eq!(start(&walls, 1_002), Ok(2));
        assert_eq!(start(&walls, 1_000), Ok(0));
        assert_eq!(start(&walls, 2_000), Ok(3), "the future begins a little before now");
    }

    #[test]
    fn a_clock_that_jumps_makes_it_begin_earlier_and_never_later() {
        // A year forward: two minutes ago is before the jump.
        assert_eq!(start(&[1_000, 1_001, 500_000], 499_999), Ok(1));
        assert_eq!(start(&[1_000, 1_001, 500_000], 499_998), Ok(0));
        // Back: what was finished when the clock said more comes along, and all that followed.
        assert_eq!(start(&[1_000, 1_001, 900, 901], 1_001), Ok(1));
        assert_eq!(start(&[1_000, 1_001, 900, 901], 901), Ok(0));
    }

    #[test]
    fn only_time_that_it_ran_makes_an_entry_go() {
        let (mut retention, _) = ticking(&[1_000]);
        retention.finished(Some(1), 2);
        retention.tick(5, 2, Moment { wall: 900_000 * MINUTE, ran: 2 * MINUTE });
        assert!(retention.holds(1) && retention.holds(2), "the wall clock says that a year has passed");
        retention.tick(6, 2, Moment { wall: 900_001 * MINUTE, ran: 61 * MINUTE });
        assert!(!retention.holds(1) && !retention.holds(2));
        retention.removed(1);
        let refused = retention.start(Since::new(wall(1_000), retention.now));
        assert_eq!(refused, Err(wall(1_000) + Duration::from_millis(1)));
    }

    #[test]
    fn an_entry_without_its_intent_is_missing_from_before_the_next_tick() {
        let (mut retention, now) = ticking(&[1_000, 1_001]);
        retention.finished(None, 1);
        assert!(retention.start(Since::new(wall(1_001), now)).is_err());
        retention.tick(9, 1, Moment { wall: 1_005 * MINUTE, ran: 6 * MINUTE });
        let now = Moment { wall: 1_006 * MINUTE, ran: 7 * MINUTE };
        assert!(retention.start(Since::new(wall(1_005), now)).is_err());
        assert!(retention.start(Since::new(wall(1_006), now)).is_ok());
    }
}
