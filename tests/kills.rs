//! Traps 5 and 9: a service is killed at any moment, under load, in a drain, in a compaction, in a saga and while it
//! opens. What it acknowledged is there, once, in order; what it refused is not.
//!
//! `SEAWALL_KILLS` sets how often (default 100). `examples/torture` does the same for as long as one likes.

mod torture;

use torture::rounds;
use torture::writer::Job;

/// Not a test of its own: the process that is killed.
#[test]
fn service_that_writes_until_it_is_killed() {
    if let Some(job) = Job::of_this_process() {
        job.run();
    }
}

#[test]
fn traps_05_and_09_a_service_that_is_killed_at_any_moment_loses_nothing() {
    let kills = std::env::var("SEAWALL_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(100);
    let writer = ["--exact", "service_that_writes_until_it_is_killed", "--nocapture", "--test-threads=1"];
    let report = rounds::run(kills, 1, None, &writer);
    println!("{}", serde_json::to_string(&report).expect("numbers serialize"));
    assert!(report.figures.is_clean(), "{:?}\n{}", report.figures, report.problems.join("\n"));
    assert!(report.figures.acked > 10 * kills, "too little was written to mean anything: {:?}", report.figures);
}
