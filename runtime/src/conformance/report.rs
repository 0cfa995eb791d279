//! What was found.

use std::fmt;

use super::Property;

/// What was found about every property.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a report that nobody reads finds nothing; see `assert`"]
pub struct Report {
    /// One for each property, in their order.
    pub findings: Vec<Finding>,
}

/// What was found about one property.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a finding that nobody reads finds nothing; see `assert`"]
pub struct Finding {
    /// Which.
    pub property: Property,
    /// What.
    pub judgement: Judgement,
}

/// Whether a backend has a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It has.
    Holds,
    /// It need not have it, or that could not be tried; why.
    Skipped(String),
    /// It has not; what it did instead.
    Broken(String),
}

impl Report {
    /// Whether nothing is broken.
    #[must_use]
    pub fn is_conformant(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The properties that the backend does not have.
    pub fn broken(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| matches!(finding.judgement, Judgement::Broken(_)))
    }

    /// # Panics
    /// With the whole report, when anything is broken.
    #[track_caller]
    pub fn assert(&self) {
        assert!(self.is_conformant(), "the backend does not conform:\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

impl Finding {
    /// # Panics
    /// When it is broken, with what was found.
    #[track_caller]
    pub fn assert(&self) {
        assert!(!matches!(self.judgement, Judgement::Broken(_)), "{self}");
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { property, judgement } = self;
        match judgement {
            Judgement::Holds => write!(f, "holds    {property}"),
            Judgement::Skipped(why) => write!(f, "skipped  {property}: {why}"),
            Judgement::Broken(how) => write!(f, "BROKEN   {property}: {how}"),
        }
    }
}
