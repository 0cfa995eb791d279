//! The table of bugs and what killed them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::Report;
use super::bugs::Bug;
use super::lane::Verdict;

const HEAD: &str = "# Planted bugs

Mistakes that somebody could make, and the tests that notice. `bugs.toml` has them; `cargo test --test planted` makes
each of them in a copy of the repository and runs its tests there, which have to fail. This page is written by
`cargo test --test planted -- --write`.

| bug | breaks | killed by |
|---|---|---|
";

/// Tests that are named in a row.
const NAMED: usize = 2;

/// Writes the page.
pub(super) fn write(page: &Path, bugs: &[Bug], reports: &[Report]) -> Result<(), String> {
    let mut text = HEAD.to_owned();
    for bug in bugs {
        let report = reports.iter().find(|report| report.bug.as_ref().is_some_and(|done| done.name == bug.name));
        let Some(Verdict::Killed { by, tests }) = report.map(|report| &report.verdict) else { continue };
        let named = tests.iter().take(NAMED).map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", ");
        let more = match tests.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        writeln!(text, "| {} | {} | {}: {named}{more} |", bug.name, bug.breaks, by.target)
            .map_err(|error| error.to_string())?;
    }
    fs::write(page, text).map_err(|error| format!("{}: {error}", page.display()))
}

/// Whether the page has the bugs of the list.
pub(super) fn check(page: &Path, bugs: &[Bug]) -> Result<(), String> {
    let text = fs::read_to_string(page).unwrap_or_default();
    let rows = text.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let written: Vec<&str> = rows.filter_map(|row| row.split('|').nth(1)).map(str::trim).collect();
    if written.iter().eq(bugs.iter().map(|bug| &bug.name)) {
        return Ok(());
    }
    Err("README.md beside the list is out of date: run `cargo test --test planted -- --write`".to_owned())
}
