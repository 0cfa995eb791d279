//! Every step of the disk fails once; every write is short once; every byte and every length of a small journal is damaged
//! once.
//!
//! `SEAWALL_SWEEP_STEP` sets the stride (1 takes all). The defaults fit the ordinary run.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;

use super::*;
use crate::guard::Step;

fn stride(otherwise: usize) -> usize {
    std::env::var("SEAWALL_SWEEP_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(otherwise)
}

/// Does the cases on several threads: most of a case is waiting.
fn in_parallel<T: Sync>(cases: &[T], threads: usize, judge: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    judge(case);
                }
            });
        }
    });
}

/// What a disk does at one step.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Broken,
    /// This often in a row, so that reopening fails, too.
    Full(i64),
    Slow,
}

/// Gives trouble at the n-th of all steps.
struct Troubled {
    countdown: AtomicI64,
    trouble: Trouble,
    met: Mutex<Vec<Step>>,
}

impl Troubled {
    fn at(step: i64, trouble: Trouble) -> Arc<Self> {
        Arc::new(Self { countdown: AtomicI64::new(step), trouble, met: Mutex::default() })
    }
}

impl FaultHook for Troubled {
    fn before(&self, step: Step) -> io::Result<()> {
        let at = self.countdown.fetch_sub(1, Ordering::SeqCst);
        let (times, errno) = match self.trouble {
            Trouble::Broken => (1, 5),
            Trouble::Full(times) => (times, 28),
            Trouble::Slow => (1, 0),
        };
        if at > 0 || at <= -times {
            return Ok(());
        }
        self.met.lock().unwrap().push(step);
        if errno == 0 {
            crate::guard::pause(Duration::from_millis(20));
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(errno))
    }
}

/// One stretch of the workload between an open and a close: entries of all sizes that end out of order, so that the
/// journal rolls, carries forward and deletes. Gives what was acknowledged and how much was not.
fn stretch(journal: &SledJournal, number: u64) -> (Vec<JournalRecord>, usize) {
    let (mut history, mut failed) = (Vec::new(), 0);
    let first = 1 + number * 16;
    for version in first..first + 16 {
        let mut records = vec![intent(version, if version % 7 == 0 { 9_000 } else { 40 })];
        match version % 4 {
            0 => records.push(reserved(version + 1_000)),
            1 => records.push(done(version, "graph")),
            _ => {}
        }
        // What is eight back ends, but for one in sixteen.
        if version > 8 && version % 16 != 3 {
            records.push(closed(version - 8));
        }
        match append(journal, records.clone()) {
            Ok(()) => history.extend(records),
            Err(error) => {
                assert!(matches!(error, JournalError::Failed(_)), "{error}");
                failed += 1;
                let mut rounds = 0;
                while journal.progress().failed {
                    crate::guard::pause(Duration::from_millis(5));
                    rounds += 1;
                    assert!(rounds < 10_000, "it never reopened");
                }
            }
        }
    }
    (history, failed)
}

/// A journal at the beginning of a stretch, how many steps that stretch takes, and everything that was acknowledged.
struct Stage {
    dir: tempfile::TempDir,
    number: u64,
    steps: i64,
    history: Vec<JournalRecord>,
}

/// Goes through the workload without trouble, and keeps what lies on the disk before each stretch.
fn stages(steps: i64) -> Vec<Stage> {
    let dir = scratch();
    let mut stages: Vec<Stage> = Vec::new();
    let mut history = Vec::new();
    let mut total = 0;
    for number in 0.. {
        if total >= steps {
            break;
        }
        let before = scratch();
        copy_dir(dir.path(), &before.path().join("journal"));
        let counting = Troubled::at(i64::MAX, Trouble::Slow);
        let hook: Arc<dyn FaultHook> = counting.clone();
        let (journal, _) = SledJournal::open_with_faults(dir.path(), small(), OnDamage::Refuse, Some(hook)).unwrap();
        let (acknowledged, _) = stretch(&journal, number);
        close(journal);
        let took = i64::MAX - counting.countdown.load(Ordering::SeqCst);
        total += took;
        stages.push(Stage { dir: before, number, steps: took, history: history.clone() });
        history.extend(acknowledged);
    }
    stages
}

/// Trap 19: the n-th step fails, for every n up to 2 000 of a workload that opens, rolls, carries forward, deletes and
/// closes. Nothing is acknowledged that is not there, nothing that failed is, and when the trouble is over it goes on.
#[test]
fn trap_19_whatever_step_of_the_disk_fails_nothing_acknowledged_is_lost() {
    const STEPS: i64 = 2_000;
    let stages = stages(STEPS);
    let troubles = [Trouble::Broken, Trouble::Full(3), Trouble::Slow];
    let every = stages.iter().flat_map(|stage| (0..stage.steps).map(move |at| (stage, at)));
    let cases: Vec<_> = every
        .take(STEPS as usize)
        .enumerate()
        .step_by(stride(1))
        .map(|(n, (stage, at))| (stage, at, troubles[n % troubles.len()]))
        .collect();
    let met: Mutex<BTreeMap<String, usize>> = Mutex::default();
    in_parallel(&cases, 12, |(stage, at, trouble)| {
        for step in fail_once(stage, *at, *trouble) {
            *met.lock().unwrap().entry(format!("{step:?}")).or_default() += 1;
        }
    });
    let met = met.into_inner().unwrap();
    println!("{} troubles: {met:?}", cases.len());
    for step in ["Open", "Read", "Apply", "Flush", "Sync", "Mark", "MarkSync", "Remove"] {
        assert!(met.contains_key(step), "no {step} failed: {met:?}");
    }
}

/// The records without reservations, and up to where versions are reserved.
fn apart(records: Vec<JournalRecord>) -> (Vec<JournalRecord>, Option<Version>) {
    let (reservations, others): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| matches!(record, JournalRecord::Reserved { .. }));
    let up_to = reservations.iter().filter_map(|record| match record {
        JournalRecord::Reserved { up_to } => Some(*up_to),
        _ => None,
    });
    (others, up_to.max())
}

fn fail_once(stage: &Stage, at: i64, trouble: Trouble) -> Vec<Step> {
    let dir = scratch();
    let dir = dir.path().join("journal");
    copy_dir(&stage.dir.path().join("journal"), &dir);
    let fault = Troubled::at(at, trouble);
    go_through(stage, &dir, fault.clone(), &fault.met, &format!("{trouble:?} at step {at}"));
    fault.met.lock().unwrap().clone()
}

/// Does a stretch on a disk with a fault in it, and compares what it leaves with what was acknowledged.
fn go_through(stage: &Stage, dir: &Path, hook: Arc<dyn FaultHook>, met: &Mutex<Vec<Step>>, what: &str) {
    let what = format!("{what} of stretch {}", stage.number);
    let mut history = stage.history.clone();
    match SledJournal::open_with_faults(dir, small(), OnDamage::Refuse, Some(hook)) {
        Ok((journal, recovered)) => {
            assert!(recovered.loss.is_empty());
            let (acknowledged, failed) = stretch(&journal, stage.number);
            assert!(failed <= 3, "{failed} appends failed for one trouble, {what}");
            history.extend(acknowledged);
            close(journal);
        }
        Err(JournalOpenError::Io { .. }) => {}
        // A sector that cannot be read is damage, for all that an open can know. Refused, it costs nothing.
        Err(JournalOpenError::Damaged { .. }) if met.lock().unwrap().contains(&Step::Read) => {}
        Err(error) => panic!("{what}: {error}"),
    }
    let (journal, found) = opened(dir, &small());
    let expected = needed(&history, 3);
    let (found, found_up_to) = apart(found);
    let (expected, up_to) = apart(expected);
    assert_eq!(found, expected, "{what}");
    // A reservation whose append failed may be kept all the same: it costs a few of 2^64 versions.
    assert!(found_up_to >= up_to, "{what}");
    append(&journal, vec![intent(9_999, 1)]).unwrap();
    close(journal);
}

/// How much of a write reaches the file.
#[derive(Clone, Copy, Debug)]
enum Part {
    Nothing,
    OneByte,
    Half,
    AllButOneByte,
    All,
}

impl Part {
    const EACH: [Self; 5] = [Self::Nothing, Self::OneByte, Self::Half, Self::AllButOneByte, Self::All];

    fn of(self, bytes: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::OneByte => 1.min(bytes),
            Self::Half => bytes / 2,
            Self::AllButOneByte => bytes.saturating_sub(1),
            Self::All => bytes,
        }
    }
}

/// A disk on which the n-th write, of rows or of the mark, is short: a part of it reaches the file, and then there is no
/// space left.
///
/// What sled writes is not known before it has. So what a commit wrote is taken back from behind, to the part, before
/// the sync, which then fails in place of the write.
struct Short {
    dir: PathBuf,
    countdown: AtomicI64,
    part: Part,
    /// The file of rows as it was before the last flush.
    before: Mutex<Vec<u8>>,
    met: Mutex<Vec<Step>>,
}

impl Short {
    fn rows(&self) -> PathBuf {
        let newest = generation::list(&self.dir).unwrap().pop().unwrap_or_default();
        generation::path(&self.dir, newest).join("db")
    }

    fn take_back_rows(&self) {
        let (path, before) = (self.rows(), self.before.lock().unwrap());
        let after = std::fs::read(&path).unwrap();
        let changed = |at: &usize| before.get(*at) != after.get(*at);
        let Some(first) = (0..after.len()).find(changed) else { return };
        let last = (first..after.len()).rfind(changed).unwrap_or(first);
        let from = first + self.part.of(last + 1 - first);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(before.get(from..).unwrap_or_default(), from as u64).unwrap();
        file.set_len(from.max(before.len()) as u64).unwrap();
    }

    /// The older slot is the one that is written to.
    fn write_part_of_mark(&self) {
        let path = self.dir.join("mark");
        let Ok(bytes) = std::fs::read(&path) else { return };
        let at = if bytes[4..28] <= bytes[516..540] { 0 } else { 512 };
        let mut slot = bytes[512 - at..512 - at + 32].to_vec();
        // The next row, and not yet its checksum.
        slot[11] = slot[11].wrapping_add(1);
        let part = self.part.of(28);
        File::options().write(true).open(path).unwrap().write_all_at(&slot[..part], at as u64).unwrap();
    }
}

impl FaultHook for Short {
    fn before(&self, step: Step) -> io::Result<()> {
        if step == Step::Flush {
            *self.before.lock().unwrap() = std::fs::read(self.rows()).unwrap_or_default();
        }
        let writes = matches!(step, Step::Sync | Step::Mark);
        if !writes || self.countdown.fetch_sub(1, Ordering::SeqCst) != 0 {
            return Ok(());
        }
        self.met.lock().unwrap().push(step);
        if step == Step::Sync {
            self.take_back_rows()
        } else {
            self.write_part_of_mark()
        }
        Err(io::Error::from_raw_os_error(28))
    }
}

/// Trap 19, for writes that are short: of the n-th write only a part is there. It is not acknowledged, harms nothing
/// before it, and does not come alive.
#[test]
fn trap_19_whichever_write_is_short_nothing_acknowledged_is_lost() {
    const STEPS: i64 = 2_000;
    let stages = stages(STEPS);
    // Two of five steps write.
    let every = stages.iter().flat_map(|stage| (0..stage.steps * 2 / 5).map(move |at| (stage, at)));
    let cases: Vec<_> = every.enumerate().step_by(stride(1)).collect();
    let met: Mutex<BTreeMap<String, usize>> = Mutex::default();
    in_parallel(&cases, 12, |(n, (stage, at))| {
        let dir = scratch();
        let dir = dir.path().join("journal");
        copy_dir(&stage.dir.path().join("journal"), &dir);
        let (countdown, part) = (AtomicI64::new(*at), Part::EACH[n % Part::EACH.len()]);
        let short =
            Arc::new(Short { dir: dir.clone(), countdown, part, before: Mutex::default(), met: Mutex::default() });
        go_through(stage, &dir, short.clone(), &short.met, &format!("{part:?} of write {at}"));
        for step in short.met.lock().unwrap().iter() {
            *met.lock().unwrap().entry(format!("{step:?}")).or_default() += 1;
        }
    });
    let met = met.into_inner().unwrap();
    println!("{} short writes: {met:?}", cases.len());
    assert!(["Sync", "Mark"].iter().all(|step| met.contains_key(*step)), "not every write was short: {met:?}");
}

/// A closed journal of few records, all of them needed, in one generation; one record takes several rows.
fn few_records(dir: &Path) -> Vec<JournalRecord> {
    let (journal, _) = opened(dir, &small());
    let history =
        vec![intent(1, 10), done(1, "graph"), reserved(500), intent(2, 5_000), intent(3, 10), done(2, "vector")];
    for record in &history {
        append(&journal, vec![record.clone()]).unwrap();
    }
    close(journal);
    assert_eq!(generation::list(dir).unwrap(), [1]);
    history
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip(usize),
    Cut(usize),
}

impl Harm {
    fn every(length: usize, stride: usize) -> Vec<Self> {
        (0..length).step_by(stride).flat_map(|at| [Self::Flip(at), Self::Cut(at)]).collect()
    }

    fn inflict(self, path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        match self {
            Self::Flip(at) => bytes[at] ^= 0x41,
            Self::Cut(at) => bytes.truncate(at),
        }
        std::fs::write(path, bytes).unwrap();
    }
}

/// Trap 20: every byte of a small journal is flipped, and every length of it cut. Either nothing is lost, or the open
/// is refused with an exact report, and what the report leaves is there when it is told to go on.
#[test]
fn trap_20_every_byte_and_every_length_of_a_journal_is_accounted_for() {
    let original = scratch();
    let history = few_records(&original.path().join("journal"));
    let files = ["gen-00000000000000000001/db", "gen-00000000000000000001/conf", "mark"];
    let mut cases = Vec::new();
    for file in files {
        let length = std::fs::metadata(original.path().join("journal").join(file)).unwrap().len() as usize;
        cases.extend(Harm::every(length, stride(1)).into_iter().map(|harm| (file, harm)));
    }
    let refused = AtomicU64::new(0);
    in_parallel(&cases, 6, |(file, harm)| {
        let copy = scratch();
        let dir = copy.path().join("journal");
        copy_dir(&original.path().join("journal"), &dir);
        harm.inflict(&dir.join(file));
        if !accounts_for_everything(&dir, &history).unwrap_or_else(|problem| panic!("{file}, {harm:?}: {problem}")) {
            refused.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("{} harms, {} of them refused with a report", cases.len(), refused.into_inner());
}

/// Gives whether nothing was lost.
fn accounts_for_everything(dir: &Path, history: &[JournalRecord]) -> Result<bool, String> {
    let report = match SledJournal::open(dir, small(), OnDamage::Refuse) {
        Ok((journal, recovered)) => {
            close(journal);
            let whole = recovered.loss.is_empty() && recovered.records == history;
            return if whole { Ok(true) } else { Err(format!("lost in silence: {:?}", recovered.loss)) };
        }
        Err(JournalOpenError::Damaged { report, .. }) => report,
        Err(error) => return Err(format!("neither open nor damaged: {error}")),
    };
    if report.is_empty() {
        return Err("damage without a finding".into());
    }
    let (journal, recovered) =
        SledJournal::open(dir, small(), OnDamage::Continue).map_err(|error| format!("does not continue: {error}"))?;
    let appended = append(&journal, vec![intent(100, 1)]);
    close(journal);
    appended.map_err(|error| error.to_string())?;
    if recovered.loss.rows != report.rows {
        return Err(format!("two reports: {:?} and {:?}", report.rows, recovered.loss.rows));
    }
    // A record lies in one row here, but the fourth, which lies in two.
    let lies_in = [(1, 1), (2, 2), (3, 3), (4, 5), (6, 6), (7, 7)];
    let lost = |(from, to): (u64, u64)| report.rows.iter().any(|(first, last)| *first <= to && from <= *last);
    let left: Vec<_> = history.iter().zip(lies_in).filter(|(_, rows)| !lost(*rows)).map(|(record, _)| record).collect();
    let reserved = |record: &JournalRecord| matches!(record, JournalRecord::Reserved { .. });
    // What follows an intent that is lost is of no use; what was reserved is in the mark as well, and always there.
    let intents: Vec<_> = left.iter().filter(|record| matches!(record, JournalRecord::Intent(_))).collect();
    let found: Vec<_> = recovered.records.iter().filter(|record| matches!(record, JournalRecord::Intent(_))).collect();
    if intents.iter().copied().copied().ne(found.iter().copied()) {
        return Err(format!("reported {:?}, and {} intents are left", report.rows, found.len()));
    }
    if !recovered.records.iter().any(reserved) && !report.findings.iter().any(|finding| finding.contains("mark")) {
        return Err("the reservation is gone".into());
    }
    Ok(false)
}
