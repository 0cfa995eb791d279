//! The one thread that owns sled: gathers, commits, acknowledges, and reopens after a failure.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use seawall_actors::journal::{JournalError, JournalRecord, RetentionError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::codec::{Encoded, Meaning};
use super::generation::{self, Generation};
use super::inbox::{Command, Gathered, Origin, RetainedReply};
use super::index::Index;
use super::mark::{Mark, MarkFile};
use super::reclaim::{self, Reclaim};
use super::recovery::Opened;
use super::retention::{self, Moment, Since};
use super::row::Packer;
use super::{Counters, Settings};
use crate::guard::{GuardedDb, Step, sync_dir};

/// How old the mark on the disk may become.
const MARK_SYNC_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
/// With nothing to do, nothing has to happen; the thread just looks whether that is so.
const IDLE: Duration = Duration::from_secs(3600);

/// The state of the thread.
pub(super) struct Committer {
    dir: PathBuf,
    settings: Settings,
    inbox: Receiver<Command>,
    /// For the thread that reads a generation back.
    own: Sender<Command>,
    counters: Arc<Counters>,
    lock: File,
    generations: Vec<Generation>,
    /// The newest generation; gone while the journal has failed.
    db: Option<GuardedDb>,
    mark: MarkFile,
    mark_synced: Instant,
    index: Index,
    /// The row after the last acknowledged one.
    next_row: u64,
    next_lsn: u64,
    gathered: Gathered,
    /// The thread that reads the oldest generation back, while it does.
    carrying: Option<JoinHandle<()>>,
    /// The oldest generation cannot be read back: it stays until the next open judges it.
    stuck: bool,
    closing: Option<oneshot::Sender<()>>,
    /// Who wants finished entries, while another thread has a generation open.
    asking: VecDeque<(SystemTime, RetainedReply)>,
    /// The thread that reads finished entries, while it does.
    reading: Option<JoinHandle<()>>,
    /// For how many milliseconds this journal had run before it was opened.
    ran_before: u64,
    /// When the last tick was written, in milliseconds for which it has run.
    ticked: Option<u64>,
}

impl Committer {
    pub(super) fn new(
        dir: PathBuf,
        settings: Settings,
        opened: Opened,
        (own, inbox): (Sender<Command>, Receiver<Command>),
        counters: Arc<Counters>,
    ) -> Self {
        let Opened { lock, generations, db, mark, index, next_row, next_lsn, recovered: _ } = opened;
        let ran_before = index.retention.now.ran;
        let committer = Self {
            dir,
            settings,
            inbox,
            own,
            counters,
            lock,
            generations,
            db: Some(db),
            mark,
            mark_synced: Instant::now(),
            index,
            next_row,
            next_lsn,
            gathered: Gathered::default(),
            carrying: None,
            stuck: false,
            closing: None,
            asking: VecDeque::new(),
            reading: None,
            ran_before,
            ticked: None,
        };
        committer.publish();
        committer
    }

    /// Runs until it is told to close.
    pub(super) fn run(mut self) {
        while self.closing.is_none() {
            match self.inbox.recv_timeout(self.patience()) {
                Ok(command) => self.absorb(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.gathered.urgent {
                self.gather();
            }
            if self.closing.is_some() {
                break;
            }
            if let Err(reason) = self.work() {
                self.fail(&reason);
            }
        }
        self.finish();
    }

    /// How long nothing has to be done.
    fn patience(&self) -> Duration {
        let notes =
            self.gathered.since.map(|since| self.settings.config.idle_note_delay.saturating_sub(since.elapsed()));
        let mark = self.mark.is_dirty().then(|| MARK_SYNC_INTERVAL.saturating_sub(self.mark_synced.elapsed()));
        notes.into_iter().chain(mark).min().unwrap_or(IDLE)
    }

    fn absorb(&mut self, command: Command) {
        match command {
            Command::Append(records, reply) => {
                self.gathered.add(records.into_iter().map(|record| (Origin::Append, record)));
                self.gathered.replies.push(reply);
                self.gathered.urgent = true;
            }
            Command::Note(records) => self.gathered.add(records.into_iter().map(|record| (Origin::Note, record))),
            Command::Carried(records) => {
                self.gathered.add(records.into_iter().map(|(lsn, record)| (Origin::Carried(lsn), record)));
                self.gathered.urgent = true;
            }
            Command::CarryEnded(result) => {
                self.end_carrying();
                if let Err(reason) = result {
                    self.stuck = true;
                    tracing::error!(reason, "the oldest generation of the journal cannot be read and is kept");
                }
                self.gathered.urgent = true;
            }
            Command::Retained(since, reply) => {
                self.asking.push_back((since, reply));
                self.gathered.urgent = true;
            }
            Command::ReadEnded => {
                if let Some(thread) = self.reading.take() {
                    // It has answered, or dropped the question.
                    let _ = thread.join();
                }
                self.gathered.urgent = true;
            }
            Command::Close(reply) => self.closing = Some(reply),
        }
    }

    /// Takes what is queued, and lingers a little for more: two cohorts of callers that would take turns become one.
    fn gather(&mut self) {
        let max_batch = self.settings.config.max_batch;
        let started = Instant::now();
        while self.closing.is_none() && !self.gathered.is_full(max_batch) {
            match self.inbox.try_recv() {
                Ok(command) => self.absorb(command),
                Err(_) if started.elapsed() >= self.settings.config.linger => break,
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Whatever is due now.
    fn work(&mut self) -> Result<(), String> {
        let notes_due =
            self.gathered.since.is_some_and(|since| since.elapsed() >= self.settings.config.idle_note_delay);
        if self.gathered.urgent || notes_due {
            let gathered = std::mem::take(&mut self.gathered);
            self.commit(gathered)?;
            self.give_retained()?;
            self.reclaim()?;
        }
        if self.mark.is_dirty() && self.mark_synced.elapsed() >= MARK_SYNC_INTERVAL {
            self.sync_mark()?;
        }
        self.publish();
        Ok(())
    }

    /// One commit; answers everybody who waits for it, whatever happens.
    fn commit(&mut self, gathered: Gathered) -> Result<(), String> {
        let Gathered { records, replies, .. } = gathered;
        let written = self.write(&records);
        match written {
            Ok(()) => {
                replies.into_iter().for_each(|reply| reply.answer(Ok(())));
                Ok(())
            }
            Err(reason) => {
                // Before the answers: whoever gets one finds the journal failed.
                self.counters.failed.store(true, Ordering::Release);
                // What was only noted is still true, and is told again after the reopening.
                self.gathered.add(records.into_iter().filter(|(origin, _)| *origin == Origin::Note));
                for reply in replies {
                    reply.answer(Err(JournalError::Failed(reason.clone())));
                }
                Err(reason)
            }
        }
    }

    fn write(&mut self, records: &[(Origin, Encoded)]) -> Result<(), String> {
        if records.is_empty() {
            return Ok(());
        }
        self.roll_when_full()?;
        let mut packer = Packer::new(self.next_row);
        let mut lsn = self.next_lsn;
        let mut written = Vec::with_capacity(records.len() + 1);
        let now = self.now();
        if let Some(tick) = self.tick(now)? {
            packer.push(lsn, &tick.bytes);
            written.push((lsn, Origin::Append, tick.meaning));
            lsn += 1;
        }
        let oldest = self.generations[0].first;
        for (origin, record) in records {
            let place = match *origin {
                // A copy of what was closed meanwhile could outlive the record that closed it.
                Origin::Carried(place) if !self.index.is_needed_in(oldest, place, record.meaning) => continue,
                Origin::Carried(place) => place,
                Origin::Append | Origin::Note => {
                    lsn += 1;
                    lsn - 1
                }
            };
            packer.push(place, &record.bytes);
            written.push((place, *origin, record.meaning));
        }
        if written.is_empty() {
            return Ok(());
        }
        let (batch, next_row) = packer.finish();
        let db = self.db.as_ref().ok_or("the journal is not open")?;
        db.commit(batch).map_err(|error| error.to_string())?;
        self.raise_mark(next_row - 1, records)?;
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.next_row = next_row;
        self.next_lsn = lsn;
        self.index.retention.now = now;
        let generation = self.newest_mut();
        generation.records += written.len();
        let first = generation.first;
        for (lsn, origin, meaning) in written {
            if let Meaning::Dates(moment) = &meaning {
                self.ticked = Some(moment.ran);
            }
            match origin {
                Origin::Carried(_) => self.index.carried(lsn, meaning, first),
                Origin::Append | Origin::Note => self.index.add(lsn, first, meaning),
            }
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        let Moment { wall, ran } = (self.settings.clock)();
        Moment { wall, ran: self.ran_before.saturating_add(ran) }
    }

    /// What dates all that is before it, when that is due.
    fn tick(&mut self, Moment { wall, ran }: Moment) -> Result<Option<Encoded>, String> {
        let retention = &self.index.retention;
        let due = self.ticked.is_none_or(|ticked| ran.saturating_sub(ticked) >= retention.interval());
        if !retention.is_on() || !(due || self.newest_mut().records == 0) {
            return Ok(None);
        }
        Encoded::of(&JournalRecord::Tick { wall, ran }).map(Some)
    }

    /// Seals what there is and has it read, for those who want finished entries.
    fn give_retained(&mut self) -> Result<(), String> {
        if self.reading.is_some() || self.carrying.is_some() {
            return Ok(());
        }
        let Some((since, reply)) = self.asking.pop_front() else { return Ok(()) };
        let start = match self.index.retention.start(Since::new(since, self.now())) {
            Ok(start) => start,
            Err(available_since) => {
                // Whoever asked may have gone.
                let _ = reply.send(Err(RetentionError::TooFarBack { available_since }));
                return Ok(());
            }
        };
        if self.newest_mut().records > 0 {
            self.db = None;
            self.begin_generation()?;
        }
        let firsts = self.generations.iter().map(|generation| generation.first);
        let sealed = firsts.clone().zip(firsts.skip(1)).collect();
        self.reading = Some(retention::read_for(reply, &self.dir, sealed, &self.settings.guard, start, &self.own)?);
        Ok(())
    }

    /// The first acknowledgement out of a generation waits for the mark to be on the disk: until then a generation
    /// that does not open has lost nothing.
    fn raise_mark(&mut self, row: u64, records: &[(Origin, Encoded)]) -> Result<(), String> {
        let before = self.mark.get();
        let reserved = records.iter().map(|(_, record)| match record.meaning {
            Meaning::Reserves(version) => version.0,
            _ => 0,
        });
        let reserved = reserved.max().unwrap_or(0).max(before.reserved);
        self.write_mark(Mark { row, reserved, ..before })?;
        if before.row < self.newest_mut().first { self.sync_mark() } else { Ok(()) }
    }

    fn write_mark(&mut self, mark: Mark) -> Result<(), String> {
        let checked = self.settings.guard.check(Step::Mark);
        checked.and_then(|()| self.mark.write(mark)).map_err(|error| format!("{}: {error}", Step::Mark))
    }

    fn sync_mark(&mut self) -> Result<(), String> {
        let checked = self.settings.guard.check(Step::MarkSync);
        checked.and_then(|()| self.mark.sync()).map_err(|error| format!("{}: {error}", Step::MarkSync))?;
        self.mark_synced = Instant::now();
        Ok(())
    }

    fn newest_mut(&mut self) -> &mut Generation {
        self.generations.last_mut().expect("there is always a newest generation")
    }

    fn roll_when_full(&mut self) -> Result<(), String> {
        let db = self.db.as_ref().ok_or("the journal is not open")?;
        let bytes = db.size_on_disk();
        let newest = self.newest_mut();
        newest.bytes = bytes;
        let records = newest.records;
        let config = &self.settings.config;
        if records > 0 && (records >= config.generation_entries || bytes >= config.generation_bytes) {
            self.db = None;
            self.begin_generation()?;
        }
        Ok(())
    }

    /// Opens a new newest generation at the next row.
    fn begin_generation(&mut self) -> Result<(), String> {
        let first = self.next_row;
        let db = generation::open(&self.dir, first, &self.settings.guard).map_err(|error| error.to_string())?;
        self.generations.push(Generation { first, records: 0, bytes: db.size_on_disk() });
        self.db = Some(db);
        Ok(())
    }

    /// Removes the oldest generation when nothing in it is needed, or begins to carry forward what is.
    fn reclaim(&mut self) -> Result<(), String> {
        while self.reading.is_none() {
            match reclaim::next(&self.generations, &self.index, self.settings.config.retention_bytes) {
                Reclaim::Remove => self.remove_oldest()?,
                Reclaim::Carry if self.carrying.is_none() && !self.stuck => {
                    let rows = self.generations[0].first..self.generations[1].first;
                    let wanted = self.index.places(rows.start);
                    match reclaim::read_back(&self.dir, rows, &self.settings.guard, wanted, &self.own) {
                        Ok(thread) => self.carrying = Some(thread),
                        Err(error) => {
                            tracing::warn!(%error, "the oldest generation of the journal is not read back yet")
                        }
                    }
                    return Ok(());
                }
                Reclaim::Carry | Reclaim::Nothing => return Ok(()),
            }
        }
        Ok(())
    }

    fn end_carrying(&mut self) {
        if let Some(thread) = self.carrying.take()
            && thread.join().is_err()
        {
            self.stuck = true;
        }
    }

    /// The cursor is durable before anything is unlinked; what a crash leaves below it, the next open removes.
    fn remove_oldest(&mut self) -> Result<(), String> {
        let oldest = self.generations[0].first;
        let first = self.generations[1].first;
        self.write_mark(Mark { first, ..self.mark.get() })?;
        self.sync_mark()?;
        let removed = self.settings.guard.check(Step::Remove);
        let removed = removed.and_then(|()| fs::remove_dir_all(generation::path(&self.dir, oldest)));
        self.generations.remove(0);
        if self.index.retention.holds(oldest) {
            self.counters.retention_cuts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(generation = oldest, "finished writes go early: the journal has reached `retention_bytes`");
        }
        self.index.retention.removed(oldest);
        if let Err(error) = removed.and_then(|()| sync_dir(&self.dir)) {
            tracing::warn!(%error, generation = oldest, "a finished generation of the journal could not be removed");
        }
        Ok(())
    }

    /// Nothing is acknowledged until the journal has been reopened and read again.
    fn fail(&mut self, reason: &str) {
        tracing::error!(reason, "the journal failed");
        self.counters.failed.store(true, Ordering::Release);
        let mut reason = reason.to_owned();
        let mut backoff = FIRST_BACKOFF;
        self.db = None;
        loop {
            self.refuse_for(backoff, &reason);
            if self.closing.is_some() {
                return;
            }
            match self.reopen() {
                Ok(()) => break,
                Err(error) => reason = error,
            }
            self.db = None;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
        self.gathered.urgent = !self.gathered.records.is_empty() || !self.asking.is_empty();
        self.counters.failed.store(false, Ordering::Release);
        tracing::info!("the journal is open again");
        self.publish();
    }

    fn refuse_for(&mut self, time: Duration, reason: &str) {
        let until = Instant::now() + time;
        while self.closing.is_none() {
            let Ok(command) = self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) else { return };
            match command {
                Command::Append(_, reply) => reply.answer(Err(JournalError::Failed(reason.to_owned()))),
                Command::Carried(_) => {}
                command => self.absorb(command),
            }
        }
    }

    /// Checks that all that was acknowledged can be read, and goes on in a new generation. What the old one holds
    /// beyond the last acknowledged row was answered as failed; beginning the next one there makes it void.
    fn reopen(&mut self) -> Result<(), String> {
        // An attempt that got as far as creating a generation left one without any row.
        let first = self.next_row;
        self.generations.retain(|generation| generation.first < first);
        let void = generation::path(&self.dir, first);
        if void.exists() {
            fs::remove_dir_all(&void).and_then(|()| sync_dir(&self.dir)).map_err(|error| error.to_string())?;
        }
        if let Some(newest) = self.generations.last() {
            let db =
                generation::open(&self.dir, newest.first, &self.settings.guard).map_err(|error| error.to_string())?;
            let scan = generation::scan(&db, newest.first, Some(first), first - 1);
            if let Some(finding) = scan.findings.first() {
                return Err(format!("what was acknowledged cannot be read: {finding}"));
            }
        }
        self.begin_generation()?;
        let oldest = self.generations.first().map_or(first, |oldest| oldest.first);
        let mark = Mark { row: first - 1, first: oldest, ..self.mark.get() };
        let created = self.settings.guard.check(Step::Mark).and_then(|()| MarkFile::create(&self.dir, mark));
        self.mark = created.map_err(|error| error.to_string())?;
        Ok(())
    }

    fn publish(&self) {
        let sealed: u64 = self.generations.iter().rev().skip(1).map(|generation| generation.bytes).sum();
        let newest = self.db.as_ref().map_or(0, GuardedDb::size_on_disk);
        self.counters.disk_bytes.store(sealed + newest, Ordering::Relaxed);
        let generations = u32::try_from(self.generations.len()).unwrap_or(u32::MAX);
        self.counters.generations.store(generations, Ordering::Relaxed);
        let kept = self.generations.iter().rev().skip(1);
        let kept = kept.filter(|kept| self.index.needed_in(kept.first) == 0 && self.index.retention.holds(kept.first));
        self.counters.retained_bytes.store(kept.map(|kept| kept.bytes).sum(), Ordering::Relaxed);
        self.counters.retained_entries.store(self.index.retention.entries(), Ordering::Relaxed);
    }

    fn finish(mut self) {
        if self.db.is_some() {
            let gathered = std::mem::take(&mut self.gathered);
            let done = self.commit(gathered).and_then(|()| self.sync_mark());
            if let Err(reason) = done {
                self.counters.failed.store(true, Ordering::Release);
                tracing::error!(reason, "the journal failed while it was closed");
            }
        }
        self.end_carrying();
        self.asking.clear();
        if let Some(thread) = self.reading.take() {
            let _ = thread.join();
        }
        drop(self.db.take());
        drop(self.lock);
        if let Some(closing) = self.closing {
            // Whoever asked may have gone.
            let _ = closing.send(());
        }
    }
}
