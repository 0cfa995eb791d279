//! Opening: what is there, what should be there, and what is done about the difference.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use seawall_actors::journal::{Intent, JournalRecord, LossReport};
use seawall_actors::operation::Version;

use super::codec::{Encoded, Meaning};
use super::generation::{self, Generation, Scan};
use super::index::Index;
use super::mark::{self, Mark, MarkFile};
use super::retention::Retention;
use super::row::Packer;
use super::{JournalOpenError, OnDamage, Recovered, Settings};
use crate::guard::{GuardError, GuardedDb, OpenError, create_dir_durably, pause, quarantine, sync_dir};

/// Bytes of records that are written in one commit when survivors are put in order.
const REWRITE_BYTES: usize = 4 << 20;

/// A journal that is open and consistent.
pub(super) struct Opened {
    pub(super) lock: File,
    pub(super) generations: Vec<Generation>,
    /// The newest generation.
    pub(super) db: GuardedDb,
    pub(super) mark: MarkFile,
    pub(super) index: Index,
    pub(super) next_row: u64,
    pub(super) next_lsn: u64,
    pub(super) recovered: Recovered,
}

/// A readable record and where it was found.
struct Survivor {
    lsn: u64,
    generation: u64,
    record: JournalRecord,
}

/// All that was found in the directory.
#[derive(Default)]
struct Survey {
    mark: Mark,
    mark_found: bool,
    mark_unreadable: bool,
    /// Directories that the mark says are no longer needed.
    finished: Vec<u64>,
    generations: Vec<Generation>,
    /// Those of the generations that are to be moved aside.
    damaged: Vec<u64>,
    /// The newest one, should it open.
    newest: Option<GuardedDb>,
    /// A newest one that does not open and in which nothing was ever acknowledged.
    unborn: Option<u64>,
    survivors: Vec<Survivor>,
    lost: Vec<(u64, u64)>,
    findings: Vec<String>,
    /// The row after the last one that was found or acknowledged.
    end: u64,
}

pub(super) fn open(dir: &Path, settings: &Settings, on_damage: OnDamage) -> Result<Opened, JournalOpenError> {
    let io = |source| JournalOpenError::Io { dir: dir.to_owned(), source };
    create_dir_durably(dir).map_err(io)?;
    let lock = lock(dir, settings.config.lock_patience)?;
    let mut survey = survey(dir, settings)?;
    let (index, next_lsn) = settle(&mut survey, settings);
    let repaired = if survey.findings.is_empty() {
        resume(dir, settings, survey, index, next_lsn)
    } else if on_damage == OnDamage::Refuse {
        return Err(JournalOpenError::Damaged { dir: dir.to_owned(), report: survey.report(Vec::new()) });
    } else {
        repair(dir, settings, survey, next_lsn)
    };
    let (Parts { generations, db, mark, index, next_row, next_lsn }, recovered) =
        repaired.map_err(|error| error.at(dir))?;
    Ok(Opened { lock, generations, db, mark, index, next_row, next_lsn, recovered })
}

/// What an open consists of, before it is handed over.
struct Parts {
    generations: Vec<Generation>,
    db: GuardedDb,
    mark: MarkFile,
    index: Index,
    next_row: u64,
    next_lsn: u64,
}

fn lock(dir: &Path, patience: Duration) -> Result<File, JournalOpenError> {
    let io = |source| JournalOpenError::Io { dir: dir.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(io)?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) if waited >= patience => {
                return Err(JournalOpenError::Locked { dir: dir.to_owned() });
            }
            Err(TryLockError::WouldBlock) => {
                let wait = Duration::from_millis(10);
                pause(wait);
                waited += wait;
            }
        }
    }
}

fn survey(dir: &Path, settings: &Settings) -> Result<Survey, JournalOpenError> {
    let io = |source| JournalOpenError::Io { dir: dir.to_owned(), source };
    let firsts = generation::list(dir).map_err(io)?;
    let mut survey = Survey::default();
    match mark::find(dir).map_err(io)? {
        mark::Found::Mark(mark) => {
            survey.mark = mark;
            survey.mark_found = true;
        }
        mark::Found::Nothing if firsts.is_empty() => survey.mark.first = 1,
        mark::Found::Nothing => survey.findings.push("the mark is missing: rows at the end may be, too".into()),
        mark::Found::Unreadable => {
            survey.mark_unreadable = true;
            survey.findings.push("the mark is unreadable: rows at the end may be missing".into());
        }
    }
    let (finished, chain): (Vec<u64>, Vec<u64>) = firsts.into_iter().partition(|first| *first < survey.mark.first);
    survey.finished = finished;
    let acknowledged = survey.mark.row;
    survey.end = acknowledged + 1;
    let expected = survey.mark.first;
    if survey.mark_found && expected <= acknowledged && chain.first().is_none_or(|first| *first > expected) {
        let last = chain.first().map_or(acknowledged, |first| first - 1);
        survey.lost.push((expected, last));
        survey.findings.push(format!("the generation of rows {expected} to {last} is missing"));
    }
    for (at, first) in chain.iter().enumerate() {
        survey.visit(dir, settings, *first, chain.get(at + 1).copied())?;
    }
    survey.end = survey.end.max(chain.last().copied().unwrap_or(1)).max(1);
    Ok(survey)
}

impl Survey {
    fn visit(
        &mut self,
        dir: &Path,
        settings: &Settings,
        first: u64,
        until: Option<u64>,
    ) -> Result<(), JournalOpenError> {
        let acknowledged = self.mark.row;
        let db = match generation::open(dir, first, &settings.guard) {
            Ok(db) => db,
            Err(OpenError::Damaged { reason, .. }) => {
                if self.mark_found && until.is_none() && acknowledged < first {
                    self.unborn = Some(first);
                } else {
                    self.unopenable(first, until.unwrap_or(acknowledged + 1), &reason);
                }
                return Ok(());
            }
            Err(error) => return Err(JournalOpenError::from_guard(error, dir)),
        };
        let Scan { records, lost, findings, end } = generation::scan(&db, first, until, acknowledged);
        self.end = self.end.max(end);
        self.generations.push(Generation { first, records: records.len(), bytes: db.size_on_disk() });
        let found = records.into_iter().map(|(lsn, record)| Survivor { lsn, generation: first, record });
        self.survivors.extend(found);
        self.let_go_of_payloads();
        if !findings.is_empty() {
            self.damaged.push(first);
            self.lost.extend(lost);
            self.findings.extend(findings.into_iter().map(|finding| format!("generation {first}: {finding}")));
        }
        if until.is_none() {
            self.newest = Some(db);
        }
        Ok(())
    }

    /// What is closed is not needed: only that it was there. Finished entries that are kept on disk are not to fill
    /// the memory.
    fn let_go_of_payloads(&mut self) {
        let closings = self.survivors.iter().filter_map(|survivor| match survivor.record {
            JournalRecord::Closed { version, .. } => Some((version, survivor.lsn)),
            _ => None,
        });
        let mut closed: HashMap<Version, u64> = HashMap::new();
        for (version, lsn) in closings {
            let last = closed.entry(version).or_default();
            *last = lsn.max(*last);
        }
        for survivor in &mut self.survivors {
            let (JournalRecord::Intent(intent) | JournalRecord::Redriven(intent)) = &mut survivor.record else {
                continue;
            };
            if !intent.changes.is_empty() && closed.get(&intent.version).is_some_and(|last| *last > survivor.lsn) {
                let Intent { version, operation, priority, .. } = **intent;
                let (changes, owes, undo) = (Arc::from([]), Vec::new(), Vec::new());
                let empty = Intent { version, operation, priority, changes, owes, undo };
                *intent = Arc::new(empty);
            }
        }
    }

    fn unopenable(&mut self, first: u64, until: u64, reason: &str) {
        self.damaged.push(first);
        if until > first {
            self.lost.push((first, until - 1));
        }
        self.findings.push(format!("generation {first} does not open: {reason}"));
    }

    fn report(&self, quarantined: Vec<String>) -> LossReport {
        let mut rows: Vec<(u64, u64)> = Vec::new();
        let mut lost = self.lost.clone();
        lost.sort_unstable();
        for (from, to) in lost {
            match rows.last_mut() {
                Some((_, end)) if from <= *end + 1 => *end = to.max(*end),
                _ => rows.push((from, to)),
            }
        }
        LossReport { rows, quarantined, findings: self.findings.clone() }
    }
}

/// Brings the survivors into the order in which they were appended, and leaves only what is still needed. Gives
/// the place of the next record, too.
fn settle(survey: &mut Survey, settings: &Settings) -> (Index, u64) {
    // The first row there ever was is in it.
    let whole = survey.mark.first == 1;
    let survivors = &mut survey.survivors;
    survivors.sort_by_key(|survivor| (survivor.lsn, survivor.generation));
    survivors.dedup_by(|next, kept| {
        let same = next.lsn == kept.lsn;
        if same {
            std::mem::swap(next, kept);
        }
        same
    });
    let mut index = Index::new(settings.config.outcomes, Retention::new(settings.config.retention, whole));
    for Survivor { lsn, generation, record } in survivors.iter() {
        index.add(*lsn, *generation, Meaning::of(record));
    }
    let next_lsn = survivors.last().map_or(0, |last| last.lsn + 1);
    survivors.retain(|Survivor { lsn, generation, record }| index.is_needed_in(*generation, *lsn, Meaning::of(record)));
    (index, next_lsn)
}

/// Nothing is wrong: goes on where the journal stopped.
fn resume(
    dir: &Path,
    settings: &Settings,
    survey: Survey,
    index: Index,
    next_lsn: u64,
) -> Result<(Parts, Recovered), RepairError> {
    let reserved = index.reserved().0.max(survey.mark.reserved);
    let mut generations = survey.generations;
    let first = generations.first().map_or(survey.end, |oldest| oldest.first);
    // The mark first: from here on a generation without a mark is damage.
    let mark = MarkFile::create(dir, Mark { row: survey.end - 1, first, reserved })?;
    for finished in survey.finished.iter().chain(&survey.unborn) {
        fs::remove_dir_all(generation::path(dir, *finished))?;
        sync_dir(dir)?;
    }
    let db = match survey.newest {
        Some(db) => db,
        None => {
            let db = generation::open(dir, survey.end, &settings.guard)?;
            generations.push(Generation { first: survey.end, records: 0, bytes: db.size_on_disk() });
            db
        }
    };
    let mut records: Vec<JournalRecord> = survey.survivors.into_iter().map(|survivor| survivor.record).collect();
    if reserved > index.reserved().0 {
        records.push(JournalRecord::Reserved { up_to: Version(reserved) });
    }
    let parts = Parts { generations, db, mark, index, next_row: survey.end, next_lsn };
    Ok((parts, Recovered { records, loss: LossReport::default() }))
}

/// Writes what survived into a new generation, moves aside what is damaged, and removes the rest. The damage stays
/// visible to the next open until all of it is done.
fn repair(
    dir: &Path,
    settings: &Settings,
    mut survey: Survey,
    mut next_lsn: u64,
) -> Result<(Parts, Recovered), RepairError> {
    survey.newest = None;
    let occupied = generation::path(dir, survey.end).exists();
    let first = if occupied { survey.end + 1 } else { survey.end };
    let db = generation::open(dir, first, &settings.guard)?;
    let mut survivors = std::mem::take(&mut survey.survivors);
    let kept = survivors.iter().filter_map(|survivor| match survivor.record {
        JournalRecord::Reserved { up_to } => Some(up_to.0),
        _ => None,
    });
    let kept = kept.max().unwrap_or(0);
    let reserved = kept.max(survey.mark.reserved);
    if reserved > kept {
        let record = JournalRecord::Reserved { up_to: Version(reserved) };
        survivors.push(Survivor { lsn: next_lsn, generation: first, record });
        next_lsn += 1;
    }
    let mut index = Index::new(settings.config.outcomes, Retention::new(settings.config.retention, false));
    let next_row = rewrite(&db, first, &survivors, &mut index)?;
    let mut quarantined = Vec::new();
    for damaged in &survey.damaged {
        quarantined.push(set_aside(dir, &generation::path(dir, *damaged))?);
    }
    if survey.mark_unreadable {
        quarantined.push(set_aside(dir, &mark::path(dir))?);
    }
    let mark = MarkFile::create(dir, Mark { row: next_row - 1, first, reserved })?;
    let healthy = survey.generations.iter().map(|old| old.first).filter(|old| !survey.damaged.contains(old));
    for old in healthy.chain(survey.finished.iter().copied()).chain(survey.unborn) {
        fs::remove_dir_all(generation::path(dir, old))?;
        sync_dir(dir)?;
    }
    let generations = vec![Generation { first, records: survivors.len(), bytes: db.size_on_disk() }];
    let loss = survey.report(quarantined);
    let records = survivors.into_iter().map(|survivor| survivor.record).collect();
    Ok((Parts { generations, db, mark, index, next_row, next_lsn }, Recovered { records, loss }))
}

/// Writes records into a new generation; gives the row after the last.
fn rewrite(db: &GuardedDb, first: u64, survivors: &[Survivor], index: &mut Index) -> Result<u64, RepairError> {
    let mut packer = Packer::new(first);
    let mut bytes = 0;
    for survivor in survivors {
        let encoded = Encoded::of(&survivor.record).map_err(io::Error::other)?;
        bytes += encoded.bytes.len();
        packer.push(survivor.lsn, &encoded.bytes);
        index.add(survivor.lsn, first, encoded.meaning);
        if bytes >= REWRITE_BYTES {
            let (batch, next) = packer.finish();
            db.commit(batch)?;
            packer = Packer::new(next);
            bytes = 0;
        }
    }
    let (batch, next) = packer.finish();
    db.commit(batch)?;
    Ok(next)
}

fn set_aside(dir: &Path, what: &Path) -> io::Result<String> {
    let target = quarantine(what)?;
    Ok(target.strip_prefix(dir).unwrap_or(&target).display().to_string())
}

/// What can go wrong once it is clear what has to be done.
enum RepairError {
    Open(OpenError),
    Write(GuardError),
    Io(io::Error),
}

impl RepairError {
    fn at(self, dir: &Path) -> JournalOpenError {
        let source = match self {
            Self::Open(error) => return JournalOpenError::from_guard(error, dir),
            Self::Write(error) => io::Error::other(error),
            Self::Io(error) => error,
        };
        JournalOpenError::Io { dir: dir.to_owned(), source }
    }
}

impl From<OpenError> for RepairError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<GuardError> for RepairError {
    fn from(error: GuardError) -> Self {
        Self::Write(error)
    }
}

impl From<io::Error> for RepairError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
