//! The rows, and how they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::runtime::Builder;

use crate::breaker::{Breaker, Miss, Probed, Why};
use crate::failsafe::Failsafe;
use crate::probes::{self, Means};
use crate::recloser::Recloser;
use crate::seawall::Seawall;
use crate::tower_resilience::TowerResilience;

/// Open waits to try in turn while the machine is too slow for the one before, in milliseconds.
const WAITS: [u64; 9] = [20, 20, 20, 50, 100, 200, 500, 1_000, 2_000];

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passes(String),
    Fails(String),
    Cannot(Why),
}

/// Whose time a probe is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    /// The one that the breaker lives in.
    Its,
    /// Tokio's, which the probe has paused.
    Paused,
}

/// A row.
pub(crate) struct Row {
    /// Its number in the list of traps.
    pub(crate) trap: u8,
    /// What is done, and what has to come of it.
    what: &'static str,
    /// A verdict per library.
    verdicts: Vec<Verdict>,
}

/// All rows, for all libraries.
pub(crate) struct Table {
    libraries: Vec<&'static str>,
    rows: Vec<Row>,
}

/// What one library does.
struct Column {
    library: &'static str,
    rows: Vec<(u8, &'static str, Verdict)>,
}

impl Column {
    fn of<B: Breaker>() -> Self {
        let mut column = Self { library: B::CRATE, rows: Vec::new() };
        column.stale::<B>();
        column.half_open::<B>();
        column.windows::<B>();
        column.foreign_code::<B>();
        column.surroundings::<B>();
        column
    }

    fn stale<B: Breaker>(&mut self) {
        let its = Time::Its;
        let what = "3 failures from before it opened come in during a healthy probe → closes";
        self.row::<B>(1, what, its, probes::stale_failures::<B>);
        let what = "a success from before it opened comes in, the probe is still out → does not close";
        self.row::<B>(1, what, its, probes::stale_success::<B>);
        let what = "calls that were out while it opened and closed again fail → stays closed";
        self.row::<B>(2, what, its, probes::stale_across_a_cycle::<B>);
    }

    fn half_open<B: Breaker>(&mut self) {
        let its = Time::Its;
        let what = "the probe hangs, 20 open waits pass → another is let through";
        self.row::<B>(3, what, its, probes::hung_probe::<B>);
        let what = "it fails after that, and the other succeeds → closes";
        self.row::<B>(3, what, its, probes::late_probe::<B>);
        let what = "probes are dropped, unpolled, polled and in a `select!` → place free, no verdict";
        self.row::<B>(4, what, its, probes::dropped_probe::<B>);
        let what = "100 callers on 10 threads when the wait is over, 1 place → calls let through";
        self.row::<B>(5, what, its, probes::crowd_at_half_open::<B>);
        let what = "probes that a breaker behind it refuses → place free, no verdict";
        self.row::<B>(6, what, its, probes::inner_breaker_refuses::<B>);
        let what = "probes that end in an error which says nothing about the backend → place free, no verdict";
        self.row::<B>(7, what, its, probes::calls_that_do_not_count::<B>);
        let what = "probes are told in time that there is no such record → closes";
        self.row::<B>(7, what, its, probes::nothing_but_misses::<B>);
    }

    fn windows<B: Breaker>(&mut self) {
        let its = Time::Its;
        let what = "10 000 successes, then all calls fail, a window of 4 → opens at failure";
        self.row::<B>(8, what, its, probes::long_success::<B>);
        let what = "10 000 calls within one time window → memory stays as it is";
        self.row::<B>(8, what, its, probes::memory_of_a_window::<B>);
        let what = "3 healthy probes, further apart than the time window → closes at the third";
        self.row::<B>(9, what, its, probes::rare_probes::<B>);
    }

    fn foreign_code<B: Breaker>(&mut self) {
        let its = Time::Its;
        self.row::<B>(10, "the probe panics → opens", its, probes::panicking_probe::<B>);
        self.row::<B>(10, "64 calls in a row panic → opens", its, probes::nothing_but_panics::<B>);
        let what = "a listener panics → callers do not";
        self.row::<B>(10, what, its, probes::panicking_listener::<B>);
        let what = "a listener calls the breaker that it hears of → is answered";
        self.row::<B>(11, what, its, probes::listener_that_calls::<B>);
    }

    fn surroundings<B: Breaker>(&mut self) {
        let its = Time::Its;
        let what = "`tokio::time::pause`, the open wait passes to the nanosecond → half-open, not before";
        self.row::<B>(12, what, Time::Paused, probes::paused_time::<B>);
        let what = "the process is killed every 10 s, the open wait is 60 s → half-open after";
        self.row::<B>(13, what, Time::Paused, probes::restarts::<B>);
        let what = "nobody calls, the backend heals → closes";
        self.row::<B>(14, what, its, async |_: &Means| B::heals_alone().await);
        let what = "open, half-open, closed → one state in the gauge";
        self.row::<B>(15, what, its, probes::state_gauge::<B>);
        let what = "10 calls each succeed, fail, panic, are dropped, are out → counted as what they are";
        self.row::<B>(15, what, its, probes::every_call_counted::<B>);
        let what = "1 000 calls while it is open → calls that reach the backend";
        self.row::<B>(16, what, its, probes::open_touches_nothing::<B>);
        let what = "a refusal says when to come again";
        self.row::<B>(16, what, its, probes::refusal_says_when::<B>);
        let what = "the probes succeed, then 1 000 calls at once → calls that are let through";
        self.row::<B>(17, what, its, probes::calls_after_recovery::<B>);
        let what = "the backend comes back, owed 1 000 writes → never more calls in it than configured, users first";
        self.row::<B>(17, what, its, async |_: &Means| B::recovery_storm().await);
        let what = "64 callers give up on a backend that hangs → it opens";
        self.row::<B>(18, what, its, probes::abandoned_calls::<B>);
    }

    fn row<B: Breaker>(&mut self, trap: u8, what: &'static str, time: Time, probe: impl AsyncFn(&Means) -> Probed) {
        let paused = B::IN_TOKIO_TIME || time == Time::Paused;
        let verdict = WAITS.iter().find_map(|wait| run(paused, Duration::from_millis(*wait), &probe));
        self.rows.push((trap, what, verdict.unwrap_or_else(|| panic!("the machine is too slow for: {what}"))));
    }
}

/// Runs a probe in a runtime of its own; `None` when the machine was too slow for it.
fn run(paused: bool, wait: Duration, probe: impl AsyncFn(&Means) -> Probed) -> Option<Verdict> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let means = Means { wait, page: recorder.handle() };
    let _recording = metrics::set_default_local_recorder(&recorder);
    let runtime = Builder::new_current_thread().enable_time().start_paused(paused).build();
    match runtime.expect("a runtime starts").block_on(probe(&means)) {
        Ok(measured) => Some(Verdict::Passes(measured)),
        Err(Miss::Fails(how)) => Some(Verdict::Fails(how)),
        Err(Miss::Cannot(why)) => Some(Verdict::Cannot(why)),
        Err(Miss::Late) => None,
    }
}

impl Table {
    /// Runs all probes.
    pub(crate) fn of_all() -> Self {
        let columns =
            [Column::of::<Seawall>, Column::of::<TowerResilience>, Column::of::<Recloser>, Column::of::<Failsafe>];
        let columns: Vec<Column> =
            columns.map(thread::spawn).into_iter().map(|column| column.join().expect("no probe panics")).collect();
        let rows = columns[0].rows.iter().enumerate().map(|(at, (trap, what, _))| Row {
            trap: *trap,
            what,
            verdicts: columns.iter().map(|column| column.rows[at].2.clone()).collect(),
        });
        Self { libraries: columns.iter().map(|column| column.library).collect(), rows: rows.collect() }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// What this library does in each row.
    pub(crate) fn column(&self, library: &str) -> Vec<(&'static str, Verdict)> {
        let at = self.libraries.iter().position(|name| *name == library).expect("it is in the table");
        self.rows.iter().map(|row| (row.what, row.verdicts[at].clone())).collect()
    }

    /// The pages, as they are and as they should be.
    fn pages(&self) -> Result<[(PathBuf, String, String); 2], String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let table = self.render(root)?;
        let page = |path: &str, table: &str| {
            let path = root.join(path);
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let wanted = between(&text, table).ok_or_else(|| format!("{}: no place for it", path.display()))?;
            Ok::<_, String>((path, text, wanted))
        };
        let with_reasons = format!("{table}\n{}", self.reasons());
        Ok([page("README.md", &table)?, page("tests/breaker_traps/README.md", &with_reasons)?])
    }

    pub(crate) fn write(&self) -> Result<(), String> {
        for (path, _, wanted) in self.pages()? {
            fs::write(&path, wanted).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        for (path, text, wanted) in self.pages()? {
            if text != wanted {
                let differ = |(is, should): &(&str, &str)| is != should;
                let (is, should) = text.lines().zip(wanted.lines()).find(differ).unwrap_or_default();
                return Err(format!(
                    "{} has\n{is}\nand the probes find\n{should}\nSEAWALL_WRITE=1 cargo test --test breaker_traps \
                     writes it",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    fn render(&self, root: &Path) -> Result<String, String> {
        let lock = fs::read_to_string(root.join("Cargo.lock")).map_err(|error| error.to_string())?;
        let mut text = "| trap | what happens → what has to come of it | Seawall |".to_owned();
        for library in &self.libraries[1..] {
            let version = version(&lock, library).ok_or_else(|| format!("{library} is not in Cargo.lock"))?;
            let _ = write!(text, " {library} {version} |");
        }
        text.push_str("\n|---|---|");
        text.push_str(&"---|".repeat(self.libraries.len()));
        text.push('\n');
        for row in &self.rows {
            let _ = write!(text, "| {} | {} |", row.trap, row.what);
            for verdict in &row.verdicts {
                let cell = match verdict {
                    Verdict::Passes(measured) => format!("✓ {measured}"),
                    Verdict::Fails(how) => format!("✗ {how}"),
                    Verdict::Cannot(_) => "–".to_owned(),
                };
                let _ = write!(text, " {} |", cell.trim());
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// Why cells are empty.
    fn reasons(&self) -> String {
        let mut reasons = BTreeMap::<(&str, Why), BTreeSet<u8>>::new();
        for row in &self.rows {
            for (library, verdict) in self.libraries.iter().zip(&row.verdicts) {
                if let Verdict::Cannot(why) = verdict {
                    reasons.entry((library, why)).or_default().insert(row.trap);
                }
            }
        }
        let mut text = "| – | in trap | because |\n|---|---|---|\n".to_owned();
        for ((library, why), traps) in reasons {
            let traps: Vec<String> = traps.iter().map(u8::to_string).collect();
            let _ = writeln!(text, "| {library} | {} | {why} |", traps.join(", "));
        }
        text
    }
}

/// The text with this between the two marks.
fn between(text: &str, table: &str) -> Option<String> {
    const BEGIN: &str = "<!-- breaker traps -->\n";
    const END: &str = "<!-- /breaker traps -->";
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// The version of a crate in a `Cargo.lock`.
fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(rest.split_once('"')?.0)
}
