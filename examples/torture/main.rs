//! Kills a service at random moments, over and over, and counts what is lost. Must be nothing.
//!
//! `cargo run --release --example torture -- --kills 1000 --seed 1 --json`
//!
//! A child process writes to two stores through Seawall: under load, while a store is given what it is owed, while the
//! journal is compacted, in sagas that fail half-way, and while it is only just opening. It is killed with SIGKILL,
//! sometimes again while it recovers; then everything is opened, drained, and compared with what the child was told.

#[path = "../../tests/torture/mod.rs"]
mod torture;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use tokio::time::Instant;
use torture::writer::Job;
use torture::{Figures, Process, Scene, Told, process};

/// Kills a service at random moments and counts what is lost.
#[derive(Parser)]
struct Options {
    /// How often to kill.
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Decides all that is random here; the moments of the kills still depend on the machine.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints the figures as JSON, in one line.
    #[arg(long)]
    json: bool,
    /// A few kills, to see it work.
    #[arg(long)]
    short: bool,
    /// Where the directories are made. Default: in memory where there is a file system for that; a kill takes nothing
    /// from the page cache.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// All that is printed.
#[derive(Default, Serialize)]
struct Report {
    kills: u64,
    kills_by_scene: std::collections::BTreeMap<&'static str, u64>,
    judgements: u64,
    seed: u64,
    seconds: u64,
    #[serde(flatten)]
    figures: Figures,
}

/// Judgements after which a fresh directory is begun.
const ROUNDS: u64 = 25;

fn main() -> ExitCode {
    if let Some(job) = Job::of_this_process() {
        job.run();
        return ExitCode::SUCCESS;
    }
    let mut options = Options::parse();
    if options.short {
        options.kills = options.kills.min(10);
    }
    let started = Instant::now();
    let mut report = run(&options);
    report.seconds = started.elapsed().as_secs();
    print(&report, options.json);
    if report.figures.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(options: &Options) -> Report {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut report = Report { seed: options.seed, ..Report::default() };
    let memory = PathBuf::from("/dev/shm");
    let place = options.dir.clone().unwrap_or_else(|| if memory.is_dir() { memory } else { std::env::temp_dir() });
    while report.kills < options.kills {
        let dir = tempfile::tempdir_in(&place).expect("a directory");
        let mut told = Told::default();
        for _ in 0..ROUNDS {
            if report.kills >= options.kills {
                break;
            }
            kill_some(&mut told, dir.path(), &mut random, &mut report);
            let figures = runtime.block_on(told.judge(dir.path()));
            report.judgements += 1;
            report.figures += &figures;
            if !figures.is_clean() {
                for problem in &told.problems {
                    eprintln!("{problem}");
                }
                eprintln!("what it left is in {}", dir.keep().display());
                break;
            }
            if report.judgements.is_multiple_of(50) {
                eprintln!("{} kills, {} acknowledged", report.kills, report.figures.acked);
            }
        }
    }
    report
}

/// Kills in one scene, and perhaps again while it recovers.
fn kill_some(told: &mut Told, dir: &std::path::Path, random: &mut fastrand::Rng, report: &mut Report) {
    let scene = Scene::ALL[random.usize(..Scene::ALL.len())];
    let again = if random.u32(..3) == 0 { random.usize(1..3) } else { 0 };
    for scene in std::iter::once(scene).chain(std::iter::repeat_n(Scene::Open, again)) {
        let job = Job { dir: dir.to_owned(), scene, seed: random.u64(..), first: told.next() };
        let mut process = Process::start(&job, &[]);
        let most = match scene {
            Scene::Open => 60,
            Scene::Drain => 120,
            Scene::Load | Scene::Compaction | Scene::Saga => 400,
        };
        let begun = match scene {
            Scene::Open => true,
            Scene::Drain => process.says("drain"),
            Scene::Load | Scene::Compaction | Scene::Saga => process.says("ready"),
        };
        if begun {
            process::pause(Duration::from_micros(random.u64(..most * 1_000)));
        }
        told.hear(&process.kill());
        report.kills += 1;
        *report.kills_by_scene.entry(scene.name()).or_default() += 1;
    }
}

fn print(report: &Report, json: bool) {
    let figures = &report.figures;
    println!("{} kills in {} s, {} acknowledged", report.kills, report.seconds, figures.acked);
    println!("lost {}, duplicated {}, reordered {}", figures.lost, figures.duplicated, figures.reordered);
    println!("revived {}, misread {}, open failures {}", figures.revived, figures.misread, figures.open_failures);
    if json {
        println!("{}", serde_json::to_string(report).expect("numbers serialize"));
    }
}
