//! How configuration says what is wrong with it: everything at once, each with the path of its setting.

use std::fmt;

/// One thing that is wrong with a configuration.
///
/// Every configuration has a `problems(&self, path, problems)` that appends all of them, so that a service is
/// corrected in one go and not one restart per mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Which setting, with dots: `backends.graph.breaker.failure_threshold`.
    pub path: String,
    /// What is wrong with it, and what it may be.
    pub problem: String,
}

impl ConfigProblem {
    /// A problem of one field of the configuration at this path. An empty path is the root.
    #[must_use]
    pub fn new(path: &str, field: &str, problem: impl Into<String>) -> Self {
        let path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        Self { path, problem: problem.into() }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}
