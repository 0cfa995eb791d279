//! The list.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

/// One mistake that somebody could make.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bug {
    /// Its name, as in the output.
    pub(super) name: String,
    /// Which promise it breaks, or which trap it walks into.
    pub(super) breaks: String,
    /// Where it is made, from the root.
    pub(super) file: String,
    /// What is replaced. It occurs once in the file.
    pub(super) find: String,
    /// By what.
    pub(super) plant: String,
    /// The tests that are run, in this order, until one fails.
    pub(super) killed_by: Vec<Killer>,
}

/// Tests of one program.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub(super) struct Killer {
    /// The package whose unit tests they are, or a program in `tests/`.
    pub(super) target: String,
    /// Only tests whose names contain one of these; none means all.
    pub(super) filters: Vec<String>,
}

impl From<String> for Killer {
    fn from(text: String) -> Self {
        let mut words = text.split_whitespace().map(str::to_owned);
        Self { target: words.next().unwrap_or_default(), filters: words.collect() }
    }
}

impl Killer {
    /// All tests that any of these names; they are of one program.
    pub(super) fn all(killers: &[&Self]) -> Self {
        let target = killers.first().map(|killer| killer.target.clone()).unwrap_or_default();
        let mut filters = Vec::new();
        if killers.iter().all(|killer| !killer.filters.is_empty()) {
            filters.extend(killers.iter().flat_map(|killer| killer.filters.clone()));
            filters.sort();
            filters.dedup();
        }
        Self { target, filters }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    bug: Vec<Bug>,
}

/// Reads the list.
pub(super) fn read(path: &Path) -> Result<Vec<Bug>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let List { bug: bugs } = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut names = HashSet::new();
    for bug in &bugs {
        if !names.insert(bug.name.as_str()) {
            return Err(format!("two bugs are called {}", bug.name));
        }
        if bug.killed_by.is_empty() {
            return Err(format!("{} names no test", bug.name));
        }
    }
    Ok(bugs)
}
