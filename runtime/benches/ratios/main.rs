//! How fast Seawall is, as ratios against something that is measured in the same run.
//!
//! ```sh
//! cargo bench                    # everything, five to ten minutes
//! cargo bench -- --short         # everything, smaller, half a minute: does it still run?
//! cargo bench -- breaker cache   # only these groups
//! ```
//!
//! Prints one table, and writes it to `target/bench/table.md`; the plot of an outage goes to
//! `target/bench/outage.svg`. Times in nanoseconds say more about a machine than about a program, so every row is a
//! ratio; `measure.rs` says how it is taken. An aim that is missed is shown and does not fail the run.
//!
//! The allocator of this program counts, on both sides of every ratio.

mod breaker;
mod cache;
mod drain;
mod durable;
mod events;
mod growth;
mod measure;
mod memory;
mod outage;
mod queue;
mod stage;
mod store;
mod table;

use std::path::{Path, PathBuf};

use measure::Effort;
use table::{Row, Table};

type Group = (&'static str, fn(Effort) -> Vec<Row>);

const GROUPS: [Group; 10] = [
    ("breaker", breaker::rows),
    ("store", store::rows),
    ("durable", durable::rows),
    ("cache", cache::rows),
    ("drain", drain::rows),
    ("events", events::rows),
    ("queue", queue::rows),
    ("memory", memory::rows),
    ("growth", growth::rows),
    ("outage", outage::rows),
];

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, dir] = arguments.as_slice()
        && first == queue::REOPEN
    {
        return queue::reopen(Path::new(dir));
    }
    let short = arguments.iter().any(|argument| argument == "--short")
        || std::env::var("SEAWALL_BENCH").is_ok_and(|kind| kind == "short");
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut table = Table::new(short);
    for (name, rows) in GROUPS {
        if wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name) {
            eprintln!("{name} ..");
            rows(Effort { short }).into_iter().for_each(|row| table.add(row));
        }
    }
    println!("{table}");
    let path = results()?.join("table.md");
    std::fs::write(&path, table.to_string())?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// `target/bench`, wherever `target` is: this program is in `target/release/deps`.
fn results() -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).unwrap_or(Path::new("target"));
    let dir = target.join("bench");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
