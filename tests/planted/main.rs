//! Planted bugs: does the suite notice when the product is wrong?
//!
//! `bugs.toml` lists mistakes that somebody could make. Each is made in a copy of the repository, and the tests that
//! are named for it have to fail there. A bug survives when they pass; it does not apply when the text that it
//! replaces is not there exactly once, or when what comes out does not build. Either way this program fails, so the
//! list cannot rot.
//!
//! ```text
//! cargo test --test planted                 every bug
//! cargo test --test planted -- NAME...      those whose names contain one of these; also SEAWALL_BUGS=NAME,NAME
//! cargo test --test planted -- --write      every bug, and writes the table in README.md
//! ```
//!
//! It works in `target/planted`: one copy and one build per lane, as many lanes as there are cores, two at the most
//! (`SEAWALL_LANES`). They stay, so that the next run only builds what has changed.

mod bugs;
mod lane;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use bugs::{Bug, Killer};
use lane::{Lane, Verdict};
use tokio::time::Instant;

/// What one lane does next.
enum Task {
    /// The tests that are to fail have to pass as long as nothing is planted.
    Clean(Killer),
    Bug(Bug),
}

/// What came of it.
struct Report {
    bug: Option<Bug>,
    line: String,
    verdict: Verdict,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let write = arguments.iter().any(|argument| argument == "--write");
    let mut wanted: Vec<String> = arguments.into_iter().filter(|argument| !argument.starts_with("--")).collect();
    wanted.extend(std::env::var("SEAWALL_BUGS").into_iter().flat_map(|names| split(&names)));
    match run(&wanted, write) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("planted bugs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn split(names: &str) -> Vec<String> {
    names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn run(wanted: &[String], write: bool) -> Result<bool, String> {
    let started = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = root.join("tests/planted");
    let all = bugs::read(&here.join("bugs.toml"))?;
    let chosen = |bug: &&Bug| wanted.is_empty() || wanted.iter().any(|name| bug.name.contains(name.as_str()));
    let bugs: Vec<Bug> = all.iter().filter(chosen).cloned().collect();
    if bugs.is_empty() {
        return Err(format!("no bug is called {}", wanted.join(" or ")));
    }
    let reports = work_off(tasks(&bugs), root)?;

    let count = |wanted: fn(&Verdict) -> bool| {
        reports.iter().filter(|report| report.bug.is_some() && wanted(&report.verdict)).count()
    };
    let killed = count(|verdict| matches!(verdict, Verdict::Killed { .. }));
    let survived = count(|verdict| matches!(verdict, Verdict::Survived));
    println!();
    for report in reports.iter().filter(|report| report.is_wrong()) {
        println!("{}", report.line);
    }
    let seconds = started.elapsed().as_secs();
    let rest = bugs.len() - killed - survived;
    println!("{} bugs planted: {killed} killed, {survived} survived, {rest} not applicable; {seconds} s", bugs.len());
    let wrong = reports.iter().filter(|report| report.is_wrong()).count();
    // As the other tests say it, to be counted with them.
    println!("test result: {}. {killed} passed; {wrong} failed;", if wrong == 0 { "ok" } else { "FAILED" });
    let mut good = wrong == 0;
    let readme = here.join("README.md");
    if write && good && wanted.is_empty() {
        table::write(&readme, &all, &reports)?;
    } else if let Err(error) = table::check(&readme, &all) {
        println!("{error}");
        good = false;
    }
    Ok(good)
}

/// Bugs that are found by the same program one after another, for each then costs the smallest build.
fn tasks(bugs: &[Bug]) -> VecDeque<Task> {
    let mut killers: BTreeMap<&str, Vec<&Killer>> = BTreeMap::new();
    for killer in bugs.iter().flat_map(|bug| &bug.killed_by) {
        killers.entry(&killer.target).or_default().push(killer);
    }
    let mut tasks = VecDeque::new();
    for (target, killers) in killers {
        tasks.push_back(Task::Clean(Killer::all(&killers)));
        let mut found: Vec<&Bug> = bugs.iter().filter(|bug| bug.killed_by[0].target == target).collect();
        found.sort_by_key(|bug| &bug.file);
        tasks.extend(found.into_iter().cloned().map(Task::Bug));
    }
    tasks
}

fn work_off(tasks: VecDeque<Task>, root: &Path) -> Result<Vec<Report>, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = std::env::var("SEAWALL_LANES").ok().and_then(|lanes| lanes.parse().ok()).unwrap_or(cores.min(2));
    let (tasks, reports) = (Mutex::new(tasks), Mutex::new(Vec::new()));
    // From both ends, so that hardly any program is built in both lanes.
    let next = |number: usize| {
        let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if number.is_multiple_of(2) { tasks.pop_front() } else { tasks.pop_back() }
    };
    let work = |number: usize| -> Result<(), String> {
        let lane = Lane::open(root, number)?;
        while let Some(task) = next(number) {
            let report = Report::of(task, &lane);
            println!("{}", report.line);
            reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..lanes.max(1)).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a lane panicked".to_owned())?)
    })?;
    Ok(reports.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Report {
    fn of(task: Task, lane: &Lane) -> Self {
        let started = Instant::now();
        let (bug, name, verdict) = match task {
            Task::Clean(killer) => {
                let verdict = lane.clean(&killer);
                (None, format!("without a bug, {}", killer.target), verdict)
            }
            Task::Bug(bug) => {
                let verdict = lane.plant(&bug);
                let name = bug.name.clone();
                (Some(bug), name, verdict)
            }
        };
        let says = match (&verdict, &bug) {
            (Verdict::Survived, None) => "all pass".to_owned(),
            (Verdict::Survived, Some(_)) => "SURVIVED".to_owned(),
            (Verdict::Killed { tests, .. }, None) => format!("THESE FAIL: {}", tests.join(", ")),
            (Verdict::Killed { by, tests }, Some(_)) => format!("killed by {}: {}", by.target, tests.join(", ")),
            (Verdict::NotApplicable(why), _) => format!("NOT APPLICABLE: {why}"),
        };
        let line = format!("{:5.1} s  {name}: {says}", started.elapsed().as_secs_f64());
        Self { bug, line, verdict }
    }

    fn is_wrong(&self) -> bool {
        match (&self.verdict, &self.bug) {
            (Verdict::Survived, None) | (Verdict::Killed { .. }, Some(_)) => false,
            (Verdict::Survived, Some(_)) | (Verdict::Killed { .. }, None) | (Verdict::NotApplicable(_), _) => true,
        }
    }
}
