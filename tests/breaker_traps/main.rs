//! The traps that circuit breakers fall into, put to Seawall and to three crates side by side.
//!
//! ```text
//! table.rs    which rows there are, and how they are shown
//!   └─ probes.rs    a row: what is done to a breaker, and what has to come of it
//!        └─ bench.rs    calls that are out, that end in all ways, that are refused
//!             └─ breaker.rs    what a library has to be able to do
//!                  └─ seawall.rs, tower_resilience.rs, recloser.rs, failsafe.rs
//! ```
//!
//! No verdict is written down: the tables in `README.md` here and in the one of the repository are what the probes
//! find. `SEAWALL_WRITE=1 cargo test --test breaker_traps` writes them.
//!
//! Seawall runs in virtual time. The others read the clock of the machine, so they wait for real, 20 ms at a time; a
//! probe that was held up for so long that its verdict may be the machine's is repeated with a longer wait.

mod bench;
mod breaker;
mod failsafe;
mod probes;
mod recloser;
mod seawall;
mod storm;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod tower_resilience;

use std::sync::LazyLock;

use table::{Table, Verdict};

static TABLE: LazyLock<Table> = LazyLock::new(Table::of_all);

#[test]
fn seawall_falls_into_none_of_the_traps() {
    let column = TABLE.column("seawall");
    let fallen: Vec<_> = column.iter().filter(|(_, verdict)| !matches!(verdict, Verdict::Passes(_))).collect();
    assert!(fallen.is_empty(), "{fallen:#?}");
}

#[test]
fn every_trap_has_a_row() {
    let numbers: Vec<u8> = TABLE.rows().map(|row| row.trap).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert!((1..=18).all(|trap| numbers.contains(&trap)), "{numbers:?}");
}

#[test]
fn both_pages_show_what_the_probes_find() {
    let stale = if std::env::var_os("SEAWALL_WRITE").is_some() { TABLE.write() } else { TABLE.check() };
    assert_eq!(stale, Ok(()));
}
