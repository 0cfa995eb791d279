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

use clap::Parser;
use tokio::time::Instant;
use torture::rounds::{self, Report};
use torture::writer::Job;

/// Kills a service at random moments and counts what is lost.
#[derive(Parser)]
struct Options {
    /// How often to kill.
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Decides all that is random here; the moments of the kills still depend on the machine.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints the figures as JSON, in the last line.
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

fn main() -> ExitCode {
    if let Some(job) = Job::of_this_process() {
        job.run();
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let kills = if options.short { options.kills.min(10) } else { options.kills };
    let started = Instant::now();
    let mut report = rounds::run(kills, options.seed, options.dir, &[]);
    report.seconds = started.elapsed().as_secs();
    print(&report, options.json);
    if report.figures.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(report: &Report, json: bool) {
    for problem in &report.problems {
        eprintln!("{problem}");
    }
    let figures = &report.figures;
    println!("{} kills in {} s, {} acknowledged", report.kills, report.seconds, figures.acked);
    println!("lost {}, duplicated {}, reordered {}", figures.lost, figures.duplicated, figures.reordered);
    println!(
        "revived {}, resurrected {}, misread {}, open failures {}",
        figures.revived, figures.resurrected, figures.misread, figures.open_failures
    );
    if json {
        println!("{}", serde_json::to_string(report).expect("numbers serialize"));
    }
}
